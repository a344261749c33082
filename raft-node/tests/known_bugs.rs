//! Bugs that other Raft implementations had, each with what keeps it away here. A case that a golden script shows is
//! named in [`SCRIPTS`]; the others are tests of this file, with the bug's origin in their comment.

use raft_node::core::{
    Body, Config, Core, Effects, Initial, Input, Membership, Message, PersistId, Role, Snapshot,
    SnapshotVerdict,
};
use raft_node::{HardState, Index, NodeId, Term};

/// The origin of a bug, and the script in `testdata` that would show it.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "etcd 20418: a delayed answer to an earlier round releases a later read",
        "delayed_heartbeat_response_does_not_release_later_read",
    ),
    (
        "etcd 20418, for members that follow: an answer to an earlier run's question",
        "follower_read_late_answer_to_earlier_boot_ignored",
    ),
    (
        "etcd 7331: a read is answered before a commit in the leader's own term",
        "read_waits_for_own_term_commit",
    ),
    (
        "etcd 14370: a single voter acknowledges before its write is durable",
        "single_voter_acks_only_after_persist",
    ),
    (
        "openraft 1796: a pre-vote refused from a later term blocks elections for ever",
        "pre_vote_rejection_carries_later_term",
    ),
    (
        "openraft 1838: the election timeout is drawn once, and split votes repeat",
        "split_vote_redraws",
    ),
    (
        "openraft 1805: the target of a transfer lacks the log",
        "transfer_waits_for_lagging_target",
    ),
    (
        "etcd raft, ReportSnapshot: nobody reports what became of a snapshot, and the member waits for ever",
        "snapshot_not_heard_of_is_given_up",
    ),
    (
        "etcd raft 110: a snapshot of another index than the awaited one does not end the wait",
        "snapshot_of_any_index_ends_the_wait",
    ),
    (
        "a snapshot is acknowledged before it is installed",
        "snapshot_acknowledged_only_after_disk",
    ),
    (
        "a late snapshot takes the commit index back",
        "snapshot_below_commit_moves_nothing_back",
    ),
    (
        "openraft 1960, for a log that begins anew: a write of the old log counts in the new one",
        "snapshot_write_of_old_log_does_not_count",
    ),
];

fn core(id: u64, hard_state: HardState, membership: Membership) -> Core {
    let config = Config {
        id: NodeId(id),
        election_ticks: 10,
        heartbeat_ticks: 2,
        ..Config::default()
    };
    let initial = Initial {
        hard_state,
        membership,
        ..Initial::default()
    };
    Core::new(config.validate().expect("valid"), initial)
}

fn three(id: u64) -> Core {
    core(
        id,
        HardState::default(),
        Membership::of_voters((1..=3).map(NodeId)),
    )
}

fn tell(core: &mut Core, from: u64, term: u64, body: Body) -> Effects {
    let mut out = Effects::default();
    let term = Term(term);
    let message = Message { term, body };
    core.step(
        Input::Message {
            from: NodeId(from),
            message,
        },
        &mut out,
    );
    core.ready(&mut out);
    out
}

fn campaign(core: &mut Core) {
    let mut out = Effects::default();
    core.step(Input::Campaign, &mut out);
    core.ready(&mut out);
}

#[test]
fn known_bug_scripts_exist() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for (bug, script) in SCRIPTS {
        let path = directory.join(format!("{script}.txt"));
        assert!(path.exists(), "{bug}: {} is gone", path.display());
    }
}

/// openraft 1220: a later term that a leader has merely seen was counted as a vote that it had given.
#[test]
fn openraft_1220_seen_term_is_no_granted_vote() {
    let mut core = three(1);
    let reply = Body::VoteReply { granted: false };
    tell(&mut core, 2, 7, reply);
    let status = core.status();
    assert_eq!((status.term, status.vote), (Term(7), None));
}

/// openraft 1806: a vote of somebody who is no member stopped the candidate.
#[test]
fn openraft_1806_vote_of_stranger_does_not_count() {
    let mut core = three(1);
    campaign(&mut core);
    let mut out = Effects::default();
    core.step(Input::Persisted(PersistId(1)), &mut out);
    for stranger in [8, 9] {
        tell(&mut core, stranger, 1, Body::VoteReply { granted: true });
    }
    assert_eq!(core.status().role, Role::Candidate);
    tell(&mut core, 2, 1, Body::VoteReply { granted: true });
    assert_eq!(core.status().role, Role::Leader);
}

