//! The lessor against simulated ticks: its rules one by one, then at random against a model of clients, a log and
//! leaders that change.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use raft_log::Term;

use super::deadlines::{
    CHECKPOINT_ITEMS_MAX, EXPIRE_ITEMS_MAX, EXPIRING_MAX, MARGIN, PERIOD, RETRY, SECOND, STEP_MAX,
};
use super::*;
use crate::pb::command::{Command, command::Op};

const TERM: Term = Term(4);

fn lease(id: i64, ttl: i64) -> LeaseInfo {
    LeaseInfo {
        id,
        ttl,
        remaining_ttl: None,
        granted: Index(id.unsigned_abs()),
    }
}

fn tick(lessor: &Lessor, tick: u64, leading: Option<Term>) -> Vec<Op> {
    let mut proposals = Vec::new();
    lessor.tick(TickContext { tick, leading }, &mut proposals);
    let decode = |payload: Bytes| Command::decode(payload).unwrap().op.unwrap();
    proposals.into_iter().map(decode).collect()
}

/// A leader's lessor at some tick.
struct Leader {
    lessor: Lessor,
    tick: u64,
}

impl Leader {
    fn new(leases: &[LeaseInfo]) -> Self {
        let lessor = Lessor::new();
        for lease in leases {
            lessor.granted(*lease);
        }
        let mut leader = Self { lessor, tick: 0 };
        leader.after(1);
        leader
    }

    /// One call, some ticks later.
    fn after(&mut self, ticks: u64) -> Vec<Op> {
        self.tick += ticks;
        tick(&self.lessor, self.tick, Some(TERM))
    }

    /// Calls as the host makes them, until so many ticks have passed.
    fn run(&mut self, ticks: u64) -> Vec<Op> {
        let (end, mut ops) = (self.tick + ticks, Vec::new());
        while self.tick < end {
            ops.extend(self.after(PERIOD.min(end - self.tick)));
        }
        ops
    }

    fn renew(&self, id: i64) -> Renewal {
        self.lessor.renew(id, 0)
    }

    fn left(&self, id: i64) -> i64 {
        self.lessor.time_to_live(id).unwrap().1
    }
}

fn expired(ops: &[Op]) -> Vec<i64> {
    let items = ops.iter().filter_map(|op| match op {
        Op::LeaseExpire(expire) => Some(&expire.items),
        _ => None,
    });
    items.flatten().map(|item| item.id).collect()
}

fn checkpoints(ops: &[Op]) -> Vec<(i64, i64)> {
    let items = ops.iter().filter_map(|op| match op {
        Op::LeaseCheckpoint(checkpoint) => Some(&checkpoint.items),
        _ => None,
    });
    let item = |item: &crate::pb::command::lease_checkpoint::Item| (item.id, item.remaining_ttl);
    items.flatten().map(item).collect()
}

#[test]
fn lease_without_renewal_is_expired_once_after_its_ttl() {
    let mut leader = Leader::new(&[lease(1, 3)]);
    assert_eq!(leader.left(1), 3);
    assert!(expired(&leader.run(3 * SECOND + MARGIN - 1)).is_empty());
    assert_eq!(leader.lessor.time_to_live(1), Some((3, 0)));
    let ops = leader.after(1);
    assert_eq!(expired(&ops), [1]);
    let [Op::LeaseExpire(expire)] = &ops[..] else {
        panic!("{ops:?}")
    };
    assert_eq!(expire.items[0].granted_index, 1);
    assert!(expired(&leader.run(RETRY - 1)).is_empty(), "it is pending");
    assert_eq!(expired(&leader.after(1)), [1], "it had no effect");
    leader.lessor.revoked(1);
    assert!(expired(&leader.run(2 * RETRY)).is_empty());
    assert_eq!(leader.lessor.time_to_live(1), None);
    assert_eq!(leader.lessor.next_deadline(), None);
}

