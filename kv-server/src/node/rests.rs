//! What leases have left, recorded before leadership moves.

use std::sync::Arc;

use tracing::warn;

use super::{LEADER_POLL, keeper};
use crate::lease::{Lessor, RECORD_RESTS_MAX};

/// Lets whoever leads next know what leases have left. Blocks until that is applied, but never longer than
/// [`RECORD_RESTS_MAX`]: what is missing then is what passed since each lease's last record.
pub(super) fn record(mut lessors: Vec<Arc<Lessor>>) {
    let until = keeper::now() + RECORD_RESTS_MAX;
    lessors.iter().for_each(|lessor| lessor.record_rests());
    loop {
        lessors.retain(|lessor| !lessor.are_rests_recorded());
        if lessors.is_empty() {
            return;
        }
        if keeper::now() >= until {
            return warn!(
                "what leases have left is not recorded: they get back what passed since the last record"
            );
        }
        std::thread::park_timeout(LEADER_POLL);
    }
}

#[cfg(test)]
mod tests {
    use raft_log::{Index, Term};
    use raft_node::TickContext;

    use super::*;
    use crate::mvcc::{LeaseInfo, LeaseSink};

    /// A leader's lessor with a lease, of whose time some seconds are over.
    fn lessor() -> Arc<Lessor> {
        let lessor = Lessor::new();
        lessor.granted(LeaseInfo {
            id: 1,
            ttl: 60,
            remaining_ttl: None,
            granted: Index(1),
        });
        for tick in (0..500).step_by(10) {
            let leading = Some(Term(1));
            lessor.tick(TickContext { tick, leading }, &mut Vec::new());
        }
        Arc::new(lessor)
    }

    #[test]
    fn record_waits_until_it_is_applied() {
        let lessors = vec![lessor(), lessor()];
        let begun = keeper::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for lessor in &lessors {
                    while lessor.are_rests_recorded() && begun.elapsed() < RECORD_RESTS_MAX {
                        std::thread::yield_now();
                    }
                    lessor.checkpointed(1, Some(56));
                }
            });
            record(lessors.clone());
        });
        assert!(lessors.iter().all(|lessor| lessor.are_rests_recorded()));
    }

    #[test]
    fn record_that_nobody_makes_is_not_waited_for_long() {
        let lessor = lessor();
        let begun = keeper::now();
        record(vec![Arc::clone(&lessor), Arc::default()]);
        assert!(begun.elapsed() >= RECORD_RESTS_MAX);
        assert!(!lessor.are_rests_recorded());
    }
}
