//! Turns what was recorded into figures: for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::BenchArgs;
use super::load::Recorded;
use crate::failure::Failure;

/// Latencies of one round in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct LatencyMs {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

/// One round against one endpoint.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    round: u32,
    side: usize,
    endpoint: String,
    /// `closed` or `open`.
    r#loop: &'static str,
    /// Requests that succeeded.
    requests: u64,
    seconds: f64,
    per_second: f64,
    /// Open loop: what was asked for.
    rate: Option<u64>,
    latency_ms: LatencyMs,
    /// Open loop: how late requests were sent, 99th percentile; part of the latency.
    send_lag_ms_p99: Option<f64>,
    /// The longest time without an acknowledgement to any client.
    gap_ms_max: f64,
    /// By gRPC code.
    pub(super) errors: BTreeMap<String, u64>,
    /// Open loop: requests that were never sent because too many were outstanding.
    overflow: u64,
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

impl Round {
    pub(super) fn new(round: u32, side: usize, endpoint: &str, recorded: Recorded) -> Self {
        let quantile = |histogram: &Histogram<u64>, q| ms(histogram.value_at_quantile(q));
        let latency = &recorded.latency;
        let seconds = recorded.elapsed.as_secs_f64();
        Self {
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
            latency_ms: LatencyMs {
                mean: latency.mean() / 1e6,
                p50: quantile(latency, 0.5),
                p90: quantile(latency, 0.9),
                p99: quantile(latency, 0.99),
                p99_9: quantile(latency, 0.999),
                max: ms(latency.max()),
            },
            send_lag_ms_p99: recorded.rate.map(|_| quantile(&recorded.send_lag, 0.99)),
            gap_ms_max: recorded.gap_max.as_secs_f64() * 1e3,
            errors: recorded.errors,
            overflow: recorded.overflow,
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = &self.latency_ms;
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
            "  ms: mean {:.3}  p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}  longest gap {:.1}",
            l.mean, l.p50, l.p90, l.p99, l.p99_9, l.max, self.gap_ms_max
        )?;
        if let Some(lag) = self.send_lag_ms_p99 {
            write!(f, "  send lag p99 {lag:.3}")?;
        }
        writeln!(f)?;
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

/// Second endpoint over first, round by round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    per_second: Ratios,
    p50: Ratios,
    p99: Ratios,
    p99_9: Ratios,
    gap_max: Ratios,
}

#[derive(Clone, Debug, Serialize)]
struct Ratios {
    median: f64,
    rounds: Vec<f64>,
}

impl Comparison {
    /// Pairs the rounds of side 1 with those of side 0.
    pub(super) fn new(rounds: &[Round]) -> Self {
        let ratios = |value: fn(&Round) -> f64| {
            let side = |side: usize| {
                rounds
                    .iter()
                    .filter(move |round| round.side == side)
                    .map(value)
            };
            let rounds: Vec<f64> = side(1).zip(side(0)).map(|(b, a)| b / a).collect();
            Ratios {
                median: median(&rounds),
                rounds,
            }
        };
        Self {
            per_second: ratios(|round| round.per_second),
            p50: ratios(|round| round.latency_ms.p50),
            p99: ratios(|round| round.latency_ms.p99),
            p99_9: ratios(|round| round.latency_ms.p99_9),
            gap_max: ratios(|round| round.gap_ms_max),
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "second over first, median (rounds):")?;
        for (name, ratios) in [
            ("per second", &self.per_second),
            ("p50", &self.p50),
            ("p99", &self.p99),
            ("p99.9", &self.p99_9),
            ("longest gap", &self.gap_max),
        ] {
            write!(f, "  {name:<12} {:.2}  (", ratios.median)?;
            for (number, ratio) in ratios.rounds.iter().enumerate() {
                write!(f, "{}{ratio:.2}", if number == 0 { "" } else { " " })?;
            }
            writeln!(f, ")")?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Document<'a> {
    workload: String,
    clients: u32,
    conns: u32,
    key_space: u64,
    key_size: usize,
    val_size: usize,
    seed: u64,
    rounds: &'a [Round],
    comparison: Option<&'a Comparison>,
}

/// The whole run as one JSON document.
pub(super) fn to_json(
    args: &BenchArgs,
    rounds: &[Round],
    comparison: Option<&Comparison>,
) -> Result<String, Failure> {
    let document = Document {
        workload: format!("{:?}", args.kind).to_lowercase(),
        clients: args.clients,
        conns: args.conns,
        key_space: args.key_space,
        key_size: args.key_size,
        val_size: args.val_size,
        seed: args.seed,
        rounds,
        comparison,
    };
    let mut text = serde_json::to_string_pretty(&document)
        .map_err(|error| Failure::failed("writing the report", error))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_odd_and_even_counts_takes_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
