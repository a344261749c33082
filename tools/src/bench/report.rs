//! Turns what was recorded into figures: for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::args::LoadArgs;
use super::client::Method;
use super::collect::{Point, Recorded, ms, quantile_ms};
use super::compare::Comparison;
use super::ledger::Checked;
use super::machine::Machine;
use super::recorded::Seen;
use crate::failure::Failure;

/// Below this many samples above it, a percentile says little.
const SAMPLES_ABOVE_MIN: f64 = 10.0;

/// The part of its threads' time from which on the client counts as busy.
const BUSY: f64 = 0.9;

/// The percentiles of reports.
pub(super) const QUANTILES: [(&str, f64); 8] = [
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
    ("max", 1.0),
];

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct LatencyMs {
    samples: u64,
    mean: f64,
    pub(super) p50: f64,
    p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    p99_99: f64,
    max: f64,
}

impl LatencyMs {
    pub(super) fn new(latency: &Histogram<u64>) -> Self {
        Self {
            samples: latency.len(),
            mean: latency.mean() / 1e6,
            p50: quantile_ms(latency, 0.5),
            p90: quantile_ms(latency, 0.9),
            p99: quantile_ms(latency, 0.99),
            p99_9: quantile_ms(latency, 0.999),
            p99_99: quantile_ms(latency, 0.9999),
            max: ms(latency.max()),
        }
    }
}

impl fmt::Display for LatencyMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ms: mean {:.3}  p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  p99.99 {:.3}  max {:.3}",
            self.mean, self.p50, self.p90, self.p99, self.p99_9, self.p99_99, self.max
        )
    }
}

/// What watchers saw.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Events {
    pub(super) delivered: u64,
    /// Of acknowledged writes, in the warm-up too, that a watcher did not see in time.
    pub(super) missing: u64,
    pub(super) per_second: f64,
    latency_ms: LatencyMs,
}

/// What a server's processes used.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ServerUse {
    pub(super) cpu_us_per_request: f64,
    cpu_seconds: f64,
    resident_mib: f64,
    pub(super) peak_mib: f64,
}

/// One round against one server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    round: u32,
    pub(super) side: usize,
    pub(super) endpoint: String,
    /// `closed` or `open`.
    r#loop: &'static str,
    /// Requests that succeeded.
    pub(super) requests: u64,
    seconds: f64,
    pub(super) per_second: f64,
    /// Open loop: what was asked for.
    rate: Option<u64>,
    pub(super) latency_ms: LatencyMs,
    /// Where requests are of several kinds.
    latency_ms_by_method: BTreeMap<&'static str, LatencyMs>,
    pub(super) events: Option<Events>,
    /// Open loop: how late requests were sent, 99th percentile; part of the latency.
    send_lag_ms_p99: Option<f64>,
    /// The longest time without an acknowledgement to any client.
    pub(super) gap_ms_max: f64,
    /// By gRPC code.
    pub(super) errors: BTreeMap<String, u64>,
    /// Open loop: requests that were never sent because too many were outstanding.
    pub(super) overflow: u64,
    /// Of answers and events.
    bytes: u64,
    /// CPU of this process.
    pub(super) client_cpu_us_per_request: f64,
    client_cores: f64,
    /// It had nearly no time left: then figures are of the client, and not of the server.
    client_is_busy: bool,
    pub(super) server: Option<ServerUse>,
    pub(super) points: Vec<Point>,
}

