//! A leader allocates nothing per proposal, once its buffers have grown: what is counted is exact, so this is a test and no
//! benchmark. Payloads are the caller's.

use bytes::Bytes;
use raft_log::vfs::sim::SimFs;
use raft_log::{IoMode, Log, LogOptions, StoreId, WriteBatch};
use raft_node::core::{Body, Config, Core, Effects, Initial, Input, Membership, Message, Role};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{
    Applied, ApplyError, Entry, EntryKind, GroupId, Index, NodeId, StateMachine, Term, TickContext,
};

const TERM: Term = Term(1);

struct Leader {
    core: Core,
    out: Effects,
    last: Index,
    token: u64,
    /// Buffers go back to the core.
    recycles: bool,
}

impl Leader {
    fn new(recycles: bool) -> Self {
        let config = Config {
            id: NodeId(1),
            // So that the window is full and moves.
            window_bytes_max: 1 << 12,
            ..Config::default()
        };
        let initial = Initial {
            membership: Membership::of_voters((1..=3).map(NodeId)),
            ..Initial::default()
        };
        let core = Core::new(config.validate().expect("valid"), initial);
        let mut leader = Self {
            core,
            out: Effects::default(),
            last: Index(1),
            token: 0,
            recycles,
        };
        leader.core.step(Input::Campaign, &mut leader.out);
        leader.end();
        leader.receive(NodeId(2), Body::VoteReply { granted: true });
        assert_eq!(leader.core.status().role, Role::Leader);
        leader.end();
        leader.acknowledge();
        for _ in 0..200 {
            leader.batch(64);
        }
        leader
    }

    fn receive(&mut self, from: NodeId, body: Body) {
        let message = Message {
            term: TERM,
            incarnation: 0,
            body,
        };
        let input = Input::Message { from, message };
        self.core.step(input, &mut self.out);
    }

    fn end(&mut self) {
        self.core.ready(&mut self.out);
        while let Some((_, message)) = self.out.send_now.pop() {
            if let Body::Append { entries, .. } = message.body
                && self.recycles
            {
                self.out.recycle(entries);
            }
        }
        self.out.send_after.clear();
        self.out.proposed.clear();
        if let Some(batch) = self.out.persist.take() {
            self.core.step(Input::Persisted(batch.id), &mut self.out);
            if self.recycles {
                self.out.recycle(batch.entries);
            }
        }
    }

    fn acknowledge(&mut self) {
        let matched = self.last;
        for from in [NodeId(2), NodeId(3)] {
            self.receive(from, Body::AppendReply { matched });
        }
        assert_eq!(self.out.commit.take(), Some(matched), "it is committed");
        self.core.step(Input::Applied(matched), &mut self.out);
        self.core.step(Input::Tick { ticks: 1 }, &mut self.out);
    }

    fn batch(&mut self, proposals: u64) {
        for _ in 0..proposals {
            self.token += 1;
            self.last = self.last.next();
            let input = Input::Propose {
                token: Some(self.token),
                kind: EntryKind::Normal,
                payload: Bytes::from_static(b"a small entry"),
            };
            self.core.step(input, &mut self.out);
        }
        self.end();
        self.acknowledge();
    }

    /// Allocations of so many batches.
    fn count(&mut self, batches: u64, proposals: u64) -> u64 {
        let counted = allocation_counter::measure(|| {
            for _ in 0..batches {
                self.batch(proposals);
            }
        });
        counted.count_total
    }
}

#[test]
fn leader_whose_buffers_come_back_allocates_nothing_for_proposals() {
    for proposals in [1, 7, 64] {
        let mut leader = Leader::new(true);
        assert_eq!(leader.count(1_000, proposals), 0, "batches of {proposals}");
    }
}

/// A caller that keeps the buffers, as one who hands them to a log and a network: one for the write, one per member.
#[test]
fn leader_without_its_buffers_allocates_per_batch_and_not_per_proposal() {
    let few = Leader::new(false).count(100, 1);
    assert_eq!(few, 3 * 100);
    let many = Leader::new(false).count(100, 64);
    assert!(many <= 3 * 100, "{many} for 6,400 proposals in 100 batches");
}

