//! When the alarm of a keyspace's full quota is raised and cleared, and when space is to be given back meanwhile.
//!
//! It is raised when the data has outgrown the quota, or is near it and a request did not fit; and cleared, unlike etcd's,
//! once a tenth of the quota is free again: with less the next request would raise it anew.

use std::time::Duration;

/// How often the engine is asked to give space back while the alarm is raised.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(10);

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaLook {
    /// Bytes that count.
    pub used: u64,
    /// Those of them that the directory takes, whoever's they are: fewer once space was given back.
    pub share: u64,
    /// Bytes that they may not pass; 0 for no quota.
    pub limit: u64,
    /// A request was refused since the last look.
    pub refused: bool,
    /// Whether the alarm of this member is raised, and then whether a member raised it by itself.
    pub raised: Option<bool>,
    /// Counts up whenever something was removed, or history was compacted.
    pub removals: i64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaAct {
    /// Raise this member's alarm.
    Raise,
    /// Clear it; the quota raised it.
    Clear,
    /// Let the engine give space back.
    Reclaim,
}

/// Watches the quota of one member.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuotaWatch {
    reclaimed: Option<(Duration, i64)>,
}

impl QuotaWatch {
    /// What to do now; nothing most of the time. What is not done is asked for again.
    pub fn look(&mut self, now: Duration, look: QuotaLook) -> Option<QuotaAct> {
        let free_from = look.limit - look.limit / 10;
        let Some(automatic) = look.raised else {
            self.reclaimed = None;
            // One request too large for what is left, while there is room for others, is refused and nothing more.
            let full = look.used >= look.limit || (look.refused && look.used >= free_from);
            let full = look.limit > 0 && full;
            return full.then_some(QuotaAct::Raise);
        };
        if look.used < free_from || look.limit == 0 {
            return automatic.then_some(QuotaAct::Clear);
        }
        if look.share < free_from {
            // What counts is what is there, and not what is to be given back.
            return None;
        }
        let due = self.reclaimed.is_none_or(|(at, removals)| {
            removals != look.removals && now.saturating_sub(at) >= RECLAIM_INTERVAL
        });
        due.then(|| {
            self.reclaimed = Some((now, look.removals));
            QuotaAct::Reclaim
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: QuotaLook = QuotaLook {
        used: 1_000,
        share: 1_000,
        limit: 1_000,
        refused: false,
        raised: None,
        removals: 5,
    };

    #[test]
    fn alarm_is_raised_when_it_is_full_and_cleared_when_a_tenth_is_free() {
        let raised = QuotaLook {
            raised: Some(true),
            ..FULL
        };
        let table = [
            (FULL, Some(QuotaAct::Raise)),
            (QuotaLook { used: 999, ..FULL }, None),
            (
                QuotaLook {
                    used: 999,
                    refused: true,
                    ..FULL
                },
                Some(QuotaAct::Raise),
            ),
            (QuotaLook { limit: 0, ..FULL }, None),
            (
                QuotaLook {
                    used: 899,
                    refused: true,
                    ..FULL
                },
                None,
            ),
            (
                QuotaLook {
                    limit: 0,
                    refused: true,
                    ..FULL
                },
                None,
            ),
            (
                QuotaLook {
                    used: 899,
                    ..raised
                },
                Some(QuotaAct::Clear),
            ),
            (
                QuotaLook {
                    used: 900,
                    ..raised
                },
                Some(QuotaAct::Reclaim),
            ),
            (QuotaLook { limit: 0, ..raised }, Some(QuotaAct::Clear)),
            // Nothing would come of giving space back.
            (
                QuotaLook {
                    share: 899,
                    ..raised
                },
                None,
            ),
            // One that somebody raised by hand is theirs.
            (
                QuotaLook {
                    used: 899,
                    raised: Some(false),
                    ..FULL
                },
                None,
            ),
            (
                QuotaLook {
                    limit: 0,
                    raised: Some(false),
                    ..FULL
                },
                None,
            ),
            (
                QuotaLook {
                    raised: Some(false),
                    ..FULL
                },
                Some(QuotaAct::Reclaim),
            ),
        ];
        for (look, expected) in table {
            let found = QuotaWatch::default().look(Duration::ZERO, look);
            assert_eq!(found, expected, "{look:?}");
        }
    }

    #[test]
    fn space_is_given_back_again_only_after_something_was_removed_and_not_all_the_time() {
        let mut watch = QuotaWatch::default();
        let raised = QuotaLook {
            raised: Some(true),
            ..FULL
        };
        let more = QuotaLook {
            removals: 6,
            ..raised
        };
        let at = Duration::from_secs;
        assert_eq!(watch.look(at(0), raised), Some(QuotaAct::Reclaim));
        assert_eq!(watch.look(at(60), raised), None);
        assert_eq!(watch.look(at(61), more), Some(QuotaAct::Reclaim));
        assert_eq!(
            watch.look(
                at(62),
                QuotaLook {
                    removals: 7,
                    ..more
                }
            ),
            None
        );
        assert_eq!(
            watch.look(
                at(71),
                QuotaLook {
                    removals: 7,
                    ..more
                }
            ),
            Some(QuotaAct::Reclaim)
        );
        // A new alarm is a new beginning.
        assert_eq!(watch.look(at(72), FULL), Some(QuotaAct::Raise));
        assert_eq!(watch.look(at(73), raised), Some(QuotaAct::Reclaim));
    }
}
