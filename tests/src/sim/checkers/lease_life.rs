//! A lease never ends early: it takes at least its time to live from the last moment at which a client was told that it
//! has it in full, unless somebody revokes it.
//!
//! Source: etcd's API, Lease: "the cluster grants leases with a time-to-live; a lease expires if the cluster does not
//! receive a keepAlive within a given TTL period". Clocks may differ by the bound that the faults have.

use std::collections::BTreeMap;

use super::Verdict;

/// What the fastest clock of a run gains, in percent.
pub const CLOCK_PERCENT_MAX: u64 = 105;

/// When each lease last had its full time, and how long that is in ticks; by the index that granted it.
#[derive(Debug, Default)]
pub struct LeaseLife {
    leases: BTreeMap<u64, (u64, u64)>,
    newest: u64,
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
        let (at, ttl) = self.leases.entry(granted).or_insert((now, ttl_ticks));
        (*at, *ttl) = ((*at).max(now), ttl_ticks);
    }

    /// It was ended for its time, at this tick.
    ///
    /// # Errors
    /// When that time has not passed on any clock.
    pub fn expired(&mut self, granted: u64, now: u64) -> Verdict {
        let Some((at, ttl)) = self.leases.remove(&granted) else {
            return Ok(());
        };
        if (now - at) * CLOCK_PERCENT_MAX < ttl * 100 {
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
