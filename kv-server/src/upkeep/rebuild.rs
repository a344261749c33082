//! How a member whose state was found wrong gets the leader's: what to do next, without a thread and without a clock.
//!
//! It stops applying, asks the leader for a snapshot until one has taken the place of its state, and then for a comparison,
//! which ends its quarantine when it finds the state right. Everything has a bound, behind which somebody has to look.

use std::time::Duration;

/// How often the leader is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long no leader may answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Snapshots that may be sent until one arrives.
const TRANSFERS_MAX: u32 = 5;
/// How long a comparison may take. Large stores take their time.
const COMPARE_EVERY: Duration = Duration::from_secs(120);
/// Comparisons until the new state counts as wrong, too.
const COMPARISONS_MAX: u32 = 5;
/// New states until it is given up.
const REBUILDS_MAX: u32 = 3;

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildLook {
    /// A comparison found this member's state wrong.
    pub wrong: bool,
    /// This member follows a leader.
    pub follows: bool,
    /// It applies nothing, and waits for a snapshot.
    pub waits: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildAct {
    /// Apply nothing more.
    Begin,
    /// Ask the leader for a snapshot.
    Ask,
    /// Apply again; what there is stays.
    CallOff,
    /// Have all members compared.
    Compare,
    /// Tell somebody.
    GiveUp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Waiting {
        heard_at: Duration,
        ask_at: Duration,
        transfers: u32,
    },
    Comparing {
        at: Duration,
        count: u32,
    },
    GivenUp,
}

/// Where the rebuild of one member stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rebuild {
    stage: Stage,
    begun: u32,
}

impl Rebuild {
    /// What to do now; nothing most of the time.
    pub fn look(&mut self, now: Duration, look: RebuildLook) -> Option<RebuildAct> {
        if !look.wrong {
            let waited = matches!(self.stage, Stage::Waiting { .. });
            *self = Self::default();
            return waited.then_some(RebuildAct::CallOff);
        }
        match &mut self.stage {
            Stage::Idle if !look.follows => None,
            Stage::Idle if self.begun == REBUILDS_MAX => {
                self.stage = Stage::GivenUp;
                Some(RebuildAct::GiveUp)
            }
            Stage::Idle => {
                self.begun += 1;
                self.stage = Stage::Waiting {
                    heard_at: now,
                    ask_at: now,
                    transfers: 0,
                };
                Some(RebuildAct::Begin)
            }
            Stage::Waiting { heard_at, .. } if !look.waits => {
                // It has not begun to, or takes the snapshot up.
                *heard_at = now;
                None
            }
            Stage::Waiting {
                heard_at,
                transfers,
                ..
            } if now.saturating_sub(*heard_at) >= PATIENCE || *transfers > TRANSFERS_MAX => {
                self.stage = Stage::Idle;
                Some(RebuildAct::CallOff)
            }
            Stage::Waiting { ask_at, .. } => {
                let due = look.follows && now >= *ask_at;
                due.then(|| {
                    *ask_at = now + ASK_EVERY;
                    RebuildAct::Ask
                })
            }
            Stage::Comparing { at, count } if now >= *at => {
                if *count == COMPARISONS_MAX {
                    self.stage = Stage::Idle;
                    return None;
                }
                (*at, *count) = (now + COMPARE_EVERY, *count + 1);
                Some(RebuildAct::Compare)
            }
            Stage::Comparing { .. } | Stage::GivenUp => None,
        }
    }

    /// The leader has answered: it begins to send a snapshot, or is at it.
    pub fn answered(&mut self, now: Duration, begins: bool) {
        if let Stage::Waiting {
            heard_at,
            transfers,
            ..
        } = &mut self.stage
        {
            *heard_at = now;
            *transfers += u32::from(begins);
        }
    }

    /// A snapshot has taken the place of the state.
    pub fn replaced(&mut self, now: Duration) {
        self.stage = Stage::Comparing { at: now, count: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: RebuildLook = RebuildLook {
        wrong: true,
        follows: true,
        waits: true,
    };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn wrong_state_is_replaced_and_compared_and_then_it_is_over() {
        let mut rebuild = Rebuild::default();
        let sound = RebuildLook {
            wrong: false,
            ..WRONG
        };
        let leads = RebuildLook {
            follows: false,
            ..WRONG
        };
        assert_eq!(rebuild.look(SECOND, sound), None);
        assert_eq!(rebuild.look(SECOND, leads), None, "nobody sends one");
        assert_eq!(rebuild.look(SECOND, WRONG), Some(RebuildAct::Begin));
        let begins = RebuildLook {
            waits: false,
            ..WRONG
        };
        assert_eq!(rebuild.look(SECOND, begins), None);
        assert_eq!(rebuild.look(SECOND, WRONG), Some(RebuildAct::Ask));
        rebuild.answered(SECOND, true);
        assert_eq!(rebuild.look(SECOND, WRONG), None, "it was asked");
        assert_eq!(rebuild.look(2 * SECOND, leads), None);
        assert_eq!(rebuild.look(2 * SECOND, WRONG), Some(RebuildAct::Ask));
        rebuild.replaced(3 * SECOND);
        assert_eq!(rebuild.look(3 * SECOND, WRONG), Some(RebuildAct::Compare));
        assert_eq!(rebuild.look(4 * SECOND, WRONG), None);
        assert_eq!(rebuild.look(5 * SECOND, sound), None);
        assert_eq!(rebuild.look(6 * SECOND, WRONG), Some(RebuildAct::Begin));
        assert_eq!(rebuild.look(7 * SECOND, sound), Some(RebuildAct::CallOff));
    }

    #[test]
    fn leader_that_does_not_answer_is_not_waited_for_without_end() {
        let mut rebuild = Rebuild::default();
        let mut acts = Vec::new();
        for second in 0..10_000 {
            acts.extend(rebuild.look(second * SECOND, WRONG));
        }
        let count = |wanted| acts.iter().filter(|act| **act == wanted).count();
        assert_eq!(count(RebuildAct::Begin), REBUILDS_MAX as usize);
        assert_eq!(count(RebuildAct::CallOff), REBUILDS_MAX as usize);
        assert_eq!(acts.last(), Some(&RebuildAct::GiveUp));
        assert_eq!(count(RebuildAct::GiveUp), 1);
    }

    #[test]
    fn transfers_that_fail_and_states_that_stay_wrong_end_as_well() {
        for takes_effect in [false, true] {
            let mut rebuild = Rebuild::default();
            let (mut asked, mut compared, mut over) = (0, 0, false);
            for second in 0..10_000 {
                let now = second * SECOND;
                match rebuild.look(now, WRONG) {
                    Some(RebuildAct::Ask) if takes_effect => rebuild.replaced(now),
                    Some(RebuildAct::Ask) => {
                        asked += 1;
                        rebuild.answered(now, true);
                    }
                    Some(RebuildAct::Compare) => compared += 1,
                    Some(RebuildAct::GiveUp) => over = true,
                    _ => {}
                }
            }
            assert!(over);
            if takes_effect {
                assert_eq!(compared, REBUILDS_MAX * COMPARISONS_MAX);
            } else {
                assert_eq!(asked, REBUILDS_MAX * (TRANSFERS_MAX + 1));
            }
        }
    }
}