/// openraft 1805: the order to campaign reaches a member that does not hold the entry which it names.
#[test]
fn openraft_1805_order_without_the_entry_is_ignored() {
    let mut core = three(2);
    let order = Body::TimeoutNow {
        last_index: Index(4),
        last_term: Term(3),
    };
    tell(&mut core, 1, 3, order);
    let status = core.status();
    assert_eq!((status.role, status.term), (Role::Follower, Term(3)));
}

/// openraft 1960: completions of writes that came out of order stranded progress; here they are a programmer's error.
#[test]
#[should_panic(expected = "persist batches complete in order")]
fn openraft_1960_completion_out_of_order_stops() {
    let mut core = three(1);
    campaign(&mut core);
    campaign(&mut core);
    core.step(Input::Persisted(PersistId(2)), &mut Effects::default());
}

/// tikv 994 and others: a commit index beyond the log says that the log lost what it acknowledged. It is never clamped.
#[test]
#[should_panic(expected = "acknowledged entries were lost")]
fn tikv_994_commit_beyond_log_stops() {
    let mut core = three(2);
    let commit = Index(5);
    tell(&mut core, 1, 1, Body::Heartbeat { commit, round: 0 });
}

/// etcd 7625: a learner that has not seen its promotion refused to vote, and nobody could win.
#[test]
fn etcd_7625_learner_votes() {
    let membership = Membership {
        learners: vec![NodeId(4)],
        ..Membership::of_voters((1..=3).map(NodeId))
    };
    let mut core = core(4, HardState::default(), membership);
    let request = Body::Vote {
        last_index: Index::ZERO,
        last_term: Term::ZERO,
        forced: false,
    };
    let out = tell(&mut core, 1, 1, request);
    let reply = Message {
        term: Term(1),
        body: Body::VoteReply { granted: true },
    };
    assert_eq!(out.send_after, [(PersistId(1), NodeId(1), reply)]);
}

/// openraft 1808: the membership that a member had before it took up a snapshot stayed in force.
#[test]
fn openraft_1808_membership_of_snapshot_is_in_force() {
    let mut core = three(3);
    let membership = Membership {
        voters: vec![NodeId(1), NodeId(3), NodeId(4)],
        learners: vec![NodeId(2)],
        ..Membership::default()
    };
    let snapshot = Snapshot {
        index: Index(9),
        term: Term(2),
        membership: membership.clone(),
    };
    let mut out = Effects::default();
    let received = Input::SnapshotReceived {
        from: NodeId(1),
        sent_in: Term(2),
        snapshot: snapshot.clone(),
    };
    core.step(received, &mut out);
    core.ready(&mut out);
    assert_eq!(out.snapshot, Some(SnapshotVerdict::Restart));
    assert_eq!(core.membership(), &membership);
    let batch = out.persist.expect("the log begins anew");
    assert_eq!(batch.restart, Some(snapshot));

    // Its votes are counted by that membership from now on.
    core.step(Input::Persisted(batch.id), &mut Effects::default());
    core.step(Input::Applied(Index(9)), &mut Effects::default());
    campaign(&mut core);
    core.step(Input::Persisted(PersistId(2)), &mut Effects::default());
    tell(&mut core, 2, 3, Body::VoteReply { granted: true });
    assert_eq!(core.status().role, Role::Candidate);
    tell(&mut core, 4, 3, Body::VoteReply { granted: true });
    assert_eq!(core.status().role, Role::Leader);
}

/// tikv 994, by way of a snapshot: its index is above the log's end, and a commit index up to it is no loss.
#[test]
fn tikv_994_commit_within_the_snapshot_is_no_loss() {
    let mut core = three(3);
    let snapshot = Snapshot {
        index: Index(9),
        term: Term(2),
        membership: core.membership().clone(),
    };
    let received = Input::SnapshotReceived {
        from: NodeId(1),
        sent_in: Term(2),
        snapshot,
    };
    core.step(received, &mut Effects::default());
    let commit = Index(9);
    let out = tell(&mut core, 1, 2, Body::Heartbeat { commit, round: 0 });
    let status = core.status();
    assert_eq!((status.commit, status.persisted), (Index(9), Index(0)));
    // Nothing of it is acknowledged before the batch that begins the log anew.
    let acks = out
        .send_now
        .iter()
        .filter(|(_, message)| matches!(message.body, Body::AppendReply { .. }));
    assert_eq!(acks.count(), 0);
}
