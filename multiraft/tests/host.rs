//! Hosts on simulated disks: what was acknowledged survives any crash, nothing is applied twice, and reads see what was
//! acknowledged before them.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]
#![expect(
    clippy::print_stdout,
    reason = "a failing run must name its seed and crash point"
)]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::{HostCore, HostError, HostHandle, HostOptions};
use raft_log::vfs::{SimFs, sim::CrashKind};
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, Space, StoreId};
use raft_node::core::{Config, Membership};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Applied, ApplyError, Entry, Index, StateMachine, TickContext};

const GROUPS: [GroupId; 2] = [GroupId(1), GroupId(7)];
const ME: NodeId = NodeId(1);

/// A list of what was applied. A crash takes it back to what was made durable.
#[derive(Clone, Default)]
struct Durable {
    applied: Applied,
    list: Vec<Bytes>,
}

struct List {
    now: Durable,
    durable: Arc<Mutex<Durable>>,
}

impl StateMachine for List {
    /// The length of the list after the entry.
    type Output = usize;

    fn applied(&self) -> Applied {
        self.now.applied.clone()
    }

    fn durable_index(&self) -> Index {
        self.durable.lock().unwrap().applied.index
    }

    fn request_persist(&mut self) {
        *self.durable.lock().unwrap() = self.now.clone();
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<usize>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            assert_eq!(
                entry.index,
                self.now.applied.index.next(),
                "applied out of order"
            );
            self.now.applied.index = entry.index;
            self.now.applied.term = entry.term;
            if !entry.payload.is_empty() {
                self.now.list.push(entry.payload.clone());
            }
            outputs.push(self.now.list.len());
        }
        if let Some(membership) = membership {
            self.now.applied.membership = Some((self.now.applied.index, membership.clone()));
        }
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

/// What a client saw of one proposal: its group, what it proposed, and the answer.
type Seen = Arc<Mutex<Vec<(GroupId, Bytes, Result<usize, HostError>)>>>;

struct Node {
    log: Log,
    core: HostCore<List>,
    handle: HostHandle<List>,
}

/// Begins a group in a log, or opens it.
fn group(log: &Log, id: GroupId, durable: &Arc<Mutex<Durable>>) -> Result<Group<List>, String> {
    bootstrap(log, id, 1, &Membership::of_voters([ME])).map_err(|error| error.to_string())?;
    let core = Config {
        id: ME,
        group: id,
        ..Config::default()
    };
    let config = GroupConfig {
        core: core.validate().unwrap(),
        catch_up_entries: 3,
    };
    let machine = List {
        now: durable.lock().unwrap().clone(),
        durable: Arc::clone(durable),
    };
    Group::open(id, config, log.clone(), machine).map_err(|error| error.to_string())
}

fn open(fs: &SimFs, durable: &[Arc<Mutex<Durable>>]) -> Result<Node, String> {
    let mut options = LogOptions::new("/log", StoreId(5));
    options.io = IoMode::Inline;
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    let (log, _) = Log::open(fs.shared(), options).map_err(|error| error.to_string())?;
    let groups = GROUPS.into_iter().zip(durable);
    let groups = groups.map(|(id, durable)| group(&log, id, durable));
    let groups = groups.collect::<Result<Vec<_>, _>>()?;
    let options = HostOptions {
        snapshot_entries: 8,
        ..HostOptions::default()
    };
    let (core, handle) = HostCore::new(log.clone(), groups, options, Box::new(()), Box::new(|| {}));
    Ok(Node { log, core, handle })
}

/// Turns until nothing is left to do, with the disk in between.
fn run(node: &mut Node, now: &mut u64) -> Result<(), String> {
    for _ in 0..200 {
        let turn = node.core.turn(*now).map_err(|error| error.to_string())?;
        let wrote = node.log.drive().map_err(|error| error.to_string())?;
        if !turn.busy && !wrote && turn.unsynced.is_none() {
            return Ok(());
        }
    }
    panic!("the host does not come to rest");
}

/// Brings the groups to the point where they serve, then a few rounds of proposals to both groups. Ends early when the disk
/// crashes.
fn workload(node: &mut Node, now: &mut u64, rounds: u32, tag: &str, seen: &Seen) {
    if run(node, now).is_err() {
        node.core.fail();
        return;
    }
    for round in 0..rounds {
        for group in GROUPS {
            for at in 0..3 {
                let payload = Bytes::from(format!("{tag}-{group}-{round}-{at}"));
                let (seen, sent) = (Arc::clone(seen), payload.clone());
                let reply = Box::new(move |outcome| {
                    seen.lock().unwrap().push((group, sent, outcome));
                });
                node.handle.propose(group, payload, reply);
            }
        }
        // Housekeeping comes due now and then.
        *now += 60;
        if run(node, now).is_err() {
            node.core.fail();
            return;
        }
    }
}

/// Every acknowledged proposal is in the list, at the place that was answered, and nothing is in it twice.
fn check(node: &Node, seen: &Seen) {
    for (group, payload, outcome) in seen.lock().unwrap().iter() {
        let list = &node.core.machine(*group).unwrap().now.list;
        match outcome {
            Ok(len) => assert_eq!(
                list.get(len - 1),
                Some(payload),
                "an acknowledged entry is lost"
            ),
            // Refused before it was proposed: it must not be there at all.
            Err(HostError::Stopped | HostError::NotLeader(_)) => {
                assert!(!list.contains(payload), "a refused entry was applied");
            }
            Err(error) => assert_eq!(*error, HostError::OutcomeUnknown),
        }
        let times = list.iter().filter(|other| *other == payload).count();
        assert!(times <= 1, "{payload:?} was applied {times} times");
    }
}

fn crash_everywhere(kinds: &[CrashKind], seed: u64) {
    let mut points = 0;
    for point in 0.. {
        println!("seed {seed}, crash at operation {point}, {kinds:?}");
        let fs = SimFs::new(seed.wrapping_add(point));
        let durable: Vec<_> = GROUPS.iter().map(|_| Arc::default()).collect();
        let seen = Seen::default();
        let mut now = 0;
        fs.fail_after(point);
        let mut finished = false;
        if let Ok(mut node) = open(&fs, &durable) {
            workload(&mut node, &mut now, 6, "before", &seen);
            finished = !fs.is_down();
        }
        for kind in kinds {
            fs.crash(*kind);
        }
        let mut node = open(&fs, &durable).unwrap_or_else(|error| panic!("reopen: {error}"));
        now += 1;
        run(&mut node, &mut now).unwrap();
        check(&node, &seen);
        workload(&mut node, &mut now, 2, "after", &seen);
        check(&node, &seen);
        let answered = seen
            .lock()
            .unwrap()
            .iter()
            .filter(|(_, _, outcome)| outcome.is_ok())
            .count();
        assert!(answered >= 12, "the store does not serve after the crash");
        points = point;
        if finished {
            break;
        }
    }
    assert!(points > 10, "the workload has many crash points");
}

#[test]
fn process_crash_at_every_operation_loses_nothing_acknowledged() {
    crash_everywhere(&[CrashKind::Process], 1);
}

#[test]
fn power_loss_at_every_operation_loses_nothing_acknowledged() {
    for seed in 0..3 {
        crash_everywhere(&[CrashKind::Power], seed * 1_000_003);
    }
}

#[test]
fn process_crash_then_power_loss_loses_nothing_acknowledged() {
    crash_everywhere(&[CrashKind::Process, CrashKind::Power], 77);
}

#[test]
fn read_is_served_once_an_own_entry_is_committed() {
    let fs = SimFs::new(3);
    let durable: Vec<_> = GROUPS.iter().map(|_| Arc::default()).collect();
    let mut node = open(&fs, &durable).unwrap();
    assert!(
        !node.handle.read_now(GROUPS[0]),
        "nothing of the own term is committed yet"
    );
    let mut now = 0;
    run(&mut node, &mut now).unwrap();
    assert!(node.handle.read_now(GROUPS[0]));
    node.handle
        .propose(GROUPS[0], Bytes::from_static(b"x"), Box::new(|_| {}));
    // Committed and published, but not applied: the log has the entry on disk only after this turn.
    node.core.turn(now).unwrap();
    node.log.drive().unwrap();
    let read = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&read);
    node.handle.read_barrier(
        GROUPS[0],
        Box::new(move |r| *seen.lock().unwrap() = Some(r)),
    );
    run(&mut node, &mut now).unwrap();
    assert_eq!(*read.lock().unwrap(), Some(Ok(())));
    assert_eq!(node.core.machine(GROUPS[0]).unwrap().now.list.len(), 1);
    assert_eq!(node.handle.status(GROUPS[0]).unwrap().leader, Some(ME));
}