#[test]
fn renewal_at_the_end_of_a_stale_tick_gives_the_whole_ttl() {
    let mut leader = Leader::new(&[lease(1, 2)]);
    leader.run(SECOND);
    // The host slept, and reads its tick; this happens before it calls; then it is held up once more.
    assert_eq!(leader.renew(1), Renewal::Renewed { ttl: 2 });
    leader.after(STEP_MAX);
    leader.after(STEP_MAX);
    assert!(expired(&leader.run(2 * SECOND - 1)).is_empty());
    assert_eq!(expired(&leader.after(1)), [1]);
}

#[test]
fn jump_of_the_ticks_moves_deadlines() {
    let mut leader = Leader::new(&[lease(1, 2), lease(2, 3)]);
    assert!(expired(&leader.after(100 * SECOND)).is_empty());
    assert_eq!((leader.left(1), leader.left(2)), (1, 2));
    // Its keepalive waited meanwhile.
    assert_eq!(leader.renew(1), Renewal::Renewed { ttl: 2 });
    assert_eq!(leader.left(1), 2);
    // The step that counted, and the margin.
    assert!(expired(&leader.run(2 * SECOND + STEP_MAX)).is_empty());
    assert_eq!(expired(&leader.run(2 * STEP_MAX)), [1]);
    assert_eq!(expired(&leader.run(2 * STEP_MAX)), [2]);
}

#[test]
fn ticks_are_asked_for_while_there_are_leases() {
    let lessor = Lessor::new();
    assert_eq!(lessor.next_deadline(), None);
    lessor.granted(lease(1, 2));
    // Also before it leads: else it would not learn that it does.
    assert_eq!(lessor.next_deadline(), Some(PERIOD));
    tick(&lessor, 7, Some(TERM));
    assert_eq!(lessor.next_deadline(), Some(7 + PERIOD));
    for at in (17..257).step_by(10) {
        assert!(tick(&lessor, at, Some(TERM)).is_empty());
    }
    assert_eq!(
        lessor.next_deadline(),
        Some(257),
        "sooner, when one is due sooner"
    );
}

#[test]
fn member_that_does_not_lead_keeps_no_deadlines() {
    let mut leader = Leader::new(&[lease(1, 2)]);
    assert_eq!(leader.left(1), 2);
    tick(&leader.lessor, 2, None);
    assert_eq!(leader.lessor.time_to_live(1), None);
    assert_eq!(leader.renew(1), Renewal::NotLeading);
    assert_eq!(leader.renew(9), Renewal::NotFound);
    for at in 0..100 {
        assert!(tick(&leader.lessor, at * SECOND, None).is_empty());
    }
    leader.tick = 100 * SECOND;
    leader.after(1);
    assert_eq!(leader.left(1), 2, "regained: the whole time");
}

#[test]
fn new_leader_starts_from_the_checkpoint() {
    let mut checkpointed = lease(1, 60);
    checkpointed.remaining_ttl = Some(4);
    let mut leader = Leader::new(&[checkpointed, lease(2, 60)]);
    assert_eq!((leader.left(1), leader.left(2)), (4, 60));
    assert!(expired(&leader.run(4 * SECOND)).is_empty());
    assert_eq!(expired(&leader.run(MARGIN)), [1]);
}

#[test]
fn checkpoint_records_the_rest_and_renewed_leases_have_none() {
    let mut leader = Leader::new(&[lease(1, 60), lease(2, 60), lease(3, 2)]);
    let mut ops = Vec::new();
    for _ in 0..3 {
        ops.extend(leader.run(20 * SECOND));
        assert_eq!(leader.renew(2), Renewal::Renewed { ttl: 60 });
        leader.lessor.revoked(3);
    }
    let recorded = checkpoints(&ops);
    assert!(recorded.iter().all(|(id, _)| *id == 1), "{recorded:?}");
    let rests: Vec<_> = recorded.iter().map(|(_, rest)| *rest).collect();
    // The first after 24 seconds, then after an eighth of what is left, down to each second.
    let eighths = [36, 32, 29, 26, 23, 21, 19, 17];
    let seconds: Vec<_> = (1..16).rev().collect();
    assert_eq!(rests, [&eighths[..], &seconds].concat());
}

