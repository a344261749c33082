//! When history is compacted without being asked to: etcd's two modes, as a schedule that is told the time.
//!
//! Whoever has a clock calls [`CompactionSchedule::poll`] now and then, and proposes what it returns. It proposes nothing
//! itself and reads no clock. Every member keeps one, so that a new leader knows the revisions of the last hours.
//!
//! Source: etcd's documented modes of auto-compaction and their intervals.

use std::collections::VecDeque;
use std::time::Duration;

/// The longest time between two compactions of the periodic mode.
const PERIODIC_INTERVAL_MAX: Duration = Duration::from_secs(3_600);
/// The periodic mode looks at the revision so often in an interval.
const SAMPLES_PER_INTERVAL: u32 = 10;
/// The time between two compactions of the revision mode.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// What history is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// All of it, until somebody compacts.
    #[default]
    Off,
    /// That of so much time, at least a nanosecond. Compacted once it has passed, then every hour, or each time it has
    /// passed again when it is shorter than that.
    Periodic(Duration),
    /// So many revisions, at least one. Compacted every five minutes.
    Revision(i64),
}

/// Says when to compact, and up to which revision.
#[derive(Clone, Debug)]
pub struct CompactionSchedule {
    what: AutoCompaction,
    /// When it is looked next.
    next: Duration,
    /// The revision that was compacted last, here.
    last: i64,
    /// Of the periodic mode: revisions at the looks of the last period, the oldest first.
    samples: VecDeque<i64>,
    compacted_at: Duration,
    /// Of the periodic mode: until the next compaction. At first the whole period.
    wait: Duration,
}

impl CompactionSchedule {
    /// A schedule that begins now.
    #[must_use]
    pub fn new(what: AutoCompaction, now: Duration) -> Self {
        let wait = match what {
            AutoCompaction::Periodic(period) => period,
            AutoCompaction::Revision(_) | AutoCompaction::Off => Duration::ZERO,
        };
        let mut schedule = Self {
            what,
            next: now,
            last: 0,
            samples: VecDeque::new(),
            compacted_at: now,
            wait,
        };
        if let AutoCompaction::Revision(_) = what {
            schedule.next = now + REVISION_INTERVAL;
        }
        schedule
    }

    /// When to poll next; none for a schedule that is off.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        (self.what != AutoCompaction::Off).then_some(self.next)
    }

    /// The revision to compact up to, if it is time to and this member leads. `revision` is the newest one.
    pub fn poll(&mut self, now: Duration, revision: i64, leads: bool) -> Option<i64> {
        if now < self.next {
            return None;
        }
        let found = match self.what {
            AutoCompaction::Off => None,
            AutoCompaction::Revision(kept) => {
                self.next = now + REVISION_INTERVAL;
                Some(revision - kept).filter(|to| *to > 0)
            }
            AutoCompaction::Periodic(period) => {
                let interval = period.min(PERIODIC_INTERVAL_MAX);
                let pause = (interval / SAMPLES_PER_INTERVAL).max(Duration::from_nanos(1));
                self.next = now + pause;
                let oldest = self.samples.front().copied();
                self.samples.push_back(revision);
                // As many as lie within the period, and the one at its beginning.
                let kept = period.as_nanos() / pause.as_nanos() + 1;
                while self.samples.len() as u128 > kept {
                    self.samples.pop_front();
                }
                oldest.filter(|_| now - self.compacted_at >= self.wait)
            }
        };
        found.filter(|to| leads && *to != self.last)
    }

    /// What [`Self::poll`] returned is compacted, by this member or another one. A compaction that failed is not
    /// reported, and comes again at the next look.
    pub fn done(&mut self, now: Duration, to: i64) {
        self.last = to;
        self.compacted_at = now;
        self.wait = self.wait.min(PERIODIC_INTERVAL_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// Polls every second with a revision that grows by one a minute from 1 on; when and up to which it compacted.
    fn run(
        what: AutoCompaction,
        time: Duration,
        leads: impl Fn(Duration) -> bool,
    ) -> Vec<(u64, i64)> {
        let mut schedule = CompactionSchedule::new(what, Duration::ZERO);
        let mut compacted = Vec::new();
        for second in 0..=time.as_secs() {
            let now = Duration::from_secs(second);
            let revision = i64::try_from(second / 60).unwrap() + 1;
            if let Some(to) = schedule.poll(now, revision, leads(now)) {
                compacted.push((second / 60, to));
                schedule.done(now, to);
            }
        }
        compacted
    }

    /// The modes and intervals that etcd's documentation describes: a period under an hour compacts once in the period, a
    /// longer one every hour after it has passed for the first time. As in etcd, a look finds the sample of the look before
    /// it at the end of the list, so that what it compacts is older than the period by one more pause.
    #[test]
    fn periodic_mode_compacts_what_is_older_than_the_period() {
        let always = |_| true;
        let ten_minutes = run(AutoCompaction::Periodic(10 * MINUTE), HOUR, always);
        let expected = [(10, 1), (20, 10), (30, 20), (40, 30), (50, 40), (60, 50)];
        assert_eq!(ten_minutes, expected);

        let one_hour = run(AutoCompaction::Periodic(HOUR), 3 * HOUR, always);
        assert_eq!(one_hour, [(60, 1), (120, 55), (180, 115)]);

        let three_hours = run(AutoCompaction::Periodic(3 * HOUR), 6 * HOUR, always);
        assert_eq!(three_hours, [(180, 1), (240, 55), (300, 115), (360, 175)]);
    }

    #[test]
    fn revision_mode_keeps_so_many_revisions() {
        let compacted = run(AutoCompaction::Revision(10), 21 * MINUTE, |_| true);
        // At five minutes there are six revisions, of which ten are kept.
        assert_eq!(compacted, [(10, 1), (15, 6), (20, 11)]);
    }

    #[test]
    fn member_that_does_not_lead_compacts_nothing_but_knows_the_past_when_it_does() {
        assert_eq!(run(AutoCompaction::Periodic(HOUR), 3 * HOUR, |_| false), []);
        assert_eq!(run(AutoCompaction::Revision(1), HOUR, |_| false), []);
        let late = run(AutoCompaction::Periodic(HOUR), 3 * HOUR, |now| {
            now > 2 * HOUR
        });
        assert_eq!(late, [(126, 61)]);
    }

    #[test]
    fn nothing_is_compacted_twice_or_when_off() {
        assert_eq!(run(AutoCompaction::Off, HOUR, |_| true), []);
        assert_eq!(
            CompactionSchedule::new(AutoCompaction::Off, MINUTE).next(),
            None
        );
        for what in [
            AutoCompaction::Periodic(MINUTE),
            AutoCompaction::Revision(1),
        ] {
            let mut schedule = CompactionSchedule::new(what, Duration::ZERO);
            let mut compacted = Vec::new();
            for second in 0..3_600 {
                let now = Duration::from_secs(second);
                if let Some(to) = schedule.poll(now, 7, true) {
                    compacted.push(to);
                    schedule.done(now, to);
                }
            }
            assert_eq!(compacted.len(), 1, "{what:?}: {compacted:?}");
        }
    }

    #[test]
    fn compaction_that_failed_comes_again_at_the_next_look() {
        let mut schedule = CompactionSchedule::new(AutoCompaction::Periodic(HOUR), Duration::ZERO);
        let mut tried = Vec::new();
        for minute in 0..=72 {
            let now = MINUTE * minute;
            if schedule.poll(now, 9, true).is_some() {
                tried.push(minute);
            }
        }
        assert_eq!(tried, [60, 66, 72]);
    }
}
