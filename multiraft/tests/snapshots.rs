//! A member that lags gets a snapshot, and so does one whose state is wrong: through real cores, logs, snapshot stores and
//! hosts, on simulated disks. Whatever crashes on the way, what was acknowledged survives and everybody agrees in the end.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]
#![expect(
    clippy::print_stdout,
    reason = "a failing run must name its crash point"
)]

mod lagging;

use std::sync::{Arc, Mutex};

use lagging::{CATCH_UP, GROUP, MEMBERS, World};
use multiraft::{HOLD_TICKS, HostError, InlineTasks, Task, Tasks};
use raft_log::vfs::sim::{CrashKind, Fault};
use raft_log::{NodeId, SnapshotRef};
use raft_node::Index;
use raft_node::driver::GroupError;

const LAGS: NodeId = NodeId(3);

/// Member 3 was away for so long that nobody's log reaches back to where it stands.
fn lagging(tasks: Arc<dyn Tasks>) -> World {
    let mut world = World::new(1, tasks);
    world.propose(10, "early");
    world.until("all have it", |world| {
        world.agree() && world.state(LAGS).list.len() == 10
    });
    world.away = Some(LAGS);
    world.propose(60, "meanwhile");
    let behind = world.state(LAGS).applied.index;
    world.until("the logs are compacted", |world| {
        let base = |id: &NodeId| world.members[id].node.as_ref().unwrap().log.group(GROUP);
        MEMBERS[..2]
            .iter()
            .all(|id| base(id).unwrap().base.index > behind)
    });
    world
}

fn base(world: &World, id: NodeId) -> Index {
    let node = world.members[&id].node.as_ref().unwrap();
    node.log.group(GROUP).unwrap().base.index
}

fn snapshot(world: &World, id: NodeId) -> Option<SnapshotRef> {
    let node = world.members[&id].node.as_ref().unwrap();
    node.log.group(GROUP).unwrap().snapshot
}

fn caught_up(world: &World) -> bool {
    world.agree() && world.leader().is_some() && world.state(LAGS).list.len() >= 70
}

#[test]
fn member_that_lags_gets_a_snapshot_and_what_follows() {
    let mut world = lagging(Arc::new(InlineTasks));
    world.away = None;
    world.until("it catches up", caught_up);
    assert_eq!(world.began, 1, "one transfer is enough");
    assert!(base(&world, LAGS) > Index(60));
    let node = world.node(LAGS);
    assert!(node.core.machine(GROUP).unwrap().steps > 3, "in steps");
    world.propose(5, "later");
    world.until("all have it", |world| {
        world.agree() && world.state(LAGS).list.len() == 75
    });
    assert_eq!(world.began, 1);
    // The snapshot that was received is kept, and nothing else.
    let kept = snapshot(&world, LAGS);
    let files = world.node(LAGS).snapshots.list().unwrap();
    let numbers: Vec<_> = files.iter().map(|file| file.number).collect();
    assert_eq!(numbers, [kept.unwrap().number]);
}

