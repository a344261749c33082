//! Bugs that can be put into the keyspace on purpose, to see that its tests notice them.
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
    /// A command is carried out twice.
    ApplyTwice,
    /// A second copy of a forwarded command is applied as the first was.
    ForgetDuplicates,
    /// A leader goes on with the deadlines of leases that it had when it led before.
    KeepDeadlines,
    /// A lease ends when three quarters of its time are over.
    ExpireEarly,
    /// A lease is renewed although what was left of it is recorded, or its end is under way.
    RenewOverCheckpoint,
    /// A watch that fell behind the compaction goes on after it, and says nothing.
    SkipCompacted,
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
