//! What was seen: latencies by method, errors, and the longest time without an acknowledgement. Threads fill shelves of
//! their own; every second what is on them is taken away and becomes a point in time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tonic::Status;

use super::args::LoadArgs;
use super::client::Method;

/// Latencies are kept between one microsecond and ten minutes, with three digits.
const LATENCY_NS_MIN: u64 = 1_000;
const LATENCY_NS_MAX: u64 = 600_000_000_000;

pub(super) fn histogram() -> Histogram<u64> {
    // Fixed bounds: a histogram that grows by itself would clamp what is recorded with saturation.
    Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, 3)
        .expect("the bounds are constants that fit three digits")
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What was seen in some time.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// From due time (open loop) or send time (closed loop) to the answer; of events, from there to the watcher. In nanoseconds.
    pub(super) latency: BTreeMap<Method, Histogram<u64>>,
    /// Open loop: from due time to sending, in nanoseconds. What of the latency is the client's.
    pub(super) send_lag: Option<Histogram<u64>>,
    /// Failed requests by gRPC code.
    pub(super) errors: BTreeMap<String, u64>,
    /// Open loop: requests that were due while `--max-inflight` were outstanding, and never sent.
    pub(super) overflow: u64,
    /// The longest time without any acknowledgement, over all clients.
    pub(super) gap_max: Duration,
    /// What answers and events had.
    pub(super) bytes: u64,
}

impl Seen {
    pub(super) fn merge(&mut self, other: &Self) {
        for (method, latency) in &other.latency {
            *self.latency.entry(*method).or_insert_with(histogram) += latency;
        }
        if let Some(lag) = &other.send_lag {
            *self.send_lag.get_or_insert_with(histogram) += lag;
        }
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
        self.overflow += other.overflow;
        self.gap_max = self.gap_max.max(other.gap_max);
        self.bytes += other.bytes;
    }

    /// All requests together; events are none.
    pub(super) fn requests(&self) -> Histogram<u64> {
        let mut all = histogram();
        for (method, latency) in &self.latency {
            if *method != Method::Watch {
                all += latency;
            }
        }
        all
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// One thread's: only contended once in a second.
#[derive(Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<Seen>>);

impl Shelf {
    fn with<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is on it, which then is empty.
    pub(super) fn take(&self) -> Seen {
        self.with(std::mem::take)
    }

    /// An answer to a request that was due, or sent, at `from`.
    pub(super) fn answered(
        &self,
        clock: &RoundClock,
        method: Method,
        from: Instant,
        result: Result<usize, &Status>,
    ) {
        let now = Instant::now();
        if from < clock.measured_from {
            return;
        }
        self.with(|seen| match result {
            Ok(bytes) => {
                seen.bytes += bytes as u64;
                seen.gap_max = seen.gap_max.max(clock.ack(now));
                let latency = seen.latency.entry(method).or_insert_with(histogram);
                latency.saturating_record(nanos(now - from));
            }
            Err(status) => {
                *seen
                    .errors
                    .entry(format!("{:?}", status.code()))
                    .or_default() += 1;
            }
        });
    }

    /// A request that is sent now, and was due at `due`.
    pub(super) fn sent(&self, clock: &RoundClock, due: Instant) {
        if due >= clock.measured_from {
            let lag = nanos(Instant::now() - due);
            self.with(|seen| {
                let lags = seen.send_lag.get_or_insert_with(histogram);
                lags.saturating_record(lag);
            });
        }
    }

    pub(super) fn overflowed(&self, clock: &RoundClock, due: Instant) {
        if due >= clock.measured_from {
            self.with(|seen| seen.overflow += 1);
        }
    }

    /// Events that came at `now`, as nanoseconds since they were due.
    pub(super) fn events(&self, ages_ns: impl Iterator<Item = u64>, bytes: usize) {
        self.with(|seen| {
            seen.bytes += bytes as u64;
            let latency = seen.latency.entry(Method::Watch).or_insert_with(histogram);
            for age in ages_ns {
                latency.saturating_record(age);
            }
        });
    }

    pub(super) fn failed(&self, status: &Status) {
        self.with(|seen| {
            *seen
                .errors
                .entry(format!("{:?}", status.code()))
                .or_default() += 1
        });
    }
}

/// What the threads of a round share while it runs.
pub(super) struct RoundClock {
    pub(super) start: Instant,
    /// Requests before it are warm-up.
    pub(super) measured_from: Instant,
    /// Requests that may still be sent; only counts with `--total`.
    left: AtomicU64,
    pub(super) deadline: Option<Instant>,
    /// When the newest acknowledgement of any client came, in nanoseconds since `measured_from`.
    last_ack_ns: AtomicU64,
    /// When the newest event of any watcher came, likewise.
    last_event_ns: AtomicU64,
}

impl RoundClock {
    pub(super) fn new(args: &LoadArgs) -> Self {
        let start = Instant::now();
        let measured_from = start + args.warm_up();
        Self {
            start,
            measured_from,
            left: AtomicU64::new(args.total.unwrap_or(u64::MAX)),
            deadline: args.total.is_none().then(|| measured_from + args.duration),
            last_ack_ns: AtomicU64::new(0),
            last_event_ns: AtomicU64::new(0),
        }
    }

    /// Whether one more request may be sent at `now`; takes it from the total.
    pub(super) fn take(&self, now: Instant) -> bool {
        match self.deadline {
            Some(deadline) => now < deadline,
            None if now < self.measured_from => true,
            None => self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok(),
        }
    }

    /// Notes an acknowledgement; the time since the one before it, of any client.
    fn ack(&self, now: Instant) -> Duration {
        let now_ns = self.since_measured(now);
        let before = self.last_ack_ns.fetch_max(now_ns, Ordering::Relaxed);
        Duration::from_nanos(now_ns.saturating_sub(before))
    }

    fn since_measured(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.measured_from))
    }