impl Round {
    /// The figures of a round, and what they were made from.
    pub(super) fn new(round: u32, side: usize, endpoint: &str, recorded: Recorded) -> (Self, Seen) {
        let Recorded { seen, .. } = recorded;
        let latency = seen.requests();
        let seconds = recorded.elapsed.as_secs_f64().max(1e-9);
        let per_request = |cpu: f64| cpu * 1e6 / latency.len().max(1) as f64;
        let methods = seen.latency.iter();
        let methods = methods.filter(|(method, _)| **method != Method::Watch);
        let by_method: BTreeMap<_, _> = methods
            .map(|(method, latency)| (method.name(), LatencyMs::new(latency)))
            .collect();
        let events = seen.latency.get(&Method::Watch).map(|events| Events {
            delivered: events.len(),
            missing: recorded.missing_events,
            per_second: events.len() as f64 / recorded.events_took.as_secs_f64().max(seconds),
            latency_ms: LatencyMs::new(events),
        });
        let memory = recorded.server_memory;
        let server = recorded
            .server_cpu
            .zip(memory)
            .map(|(cpu, memory)| ServerUse {
                cpu_us_per_request: per_request(cpu.as_secs_f64()),
                cpu_seconds: cpu.as_secs_f64(),
                resident_mib: memory.resident_kib as f64 / 1024.0,
                peak_mib: memory.peak_kib as f64 / 1024.0,
            });
        let client_cores = recorded.own_cpu.as_secs_f64() / seconds;
        let figures = Self {
            round: round + 1,
            side,
            endpoint: endpoint.to_owned(),
            r#loop: if recorded.rate.is_some() {
                "open"
            } else {
                "closed"
            },
            requests: latency.len(),
            seconds,
            per_second: latency.len() as f64 / seconds,
            rate: recorded.rate,
            latency_ms: LatencyMs::new(&latency),
            latency_ms_by_method: if by_method.len() > 1 {
                by_method
            } else {
                BTreeMap::new()
            },
            events,
            send_lag_ms_p99: seen.send_lag.as_ref().map(|lag| quantile_ms(lag, 0.99)),
            gap_ms_max: seen.gap_max.as_secs_f64() * 1e3,
            errors: seen.errors.clone(),
            overflow: seen.overflow,
            bytes: seen.bytes,
            client_cpu_us_per_request: per_request(recorded.own_cpu.as_secs_f64()),
            client_cores,
            client_is_busy: client_cores > recorded.threads as f64 * BUSY,
            server,
            points: recorded.points,
        };
        (figures, seen)
    }

    /// What makes the run fail, if anything does.
    pub(super) fn faults(&self) -> u64 {
        let missing = self.events.as_ref().map_or(0, |events| events.missing);
        self.errors.values().sum::<u64>() + missing
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "round {} {} {} loop",
            self.round, self.endpoint, self.r#loop
        )?;
        if let Some(rate) = self.rate {
            write!(f, " at {rate}/s")?;
        }
        writeln!(
            f,
            ": {} in {:.2} s, {:.0}/s",
            self.requests, self.seconds, self.per_second
        )?;
        write!(
            f,
            "  {}  longest gap {:.1}",
            self.latency_ms, self.gap_ms_max
        )?;
        if let Some(lag) = self.send_lag_ms_p99 {
            write!(f, "  send lag p99 {lag:.3}")?;
        }
        writeln!(f)?;
        for (method, latency) in &self.latency_ms_by_method {
            writeln!(f, "  {method}: {}  {latency}", latency.samples)?;
        }
        if let Some(events) = &self.events {
            writeln!(
                f,
                "  events: {} delivered, {} missing, {:.0}/s  {}",
                events.delivered, events.missing, events.per_second, events.latency_ms
            )?;
        }
        write!(
            f,
            "  client: {:.1} us of CPU per request, {:.2} cores",
            self.client_cpu_us_per_request, self.client_cores
        )?;
        if let Some(server) = &self.server {
            write!(
                f,
                "; server: {:.1} us, {:.0} MiB resident, {:.0} at most",
                server.cpu_us_per_request, server.resident_mib, server.peak_mib
            )?;
        }
        writeln!(f)?;
        if self.client_is_busy {
            writeln!(
                f,
                "  the client was busy all the time, and the server possibly not: this is at least what it can do"
            )?;
        }
        if !self.errors.is_empty() || self.overflow > 0 {
            write!(f, "  errors:")?;
            for (code, count) in &self.errors {
                write!(f, " {code} {count}")?;
            }
            writeln!(f, " overflow {}", self.overflow)?;
        }
        Ok(())
    }
}

/// All rounds against one server.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) seen: Seen,
}

/// A table of percentiles, a column for each server and method.
pub(super) fn percentiles(sides: &[Side]) -> String {
    let columns: Vec<(String, &Histogram<u64>)> = sides
        .iter()
        .flat_map(|side| {
            let methods = side.seen.latency.iter();
            methods.map(|(method, latency)| (format!("{} {}", side.name, method.name()), latency))
        })
        .collect();
    let mut text = String::from("ms      ");
    for (name, _) in &columns {
        let _ = write!(text, "  {name:>14}");
    }
    text.push('\n');
    let mut has_few = false;
    for (name, quantile) in QUANTILES {
        let _ = write!(text, "{name:<8}");
        for (column, latency) in &columns {
            let above = latency.len() as f64 * (1.0 - quantile);
            let is_few = quantile < 1.0 && above < SAMPLES_ABOVE_MIN;
            has_few |= is_few;
            let mark = if is_few { "~" } else { " " };
            let width = column.len().max(14) - 1;
            let value = quantile_ms(latency, quantile);
            let _ = write!(text, "  {value:>width$.3}{mark}");
        }
        text.push('\n');
    }
    if has_few {
        text.push_str("~ fewer than ten samples lie above it: measure longer\n");
    }
    text
}

/// The whole run as one document.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    pub(super) workload: &'static str,
    pub(super) clients: u32,
    pub(super) conns: u32,
    pub(super) key_space: u64,
    pub(super) key_size: usize,
    pub(super) val_size: usize,
    pub(super) distribution: String,
    pub(super) warm_up_seconds: f64,
    pub(super) seed: u64,
    pub(super) machine: &'a Machine,
    pub(super) rounds: &'a [Round],
    pub(super) comparison: Option<&'a Comparison>,
    pub(super) read_back: &'a [Checked],
}

impl<'a> Document<'a> {
    pub(super) fn new(
        args: &LoadArgs,
        machine: &'a Machine,
        rounds: &'a [Round],
        comparison: Option<&'a Comparison>,
        read_back: &'a [Checked],
    ) -> Self {
        Self {
            workload: args.kind.name(),
            clients: args.clients,
            conns: args.conns,
            key_space: args.key_space,
            key_size: args.key_size,
            val_size: args.val_size,
            distribution: format!("{:?}", args.distribution).to_lowercase(),
            warm_up_seconds: args.warm_up().as_secs_f64(),
            seed: args.seed,
            machine,
            rounds,
            comparison,
            read_back,
        }
    }

    pub(super) fn json(&self) -> Result<String, Failure> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::failed("writing the report", error))?;
        text.push('\n');
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorded::histogram;
    use super::*;

    #[test]
    fn percentiles_that_few_samples_support_are_marked() {
        let mut latency = histogram();
        for n in 1..=2_000 {
            latency.saturating_record(n * 1_000_000);
        }
        let mut seen = Seen::default();
        seen.latency.insert(Method::Put, latency);
        let table = percentiles(&[Side {
            name: "a".to_owned(),
            seen,
        }]);
        let line = |name| table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("p99 ").ends_with("1980.760 "), "{table}");
        assert!(line("p99.9 ").ends_with('~') && line("p99.99 ").ends_with('~'));
        assert!(table.ends_with("measure longer\n"), "{table}");
    }
}