/// Applies without a trace.
#[derive(Default)]
struct Nothing(Applied);

impl StateMachine for Nothing {
    type Output = ();

    fn applied(&self) -> Applied {
        self.0.clone()
    }

    fn durable_index(&self) -> Index {
        Index::ZERO
    }

    fn request_persist(&mut self) {}

    fn apply(
        &mut self,
        entries: &[Entry],
        _: Option<&Membership>,
        outputs: &mut Vec<()>,
    ) -> Result<(), ApplyError> {
        for entry in entries {
            (self.0.index, self.0.term) = (entry.index, entry.term);
            outputs.push(());
        }
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

const GROUP: GroupId = GroupId(1);

/// A leader as it is driven, on a log; what the log itself allocates is not counted.
struct Driven {
    log: Log,
    group: Group<Nothing>,
    token: u64,
    allocated: u64,
}

impl Driven {
    fn new() -> Self {
        let mut options = LogOptions::new("/log", StoreId(5));
        options.io = IoMode::Inline;
        let (log, _) = Log::open(SimFs::new(1).shared(), options).expect("opens");
        let members = Membership::of_voters((1..=3).map(NodeId));
        bootstrap(&log, GROUP, 1, &members).expect("created");
        let core = Config {
            id: NodeId(1),
            window_bytes_max: 1 << 12,
            ..Config::default()
        };
        let config = GroupConfig {
            core: core.validate().expect("valid"),
            catch_up_entries: 0,
        };
        let group = Group::open(GROUP, config, log.clone(), Nothing::default()).expect("opens");
        let mut driven = Self {
            log,
            group,
            token: 0,
            allocated: 0,
        };
        let ticks = 2 * Config::default().election_ticks;
        driven.group.tick(ticks, ticks);
        let granted = true;
        driven.receive(Body::PreVoteReply {
            asked: Term(1),
            granted,
        });
        driven.persist();
        driven.receive(Body::VoteReply { granted });
        assert_eq!(driven.group.status().role, Role::Leader);
        for _ in 0..200 {
            driven.batch(64);
        }
        driven
    }

    fn receive(&mut self, body: Body) {
        let term = self.group.status().term;
        for from in [NodeId(2), NodeId(3)] {
            let message = Message {
                term,
                incarnation: 0,
                body: body.clone(),
            };
            self.group.receive(from, message);
        }
    }

    fn counted<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let mut result = None;
        let counted = allocation_counter::measure(|| result = Some(work(self)));
        self.allocated += counted.count_total;
        result.expect("it ran")
    }

    fn persist(&mut self) {
        let mut batch = WriteBatch::new();
        let id = self.counted(|driven| driven.group.collect(&mut batch));
        let id = id.expect("something to write");
        let ticket = self.log.submit(batch).expect("submitted");
        self.log.wait(ticket).expect("synced");
        self.counted(|driven| {
            driven.group.persisted(id);
            driven.group.take_messages().for_each(drop);
        });
    }

    fn batch(&mut self, proposals: u64) {
        self.counted(|driven| {
            for _ in 0..proposals {
                driven.token += 1;
                let payload = Bytes::from_static(b"a small entry");
                driven.group.propose(driven.token, payload);
            }
        });
        self.persist();
        self.counted(|driven| {
            let matched = driven.group.status().last_index;
            driven.receive(Body::AppendReply { matched });
            while driven.group.apply().expect("applies") {}
            assert_eq!(driven.group.applied(), matched);
            driven.group.take_events().for_each(drop);
        });
    }

    /// Allocations of so many batches.
    fn count(&mut self, batches: u64, proposals: u64) -> u64 {
        self.allocated = 0;
        for _ in 0..batches {
            self.batch(proposals);
        }
        self.allocated
    }
}

/// One for the list of the log's batch, one for what is read back to be applied, one for each member. What was applied is
/// the buffer of the next write.
#[test]
fn driven_leader_allocates_per_batch_and_not_per_proposal() {
    for proposals in [1, 64] {
        let mut driven = Driven::new();
        assert_eq!(driven.count(100, proposals), 4 * 100);
    }
}
