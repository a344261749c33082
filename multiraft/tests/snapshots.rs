//! A member that lags gets a snapshot: through real cores, logs, snapshot stores and hosts, on simulated disks. Whatever
//! crashes on the way, what was acknowledged survives and everybody agrees in the end.
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