/// What is true after the member's disk failed at any operation and it came back.
/// Returns how many operations were cut short.
fn crash_of(id: NodeId, kind: CrashKind, newest: bool) -> u64 {
    let start = lagging(Arc::new(InlineTasks));
    let (mut outcomes, mut again, mut points) = ([0, 0], 0, 0);
    for point in 0.. {
        println!("member {id}, {kind:?}, operation {point}, newest {newest}");
        let mut world = start.fork(point + 1);
        world.away = Some(LAGS);
        world.until("a leader", |world| world.leader().is_some());
        world.away = None;
        world.members[&id].fs.fail_after(point);
        let mut failed = false;
        for at in 0..300 {
            if let Some(down) = world.step() {
                assert_eq!(down, id);
                failed = true;
                break;
            }
            // It goes on behind the snapshot, and what is housekeeping comes due.
            if at % 50 == 0
                && let Some(leader) = world.leader()
            {
                let payload = format!("more-{at}").into();
                let handle = &world.node(leader).handle;
                handle.propose(GROUP, payload, Box::new(drop));
            }
        }
        world.crash(id, kind, newest);
        let acknowledged = world.members[&id].acknowledged;
        world.open(id).unwrap_or_else(|error| panic!("{error}"));
        let info = world.node(id).log.group(GROUP).unwrap();
        assert!(
            info.last_index >= acknowledged,
            "{acknowledged} was acknowledged, and the log ends at {}",
            info.last_index
        );
        let began = world.began;
        outcomes[usize::from(info.base.index > Index(11))] += 1;
        world.until("everybody agrees", caught_up);
        world.propose(3, "after");
        world.until("everybody goes on", |world| {
            world.agree() && world.state(LAGS).list.len() >= 73
        });
        again += world.began - began;
        if !failed {
            points += point;
            break;
        }
    }
    println!("{points} operations of {id}: {outcomes:?}, {again} transfers tried again");
    if id == LAGS {
        assert!(points > 35, "only {points} operations were cut short");
        assert!(outcomes[0] > 10 && outcomes[1] > 3, "{outcomes:?}");
        assert!(again > 10, "a receive that was cut short is tried again");
    }
    points
}

#[test]
fn power_loss_of_the_receiver_at_every_operation_leaves_the_old_log_or_the_new_one() {
    crash_of(LAGS, CrashKind::Power, false);
    crash_of(LAGS, CrashKind::Power, true);
}

#[test]
fn process_crash_of_the_receiver_at_every_operation_leaves_the_old_log_or_the_new_one() {
    crash_of(LAGS, CrashKind::Process, false);
    crash_of(LAGS, CrashKind::Process, true);
}

#[test]
fn crash_of_the_sender_at_every_operation_ends_with_everybody_caught_up() {
    // It is the first to campaign.
    let points = crash_of(NodeId(1), CrashKind::Power, false);
    assert!(points > 20, "only {points} operations were cut short");
}

/// Runs tasks when the test says so.
#[derive(Default)]
struct Later(Mutex<Vec<Task>>);

impl Later {
    fn run_all(&self) {
        for task in std::mem::take(&mut *self.0.lock().unwrap()) {
            task();
        }
    }
}

impl Tasks for Later {
    fn run(&self, task: Task) -> Result<(), Task> {
        self.0.lock().unwrap().push(task);
        Ok(())
    }
}

#[test]
fn log_is_held_for_a_transfer_that_moves_and_let_go_when_nobody_hears_of_it() {
    let mut world = lagging(Arc::new(InlineTasks));
    world.stuck = true;
    world.away = None;
    world.until("a transfer begins", |world| !world.carriers.is_empty());
    let leader = world.leader().unwrap();
    let sent = world.carriers[0].transfer.snapshot().index;
    world.propose(30, "held");
    for _ in 0..3 {
        for _ in 0..HOLD_TICKS / 2 {
            assert_eq!(world.step(), None);
        }
        world.carriers[0].transfer.moving();
    }
    assert!(
        base(&world, leader) <= sent,
        "the member needs what follows"
    );
    assert_eq!(world.began, 1, "it moves, so no other one begins");
    assert!(world.carriers[0].transfer.is_wanted());

    for _ in 0..HOLD_TICKS + 300 {
        assert_eq!(world.step(), None);
    }
    assert!(base(&world, leader) > sent, "the log was let go");
    assert!(world.began > 1, "another one began");
    assert!(!world.carriers[0].transfer.is_wanted());
    world.stuck = false;
    world.until("it catches up", caught_up);
}

#[test]
fn log_is_not_held_for_ever_for_a_member_that_never_takes_it() {
    let mut world = lagging(Arc::new(InlineTasks));
    world.stuck = true;
    world.away = None;
    world.until("a transfer begins", |world| !world.carriers.is_empty());
    let leader = world.leader().unwrap();
    let first = base(&world, leader);
    for _ in 0..5 {
        // Each transfer fails at once, again and again.
        for _ in 0..HOLD_TICKS / 4 {
            world.carriers.clear();
            assert_eq!(world.step(), None);
        }
        world.propose(5, "meanwhile");
    }
    assert!(base(&world, leader) > first, "the log was let go");
}