#[test]
fn inbox_at_its_bound_refuses_and_stopped_host_says_so() {
    let fs = SimFs::new(4);
    let durable: Vec<_> = GROUPS.iter().map(|_| Arc::default()).collect();
    let node = open(&fs, &durable).unwrap();
    let outcomes: Seen = Seen::default();
    let propose = |len: usize| {
        let seen = Arc::clone(&outcomes);
        let reply = Box::new(move |outcome| {
            seen.lock()
                .unwrap()
                .push((GROUPS[0], Bytes::new(), outcome));
        });
        node.handle
            .propose(GROUPS[0], Bytes::from(vec![1; len]), reply);
    };
    propose(16 << 20);
    assert!(outcomes.lock().unwrap().is_empty());
    propose(1);
    assert_eq!(outcomes.lock().unwrap()[0].2, Err(HostError::Busy));
    node.handle.stop();
    propose(1);
    assert_eq!(outcomes.lock().unwrap()[1].2, Err(HostError::Stopped));
}

/// Space can come back between a turn's look at the log and the time until which that turn lets the host sleep.
#[test]
fn host_that_refused_for_space_wakes_once_there_is_space() {
    let fs = SimFs::new(5);
    let durable: Vec<_> = GROUPS.iter().map(|_| Arc::default()).collect();
    let mut node = open(&fs, &durable).unwrap();
    let mut now = 0;
    run(&mut node, &mut now).unwrap();
    let outcomes: Seen = Seen::default();
    let propose = |node: &Node| {
        let seen = Arc::clone(&outcomes);
        let payload = Bytes::from(vec![1; 4096]);
        let reply = Box::new(move |outcome| {
            seen.lock()
                .unwrap()
                .push((GROUPS[0], Bytes::new(), outcome));
        });
        outcomes.lock().unwrap().clear();
        node.handle.propose(GROUPS[0], payload, reply);
        outcomes
            .lock()
            .unwrap()
            .pop()
            .map(|(_, _, outcome)| outcome)
    };
    fs.set_capacity(Some(0));
    while node.log.space() == Space::Available {
        propose(&node);
        node.core.turn(now).unwrap();
        let _full = node.log.drive();
    }
    now += 1;
    node.core.turn(now).unwrap();
    assert_eq!(propose(&node), Some(Err(HostError::NoSpace)));

    fs.set_capacity(None);
    while node.log.drive().unwrap() {}
    assert_eq!(node.log.space(), Space::Available);
    // Nothing else keeps the host awake.
    for (group, durable) in GROUPS.into_iter().zip(&durable) {
        *durable.lock().unwrap() = node.core.machine(group).unwrap().now.clone();
    }
    let woken = run_until_rest(&mut node, &mut now);
    assert_eq!(propose(&node), None, "accepted after {woken} turns");
}

