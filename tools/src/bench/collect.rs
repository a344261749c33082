//! Takes what the threads of a round have seen, every second, and makes points in time of it: for the report, for the
//! histogram log, and as progress.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::client::Method;
use super::hdr::HdrLog;
use super::procs::{self, Memory};
use super::recorded::{RoundClock, Seen, Shelf};
use crate::failure::Failure;

const INTERVAL: Duration = Duration::from_secs(1);

/// Who wants to know, and of which server.
pub(super) struct Sinks<'a> {
    /// Lines on standard error.
    pub(super) progress: bool,
    pub(super) hdr: Option<&'a mut HdrLog>,
    /// What lines and histograms are called.
    pub(super) label: String,
    /// Processes of the server.
    pub(super) pids: Vec<u32>,
}

/// What a round had.
pub(super) struct Recorded {
    pub(super) seen: Seen,
    pub(super) points: Vec<Point>,
    /// From the end of the warm-up to the last answer.
    pub(super) elapsed: Duration,
    /// From there to the last event.
    pub(super) events_took: Duration,
    /// Events that were acknowledged as writes, and that no watcher saw in time.
    pub(super) missing_events: u64,
    /// Open loop: what `--rate` asked for.
    pub(super) rate: Option<u64>,
    pub(super) own_cpu: Duration,
    /// How many of its threads sent.
    pub(super) threads: usize,
    /// Of the server's processes, if they are known.
    pub(super) server_cpu: Option<Duration>,
    pub(super) server_memory: Option<Memory>,
}

/// A second of a round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Point {
    /// Its end, since the warm-up.
    pub(super) second: f64,
    pub(super) per_second: f64,
    pub(super) events_per_second: f64,
    /// Of requests; of events where there are watchers.
    pub(super) ms_p50: f64,
    pub(super) ms_p99: f64,
    pub(super) ms_p99_9: f64,
    pub(super) ms_max: f64,
    pub(super) errors: u64,
}

pub(super) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

pub(super) fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    ms(histogram.value_at_quantile(quantile))
}

impl Point {
    fn new(end: Duration, took: Duration, seen: &Seen) -> Self {
        let requests = seen.requests();
        let events = seen.latency.get(&Method::Watch);
        let shown = events.unwrap_or(&requests);
        let rate = |count: u64| count as f64 / took.as_secs_f64().max(1e-9);
        Self {
            second: end.as_secs_f64(),
            per_second: rate(requests.len()),
            events_per_second: rate(events.map_or(0, Histogram::len)),
            ms_p50: quantile_ms(shown, 0.5),
            ms_p99: quantile_ms(shown, 0.99),
            ms_p99_9: quantile_ms(shown, 0.999),
            ms_max: ms(shown.max()),
            errors: seen.errors(),
        }
    }

    fn line(&self, label: &str) -> String {
        let events = if self.events_per_second > 0.0 {
            format!("  {:.0} events/s", self.events_per_second)
        } else {
            String::new()
        };
        format!(
            "{label} {:>5.1} s  {:.0}/s{events}  ms: p50 {:.3}  p99 {:.3}  max {:.3}  errors {}",
            self.second, self.per_second, self.ms_p50, self.ms_p99, self.ms_max, self.errors
        )
    }
}

/// Collects until the other side of `ended` is dropped.
pub(super) fn collect(
    clock: &RoundClock,
    shelves: &[Shelf],
    ended: &Receiver<()>,
    sinks: &mut Sinks<'_>,
) -> Result<Recorded, Failure> {
    let waits = clock.measured_from - Instant::now().min(clock.measured_from);
    let mut is_over = is_over_after(ended, waits);
    let cpu_of = |pids: &[u32]| -> Result<_, Failure> {
        let server = (!pids.is_empty()).then(|| procs::cpu(pids)).transpose()?;
        Ok((procs::own_cpu(), server))
    };
    let before = cpu_of(&sinks.pids)?;
    let mut seen = Seen::default();
    let mut points = Vec::new();
    let mut begun = Duration::ZERO;
    loop {
        is_over = is_over || is_over_after(ended, INTERVAL);
        let mut some = Seen::default();
        for shelf in shelves {
            some.merge(&shelf.take());
        }
        let end = clock.measured_from.elapsed();
        let point = Point::new(end, end.saturating_sub(begun), &some);
        if sinks.progress {
            // Progress that nobody can be shown is no failure.
            let _ = writeln!(std::io::stderr(), "{}", point.line(&sinks.label));
        }
        if let Some(hdr) = &mut sinks.hdr {
            hdr.write(
                &sinks.label,
                clock.measured_from + begun,
                end - begun,
                &some,
            )?;
        }
        points.push(point);
        seen.merge(&some);
        begun = end;
        // Looked at last: a short round is over before it is looked at for the first time.
        if is_over {
            break;
        }
    }
    let after = cpu_of(&sinks.pids)?;
    let memory = (!sinks.pids.is_empty()).then(|| procs::memory(&sinks.pids));
    Ok(Recorded {
        seen,
        points,
        elapsed: Duration::ZERO,
        events_took: clock.events_took(),
        missing_events: 0,
        rate: None,
        // A shelf for each, and one for what could not be sent.
        threads: shelves.len() - 1,
        own_cpu: after.0.saturating_sub(before.0),
        server_cpu: after.1.zip(before.1).map(|(a, b)| a.saturating_sub(b)),
        server_memory: memory.transpose()?,
    })
}

fn is_over_after(ended: &Receiver<()>, time: Duration) -> bool {
    match ended.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => false,
        Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
    }
}