#[test]
fn long_lease_is_checkpointed_every_five_minutes() {
    let mut leader = Leader::new(&[lease(1, 9_000_000_000)]);
    let ops = leader.run(910 * SECOND);
    let [(1, first), (1, second), (1, third)] = checkpoints(&ops)[..] else {
        panic!("{ops:?}")
    };
    for wait in [first - second, second - third] {
        assert!((300..=301).contains(&wait), "{wait}");
    }
    assert!((8_999_999_699..=8_999_999_701).contains(&first), "{first}");
}

#[test]
fn renewal_of_a_checkpointed_lease_first_clears_it() {
    let mut leader = Leader::new(&[lease(1, 60)]);
    let ops = leader.run(25 * SECOND);
    assert_eq!(checkpoints(&ops), [(1, 36)]);
    // Under way, and then applied: either way an entry must come first.
    let Renewal::Unsettled { granted, seen } = leader.renew(1) else {
        panic!("a checkpoint is under way")
    };
    assert_eq!(granted, Index(1));
    leader.lessor.checkpointed(1, Some(36));
    assert!(matches!(
        leader.lessor.renew(1, seen),
        Renewal::Unsettled { .. }
    ));
    leader.lessor.checkpointed(1, None);
    assert_eq!(leader.left(1), 60, "the entry itself renews");
    assert_eq!(
        leader.lessor.renew(1, seen),
        Renewal::Renewed { ttl: 60 },
        "and the next one needs no entry"
    );
    assert_eq!(leader.renew(1), Renewal::Renewed { ttl: 60 });
}

#[test]
fn checkpoint_proposed_after_the_clearing_entry_needs_another() {
    let mut leader = Leader::new(&[lease(1, 600)]);
    assert_eq!(checkpoints(&leader.run(241 * SECOND)).len(), 1);
    leader.lessor.checkpointed(1, Some(360));
    let Renewal::Unsettled { seen, .. } = leader.renew(1) else {
        panic!()
    };
    // The clearing entry is in the log, then comes the next checkpoint.
    assert_eq!(checkpoints(&leader.run(46 * SECOND)).len(), 1);
    leader.lessor.checkpointed(1, None);
    let Renewal::Unsettled { seen: later, .. } = leader.lessor.renew(1, seen) else {
        panic!("the second checkpoint would shorten the renewed lease at a new leader")
    };
    assert!(later > seen);
}

#[test]
fn keepalive_of_an_expiring_lease_learns_what_became_of_it() {
    let mut leader = Leader::new(&[lease(1, 2), lease(2, 2)]);
    assert_eq!(expired(&leader.run(3 * SECOND)), [1, 2]);
    let Renewal::Unsettled { seen, .. } = leader.renew(1) else {
        panic!("its expiry is under way")
    };
    leader.lessor.checkpointed(1, None);
    assert_eq!(leader.left(1), 0, "the expiry may come after that entry");
    // The expiry took effect on one of them; on the other it came to nothing.
    leader.lessor.revoked(2);
    assert_eq!(leader.lessor.renew(2, seen), Renewal::NotFound);
    assert_eq!(leader.lessor.renew(1, seen), Renewal::Renewed { ttl: 2 });
    assert!(expired(&leader.run(2 * SECOND)).is_empty());
}

