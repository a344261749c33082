//! How long it takes to a member and back, by the beats that go there anyway.
//!
//! A beat names the newest one that came from the other side, and how long ago it came. What is left of the time since that
//! one was sent was spent on the way, both ways. Neither end's clock is compared with the other's.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Beats that were sent and not answered, at most: an answer is a beat or two away.
const OPEN_MAX: usize = 16;

/// Which beat of the receiver's another one answers, 0 for none, and for how many microseconds it was held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) number: u64,
    pub(super) held_us: u64,
}

#[derive(Debug, Default)]
struct State {
    /// What was sent, the oldest first, and when.
    open: VecDeque<(u64, Instant)>,
    /// What came last, and when, until it is answered.
    heard: Option<(u64, Instant)>,
}

/// The round trips to one member.
#[derive(Debug, Default)]
pub(super) struct Trips(Mutex<State>);

impl Trips {
    /// A beat leaves. Returns which one of the other side's it answers.
    pub(super) fn sent(&self, number: u64) -> Echo {
        self.sent_at(number, Instant::now())
    }

    /// A beat came, with what it answers. Returns how long that one and its answer were under way.
    pub(super) fn received(&self, number: u64, echo: Echo) -> Option<Duration> {
        self.received_at(number, echo, Instant::now())
    }

    fn sent_at(&self, number: u64, now: Instant) -> Echo {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.open.len() == OPEN_MAX {
            state.open.pop_front();
        }
        state.open.push_back((number, now));
        let Some((number, at)) = state.heard.take() else {
            return Echo::default();
        };
        let held = now.saturating_duration_since(at).as_micros();
        let held_us = u64::try_from(held).unwrap_or(u64::MAX);
        Echo { number, held_us }
    }

    fn received_at(&self, number: u64, echo: Echo, now: Instant) -> Option<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.heard = Some((number, now));
        let place = state
            .open
            .iter()
            .position(|(open, _)| *open == echo.number)?;
        // Those before it will not be answered any more.
        let (_, at) = state.open.drain(..=place).next_back()?;
        // None when the other side held it for longer than it was gone: it was another run's.
        let gone = now.saturating_duration_since(at);
        gone.checked_sub(Duration::from_micros(echo.held_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(number: u64, held_us: u64) -> Echo {
        Echo { number, held_us }
    }

    #[test]
    fn time_on_the_way_is_what_the_other_side_did_not_hold() {
        let (a, b) = (Trips::default(), Trips::default());
        let at = |ms: u64| {
            static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
            *BEGIN.get_or_init(Instant::now) + Duration::from_millis(ms)
        };
        // The other side's clock is another one.
        let there = |ms: u64| at(ms) + Duration::from_secs(900);
        assert_eq!(a.sent_at(1, at(0)), echo(0, 0));
        assert_eq!(b.received_at(1, echo(0, 0), there(3)), None);
        assert_eq!(b.sent_at(7, there(53)), echo(1, 50_000));
        let took = a.received_at(7, echo(1, 50_000), at(55));
        assert_eq!(took, Some(Duration::from_millis(5)));
        // Once only, and nothing that was not sent.
        assert_eq!(a.received_at(8, echo(1, 0), at(60)), None);
        assert_eq!(a.received_at(9, echo(99, 0), at(60)), None);
        assert_eq!(a.sent_at(2, at(61)), echo(9, 1_000));
        // What another run held for longer than this one lives.
        assert_eq!(a.received_at(10, echo(2, 2_000_000), at(70)), None);
    }

    #[test]
    fn beats_that_nobody_answers_are_forgotten() {
        let trips = Trips::default();
        let now = Instant::now();
        for number in 1..=100 {
            trips.sent_at(number, now);
        }
        assert_eq!(trips.0.lock().unwrap().open.len(), OPEN_MAX);
        assert_eq!(trips.received_at(1, echo(84, 0), now), None);
        assert!(trips.received_at(2, echo(90, 0), now).is_some());
        assert_eq!(trips.0.lock().unwrap().open.len(), 10);
    }
}
