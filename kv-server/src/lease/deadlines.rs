//! The table of leases and deadlines behind the [`super::Lessor`]'s lock. Each call is short: an expiry and a
//! checkpoint look at a bounded number of leases, and only a change of leadership looks at all of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use multiraft::TICK_MS;
use prost::Message;
use raft_log::Term;
use raft_node::TickContext;

use super::Renewal;
use crate::mvcc::LeaseInfo;
use crate::pb::command::{
    Command, LeaseCheckpoint, LeaseExpire, command::Op, lease_checkpoint, lease_expire,
};
use crate::testing::{Bug, bug};

pub(super) const SECOND: u64 = 1_000 / TICK_MS;
/// Ticks between two calls that the table asks for while it has leases.
pub(super) const PERIOD: u64 = SECOND / 10;
/// Ticks that the table's clock goes on by per call at most.
pub(super) const STEP_MAX: u64 = SECOND / 4;
/// Ticks that a lease gets on top of its time. The tick of the call after a renewal may have been read before it, that
/// of the second call was read after it: so much may pass on the table's clock until then.
pub(super) const MARGIN: u64 = 2 * STEP_MAX;
/// Leases of one expiry entry. The keys of each go in one revision, all of the entry's in one engine batch.
pub(super) const EXPIRE_ITEMS_MAX: usize = 128;
/// Leases whose expiry is proposed and has had no effect yet.
pub(super) const EXPIRING_MAX: usize = 4 * EXPIRE_ITEMS_MAX;
/// Ticks until an expiry without effect is proposed again: the core may have refused it.
pub(super) const RETRY: u64 = 3 * SECOND;
/// Leases of one checkpoint entry; at most one such entry per call.
pub(super) const CHECKPOINT_ITEMS_MAX: usize = 1_000;
/// Ticks from a lease's grant or renewal to its first checkpoint, at least; and between two checkpoints.
const FIRST_CHECKPOINT_MIN: u64 = 2 * SECOND;
const CHECKPOINT_WAIT_MIN: u64 = SECOND;
/// At most so many ticks pass until the next checkpoint.
const CHECKPOINT_WAIT_MAX: u64 = 300 * SECOND;

struct Lease {
    info: LeaseInfo,
    /// The last round of proposals that names it and may still take effect; 0 when there is none.
    proposed: u64,
    /// On the table's clock. Means nothing unless leading.
    deadline: u64,
    /// When its rest is recorded next.
    checkpoint_at: Option<u64>,
    /// Its expiry is proposed, and when it is proposed again.
    retry_at: Option<u64>,
}

/// What is due when, earliest first. Each lease is in `deadlines` or in `expiring` while this member leads.
#[derive(Default)]
struct Queues {
    deadlines: BTreeSet<(u64, i64)>,
    checkpoints: BTreeSet<(u64, i64)>,
    expiring: BTreeSet<(u64, i64)>,
}

impl Queues {
    fn add(&mut self, id: i64, lease: &Lease) {
        match lease.retry_at {
            Some(at) => self.expiring.insert((at, id)),
            None => self.deadlines.insert((lease.deadline, id)),
        };
        if let Some(at) = lease.checkpoint_at {
            self.checkpoints.insert((at, id));
        }
    }

    fn remove(&mut self, id: i64, lease: &Lease) {
        self.deadlines.remove(&(lease.deadline, id));
        if let Some(at) = lease.checkpoint_at {
            self.checkpoints.remove(&(at, id));
        }
        if let Some(at) = lease.retry_at {
            self.expiring.remove(&(at, id));
        }
    }
}

#[derive(Default)]
pub(super) struct Deadlines {
    leases: BTreeMap<i64, Lease>,
    queues: Queues,
    /// Those whose rest is to be applied before leadership moves.
    unrecorded: BTreeSet<i64>,
    leading: Option<Term>,
    /// The host's tick at the last call.
    tick: u64,
    /// Goes on with the ticks, except where they jump.
    clock: u64,
    /// Rounds of proposals made since this process started.
    rounds: u64,
}

fn ticks(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(SECOND)
}

fn seconds(ticks: u64) -> i64 {
    i64::try_from(ticks).unwrap_or(i64::MAX)
}

/// Ticks from a lease's grant or renewal to its first checkpoint: clients renew when a third of the time is over, and a
/// keepalive that finds nothing recorded costs no entry.
fn first_wait(ttl: i64) -> u64 {
    let wait = ticks(ttl).saturating_mul(2) / 5;
    wait.clamp(FIRST_CHECKPOINT_MIN, CHECKPOINT_WAIT_MAX)
}

fn encode(op: Op) -> Bytes {
    Command { op: Some(op) }.encode_to_vec().into()
}

impl Lease {
    fn new(info: LeaseInfo) -> Self {
        Self {
            info,
            proposed: 0,
            deadline: 0,
            checkpoint_at: None,
            retry_at: None,
        }
    }