#[test]
fn mass_expiry_is_cut_into_bounded_entries_with_few_under_way() {
    let all = 3 * EXPIRING_MAX as i64;
    let leases: Vec<_> = (1..=all).map(|id| lease(id, 2)).collect();
    let mut leader = Leader::new(&leases);
    let mut gone = Vec::new();
    leader.run(2 * SECOND);
    while gone.len() < leases.len() {
        let mut under_way = Vec::new();
        for _ in 0..40 {
            let ops = leader.after(1);
            assert!(ops.len() <= 1);
            let batch = expired(&ops);
            assert!(batch.len() <= EXPIRE_ITEMS_MAX);
            under_way.extend(batch);
        }
        assert!(under_way.len() <= EXPIRING_MAX);
        under_way.iter().for_each(|id| leader.lessor.revoked(*id));
        gone.extend(under_way);
    }
    gone.sort_unstable();
    assert!(gone.iter().copied().eq(1..=all), "each one once");
}

#[test]
fn checkpoints_of_many_leases_share_entries() {
    let all = CHECKPOINT_ITEMS_MAX + 1;
    let leases: Vec<_> = (1..=all as i64).map(|id| lease(id, 60)).collect();
    let mut leader = Leader::new(&leases);
    let ops = leader.run(26 * SECOND);
    assert_eq!((ops.len(), checkpoints(&ops).len()), (2, all));
}

#[test]
fn lease_granted_again_under_its_id_has_its_own_time() {
    let mut leader = Leader::new(&[lease(1, 2)]);
    assert_eq!(expired(&leader.run(3 * SECOND)), [1]);
    leader.lessor.revoked(1);
    leader.lessor.granted(LeaseInfo {
        granted: Index(9),
        ..lease(1, 5)
    });
    assert_eq!(leader.left(1), 5);
    assert_eq!(leader.renew(1), Renewal::Renewed { ttl: 5 });
    let ops = leader.run(6 * SECOND);
    let Some(Op::LeaseExpire(expire)) = ops.last() else {
        panic!("{ops:?}")
    };
    assert_eq!(expired(&ops), [1]);
    assert_eq!(expire.items[0].granted_index, 9);
}

#[test]
fn new_leader_goes_on_recording_a_lease_that_was_not_renewed() {
    let mut checkpointed = lease(1, 600);
    checkpointed.remaining_ttl = Some(80);
    let mut leader = Leader::new(&[checkpointed, lease(2, 600)]);
    assert_eq!(checkpoints(&leader.run(11 * SECOND)), [(1, 71)]);
}

#[test]
fn hand_over_waits_until_what_leases_have_left_is_applied() {
    let mut leader = Leader::new(&[lease(1, 60), lease(2, 60), lease(3, 60), lease(4, 6)]);
    assert!(leader.run(5 * SECOND + SECOND / 2).iter().all(|op| {
        checkpoints(std::slice::from_ref(op))
            .iter()
            .all(|(id, _)| *id == 4)
    }));
    assert_eq!(leader.renew(3), Renewal::Renewed { ttl: 60 });
    assert!(leader.lessor.are_rests_recorded(), "nobody has asked");
    leader.lessor.record_rests();
    assert!(!leader.lessor.are_rests_recorded());
    // Lease 3 has its full time, as whoever leads next takes it to have.
    assert_eq!(
        checkpoints(&leader.after(PERIOD)),
        [(1, 55), (2, 55), (4, 1)]
    );
    assert!(checkpoints(&leader.after(1)).is_empty(), "each one once");
    leader.lessor.checkpointed(1, Some(55));
    assert!(matches!(leader.renew(2), Renewal::Unsettled { .. }));
    leader.lessor.checkpointed(2, None);
    assert!(!leader.lessor.are_rests_recorded());
    leader.lessor.revoked(4);
    assert!(leader.lessor.are_rests_recorded());
    // What is recorded already is good for a second.
    leader.lessor.record_rests();
    assert!(leader.lessor.are_rests_recorded());
}

