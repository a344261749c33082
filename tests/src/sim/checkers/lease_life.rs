//! A lease never ends early: it takes at least its time to live from the last moment at which a client was told that it
//! has it in full, unless somebody revokes it.
//!
//! Source: etcd's API, Lease: "the cluster grants leases with a time-to-live; a lease expires if the cluster does not
//! receive a keepAlive within a given TTL period". Clocks may differ by the bound that the faults have.

use std::collections::BTreeMap;

use super::Verdict;

/// What the fastest clock of a run gains, in percent.
pub const CLOCK_PERCENT_MAX: u64 = 105;

/// What a lessor takes for time of a clock that jumps, in ticks: it cannot tell less from a late call.
const JUMP_TICKS_MAX: u64 = 25;

/// When each lease last had its full time, and how long that is in ticks; by the index that granted it.
#[derive(Debug, Default)]
pub struct LeaseLife {
    leases: BTreeMap<u64, Life>,
    newest: u64,
    /// Clocks that have jumped so far.
    jumps: u64,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    full_at: u64,
    ttl: u64,
    /// Jumps before that.
    jumps: u64,
}

impl LeaseLife {
    /// The newest entry that somebody has applied.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Somebody was the first to apply this entry.
    pub fn reached(&mut self, index: u64) {
        self.newest = index;
    }

    /// A lease was granted by the entry at this index, or renewed, at this tick.
    pub fn full(&mut self, granted: u64, now: u64, ttl_ticks: u64) {
        let life = Life {
            full_at: now,
            ttl: ttl_ticks,
            jumps: self.jumps,
        };
        let known = self.leases.entry(granted).or_insert(life);
        if now > known.full_at {
            *known = life;
        }
    }

    /// The clock of a member jumps forward.
    pub fn clock_jumped(&mut self) {
        self.jumps += 1;
    }

    /// It was ended for its time, at this tick.
    ///
    /// # Errors
    /// When that time has not passed on any clock.
    pub fn expired(&mut self, granted: u64, now: u64) -> Verdict {
        let Some(life) = self.leases.remove(&granted) else {
            return Ok(());
        };
        let Life {
            full_at: at, ttl, ..
        } = life;
        let jumped = (self.jumps - life.jumps) * JUMP_TICKS_MAX;
        if (now - at + jumped) * CLOCK_PERCENT_MAX < ttl * 100 {
            return Err(format!(
                "the lease of entry {granted} has {ttl} ticks from tick {at} on, and ended at {now}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_that_ends_before_its_time_is_refused() {
        let mut checker = LeaseLife::default();
        checker.full(7, 1_000, 500);
        checker.full(8, 1_000, 500);
        assert!(checker.expired(7, 1_400).is_err());
        assert_eq!(checker.expired(8, 1_500), Ok(()));
    }

    #[test]
    fn renewed_lease_that_ends_by_its_first_deadline_is_refused() {
        let mut checker = LeaseLife::default();
        checker.full(7, 1_000, 500);
        checker.full(7, 1_300, 500);
        assert!(checker.expired(7, 1_510).is_err());
    }
}
