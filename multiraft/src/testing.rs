//! Bugs that can be put into the host on purpose, to see that its tests notice them.
//!
//! Only in builds with the feature `seeded-bugs`, and only on the thread that asks for one; without the feature every
//! question is answered `false` at compile time.

/// A bug that the simulator must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "seeded-bugs"),
    expect(unreachable_pub, reason = "public with the feature only")
)]
pub enum Bug {
    /// A read that the leader answered is served before local state is there.
    ReadBeforeApplied,
    /// A read counts for a question that was asked before it came.
    ReadJoinsQuestion,
    /// The answer to a question of an earlier run counts.
    AnswerOfEarlierBoot,
    /// A command without an outcome is said not to have been proposed.
    TimeoutAsRefusal,
}

#[cfg(feature = "seeded-bugs")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Runs `work` with a bug in everything of this crate that is used on this thread meanwhile.
#[cfg(feature = "seeded-bugs")]
pub fn with_bug<T>(bug: Bug, work: impl FnOnce() -> T) -> T {
    /// Takes the bug out again also when `work` panics.
    struct Guard(Option<Bug>);
    impl Drop for Guard {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _guard = Guard(ACTIVE.replace(Some(bug)));
    work()
}

/// Whether the code that asks is to be wrong in this way.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn bug(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Never, in a build for use.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) const fn bug(_: Bug) -> bool {
    false
}
