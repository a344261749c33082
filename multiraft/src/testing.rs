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

raft_log::bug_switch!(Bug);