/// Turns when the host asks for it, until it would sleep for ever.
fn run_until_rest(node: &mut Node, now: &mut u64) -> usize {
    for turns in 0..1000 {
        let turn = node.core.turn(*now).unwrap();
        let wrote = node.log.drive().unwrap();
        if turn.busy || wrote || turn.unsynced.is_some() {
            continue;
        }
        match turn.deadline {
            Some(deadline) => *now = deadline,
            None => return turns,
        }
    }
    panic!("the host never sleeps");
}

#[test]
fn group_that_joins_a_host_that_runs_serves_from_then_on() {
    let fs = SimFs::new(3);
    let [first, second]: [Arc<Mutex<Durable>>; 2] = Default::default();
    let mut now = 0;
    let mut node = open(&fs, std::slice::from_ref(&first)).unwrap();
    run(&mut node, &mut now).unwrap();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let propose = |node: &Node, id| {
        let answers = Arc::clone(&answers);
        let reply = Box::new(move |answer| answers.lock().unwrap().push(answer));
        node.handle.propose(id, Bytes::from_static(b"x"), reply);
    };
    let take = || std::mem::take(&mut *answers.lock().unwrap());
    propose(&node, GROUPS[1]);
    assert_eq!(take(), [Err(HostError::NoGroup)]);
    assert!(!node.handle.has(GROUPS[1]) && node.handle.status(GROUPS[1]).is_none());

    let joined = join(&node, group(&node.log, GROUPS[1], &second).unwrap());
    now += 5_000;
    run(&mut node, &mut now).unwrap();
    assert_eq!(*joined.lock().unwrap(), Some(Ok(())));
    assert!(node.handle.has(GROUPS[1]));
    assert_eq!(node.handle.status(GROUPS[1]).unwrap().node, ME);
    // Its time began when it joined.
    for _ in 0..100 {
        now += 10;
        run(&mut node, &mut now).unwrap();
    }
    propose(&node, GROUPS[1]);
    propose(&node, GROUPS[0]);
    run(&mut node, &mut now).unwrap();
    assert_eq!(take(), [Ok(1), Ok(1)]);
    propose(&node, GROUPS[1]);
    run(&mut node, &mut now).unwrap();
    assert_eq!(take(), [Ok(2)]);

    // One that comes too late hears so.
    node.core.fail();
    let mut options = LogOptions::new("/other", StoreId(5));
    options.io = IoMode::Inline;
    let (log, _) = Log::open(fs.shared(), options).unwrap();
    let late = join(&node, group(&log, GroupId(9), &Arc::default()).unwrap());
    assert_eq!(*late.lock().unwrap(), Some(Err(HostError::Stopped)));
}

/// Lets a group join, and gives back where the answer will be.
fn join(node: &Node, group: Group<List>) -> Arc<Mutex<Option<Result<(), HostError>>>> {
    let joined = Arc::new(Mutex::new(None));
    let told = Arc::clone(&joined);
    let reply = Box::new(move |answer| *told.lock().unwrap() = Some(answer));
    node.handle.join(group, reply);
    joined
}
