//! Bugs that can be put into a run on purpose, to check that the simulator finds them. docs/TESTING.md has the table.
//!
//! Only a build with the feature `seeded-bugs` has any.

#[cfg(feature = "seeded-bugs")]
mod table {
    use kv_server::testing as kv;
    use multiraft::testing as host;
    use raft_log::testing as log;
    use raft_node::testing as node;

    /// A bug, by the crate that has it.
    #[derive(Clone, Copy, Debug)]
    enum Bug {
        Log(log::Bug),
        Node(node::Bug),
        Host(host::Bug),
        Kv(kv::Bug),
    }

    /// Each bug, and the seeds within which it must be found.
    const TABLE: &[(Bug, u64)] = &[
        (Bug::Log(log::Bug::GoOnAfterFailedSync), 40),
        (Bug::Log(log::Bug::ForgetCheckpoint), 40),
        (Bug::Log(log::Bug::TrustUnsyncedTail), 40),
        (Bug::Log(log::Bug::RewriteUnverified), 40),
        (Bug::Log(log::Bug::AckBeforeSync), 40),
        (Bug::Log(log::Bug::SnapshotNotSynced), 40),
        (Bug::Log(log::Bug::SnapshotNameNotSynced), 40),
        (Bug::Log(log::Bug::RenewWithoutGuard), 40),
        (Bug::Node(node::Bug::VoteNotPersisted), 200),
        (Bug::Node(node::Bug::AttestBeforeSync), 40),
        (Bug::Node(node::Bug::VoteTwice), 40),
        (Bug::Node(node::Bug::VoteForOlderLog), 40),
        (Bug::Node(node::Bug::CommitOlderTerm), 40),
        (Bug::Node(node::Bug::CommitWithoutQuorum), 40),
        (Bug::Node(node::Bug::ReadWithoutRound), 40),
        (Bug::Node(node::Bug::ReadBeforeOwnTerm), 40),
        (Bug::Node(node::Bug::StaleReadContext), 400),
        (Bug::Node(node::Bug::SkipTruncation), 40),
        (Bug::Node(node::Bug::CountOverwritten), 40),
        (Bug::Node(node::Bug::ApplyBeforeSync), 40),
        (Bug::Node(node::Bug::TermNotPersisted), 40),
        (Bug::Node(node::Bug::HeartbeatCommitUnbounded), 40),
        (Bug::Node(node::Bug::JointByOneMajority), 100),
        (Bug::Node(node::Bug::LearnersCount), 40),
        (Bug::Node(node::Bug::NewMemberMatched), 40),
        (Bug::Node(node::Bug::LeaveJointEarly), 100),
        (Bug::Node(node::Bug::LeaseFromAnswer), 400),
        (Bug::Node(node::Bug::LeaseOverTransfer), 200),
        (Bug::Node(node::Bug::PurgeApplied), 40),
        (Bug::Node(node::Bug::RestoreBeforeSync), 400),
        (Bug::Node(node::Bug::RestartWithoutReference), 40),
        (Bug::Node(node::Bug::ForgetGuard), 40),
        (Bug::Host(host::Bug::ReadBeforeApplied), 40),
        (Bug::Host(host::Bug::ReadJoinsQuestion), 40),
        (Bug::Host(host::Bug::AnswerOfEarlierBoot), 200),
        (Bug::Host(host::Bug::TimeoutAsRefusal), 40),
        (Bug::Kv(kv::Bug::ApplyTwice), 40),
        (Bug::Kv(kv::Bug::ForgetDuplicates), 40),
        (Bug::Kv(kv::Bug::KeepDeadlines), 40),
        (Bug::Kv(kv::Bug::ExpireEarly), 40),
        (Bug::Kv(kv::Bug::RenewOverCheckpoint), 400),
        (Bug::Kv(kv::Bug::SkipCompacted), 40),
        (Bug::Kv(kv::Bug::InstallKeepsDuplicates), 40),
        (Bug::Kv(kv::Bug::InstallKeepsCache), 40),
        (Bug::Kv(kv::Bug::RangesKeepStale), 40),
    ];

    fn name(bug: Bug) -> String {
        match bug {
            Bug::Log(bug) => format!("{bug:?}"),
            Bug::Node(bug) => format!("{bug:?}"),
            Bug::Host(bug) => format!("{bug:?}"),
            Bug::Kv(bug) => format!("{bug:?}"),
        }
    }

    pub(super) fn all() -> Vec<(String, u64)> {
        TABLE
            .iter()
            .map(|(bug, seeds)| (name(*bug), *seeds))
            .collect()
    }

    pub(super) fn with<T>(wanted: &str, work: impl FnOnce() -> T) -> T {
        let found = TABLE.iter().find(|(bug, _)| name(*bug) == wanted);
        match found.map(|(bug, _)| *bug) {
            Some(Bug::Log(bug)) => log::with_bug(bug, work),
            Some(Bug::Node(bug)) => node::with_bug(bug, work),
            Some(Bug::Host(bug)) => host::with_bug(bug, work),
            Some(Bug::Kv(bug)) => kv::with_bug(bug, work),
            None => panic!("there is no bug of the name {wanted}"),
        }
    }
}

#[cfg(not(feature = "seeded-bugs"))]
mod table {
    pub(super) fn all() -> Vec<(String, u64)> {
        Vec::new()
    }

    pub(super) fn with<T>(wanted: &str, _: impl FnOnce() -> T) -> T {
        panic!("this build has no seeded bugs, so none of the name {wanted}")
    }
}

/// The name of each bug, and the seeds within which it must be found. Empty in a build without them.
#[must_use]
pub fn all() -> Vec<(String, u64)> {
    table::all()
}

/// Does something with a bug in the product.
///
/// # Panics
/// When there is no bug of that name.
pub fn with<T>(name: &str, work: impl FnOnce() -> T) -> T {
    table::with(name, work)
}