    /// Lets it run from now on, which on the table's clock is between `clock` and `clock` plus [`MARGIN`].
    fn run(&mut self, clock: u64, rest: i64) {
        self.deadline = clock
            .saturating_add(MARGIN)
            .saturating_add(ticks(rest.min(self.info.ttl)));
        if bug(Bug::ExpireEarly) {
            self.deadline -= (self.deadline - clock) / 4;
        }
        self.retry_at = None;
        // At whole seconds, so that leases share an entry.
        let at = match self.info.remaining_ttl {
            None => (clock + first_wait(self.info.ttl)).next_multiple_of(SECOND),
            Some(_) => self.next_checkpoint(clock),
        };
        self.plan_checkpoint(at);
    }

    /// Ticks until it ends, at most.
    fn rest(&self, clock: u64) -> u64 {
        self.deadline.saturating_sub(clock)
    }

    /// When a lease is recorded that was not renewed when it should have been: after an eighth of what it has left.
    fn next_checkpoint(&self, clock: u64) -> u64 {
        let wait = (self.rest(clock) / 8).clamp(CHECKPOINT_WAIT_MIN, CHECKPOINT_WAIT_MAX);
        // As above. The wait takes a second at least, so that this is later than now.
        (clock + wait) / SECOND * SECOND
    }

    /// Whether a leader that begins now would give it more than a second on top of what it has left.
    fn is_behind(&self, clock: u64) -> bool {
        let recorded = self.info.remaining_ttl.unwrap_or(self.info.ttl);
        ticks(recorded) > self.rest(clock).saturating_add(SECOND)
    }

    fn plan_checkpoint(&mut self, at: u64) {
        self.checkpoint_at = (at < self.deadline).then_some(at);
    }
}

