//! Bugs that can be put into a group on purpose, to see that its tests notice them.
//!
//! Only in builds with the feature `seeded-bugs`, and only on the thread that asks for one; without the feature every
//! question is answered `false` at compile time.

/// A bug of the core or the driver that the simulator must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "seeded-bugs"),
    expect(unreachable_pub, reason = "public with the feature only")
)]
pub enum Bug {
    /// A granted vote is not written.
    VoteNotPersisted,
    /// What attests durable state leaves before it is durable.
    AttestBeforeSync,
    /// A vote is given although another candidate of the term has it.
    VoteTwice,
    /// A vote is given to a candidate with an older log.
    VoteForOlderLog,
    /// Entries of an older term are committed by counting.
    CommitOlderTerm,
    /// The commit index is what any one member has, not a majority.
    CommitWithoutQuorum,
    /// A read is served without a round.
    ReadWithoutRound,
    /// Reads are served before an entry of the own term is committed.
    ReadBeforeOwnTerm,
    /// Any answer of a heartbeat confirms all rounds.
    StaleReadContext,
    /// Entries that contradict what the log has are taken for known: it is not cut.
    SkipTruncation,
    /// The own batches count after the log was cut.
    CountOverwritten,
    /// An entry is applied before the own log has it on disk.
    ApplyBeforeSync,
    /// A new term is not written.
    TermNotPersisted,
    /// A heartbeat tells of all that is committed, also of what the member may not have.
    HeartbeatCommitUnbounded,
    /// In a joint configuration a majority of the new voters decides alone.
    JointByOneMajority,
    /// What learners have counts towards a majority of the voters.
    LearnersCount,
    /// A new member is taken to have the leader's log.
    NewMemberMatched,
    /// The entry that leaves a joint configuration is appended before the one that entered it is committed.
    LeaveJointEarly,
    /// A promise not to vote ends with the term in which it was given.
    PromiseEndsWithTerm,
    /// A member that starts does not keep what it may have promised.
    PromiseEndsWithProcess,
    /// A promise counts from the last look at the clock before it was given.
    PromiseFromEarlierLook,
    /// A lease counts from the answers, not from what they answer.
    LeaseFromAnswer,
    /// A leader keeps its lease while it hands over.
    LeaseOverTransfer,
    /// A lease that was there at the last look at the clock confirms reads.
    LeaseWithoutLook,
    /// A log is compacted up to what is applied, durable or not.
    PurgeApplied,
    /// The state machine takes a snapshot up before the log says durably that it begins after it.
    RestoreBeforeSync,
    /// A log that begins anew does not name the snapshot that it begins after.
    RestartWithoutReference,
    /// What a member acknowledged with a log that it lost counts.
    CountLostLog,
    /// A member that is started again before it has caught up is not guarded.
    ForgetGuard,
}

raft_log::bug_switch!(Bug);
