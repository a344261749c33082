//! Bugs that other Raft implementations had, each with what keeps it away here. A case that a golden script shows is
//! named in [`SCRIPTS`]; the others are tests of this file, with the bug's origin in their comment.

mod group;

use bytes::Bytes;
use group::{GROUP, leader, nodes, of, open, run, turn};
use raft_log::WriteBatch;
use raft_log::vfs::sim::CrashKind;
use raft_node::core::{
    Body, Change, ChangeStep, Config, Core, Effects, Initial, Input, Membership, Message,
    PersistId, Role, Snapshot, SnapshotVerdict,
};
use raft_node::driver::Event;
use raft_node::{Entry, EntryKind, HardState, Index, NodeId, Term};

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
    (
        "raft-rs 234: a leader serves reads on its lease although it has told another one to campaign",
        "transfer_old_leader_serves_no_read",
    ),
    (
        "raft 80: whether a change is under way is judged by what was proposed, not by what is in force",
        "change_second_one_refused_until_left",
    ),
    (
        "raft 80, after a change of leader: the predecessor's change is still to come",
        "change_refused_while_that_of_predecessor_is_open",
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
    let message = Message {
        term,
        incarnation: 0,
        body,
    };
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
        incarnation: 0,
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

/// etcd-io/raft 105: the commit index is a hint that may be lost, and a sole voter that trusted it served old data.
#[test]
fn raft_105_sole_voter_commits_its_log_before_it_serves() {
    let config = Config {
        id: NodeId(1),
        ..Config::default()
    };
    let initial = Initial {
        hard_state: HardState {
            term: Term(4),
            ..HardState::default()
        },
        last_index: Index(3),
        terms: vec![(Index(1), Term(4))],
        membership: of([1]),
        ..Initial::default()
    };
    let mut core = Core::new(config.validate().expect("valid"), initial);
    let mut out = Effects::default();
    core.step(Input::Read { token: 9 }, &mut out);
    core.ready(&mut out);
    assert_eq!(
        out.dropped.len(),
        1,
        "it does not lead before its vote is durable"
    );
    // Its vote, then the entry that opens its term.
    for id in [1, 2] {
        assert_eq!(
            out.persist.take().map(|batch| batch.id),
            Some(PersistId(id))
        );
        core.step(Input::Read { token: id }, &mut out);
        core.step(Input::Persisted(PersistId(id)), &mut out);
        core.ready(&mut out);
    }
    assert_eq!(out.commit, Some(Index(4)));
    assert_eq!(
        out.reads_ready,
        [(2, Index(4))],
        "all that was there is read"
    );
}

/// openraft 1802: a vector that was kept sorted step by step lost its order, and an index counted as committed that no
/// majority had. All orders of six acknowledgements of four members, some of them late.
#[test]
fn openraft_1802_commit_in_any_order_of_acknowledgements() {
    let acks = [(2, 2), (2, 4), (3, 3), (3, 4), (4, 2), (5, 4)];
    let mut orders = vec![vec![]];
    for ack in acks {
        let insert = |order: &Vec<(u64, u64)>| {
            let at = 0..=order.len();
            let order = order.clone();
            at.map(move |at| {
                let mut longer = order.clone();
                longer.insert(at, ack);
                longer
            })
            .collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(insert).collect();
    }
    assert_eq!(orders.len(), 720);
    for order in orders {
        let mut core = lead_of_five();
        let mut matched = [4, 0, 0, 0, 0];
        for (from, index) in &order {
            let index = *index;
            tell(
                &mut core,
                *from,
                1,
                Body::AppendReply {
                    matched: Index(index),
                },
            );
            let held = &mut matched[*from as usize - 1];
            *held = index.max(*held);
            let reached = (0..=4).filter(|at| matched.iter().filter(|m| *m >= at).count() >= 3);
            let expected = reached.max().expect("zero at least");
            assert_eq!(
                core.status().commit,
                Index(expected),
                "{order:?} at {from}: {index}"
            );
        }
    }
}

/// The leader of five, with four entries that are durable here and nowhere else.
fn lead_of_five() -> Core {
    let mut core = core(1, HardState::default(), of(1..=5));
    campaign(&mut core);
    let mut out = Effects::default();
    core.step(Input::Persisted(PersistId(1)), &mut out);
    for from in [2, 3] {
        tell(&mut core, from, 1, Body::VoteReply { granted: true });
    }
    for text in ["a", "b", "c"] {
        let input = Input::Propose {
            token: None,
            kind: EntryKind::Normal,
            payload: Bytes::from(text),
        };
        core.step(input, &mut out);
    }
    core.ready(&mut out);
    core.step(Input::Persisted(PersistId(2)), &mut out);
    core.step(Input::Persisted(PersistId(3)), &mut out);
    assert_eq!(core.status().persisted, Index(4));
    core
}

/// openraft 1544: a follower stopped when entries that contradict each other in the membership followed each other fast.
#[test]
fn openraft_1544_memberships_follow_the_entries_through_conflicts() {
    let joint = |voters: &[u64]| Membership {
        voters_outgoing: of(1..=3).voters,
        ..of(voters.iter().copied())
    };
    let entry = |index, term, membership: Option<&Membership>| Entry {
        index: Index(index),
        term: Term(term),
        kind: membership.map_or(EntryKind::Normal, |_| EntryKind::Config),
        payload: membership.map_or(Bytes::new(), Membership::encode),
    };
    let mut core = three(3);
    let mut append = |from, term, prev: (u64, u64), entries: Vec<Entry>| {
        let body = Body::Append {
            prev_index: Index(prev.0),
            prev_term: Term(prev.1),
            entries,
            commit: Index(1),
        };
        tell(&mut core, from, term, body);
        core.membership().clone()
    };
    let (a, b) = (joint(&[1, 2, 3, 4]), joint(&[1, 3]));
    let first = vec![entry(1, 1, None), entry(2, 1, Some(&a)), entry(3, 1, None)];
    assert_eq!(append(1, 1, (0, 0), first), a);
    // The leader of term 2 never had that change: cut, nothing instead.
    assert_eq!(append(2, 2, (1, 1), vec![entry(2, 2, None)]), of(1..=3));
    // The one of term 3 has it, and left it too.
    let again = vec![
        entry(2, 1, Some(&a)),
        entry(3, 3, None),
        entry(4, 3, Some(&a.left())),
    ];
    assert_eq!(append(1, 3, (1, 1), again), of(1..=4));
    // Both are cut at once, for another change at the first one's place.
    let other = vec![entry(2, 4, Some(&b))];
    assert_eq!(append(2, 4, (1, 1), other.clone()), b);
    // A late copy of the same changes nothing, and one that is known in part adds the rest.
    assert_eq!(append(2, 4, (1, 1), other), b);
    let more = vec![entry(2, 4, Some(&b)), entry(3, 4, Some(&b.left()))];
    assert_eq!(append(2, 4, (1, 1), more), of([1, 3]));
}

/// etcd-io/raft 149: after a late refusal the next index lay at or below what the member had acknowledged.
#[test]
fn raft_149_next_stays_above_matched_after_late_refusals() {
    let mut core = lead_of_five();
    tell(&mut core, 2, 1, Body::AppendReply { matched: Index(3) });
    for (rejected, hint) in [(0, 0), (2, 1), (3, 2), (4, 1), (3, 0), (4, 0)] {
        let refusal = Body::AppendReject {
            rejected: Index(rejected),
            hint_index: Index(hint),
            hint_term: Term(1),
        };
        let mut sent = tell(&mut core, 2, 1, refusal).send_now;
        let reply = Body::HeartbeatReply { round: 0 };
        sent.extend(tell(&mut core, 2, 1, reply).send_now);
        for (to, message) in sent {
            if let Body::Append { prev_index, .. } = message.body {
                assert!(
                    to != NodeId(2) || prev_index >= Index(3),
                    "{rejected}: {prev_index}"
                );
            }
        }
    }
}

/// openraft 1808: the membership that a member had in memory outlived the one that came with a snapshot. What the log's
/// base says, and what its entries say, counts for more than what an older state machine knows.
#[test]
fn openraft_1808_membership_of_the_base_replaces_an_older_one() {
    let mut nodes = nodes(1, &of([1]));
    run(&mut nodes, 2);
    let mut node = nodes.remove(&leader(&nodes)).expect("it leads");
    for learner in [2, 3] {
        let steps = vec![ChangeStep::AddLearner(NodeId(learner))];
        let context = Bytes::new();
        node.group
            .propose_change(learner, Change { steps, context });
        turn(&mut node);
    }
    let mut machine = node.group.machine().clone();
    let older = machine.seen.first().expect("the first change").clone();
    machine.applied.membership = Some((older.0, older.1));
    node.group.request_persist();
    let mut batch = WriteBatch::new();
    node.group.compact(&mut batch, false);
    let ticket = node.log.submit(batch).expect("submitted");
    node.log.wait(ticket).expect("synced");
    let base = node.log.group(GROUP).expect("there").base.index;
    assert_eq!(base, machine.applied.index, "no entry is left");
    let fs = node.fs.clone();
    drop(node);
    let node = open(NodeId(1), fs, &of([1]), machine);
    let learners = [NodeId(2), NodeId(3)];
    assert_eq!(node.group.membership().learners, learners);
}

/// etcd 13766: data and applied index were written apart, and a crash between them applied entries twice or never. A state
/// machine says both in one answer, and whatever earlier state it comes back with, each entry is applied once.
#[test]
fn etcd_13766_each_entry_is_applied_once_from_any_earlier_state() {
    let mut nodes = nodes(1, &of([1]));
    run(&mut nodes, 2);
    let mut node = nodes.remove(&NodeId(1)).expect("there");
    let mut states = vec![node.group.machine().clone()];
    for token in 0..8 {
        node.group.propose(token, Bytes::from(token.to_string()));
        turn(&mut node);
        states.push(node.group.machine().clone());
    }
    let all: Vec<Bytes> = (0..8)
        .map(|token: u64| Bytes::from(token.to_string()))
        .collect();
    for state in states {
        let fs = node.fs.clone();
        drop(node);
        fs.crash(CrashKind::Process);
        node = open(NodeId(1), fs, &of([1]), state);
        for _ in 0..4 {
            turn(&mut node);
        }
        assert_eq!(node.group.machine().values, all);
    }
}

/// etcd 14140: tests that only killed processes missed what a power loss does to writes that were not synced. What is
/// acknowledged is there after one; what was not synced is neither acknowledged nor read.
#[test]
fn etcd_14140_power_loss_takes_nothing_that_was_acknowledged_or_read() {
    for seed in 0..20 {
        let mut nodes = nodes(1, &of([1]));
        run(&mut nodes, 2);
        let mut node = nodes.remove(&NodeId(1)).expect("there");
        node.group.propose(1, Bytes::from_static(b"synced"));
        turn(&mut node);
        assert!(matches!(node.events[..], [Event::Applied(1, _)]));
        node.group.propose(2, Bytes::from_static(b"not synced"));
        node.group.read(3);
        let mut batch = WriteBatch::new();
        node.group
            .collect(&mut batch)
            .expect("there is something to write");
        if seed % 2 == 0 {
            node.log.submit(batch).expect("submitted");
        }
        node.group.apply().expect("applies");
        node.events.extend(node.group.take_events());
        assert!(
            matches!(node.events[..], [Event::Applied(1, _), Event::ReadReady(3)]),
            "{:?}",
            node.events
        );
        assert_eq!(node.group.machine().values, ["synced"]);
        let fs = node.fs.clone();
        drop(node);
        fs.crash(CrashKind::Power);
        let mut node = open(NodeId(1), fs, &of([1]), group::Members::default());
        for _ in 0..4 {
            turn(&mut node);
        }
        assert_eq!(
            node.group.machine().values.first(),
            Some(&Bytes::from("synced"))
        );
    }
}

/// A candidate takes up a snapshot of an earlier leader: it must not win with votes for the log that it had, before its
/// state machine stands where the new one begins.
#[test]
fn candidate_that_takes_up_a_snapshot_does_not_win() {
    for (pre_vote, role) in [(false, Role::Candidate), (true, Role::PreCandidate)] {
        let mut core = three(3);
        let leader = Body::Heartbeat {
            commit: Index::ZERO,
            round: 0,
        };
        tell(&mut core, 1, 1, leader);
        if pre_vote {
            core.step(Input::Tick { ticks: 20 }, &mut Effects::default());
        } else {
            campaign(&mut core);
        }
        assert_eq!(core.status().role, role);
        let term = core.status().term;
        let snapshot = Snapshot {
            index: Index(9),
            term: Term(1),
            membership: core.membership().clone(),
        };
        let mut out = Effects::default();
        let (from, sent_in) = (NodeId(1), Term(term.0 - u64::from(!pre_vote)));
        let received = Input::SnapshotReceived {
            from,
            sent_in,
            snapshot,
        };
        core.step(received, &mut out);
        assert_eq!(out.snapshot, Some(SnapshotVerdict::Restart));
        tell(&mut core, 2, term.0, Body::VoteReply { granted: true });
        let asked = Term(term.0 + 1);
        let granted = true;
        tell(&mut core, 2, term.0, Body::PreVoteReply { asked, granted });
        assert_eq!(core.status().role, Role::Follower);
        assert_eq!(core.status().term, term);
    }
}