#[test]
fn snapshot_whose_file_is_damaged_is_not_sent_twice() {
    let mut world = lagging(Arc::new(InlineTasks));
    let leader = world.leader().unwrap();
    world
        .node(leader)
        .handle
        .make_snapshot(GROUP, Box::new(drop));
    world.until("it is made", |world| snapshot(world, leader).is_some());
    let made = snapshot(&world, leader).unwrap();
    let file = format!(
        "/snap/group-{:016x}/snap-{:016x}-{:016x}-{:016x}.snap",
        GROUP.0, made.index.0, made.term.0, made.number
    );
    let fs = world.members[&leader].fs.clone();
    fs.corrupt(&file, 20, 0xff).unwrap();
    world.away = None;
    world.until("it catches up", caught_up);
    assert_eq!(world.began, 2, "the damaged one, and another");
    assert_ne!(snapshot(&world, leader).unwrap().number, made.number);
}

#[test]
fn snapshot_that_arrives_while_one_is_in_the_making_waits_for_it() {
    let tasks = Arc::new(Later::default());
    let mut world = lagging(tasks.clone());
    let made: Arc<Mutex<Option<Result<SnapshotRef, HostError>>>> = Arc::default();
    let into = Arc::clone(&made);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    world.node(LAGS).handle.make_snapshot(GROUP, reply);
    assert_eq!(world.step(), None);
    let own: Vec<_> = std::mem::take(&mut *tasks.0.lock().unwrap());
    assert_eq!(own.len(), 1);
    world.away = None;
    for _ in 0..200 {
        assert_eq!(world.step(), None);
        tasks.run_all();
    }
    let before = base(&world, LAGS);
    assert!(before < Index(12), "its own is not made yet");
    for task in own {
        task();
    }
    for _ in 0..100 {
        assert_eq!(world.step(), None);
        tasks.run_all();
    }
    assert!(caught_up(&world));
    let made = made.lock().unwrap().take().unwrap().unwrap();
    assert!(made.index < base(&world, LAGS));
    assert!(made.number < snapshot(&world, LAGS).unwrap().number);
    let margin = Index(world.state(LAGS).applied.index.0 - CATCH_UP);
    assert!(base(&world, LAGS) >= margin);
}

/// A leader fetched entries for a member and compacted them in the same turn, and stopped at the gap.
#[test]
fn entries_that_leave_the_log_while_they_are_fetched_stop_nobody() {
    let step_to = |world: &mut World, now| {
        while world.now < now {
            assert_eq!(world.step(), None);
        }
    };
    // Housekeeping is at every hundredth tick.
    for early in 0..30 {
        let mut world = World::new(1, Arc::new(InlineTasks));
        world.propose(10, "early");
        step_to(&mut world, 105);
        world.away = Some(LAGS);
        world.propose(60, "meanwhile");
        step_to(&mut world, 200 - early);
        world.away = None;
        world.until("it catches up", caught_up);
    }
}

#[test]
fn failed_sync_of_a_snapshot_stops_the_host() {
    let mut world = lagging(Arc::new(InlineTasks));
    let leader = world.leader().unwrap();
    world.members[&leader].fs.fail_next(Fault::SyncDir);
    let made: Arc<Mutex<Option<Result<SnapshotRef, HostError>>>> = Arc::default();
    let answer = Arc::clone(&made);
    let reply = Box::new(move |result| *answer.lock().unwrap() = Some(result));
    world.node(leader).handle.make_snapshot(GROUP, reply);
    let stopped = (0..3).find_map(|_| world.step());
    assert_eq!(stopped, Some(leader));
    let error = world.node(leader).core.turn(10_000).unwrap_err();
    assert!(matches!(error, GroupError::Snapshots(_)), "{error}");
    // As whoever runs a host does with one that cannot go on: nobody is left waiting.
    world.node(leader).core.fail();
    let told = made.lock().unwrap().take();
    assert_eq!(told, Some(Err(HostError::Stopped)));
}

