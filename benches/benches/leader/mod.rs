//! A leader without log and network.

use std::hint::black_box;

use bytes::Bytes;
use raft_node::core::{Body, Config, Core, Effects, Initial, Input, Membership, Message, Role};
use raft_node::{EntryKind, Index, NodeId, Term};

const TERM: Term = Term(1);
const PEERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

/// A core that leads three voters, whose others acknowledge at once.
pub(crate) struct Leader {
    core: Core,
    out: Effects,
    last: Index,
    token: u64,
}

impl Leader {
    pub(crate) fn new() -> Self {
        let config = Config {
            id: NodeId(1),
            ..Config::default()
        };
        let initial = Initial {
            membership: Membership::of_voters((1..=3).map(NodeId)),
            ..Initial::default()
        };
        let mut leader = Self {
            core: Core::new(config.validate().unwrap(), initial),
            out: Effects::default(),
            last: Index(1),
            token: 0,
        };
        leader.core.step(Input::Campaign, &mut leader.out);
        leader.end();
        leader.receive(NodeId(2), Body::VoteReply { granted: true });
        assert_eq!(leader.core.status().role, Role::Leader);
        leader.end();
        leader.acknowledge();
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

    /// Ends a batch: what leaves has left, what is written is written.
    fn end(&mut self) {
        self.core.ready(&mut self.out);
        let out = &mut self.out;
        for (_, message) in out.send_now.drain(..) {
            black_box(&message);
        }
        out.send_after.clear();
        out.proposed.clear();
        if let Some(batch) = out.persist.take() {
            black_box(&batch.entries);
            self.core.step(Input::Persisted(batch.id), &mut self.out);
        }
    }

    fn acknowledge(&mut self) {
        let matched = self.last;
        for from in PEERS {
            self.receive(from, Body::AppendReply { matched });
        }
        assert_eq!(self.out.commit.take(), Some(matched));
        self.core.step(Input::Applied(matched), &mut self.out);
    }

    /// Proposes so many entries together. Returns the number of steps.
    pub(crate) fn batch(&mut self, entries: u64) -> u64 {
        for _ in 0..entries {
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
        entries + 4
    }
}
