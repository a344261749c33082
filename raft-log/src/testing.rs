//! Bugs that can be put into the log on purpose, to see that its tests notice them.
//!
//! Only in builds with the feature `seeded-bugs`, and only on the thread that asks for one; without the feature every question
//! is answered `false` at compile time. What can be broken below the log instead is a lie of the simulated file system.

/// A bug of the log that its tests must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "seeded-bugs"),
    expect(unreachable_pub, reason = "public with the feature only")
)]
pub enum Bug {
    /// A batch says of itself that it is synced, so that a start trusts it although it may be in the page cache only.
    TrustUnsyncedTail,
    /// A new segment opens with an empty checkpoint.
    ForgetCheckpoint,
    /// A batch is taken although the CRC of its body does not match.
    IgnoreBatchCrc,
    /// Neither a batch's nor a record's CRC is looked at: what was never verified is copied under a fresh checksum.
    RewriteUnverified,
    /// All segments of all stores share one salt.
    ReuseSalt,
    /// A segment is removed before the batch that emptied it is synced.
    PurgeBeforeSync,
    /// Term and vote are not written to their slots.
    ForgetVoteSlot,
    /// The slots of a group that was destroyed are still there when it is created again.
    KeepDeadVotes,
    /// A ticket completes when its batch is queued.
    AckBeforeSync,
    /// After a failed sync the log goes on as if it had not happened.
    GoOnAfterFailedSync,
    /// The records of a truncation are not written.
    ForgetTruncation,
    /// A snapshot gets its name although its content is not synced.
    SnapshotNotSynced,
    /// The name of a snapshot is not synced.
    SnapshotNameNotSynced,
    /// A log that is begun anew is not guarded.
    RenewWithoutGuard,
}

/// The switch of a crate for its seeded bugs: `with_bug` puts one in, `bug` asks. The crate has a feature `seeded-bugs`.
#[doc(hidden)]
#[macro_export]
macro_rules! bug_switch {
    ($Bug:ty) => {
        #[cfg(feature = "seeded-bugs")]
        thread_local! {
            static ACTIVE: ::std::cell::Cell<Option<$Bug>> = const { ::std::cell::Cell::new(None) };
        }

        /// Runs `work` with a bug in everything of this crate that is used on this thread meanwhile. Of logs, only those in
        /// `IoMode::Inline` do all their work on it.
        #[cfg(feature = "seeded-bugs")]
        pub fn with_bug<T>(bug: $Bug, work: impl FnOnce() -> T) -> T {
            /// Takes the bug out again also when `work` panics.
            struct Guard(Option<$Bug>);
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
        pub(crate) fn bug(bug: $Bug) -> bool {
            ACTIVE.get() == Some(bug)
        }

        /// Never, in a build for use.
        #[cfg(not(feature = "seeded-bugs"))]
        pub(crate) const fn bug(_: $Bug) -> bool {
            false
        }
    };
}

bug_switch!(Bug);

#[cfg(all(test, feature = "seeded-bugs"))]
mod tests {
    use super::*;

    #[test]
    fn bug_is_there_for_one_call_on_one_thread() {
        with_bug(Bug::ReuseSalt, || {
            assert!(bug(Bug::ReuseSalt));
            assert!(!bug(Bug::ForgetCheckpoint));
            let elsewhere = std::thread::scope(|scope| {
                scope
                    .spawn(|| bug(Bug::ReuseSalt))
                    .join()
                    .expect("no panic")
            });
            assert!(!elsewhere);
        });
        assert!(!bug(Bug::ReuseSalt));
    }
}