    /// Notes that a watcher was sent something.
    pub(super) fn event(&self, now: Instant) {
        let now_ns = self.since_measured(now);
        self.last_event_ns.fetch_max(now_ns, Ordering::Relaxed);
    }

    /// How long events came.
    pub(super) fn events_took(&self) -> Duration {
        Duration::from_nanos(self.last_event_ns.load(Ordering::Relaxed))
    }

    /// When the last acknowledgement came.
    pub(super) fn last_ack(&self) -> Instant {
        self.measured_from + Duration::from_nanos(self.last_ack_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::args::Kind;

    fn clock(warm_up: Duration) -> RoundClock {
        RoundClock::new(&LoadArgs {
            warm_up: Some(warm_up),
            total: Some(2),
            ..LoadArgs::defaults(Kind::Put)
        })
    }

    #[test]
    fn recorded_latency_of_a_second_is_reported_within_its_digits() {
        let shelf = Shelf::default();
        shelf.events([1_000_000_000].into_iter(), 10);
        let mut merged = Seen::default();
        merged.merge(&shelf.take());
        merged.merge(&shelf.take());
        let p50 = merged.latency[&Method::Watch].value_at_quantile(0.5);
        assert!(p50.abs_diff(1_000_000_000) < 1_000_000, "recorded {p50} ns");
        assert_eq!((merged.bytes, merged.requests().len()), (10, 0));
    }

    #[test]
    fn answer_to_what_was_sent_in_the_warm_up_does_not_count() {
        let clock = clock(Duration::from_secs(3_600));
        let shelf = Shelf::default();
        assert!(clock.take(clock.start), "nor is it taken from the total");
        shelf.answered(&clock, Method::Put, clock.start, Ok(1));
        shelf.answered(
            &clock,
            Method::Put,
            clock.start,
            Err(&Status::unavailable("")),
        );
        let seen = shelf.take();
        assert_eq!((seen.requests().len(), seen.errors()), (0, 0));
    }

    #[test]
    fn total_is_given_out_once() {
        let clock = clock(Duration::ZERO);
        let now = Instant::now();
        let taken = (0..5).filter(|_| clock.take(now)).count();
        assert_eq!(taken, 2);
    }
}