const WRONG: &str = "what nobody proposed";

/// Member 3 has applied something else than its log says, durably.
fn spoiled() -> World {
    let mut world = World::new(1, Arc::new(InlineTasks));
    world.propose(10, "early");
    world.until("all have it", |world| {
        world.agree() && world.state(LAGS).list.len() == 10
    });
    world.spoil(LAGS, WRONG);
    world.until("a leader", |world| world.leader().is_some());
    assert!(!world.agree());
    world
}

fn wants_state_above(world: &mut World) -> Option<Index> {
    let status = world.node(LAGS).handle.status(GROUP);
    status.unwrap().wants_state_above
}

/// As a member does that was found wrong: waits for another state, and asks the leader for it.
fn ask(world: &mut World) {
    let Some(above) = wants_state_above(world) else {
        let handle = &world.node(LAGS).handle;
        return handle.replace_state(GROUP, Box::new(drop));
    };
    if let Some(leader) = world.leader().filter(|leader| *leader != LAGS) {
        let handle = &world.node(leader).handle;
        handle.send_state(GROUP, LAGS, above, Box::new(drop));
    }
}

#[test]
fn wrong_state_is_replaced_and_the_log_goes_on() {
    let mut world = spoiled();
    let applied = world.state(LAGS).applied.index;
    ask(&mut world);
    assert_eq!(world.step(), None);
    assert_eq!(wants_state_above(&mut world), Some(applied));
    // It applies nothing, and counts all the same: without it there is no majority.
    world.away = Some(NodeId(2));
    let leader = world.leader().unwrap();
    assert_eq!(leader, NodeId(1), "it is the first to campaign");
    world.propose(5, "meanwhile");
    world.until("it is committed", |world| {
        world.state(leader).list.len() == 15
    });
    world.away = None;
    assert_eq!(world.state(LAGS).applied.index, applied);

    let replaced: Arc<Mutex<Option<Result<(), HostError>>>> = Arc::default();
    let into = Arc::clone(&replaced);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    world.node(LAGS).handle.replace_state(GROUP, reply);
    assert_eq!(world.step(), None);
    ask(&mut world);
    world.until("it is replaced", |world| {
        world.agree() && world.state(LAGS).list.len() == 15
    });
    assert_eq!(replaced.lock().unwrap().take(), Some(Ok(())));
    assert_eq!(world.began, 1, "one transfer is enough");
    assert_eq!(wants_state_above(&mut world), None);
    // The log neither begins anew nor refers to what came, so that nothing of it is left.
    assert_eq!(snapshot(&world, LAGS), None);
    assert!(base(&world, LAGS) <= applied);
    assert!(world.node(LAGS).snapshots.list().unwrap().is_empty());
    world.propose(20, "later");
    world.until("all have it", |world| {
        world.agree() && world.state(LAGS).list.len() == 35
    });
    // What it knows of memberships is enough to compact again.
    world.until("its log is compacted", |world| base(world, LAGS) > applied);
}

#[test]
fn state_above_which_nothing_was_proposed_is_replaced() {
    let mut world = spoiled();
    for _ in 0..200 {
        if !world.agree() {
            ask(&mut world);
        }
        assert_eq!(world.step(), None);
    }
    assert!(world.agree(), "an entry of the leader's own lies above it");
}

