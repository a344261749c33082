//! `flotilla bench`: loads an etcd v3 endpoint over gRPC and says how it held up; with `--compare`, two of them in one
//! run.
//!
//! `workload` makes requests, `load` sends them and takes the time, `report` turns what was recorded into figures.
//! It deliberately does not start or stop servers: whoever measures decides how those run.

mod load;
mod report;
mod workload;

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::failure::{Failure, print};
use crate::tls::TlsArgs;
use crate::user::UserArgs;
use report::{Comparison, Round};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One key written per request.
    Put,
    /// One key read per request.
    Get,
    /// `--limit` keys read per request, from a random one on.
    Range,
    /// Compare, then put; else get.
    Txn,
    /// `--read-percent` of gets, the rest puts.
    Mixed,
}

/// Flags of `flotilla bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// What to send
    #[arg(value_enum)]
    pub(crate) kind: Kind,
    /// Where the server listens
    #[arg(long, default_value = "http://127.0.0.1:2379")]
    pub(crate) endpoint: String,
    /// A second endpoint: rounds alternate between the two, ratios are second over first
    #[arg(long, value_name = "URL")]
    pub(crate) compare: Option<String>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Rounds per endpoint [default: 1, or 5 with --compare]
    #[arg(long)]
    pub(crate) rounds: Option<u32>,
    /// Requests in flight in a closed loop
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: u32,
    /// TCP connections
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) conns: u32,
    /// Threads that send [default: one per core, at most one per connection]
    #[arg(long)]
    pub(crate) threads: Option<u32>,
    /// Stop a round after this many requests instead of after --duration
    #[arg(long, conflicts_with = "duration")]
    pub(crate) total: Option<u64>,
    /// Length of a round, such as 500ms, 10s or 2m
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Open loop: requests per second, each timed from the moment at which it was due
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) rate: Option<u64>,
    /// Open loop: requests that may be outstanding; those due beyond it are counted as `overflow`
    #[arg(long, default_value_t = 10_000)]
    pub(crate) max_inflight: u32,
    /// A request without an answer after this long counts as an error
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) key_space: u64,
    /// Length of a key in bytes
    #[arg(long, default_value_t = 16)]
    pub(crate) key_size: usize,
    /// Length of a value in bytes; values are random
    #[arg(long, default_value_t = 256)]
    pub(crate) val_size: usize,
    /// Use the keys in order instead of at random
    #[arg(long)]
    pub(crate) sequential: bool,
    /// Reads may be stale
    #[arg(long)]
    pub(crate) serializable: bool,
    /// Keys per range request
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: i64,
    /// Share of gets in `mixed`
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: u8,
    /// Do not write the key space before a workload that reads
    #[arg(long)]
    pub(crate) no_fill: bool,
    /// Seed of keys and values
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) user: UserArgs,
}

/// Reads `500ms`, `10s`, `2m` or `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("expected a number and a unit, such as 10s, found {text:?}"))?;
    let factor_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("expected a unit of ms, s, m or h, found {text:?}")),
    };
    let ms = number
        .checked_mul(factor_ms)
        .ok_or_else(|| format!("{text:?} is too long"))?;
    Ok(Duration::from_millis(ms))
}

/// Runs what the flags ask for. An error that a server returned makes it fail, after the report.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    check(args)?;
    let user = args.user.user()?;
    let mut endpoints = vec![args.endpoint.as_str()];
    endpoints.extend(args.compare.as_deref());
    let rounds = args
        .rounds
        .unwrap_or(if args.compare.is_some() { 5 } else { 1 });
    if !args.no_fill && args.kind != Kind::Put {
        for endpoint in &endpoints {
            load::fill(args, endpoint, user.as_ref())?;
        }
    }
    let mut done: Vec<Round> = Vec::new();
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..endpoints.len()).collect();
        if round % 2 == 1 {
            order.reverse(); // whatever the first of a pair leaves behind hits both sides equally often
        }
        for side in order {
            let seed = args.seed.wrapping_add(u64::from(round) * 1_000_003);
            let recorded = load::run_round(args, endpoints[side], seed, user.as_ref())?;
            let result = Round::new(round, side, endpoints[side], recorded);
            if !args.json {
                print(&result.to_string())?;
            }
            done.push(result);
        }
    }
    let comparison = args.compare.is_some().then(|| Comparison::new(&done));
    if args.json {
        print(&report::to_json(args, &done, comparison.as_ref())?)?;
    } else if let Some(comparison) = &comparison {
        print(&comparison.to_string())?;
    }
    let errors: u64 = done
        .iter()
        .map(|round| round.errors.values().sum::<u64>())
        .sum();
    if errors > 0 {
        return Err(Failure::Failed(format!(
            "{errors} requests failed; the report has their codes"
        )));
    }
    Ok(())
}

fn check(args: &BenchArgs) -> Result<(), Failure> {
    let digits = (args.key_space - 1).to_string().len();
    if args.key_size < digits {
        return Err(Failure::Usage(format!(
            "--key-size {} is too short for {} different keys, which need {digits} bytes",
            args.key_size, args.key_space
        )));
    }
    if args.rounds == Some(0) || args.threads == Some(0) || args.max_inflight == 0 {
        return Err(Failure::Usage(
            "--rounds, --threads and --max-inflight start at 1".into(),
        ));
    }
    if args.total == Some(0) || args.duration.is_zero() || args.timeout.is_zero() {
        return Err(Failure::Usage(
            "--total, --duration and --timeout must not be zero".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_duration_known_units_reads_them() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn parse_duration_without_unit_or_number_is_refused() {
        for text in [
            "10",
            "s",
            "",
            "1.5s",
            "-1s",
            "10 s",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
    }
}
