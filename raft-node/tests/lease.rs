//! What a member that answers heartbeats promises where leases are on.

use raft_node::core::{Body, Config, Core, Effects, Initial, Input, Membership, Message};
use raft_node::{Index, NodeId, Term};

const ELECTION_TICKS: u64 = 10;

fn follower(lease_ticks: u64) -> Core {
    let config = Config {
        id: NodeId(2),
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 2,
        lease_ticks,
        ..Config::default()
    };
    let initial = Initial {
        membership: Membership::of_voters((1..=3).map(NodeId)),
        ..Initial::default()
    };
    let mut core = Core::new(config.validate().expect("valid"), initial);
    // What it may have promised before it started is over.
    tick(&mut core, 0);
    tick(&mut core, ELECTION_TICKS);
    let (commit, round) = (Index::ZERO, 1);
    tell(&mut core, 1, 3, Body::Heartbeat { commit, round });
    core
}

fn tick(core: &mut Core, ticks: u64) {
    core.step(Input::Tick { ticks }, &mut Effects::default());
}

fn tell(core: &mut Core, from: u64, term: u64, body: Body) -> Effects {
    let mut out = Effects::default();
    let message = Message {
        incarnation: 0,
        term: Term(term),
        body,
    };
    let from = NodeId(from);
    core.step(Input::Message { from, message }, &mut out);
    core.ready(&mut out);
    out
}

fn votes(core: &mut Core, term: u64, forced: bool) -> bool {
    let request = Body::Vote {
        last_index: Index(9),
        last_term: Term(3),
        forced,
    };
    let out = tell(core, 3, term, request);
    let granted = |message: &Message| message.body == Body::VoteReply { granted: true };
    out.send_after
        .iter()
        .any(|(_, _, message)| granted(message))
}

/// A later term makes a member forget its leader; the lease that it has a part in goes on.
#[test]
fn promise_outlives_a_later_term() {
    for lease_ticks in [0, 9] {
        let mut core = follower(lease_ticks);
        let matched = Index::ZERO;
        tell(&mut core, 3, 7, Body::AppendReply { matched });
        assert_eq!(core.status().term, Term(7));
        assert_eq!(votes(&mut core, 8, false), lease_ticks == 0);
    }
}

#[test]
fn promise_is_over_an_election_timeout_after_the_clock_was_read() {
    let mut core = follower(9);
    // The clock was last read long before the heartbeat came.
    tick(&mut core, 5 * ELECTION_TICKS);
    assert!(!votes(&mut core, 4, false));
    tick(&mut core, ELECTION_TICKS - 1);
    assert!(!votes(&mut core, 4, false));
    tick(&mut core, 1);
    assert!(votes(&mut core, 4, false));
}

/// Who is told to campaign by its leader has that leader's word that it has no lease.
#[test]
fn promise_does_not_bind_against_who_is_handed_leadership() {
    let mut core = follower(9);
    assert!(votes(&mut core, 4, true));
}

#[test]
fn promise_keeps_a_member_from_campaigning() {
    let mut core = follower(9);
    core.step(Input::Campaign, &mut Effects::default());
    tick(&mut core, 0);
    tick(&mut core, ELECTION_TICKS - 1);
    core.step(Input::Campaign, &mut Effects::default());
    assert_eq!(core.status().term, Term(3));
    tick(&mut core, 1);
    core.step(Input::Campaign, &mut Effects::default());
    assert_eq!(core.status().term, Term(4));
}

#[test]
fn promise_refuses_pre_votes() {
    let mut core = follower(9);
    let asks = |core: &mut Core| {
        let request = Body::PreVote {
            last_index: Index(9),
            last_term: Term(3),
        };
        let out = tell(core, 3, 7, request);
        let asked = Term(8);
        let granted = true;
        let grant = Body::PreVoteReply { asked, granted };
        out.send_now
            .iter()
            .any(|(_, message)| message.body == grant)
    };
    let matched = Index::ZERO;
    tell(&mut core, 3, 7, Body::AppendReply { matched });
    assert!(!asks(&mut core));
    tick(&mut core, 0);
    tick(&mut core, ELECTION_TICKS);
    assert!(asks(&mut core));
}
