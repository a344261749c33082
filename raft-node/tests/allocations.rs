//! A leader allocates nothing per proposal, once its buffers have grown: what is counted is exact, so this is a test and no
//! benchmark. Payloads are the caller's.

use bytes::Bytes;
use raft_node::core::{Body, Config, Core, Effects, Initial, Input, Membership, Message, Role};
use raft_node::{EntryKind, Index, NodeId, Term};

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
