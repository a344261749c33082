//! Membership changes through the driver: what a caller and a state machine learn, and what a log gives back at a start.

mod group;

use bytes::Bytes;
use group::{GROUP, leader, nodes, of, open, run, turn};
use raft_log::WriteBatch;
use raft_log::vfs::sim::CrashKind;
use raft_node::NodeId;
use raft_node::core::{Change, ChangeError, ChangeStep, DropReason, Membership};
use raft_node::driver::Event;

#[test]
fn change_ends_when_joint_configuration_is_left() {
    let mut nodes = nodes(3, &of(1..=2));
    run(&mut nodes, 40);
    let lead = leader(&nodes);
    let change = Change {
        steps: vec![ChangeStep::AddVoter(NodeId(3))],
        context: Bytes::from_static(b"at home"),
    };
    let node = nodes.get_mut(&lead).expect("it leads");
    node.group.propose_change(7, change.clone());
    node.group.propose_change(8, change);
    run(&mut nodes, 5);

    let node = &nodes[&lead];
    let (first, last) = (
        node.group.machine().seen.first(),
        node.group.machine().seen.last(),
    );
    let joint = Membership {
        voters_outgoing: vec![NodeId(1), NodeId(2)],
        ..of(1..=3)
    };
    let (entered, _, _) = first.expect("entered").clone();
    assert_eq!(
        first,
        Some(&(entered, joint, Bytes::from_static(b"at home")))
    );
    assert_eq!(last, Some(&(entered.next(), of(1..=3), Bytes::new())));
    // The output is that of the entry which carried the context; it came after the joint configuration was left.
    match &node.events[..] {
        [
            Event::Dropped(8, DropReason::Change(ChangeError::InProgress(at))),
            Event::Applied(7, output),
        ] => {
            assert_eq!((*at, *output), (entered, entered));
        }
        other => panic!("unexpected events: {other:?}"),
    }
    for node in nodes.values() {
        assert_eq!(node.group.membership(), &of(1..=3));
        assert_eq!(node.group.machine().seen.len(), 2);
    }
}

#[test]
fn change_not_applied_before_a_crash_is_in_force_after_it() {
    let mut nodes = nodes(2, &of(1..=2));
    run(&mut nodes, 40);
    let lead = leader(&nodes);
    let mut node = nodes.remove(&lead).expect("it leads");
    let steps = vec![
        ChangeStep::AddVoter(NodeId(3)),
        ChangeStep::AddVoter(NodeId(4)),
    ];
    let context = Bytes::new();
    node.group.propose_change(7, Change { steps, context });
    turn(&mut node);
    assert!(node.events.is_empty(), "nobody else has it");
    let machine = node.group.machine().clone();
    let fs = node.fs.clone();
    drop(node);
    fs.crash(CrashKind::Power);
    let node = open(lead, fs, &of(1..=2), machine);
    let joint = Membership {
        voters_outgoing: vec![NodeId(1), NodeId(2)],
        ..of(1..=4)
    };
    assert_eq!(node.group.membership(), &joint);
}

#[test]
fn membership_outlives_the_entries_that_led_to_it() {
    let mut nodes = nodes(1, &of([1]));
    run(&mut nodes, 2);
    let mut node = nodes.remove(&NodeId(1)).expect("there");
    let steps = vec![ChangeStep::AddLearner(NodeId(2))];
    let context = Bytes::new();
    node.group.propose_change(7, Change { steps, context });
    turn(&mut node);
    assert!(matches!(node.events[..], [Event::Applied(7, _)]));
    node.group.request_persist();
    let mut batch = WriteBatch::new();
    node.group.compact(&mut batch, false);
    let ticket = node.log.submit(batch).expect("submitted");
    node.log.wait(ticket).expect("synced");
    let info = node.log.group(GROUP).expect("there");
    assert_eq!(info.base.index, info.last_index, "no entry is left");

    // A state machine that knows of no change, as one that is restored to the base.
    let mut machine = node.group.machine().clone();
    machine.applied.membership = None;
    let fs = node.fs.clone();
    drop(node);
    fs.crash(CrashKind::Power);
    let node = open(NodeId(1), fs, &of([1]), machine);
    let expected = Membership {
        learners: vec![NodeId(2)],
        ..of([1])
    };
    assert_eq!(node.group.membership(), &expected);
}
