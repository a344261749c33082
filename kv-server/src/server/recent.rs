//! Percentiles of the last minute, which a histogram that counts from the start on cannot tell.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The minute goes by in slots: what is told covers the last 50 to 60 seconds.
const SLOTS: usize = 6;
const SLOT: Duration = Duration::from_secs(10);
/// Longer durations count as this one.
const MICROS_MAX: u64 = 60_000_000;
/// Figures that are kept of each duration: an error of at most one in a hundred.
const DIGITS: u8 = 2;

/// Durations, each at the time since a moment that the caller chose.
pub(super) struct Recent(Mutex<Slots>);

struct Slots {
    /// The number of the slot that was written last.
    newest: u64,
    ring: [Histogram<u32>; SLOTS],
}

impl Recent {
    pub(super) fn new() -> Self {
        let empty = || Histogram::new_with_max(MICROS_MAX, DIGITS).expect("the bounds are valid");
        Self(Mutex::new(Slots {
            newest: 0,
            ring: std::array::from_fn(|_| empty()),
        }))
    }

    /// Notes a duration that ended now.
    pub(super) fn observe(&self, now: Duration, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(MICROS_MAX);
        self.at(now, |slots, at| slots.ring[at].saturating_record(micros));
    }

    /// The durations below which these parts of all lie; none without any in the last minute.
    pub(super) fn quantiles(&self, now: Duration, parts: &[f64]) -> Option<Vec<Duration>> {
        self.at(now, |slots, _| {
            let mut all = slots.ring[0].clone();
            for slot in &slots.ring[1..] {
                all.add(slot).expect("all have the same bounds");
            }
            let at = |part: &f64| Duration::from_micros(all.value_at_quantile(*part));
            (!all.is_empty()).then(|| parts.iter().map(at).collect())
        })
    }

    /// Empties the slots that are over, and gives the place of the one at hand.
    fn at<T>(&self, now: Duration, use_it: impl FnOnce(&mut Slots, usize) -> T) -> T {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads may come in another order than their clocks were read.
        let number = (now.as_secs() / SLOT.as_secs()).max(slots.newest);
        let over = (slots.newest + 1..=number).take(SLOTS);
        for number in over {
            slots.ring[place(number)].reset();
        }
        slots.newest = number;
        use_it(&mut slots, place(number))
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number % SLOTS as u64).expect("below the number of slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: [f64; 2] = [0.5, 1.0];

    fn told(recent: &Recent, second: u64) -> Option<Vec<u128>> {
        let told = recent.quantiles(Duration::from_secs(second), &HALF)?;
        Some(told.iter().map(Duration::as_millis).collect())
    }

    #[test]
    fn durations_count_for_a_minute() {
        let recent = Recent::new();
        assert_eq!(told(&recent, 0), None);
        for (second, millis) in [(1, 10), (2, 10), (3, 10), (25, 30)] {
            recent.observe(Duration::from_secs(second), Duration::from_millis(millis));
        }
        assert_eq!(told(&recent, 26), Some(vec![10, 30]));
        assert_eq!(told(&recent, 59), Some(vec![10, 30]));
        assert_eq!(told(&recent, 60), Some(vec![30, 30]), "the first are over");
        assert_eq!(told(&recent, 79), Some(vec![30, 30]));
        assert_eq!(told(&recent, 80), None);
        recent.observe(Duration::from_secs(10_000), Duration::from_millis(5));
        assert_eq!(told(&recent, 10_001), Some(vec![5, 5]));
    }

    #[test]
    fn late_thread_counts_for_the_slot_at_hand() {
        let recent = Recent::new();
        recent.observe(Duration::from_secs(70), Duration::from_millis(1));
        recent.observe(Duration::from_secs(9), Duration::from_millis(1));
        assert_eq!(told(&recent, 125), Some(vec![1, 1]));
    }

    #[test]
    fn duration_past_the_bound_counts_as_the_bound() {
        let recent = Recent::new();
        recent.observe(Duration::ZERO, Duration::from_secs(3_600));
        let told = told(&recent, 1).unwrap()[1];
        assert!((60_000..61_000).contains(&told), "{told} ms");
    }
}