impl Deadlines {
    /// Changes a lease and puts it where it belongs in the queues.
    fn change(&mut self, id: i64, change: impl FnOnce(&mut Lease)) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        self.queues.remove(id, lease);
        change(lease);
        if self.leading.is_some() {
            self.queues.add(id, lease);
        }
    }

    pub(super) fn granted(&mut self, info: LeaseInfo) {
        self.revoked(info.id);
        self.leases.insert(info.id, Lease::new(info));
        let clock = self.clock;
        let rest = info.remaining_ttl.unwrap_or(info.ttl);
        self.change(info.id, |lease| lease.run(clock, rest));
    }

    pub(super) fn revoked(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.queues.remove(id, &lease);
        }
        self.unrecorded.remove(&id);
    }

    pub(super) fn checkpointed(&mut self, id: i64, remaining_ttl: Option<i64>) {
        let clock = self.clock;
        self.unrecorded.remove(&id);
        self.change(id, |lease| {
            lease.info.remaining_ttl = remaining_ttl;
            // A renewal, unless its expiry may come after it in the log.
            if remaining_ttl.is_none() && lease.retry_at.is_none() {
                lease.run(clock, lease.info.ttl);
            }
        });
    }

    pub(super) fn renew(&mut self, id: i64, settled: u64) -> Renewal {
        let Some(lease) = self.leases.get(&id) else {
            return Renewal::NotFound;
        };
        if self.leading.is_none() {
            return Renewal::NotLeading;
        }
        let unsettled = lease.proposed > settled || lease.info.remaining_ttl.is_some();
        if unsettled && !bug(Bug::RenewOverCheckpoint) {
            return Renewal::Unsettled {
                granted: lease.info.granted,
                seen: self.rounds,
            };
        }
        let (clock, ttl) = (self.clock, lease.info.ttl);
        self.unrecorded.remove(&id);
        self.change(id, |lease| {
            lease.proposed = 0;
            lease.run(clock, ttl);
        });
        Renewal::Renewed { ttl }
    }

    /// The term in which deadlines count.
    pub(super) fn leading(&self) -> Option<Term> {
        self.leading
    }

    pub(super) fn time_to_live(&self, id: i64) -> Option<(i64, i64)> {
        self.leading?;
        let lease = self.leases.get(&id)?;
        let rest = lease.deadline.saturating_sub(self.clock + MARGIN);
        Some((lease.info.ttl, seconds(rest / SECOND)))
    }

    /// Lets each lease be recorded next whose record is old; those that are about to end are not worth it.
    pub(super) fn record_rests(&mut self) {
        let clock = self.clock;
        if self.leading.is_none() {
            return;
        }
        let runs = |lease: &Lease| lease.retry_at.is_none() && lease.deadline > clock;
        let old = self.leases.iter();
        let old = old.filter(|(_, lease)| runs(lease) && lease.is_behind(clock));
        self.unrecorded = old.map(|(id, _)| *id).collect();
        for id in self.unrecorded.clone() {
            self.change(id, |lease| lease.checkpoint_at = Some(clock));
        }
    }

    /// Whether all that [`Self::record_rests`] found is applied.
    pub(super) fn are_recorded(&self) -> bool {
        self.unrecorded.is_empty()
    }

    pub(super) fn tick(&mut self, context: TickContext, proposals: &mut Vec<Bytes>) {
        let jump = context.tick.saturating_sub(self.tick);
        self.tick = self.tick.max(context.tick);
        self.clock = self.clock.saturating_add(jump.min(STEP_MAX));
        if self.leading != context.leading {
            self.lead(context.leading);
        }
        if self.leading.is_none() || self.leases.is_empty() {
            return;
        }
        if jump > STEP_MAX {
            let ms = (jump - STEP_MAX) * TICK_MS;
            tracing::warn!(
                ms,
                "time stood still for the leases: the host was held up for longer than they can tell"
            );
        }
        self.rounds += 1;
        self.expire(proposals);
        self.checkpoint(proposals);
    }

    /// The next tick at which there is something to do.
    pub(super) fn next_tick(&self) -> Option<u64> {
        if self.leases.is_empty() {
            return None;
        }
        let due = self.queues.deadlines.first().map_or(PERIOD, |(at, _)| {
            at.saturating_sub(self.clock).clamp(1, PERIOD)
        });
        let due = if self.has_to_record() { 1 } else { due };
        Some(self.tick + due)
    }

    /// Whether leadership waits for records that one entry had no room for.
    fn has_to_record(&self) -> bool {
        let first = self.queues.checkpoints.first();
        !self.unrecorded.is_empty() && first.is_some_and(|(at, _)| *at <= self.clock)
    }

    /// Starts to count, or stops. What an earlier term proposed has taken effect, or never will.
    fn lead(&mut self, leading: Option<Term>) {
        self.leading = leading;
        self.queues = Queues::default();
        self.unrecorded.clear();
        for lease in self.leases.values_mut() {
            let rest = lease.info.remaining_ttl.unwrap_or(lease.info.ttl);
            lease.proposed = 0;
            if !bug(Bug::KeepDeadlines) || lease.deadline == 0 {
                lease.run(self.clock, rest);
            }
        }
        if leading.is_some() {
            let leases = self.leases.iter();
            self.queues.deadlines = leases.map(|(id, lease)| (lease.deadline, *id)).collect();
            let leases = self.leases.iter();
            self.queues.checkpoints = leases
                .filter_map(|(id, lease)| Some((lease.checkpoint_at?, *id)))
                .collect();
        }
    }

    fn expire(&mut self, proposals: &mut Vec<Bytes>) {
        let mut due = Vec::new();
        let queues = &self.queues;
        let is_due = |(at, _): &&(u64, i64)| *at <= self.clock;
        let again = queues.expiring.iter().take_while(is_due);
        due.extend(again.take(EXPIRE_ITEMS_MAX).map(|(_, id)| *id));
        let room = EXPIRE_ITEMS_MAX - due.len();
        let room = room.min(EXPIRING_MAX.saturating_sub(queues.expiring.len()));
        let over = queues.deadlines.iter().take_while(is_due);
        due.extend(over.take(room).map(|(_, id)| *id));

        let (clock, round) = (self.clock, self.rounds);
        let mut items = Vec::with_capacity(due.len());
        for id in due {
            self.unrecorded.remove(&id);
            self.change(id, |lease| {
                lease.proposed = round;
                lease.checkpoint_at = None;
                lease.retry_at = Some(clock + RETRY);
                items.push(lease_expire::Item {
                    id,
                    granted_index: lease.info.granted.0,
                });
            });
        }
        if !items.is_empty() {
            proposals.push(encode(Op::LeaseExpire(LeaseExpire { items })));
        }
    }

    fn checkpoint(&mut self, proposals: &mut Vec<Bytes>) {
        let (clock, round) = (self.clock, self.rounds);
        let due = self.queues.checkpoints.iter();
        let due = due.take_while(|(at, _)| *at <= clock);
        let due: Vec<_> = due.take(CHECKPOINT_ITEMS_MAX).map(|(_, id)| *id).collect();
        let mut items = Vec::with_capacity(due.len());
        for id in due {
            self.change(id, |lease| {
                // Rounded up: what is recorded is never less than what is left.
                let rest = lease.rest(clock).div_ceil(SECOND);
                if rest == 0 {
                    // Its end is due, and is proposed at one of the next calls.
                    lease.checkpoint_at = None;
                    return;
                }
                lease.proposed = round;
                lease.plan_checkpoint(lease.next_checkpoint(clock));
                items.push(lease_checkpoint::Item {
                    id,
                    granted_index: lease.info.granted.0,
                    remaining_ttl: seconds(rest).min(lease.info.ttl),
                });
            });
        }
        if !items.is_empty() {
            proposals.push(encode(Op::LeaseCheckpoint(LeaseCheckpoint { items })));
        }
    }
}