#[test]
fn member_that_waits_for_another_state_applies_when_it_leads_or_is_called_off() {
    let mut world = spoiled();
    let told: Arc<Mutex<Option<Result<(), HostError>>>> = Arc::default();
    let into = Arc::clone(&told);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    world.node(LAGS).handle.replace_state(GROUP, reply);
    let leader = world.leader().unwrap();
    world.node(leader).handle.transfer(GROUP, LAGS);
    world.until("it leads", |world| world.leader() == Some(LAGS));
    world.propose(3, "led");
    world.until("it applies", |world| world.state(LAGS).list.len() == 13);
    let refused: Arc<Mutex<Option<Result<bool, HostError>>>> = Arc::default();
    let into = Arc::clone(&refused);
    let reply = Box::new(move |result| *into.lock().unwrap() = Some(result));
    let above = world.state(LAGS).applied.index;
    world
        .node(leader)
        .handle
        .send_state(GROUP, LAGS, above, reply);
    assert_eq!(world.step(), None);
    let refused = refused.lock().unwrap().take();
    assert_eq!(refused, Some(Err(HostError::NotLeader(Some(LAGS)))));

    world.node(LAGS).handle.transfer(GROUP, leader);
    world.until("another leads", |world| world.leader() == Some(leader));
    world.propose(3, "held");
    assert_eq!(world.state(LAGS).list.len(), 13);
    world.node(LAGS).handle.keep_state(GROUP);
    world.until("it applies again", |world| {
        world.state(LAGS).list.len() == 16
    });
    assert_eq!(told.lock().unwrap().take(), Some(Err(HostError::Stopped)));
}

/// Whatever operation of the disk is the last one, there is the old state or the new one, and its log has all that it
/// acknowledged.
fn crash_of_the_replaced(kind: CrashKind, newest: bool) {
    let start = spoiled();
    let (mut outcomes, mut points) = ([0, 0], 0);
    for point in 0.. {
        println!("{kind:?}, operation {point}, newest {newest}");
        let mut world = start.fork(point + 1);
        world.until("a leader", |world| world.leader().is_some());
        world.members[&LAGS].fs.fail_after(point);
        let mut failed = false;
        for at in 0..150 {
            if world.state(LAGS).list[0] == WRONG {
                ask(&mut world);
            }
            if let Some(down) = world.step() {
                assert_eq!(down, LAGS);
                failed = true;
                break;
            }
            if at % 10 == 0
                && let Some(leader) = world.leader()
            {
                let payload = format!("more-{at}").into();
                let handle = &world.node(leader).handle;
                handle.propose(GROUP, payload, Box::new(drop));
            }
        }
        world.crash(LAGS, kind, newest);
        let acknowledged = world.members[&LAGS].acknowledged;
        world.open(LAGS).unwrap_or_else(|error| panic!("{error}"));
        let info = world.node(LAGS).log.group(GROUP).unwrap();
        assert!(
            info.last_index >= acknowledged,
            "{acknowledged} was acknowledged"
        );
        let list = world.state(LAGS).list;
        let is_wrong = list[0] == WRONG;
        world.until("a leader", |world| world.leader().is_some());
        let leader = world.leader().unwrap();
        let right = world.state(leader).list;
        assert_eq!(list[1..], right[1..list.len()], "nothing of both");
        assert!(is_wrong || list[0] == right[0]);
        outcomes[usize::from(!is_wrong)] += 1;
        for _ in 0..300 {
            if world.state(LAGS).list[0] == WRONG {
                ask(&mut world);
            }
            assert_eq!(world.step(), None);
        }
        world.propose(3, "after");
        world.until("everybody agrees", |world| {
            world.agree() && world.state(LAGS).list.len() >= 13
        });
        if !failed {
            points = point;
            break;
        }
    }
    println!("{points} operations: {outcomes:?}");
    assert!(points > 20, "only {points} operations were cut short");
    assert!(outcomes[0] > 10, "{outcomes:?}");
    assert!(outcomes[1] > 0 || !newest, "{outcomes:?}");
}

#[test]
fn crash_at_every_operation_leaves_the_state_that_is_replaced_or_the_new_one() {
    for kind in [CrashKind::Power, CrashKind::Process] {
        crash_of_the_replaced(kind, false);
        crash_of_the_replaced(kind, true);
    }
}
