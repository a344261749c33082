//! Which refused connections somebody is told of: who is refused calls again and again, and would fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Reasons that are remembered.
const REASONS_MAX: usize = 16;
/// A reason that was not heard for so long may make room for another one.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The reasons for which a listener refused connections of late.
///
/// One that comes again and again is told once, and at most 16 in a minute are.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Vec<(String, Instant)>>);

impl Refusals {
    /// A connection was refused; true when that is to be told.
    pub fn is_news(&self, reason: &str, now: Instant) -> bool {
        // No call leaves it half changed.
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, last)) = heard.iter_mut().find(|(known, _)| known == reason) {
            *last = now;
            return false;
        }
        if heard.len() >= REASONS_MAX {
            let oldest = (0..heard.len()).min_by_key(|at| heard[*at].1);
            let oldest = oldest.filter(|at| now.duration_since(heard[*at].1) >= FORGOTTEN);
            let Some(oldest) = oldest else {
                return false;
            };
            heard.swap_remove(oldest);
        }
        heard.push((reason.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_that_comes_again_is_told_once_and_many_are_told_at_a_bounded_rate() {
        let refusals = Refusals::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert!(refusals.is_news("prober", at(0)));
        for second in 1..1_000 {
            assert!(!refusals.is_news("prober", at(second)));
        }
        let news = |from: u64| {
            let reasons = (0..100).map(|number| format!("{from}: {number}"));
            reasons
                .filter(|reason| refusals.is_news(reason, at(from)))
                .count()
        };
        assert_eq!(news(1_000), REASONS_MAX - 1);
        assert_eq!(news(1_030), 0);
        // The prober as well was silent for a minute.
        assert_eq!(news(1_060), REASONS_MAX);
        assert!(!refusals.is_news("prober", at(1_061)));
        assert!(refusals.is_news("prober", at(1_120)));
    }
}
