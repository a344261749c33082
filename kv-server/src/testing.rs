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
    /// A snapshot leaves the table of duplicates as it was.
    InstallKeepsDuplicates,
    /// A snapshot leaves the cache of keys as it was.
    InstallKeepsCache,
    /// What ranges find in memory stays when it changes.
    RangesKeepStale,
}

raft_log::bug_switch!(Bug);