#[test]
fn hand_over_of_many_leases_takes_a_tick_per_entry() {
    let all = 2 * CHECKPOINT_ITEMS_MAX as i64 + 1;
    let leases: Vec<_> = (1..=all).map(|id| lease(id, 60)).collect();
    let mut leader = Leader::new(&leases);
    assert!(leader.run(5 * SECOND).is_empty());
    leader.lessor.record_rests();
    for items in [CHECKPOINT_ITEMS_MAX, CHECKPOINT_ITEMS_MAX, 1] {
        assert_eq!(leader.lessor.next_deadline(), Some(leader.tick + 1));
        assert_eq!(checkpoints(&leader.after(1)).len(), items);
    }
    assert_eq!(leader.lessor.next_deadline(), Some(leader.tick + PERIOD));
    (1..all).for_each(|id| leader.lessor.checkpointed(id, Some(56)));
    assert!(!leader.lessor.are_rests_recorded());
    // Leadership has gone: nothing is waited for any more.
    tick(&leader.lessor, leader.tick + 1, None);
    assert!(leader.lessor.are_rests_recorded());
    leader.lessor.record_rests();
    assert!(leader.lessor.are_rests_recorded());
}

/// What is left of a lease after so many ticks without a renewal, and what a restart would make of it, in ticks.
fn left_and_recorded(ttl: i64, ticks: u64) -> (u64, u64) {
    let mut leader = Leader::new(&[lease(1, ttl)]);
    let mut recorded = ttl;
    for (_, rest) in checkpoints(&leader.run(ticks)) {
        recorded = rest;
    }
    let ttl = ttl.unsigned_abs() * SECOND;
    (ttl.saturating_sub(ticks), recorded.unsigned_abs() * SECOND)
}

proptest! {
    /// A restart gives back no more than the rule says, and what rounding to whole seconds adds, and never takes.
    #[test]
    fn restart_gives_back_at_most_what_passed_since_the_last_record(
        ttl in 2..4_000_i64,
        share in 0..100_u64,
    ) {
        let full = ttl.unsigned_abs() * SECOND;
        let (left, recorded) = left_and_recorded(ttl, full * share / 100);
        let passed = full - left;
        let first = (full * 2 / 5).clamp(2 * SECOND, 300 * SECOND);
        // At whole seconds by the clock, rounded up, with the half second that each lease has on top.
        let rounding = 3 * SECOND;
        let wait = if passed < first + SECOND {
            first
        } else {
            // An eighth of what was left at the last record is a seventh of what is left now.
            (left / 7).clamp(SECOND, 300 * SECOND)
        };
        prop_assert!(recorded <= left + wait + rounding, "{recorded} of {left}");
        prop_assert!(recorded >= left, "{recorded} of {left}");
    }

    /// Clients that renew every third of the TTL cause no entry.
    #[test]
    fn lease_that_is_renewed_in_time_is_never_recorded(ttl in 2..=900_i64, late in 0..PERIOD) {
        let mut leader = Leader::new(&[lease(1, ttl)]);
        for _ in 0..9 {
            let ops = leader.run(ttl.unsigned_abs() * SECOND / 3 + late);
            prop_assert!(ops.is_empty(), "{ops:?}");
            prop_assert_eq!(leader.renew(1), Renewal::Renewed { ttl });
        }
    }
}

