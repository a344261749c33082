//! The lessor: when leases end, counted in the leader's ticks.
//!
//! The state machine tells it of each applied grant, revocation and checkpoint, and drives it with ticks; it answers
//! with commands to propose. The front end asks it to renew a lease, and what a lease has left. It reads no clock, does
//! no IO, knows no keys, and changes no lease by itself: what ends one is an applied command.
//!
//! # Time
//! Deadlines exist at the leader only, and from the tick on that finds an entry of its own term *applied*: then all
//! that earlier leaders did is known here. At that tick each lease gets what its checkpoint says is left, or its full
//! TTL.
//!
//! Deadlines lie on a clock that goes on by at most a quarter of a second per tick call (`deadlines.rs` has the
//! constants), and a lease that is granted or renewed gets two such steps on top. So it cannot end early, however stale
//! the ticks are: the host may have read its tick before the renewal but called afterwards, yet the tick of the call
//! after that is newer than the renewal; up to there the clock goes on by two steps at most, and from there on the
//! whole TTL has to pass. A lease ends late by that half second and by what the host's next tick takes (it is asked for
//! one every 100 ms while there are leases), as in etcd, which looks every half second. Answers about the time left do
//! not contain the half second.
//!
//! When the process is suspended or a disk hangs, the excess over a step does not count: time stands still for the
//! leases. Clients whose keepalives waited meanwhile can then still renew, rather than all of them losing their leases
//! at once.
//!
//! # Checkpoints
//! So that a restart or a new leader does not give every lease its full TTL again, the time left is recorded: the first
//! time when two fifths of the TTL have passed since the grant or the last renewal, at least two seconds; from then on, as
//! the client did not renew when it should have, whenever an eighth of what is left has passed, at least one second. Both
//! waits end after five minutes, and at a whole second, so that leases share entries. A restart gives back what has passed
//! since the last record, and less than two seconds more, since records are whole seconds, rounded up. A client that renews every third of the TTL causes no record, up to a
//! TTL of a quarter of an hour; above that its next keepalive, five minutes later or more, costs an entry.
//! Before a planned hand-over, or a stop, all leases are recorded whose record is more than a second old:
//! [`Lessor::record_rests`].
//!
//! # Renewals against what was proposed
//! A renewal is not replicated; that is safe only while no log entry says that less than the full TTL is left, and
//! none that ends the lease is under way. So the lessor numbers its rounds of proposals, and remembers for each lease
//! the last one that names it. [`Lessor::renew`] of such a lease answers [`Renewal::Unsettled`] with the newest number:
//! the caller commits an entry that clears the checkpoint, and asks again with that number. The log is in order, so
//! whatever had been proposed up to that number has taken effect by then, or never will. A keepalive that races with
//! an expiry thus learns what became of it: not found, or renewed.

mod calls;
mod deadlines;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use raft_log::{Index, Term};
use raft_node::TickContext;

use crate::mvcc::{LeaseInfo, LeaseSink};
pub(crate) use calls::clear_checkpoint;
pub use calls::{LeaseCalls, StateReports, StateSent, decode_answer, encode_call};
use deadlines::Deadlines;

/// How long a hand-over waits at most until what leases have left is recorded.
pub(crate) const RECORD_RESTS_MAX: Duration = Duration::from_millis(500);

/// What became of the wish to renew a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It has its full time again.
    Renewed {
        /// That time, in seconds.
        ttl: i64,
    },
    /// There is no such lease.
    NotFound,
    /// This member keeps no deadlines now.
    NotLeading,
    /// A checkpoint of the lease is recorded, or a checkpoint or its expiry is under way. Commit an entry that clears
    /// the checkpoint of this lease, then ask again with `seen`.
    Unsettled {
        /// The index of the entry that granted it, for that entry.
        granted: Index,
        /// The proposals that such an entry comes after.
        seen: u64,
    },
}

/// Keeps the deadlines of one keyspace's leases. Ticked by the host thread, asked by any thread.
#[derive(Default)]
pub struct Lessor {
    deadlines: Mutex<Deadlines>,
}

impl fmt::Debug for Lessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lessor").finish_non_exhaustive()
    }
}

impl Lessor {
    /// A lessor that knows no lease and does not lead.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True when the deadlines count in `term`. A quorum contact says that nobody led in a later term; it may have been
    /// another member's, so that what this one still believes to be is to be compared with the term after it.
    #[must_use]
    pub fn leads_in(&self, term: Term) -> bool {
        self.lock().leading() == Some(term)
    }

    /// Gives a lease its full time again. Ask only after a quorum contact in the current term and where
    /// [`Lessor::leads_in`] it, or a newer leader may count already. `settled` is 0 at first, then the number of [`Renewal::Unsettled`].
    #[must_use]
    pub fn renew(&self, id: i64, settled: u64) -> Renewal {
        self.lock().renew(id, settled)
    }

    /// The granted time of a lease and what is left of it, in whole seconds, rounded down as in etcd; 0 is left of one
    /// whose end is under way. None for one that does not exist, and when this member does not lead.
    #[must_use]
    pub fn time_to_live(&self, id: i64) -> Option<(i64, i64)> {
        self.lock().time_to_live(id)
    }

    /// Asks for a record of what each lease has left at the next ticks, unless the one that there is gives it at most a second
    /// more. For a leader that is to hand over; one that does not lead does nothing. [`Lessor::are_rests_recorded`] says
    /// when it is done. It looks at all leases.
    pub fn record_rests(&self) {
        self.lock().record_rests();
    }

    /// True once each record that [`Lessor::record_rests`] asked for is applied, or its lease was renewed or ends; and
    /// when this member does not lead.
    #[must_use]
    pub fn are_rests_recorded(&self) -> bool {
        self.lock().are_recorded()
    }

    /// No call leaves the table half changed, so that of a panicked thread can be used.
    fn lock(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseSink for Lessor {
    fn granted(&self, lease: LeaseInfo) {
        self.lock().granted(lease);
    }

    fn revoked(&self, id: i64) {
        self.lock().revoked(id);
    }

    fn checkpointed(&self, id: i64, remaining_ttl: Option<i64>) {
        self.lock().checkpointed(id, remaining_ttl);
    }

    fn tick(&self, context: TickContext, proposals: &mut Vec<Bytes>) {
        self.lock().tick(context, proposals);
    }

    fn next_deadline(&self) -> Option<u64> {
        self.lock().next_tick()
    }
}