/// What a client may do, and what may happen to it.
#[derive(Clone, Debug)]
enum Step {
    Grant {
        id: i64,
        ttl: i64,
    },
    /// A client's keepalive passes its quorum contact now.
    KeepAlive {
        id: i64,
    },
    /// Real time passes.
    Wait(u64),
    /// The leader's host makes so many calls in time; what it proposes is committed or stays under way.
    Run {
        calls: u64,
        commit: bool,
    },
    /// The host of a member makes a call, with a tick that may be as old as its last call.
    Tick {
        member: usize,
        stale: u64,
    },
    /// So many entries are committed and applied everywhere.
    Commit(usize),
    /// Another one leads, or the same one again; of the entries that are not committed some survive.
    Elect {
        member: usize,
        survive: usize,
    },
    /// A member loses its memory.
    Restart(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = 1..4_i64;
    let step = prop_oneof![
        2 => (id.clone(), 2..40_i64).prop_map(|(id, ttl)| Step::Grant { id, ttl }),
        5 => id.prop_map(|id| Step::KeepAlive { id }),
        2 => (1..1_500_u64).prop_map(Step::Wait),
        4 => (1..400_u64, any::<bool>()).prop_map(|(calls, commit)| Step::Run { calls, commit }),
        6 => (1..60_u64).prop_map(Step::Wait),
        12 => (0..2_usize, 0..80_u64).prop_map(|(member, stale)| Step::Tick { member, stale }),
        6 => (1..4_usize).prop_map(Step::Commit),
        1 => (0..2_usize, 0..3_usize).prop_map(|(member, survive)| Step::Elect { member, survive }),
        1 => (0..2_usize).prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 1..150)
}

struct Member {
    lessor: Lessor,
    tick: u64,
    /// The real time of its last call; the tick of the next one is read after that.
    called: u64,
}

/// A keepalive between its quorum contact and its answer.
struct Pending {
    id: i64,
    member: usize,
    term: Term,
    contact: u64,
    settled: u64,
}

struct Model {
    now: u64,
    term: Term,
    leader: usize,
    members: Vec<Member>,
    applied: BTreeMap<i64, LeaseInfo>,
    index: u64,
    /// Proposed, not committed: each with the keepalive that waits for it.
    log: Vec<(Op, Option<Pending>)>,
    /// Since when each lease has its full time, as its client knows.
    acknowledged: BTreeMap<i64, u64>,
    expired: usize,
}

impl Model {
    fn new() -> Self {
        let member = |_| Member {
            lessor: Lessor::new(),
            tick: 0,
            called: 0,
        };
        let mut model = Self {
            now: 0,
            term: Term(0),
            leader: 0,
            members: (0..2).map(member).collect(),
            applied: BTreeMap::new(),
            index: 0,
            log: Vec::new(),
            acknowledged: BTreeMap::new(),
            expired: 0,
        };
        model.elect(0, 0);
        model
    }

    fn apply(&mut self, op: Op, waiting: Option<Pending>) {
        self.index += 1;
        match op {
            Op::LeaseGrant(grant) => {
                let info = LeaseInfo {
                    granted: Index(self.index),
                    ..lease(grant.id, grant.ttl)
                };
                if self.applied.contains_key(&info.id) {
                    return;
                }
                self.applied.insert(info.id, info);
                self.acknowledged.insert(info.id, self.now);
                for member in &self.members {
                    member.lessor.granted(info);
                }
            }
            Op::LeaseExpire(expire) => {
                for item in expire.items {
                    let Some(info) = self.applied.get(&item.id) else {
                        continue;
                    };
                    if info.granted.0 != item.granted_index {
                        continue;
                    }
                    let held = self.now - self.acknowledged[&item.id];
                    let ttl = info.ttl.unsigned_abs() * SECOND;
                    assert!(held >= ttl, "lease {} ended at {held} of {ttl}", item.id);
                    self.applied.remove(&item.id);
                    self.expired += 1;
                    for member in &self.members {
                        member.lessor.revoked(item.id);
                    }
                }
            }
            Op::LeaseCheckpoint(checkpoint) => {
                for item in checkpoint.items {
                    let Some(info) = self.applied.get_mut(&item.id) else {
                        continue;
                    };
                    if info.granted.0 != item.granted_index {
                        continue;
                    }
                    info.remaining_ttl = (item.remaining_ttl > 0).then_some(item.remaining_ttl);
                    for member in &self.members {
                        member.lessor.checkpointed(item.id, info.remaining_ttl);
                    }
                }
            }
            other => panic!("{other:?}"),
        }
        if let Some(pending) = waiting {
            self.keep_alive(pending);
        }
    }

    fn commit(&mut self, entries: usize) {
        for _ in 0..entries.min(self.log.len()) {
            let (op, waiting) = self.log.remove(0);
            self.apply(op, waiting);
        }
    }

    fn elect(&mut self, member: usize, survive: usize) {
        self.log.truncate(survive);
        for (_, waiting) in &mut self.log {
            *waiting = None;
        }
        // The new leader's own entry comes after them.
        self.commit(survive);
        self.term = Term(self.term.0 + 1);
        self.leader = member;
    }

    fn keep_alive(&mut self, mut pending: Pending) {
        match self.members[pending.member]
            .lessor
            .renew(pending.id, pending.settled)
        {
            Renewal::Renewed { ttl } => {
                let info = self.applied[&pending.id];
                assert_eq!(ttl, info.ttl);
                // A deposed leader's answer counts from the contact, before which nobody else can have led.
                let since = if self.term == pending.term {
                    self.now
                } else {
                    pending.contact
                };
                let acknowledged = self.acknowledged.entry(pending.id).or_default();
                *acknowledged = since.max(*acknowledged);
            }
            Renewal::Unsettled { granted, seen } => {
                if self.term == pending.term {
                    pending.settled = seen;
                    let item = crate::pb::command::lease_checkpoint::Item {
                        id: pending.id,
                        granted_index: granted.0,
                        remaining_ttl: 0,
                    };
                    let items = vec![item];
                    let clear = Op::LeaseCheckpoint(crate::pb::command::LeaseCheckpoint { items });
                    self.log.push((clear, Some(pending)));
                }
            }
            Renewal::NotFound => assert!(!self.applied.contains_key(&pending.id)),
            Renewal::NotLeading => {}
        }
    }

    fn tick(&mut self, member: usize, stale: u64) {
        let leads = self.leader == member;
        let at = &mut self.members[member];
        at.tick = at.called.max(self.now.saturating_sub(stale));
        at.called = self.now;
        let ops = tick(&at.lessor, at.tick, leads.then_some(self.term));
        if leads {
            self.log.extend(ops.into_iter().map(|op| (op, None)));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Grant { id, ttl } => {
                let grant = Op::LeaseGrant(crate::pb::command::LeaseGrant { id, ttl });
                self.log.push((grant, None));
            }
            Step::KeepAlive { id } => {
                let pending = Pending {
                    id,
                    member: self.leader,
                    term: self.term,
                    contact: self.now,
                    settled: 0,
                };
                self.keep_alive(pending);
            }
            Step::Wait(ticks) => self.now += ticks,
            Step::Run { calls, commit } => {
                for _ in 0..calls {
                    self.now += PERIOD;
                    self.tick(self.leader, 0);
                    if commit {
                        self.commit(usize::MAX);
                    }
                }
            }
            Step::Tick { member, stale } => self.tick(member, stale),
            Step::Commit(entries) => self.commit(entries),
            Step::Elect { member, survive } => self.elect(member, survive.min(self.log.len())),
            Step::Restart(member) => {
                let lessor = Lessor::new();
                for info in self.applied.values() {
                    lessor.granted(*info);
                }
                self.members[member] = Member {
                    lessor,
                    tick: 0,
                    called: self.now,
                };
                if self.leader == member {
                    let kept = self.log.len() / 2;
                    self.elect(1 - member, kept);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever clients, hosts and elections do, no lease ends before its client had its whole time, and in the end
    /// each one ends.
    #[test]
    fn random_histories_end_each_lease_and_none_early(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        for _ in 0..60 * 40 {
            if model.applied.is_empty() && model.log.is_empty() {
                break;
            }
            model.now += PERIOD;
            model.tick(model.leader, 0);
            model.commit(usize::MAX);
        }
        prop_assert!(model.applied.is_empty(), "left: {:?}", model.applied);
    }
}
