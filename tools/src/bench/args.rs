//! The flags of `flotilla bench`, and what of them cannot be.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches, Subcommand, ValueEnum, value_parser};

use super::suite::SuiteArgs;
use crate::failure::Failure;
use crate::tls::TlsArgs;
use crate::user::UserArgs;

/// Below a number of keys that a key has to tell apart: what a watched value begins with.
pub(super) const STAMP_BYTES: usize = 8;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Get,
    Range,
    Txn,
    Mixed,
    Watch,
    Lease,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
            Self::Txn => "txn",
            Self::Mixed => "mixed",
            Self::Watch => "watch",
            Self::Lease => "lease",
        }
    }

    /// Whether it finds something only in a key space that was written before.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Get | Self::Range | Self::Txn | Self::Mixed)
    }
}

/// Which key is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Distribution {
    /// Each as likely as any other.
    Uniform,
    /// A few most of the time; which ones is spread over the key space.
    Zipf,
    /// One after the other.
    Sequential,
}

/// Flags of `flotilla bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) what: What,
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum What {
    /// One key written per request
    Put(Box<LoadArgs>),
    /// One key read per request
    Get(Box<LoadArgs>),
    /// `--limit` keys read per request, from a random one on
    Range(Box<LoadArgs>),
    /// Compare, then put; else get
    Txn(Box<LoadArgs>),
    /// `--read-percent` of gets, the rest puts
    Mixed(Box<LoadArgs>),
    /// Puts under a prefix that `--watchers` watch: latency from the put to each event, and events per second
    Watch(Box<LoadArgs>),
    /// Leases granted, kept alive and revoked; `--read-percent` of keepalives
    Lease(Box<LoadArgs>),
    /// Compare two running servers at everything that one table asks for
    Suite(Box<SuiteArgs>),
}

/// Flags of all workloads.
#[derive(Args, Clone, Debug)]
pub(super) struct LoadArgs {
    #[arg(skip = Kind::Put)]
    pub(super) kind: Kind,
    /// Where the server listens; of several, separated by commas, each gets its share of the connections
    #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URLS")]
    pub(super) endpoint: String,
    /// A second server: rounds alternate between the two, ratios are second over first
    #[arg(long, value_name = "URLS")]
    pub(super) compare: Option<String>,
    /// Processes of the first server, on this machine: reports their CPU and memory
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub(super) pids: Vec<u32>,
    /// Processes of the second
    #[arg(long, value_name = "PID", value_delimiter = ',', requires = "compare")]
    pub(super) compare_pids: Vec<u32>,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    #[command(flatten)]
    pub(super) user: UserArgs,
    /// Rounds per endpoint [default: 1, or 5 with --compare]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_000))]
    pub(super) rounds: Option<u32>,
    /// Requests in flight in a closed loop
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) clients: u32,
    /// TCP connections
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=10_000))]
    pub(super) conns: u32,
    /// Threads that send [default: one per core, at most one per connection]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_024))]
    pub(super) threads: Option<u32>,
    /// Stop a round after this many requests instead of after --duration
    #[arg(long, conflicts_with = "duration", value_parser = value_parser!(u64).range(1..))]
    pub(super) total: Option<u64>,
    /// Length of a round, such as 500ms, 10s or 2m
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(super) duration: Duration,
    /// What a round begins with and does not count [default: 1s, or nothing with --total]
    #[arg(long, value_parser = parse_duration)]
    pub(super) warm_up: Option<Duration>,
    /// Open loop: requests per second, each timed from the moment at which it was due
    #[arg(long, value_parser = value_parser!(u64).range(1..=10_000_000))]
    pub(super) rate: Option<u64>,
    /// Open loop: requests that may be outstanding; those due beyond it are counted as `overflow`
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) max_inflight: u32,
    /// A request without an answer after this long counts as an error
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    pub(super) key_space: u64,
    /// What keys begin with
    #[arg(long, default_value = "bench/")]
    pub(super) prefix: String,
    /// Length of a key in bytes, with the prefix
    #[arg(long, default_value_t = 16)]
    pub(super) key_size: usize,
    /// Length of a value in bytes; values are random
    #[arg(long, default_value_t = 256)]
    pub(super) val_size: usize,
    /// Which key is next
    #[arg(long, value_enum, default_value = "uniform")]
    pub(super) distribution: Distribution,
    /// How uneven `--distribution zipf` is
    #[arg(long, default_value_t = 0.99)]
    pub(super) zipf_exponent: f64,
    /// Reads may be stale
    #[arg(long)]
    pub(super) serializable: bool,
    /// Keys per range request; 0: all, from the first on
    #[arg(long, default_value_t = 100, value_parser = value_parser!(i64).range(0..))]
    pub(super) limit: i64,
    /// Ranges by RangeStream, which etcd has from 3.7 on
    #[arg(long)]
    pub(super) stream: bool,
    /// Share of gets in `mixed`, of keepalives in `lease`
    #[arg(long, default_value_t = 80, value_parser = value_parser!(u8).range(0..=100))]
    pub(super) read_percent: u8,
    /// Watchers of the prefix in `watch`, a stream each
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(super) watchers: u32,
    /// TCP connections of the watchers, beside --conns
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=10_000))]
    pub(super) watch_conns: u32,
    /// Compact at the newest revision each time this has passed
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) compact_every: Option<Duration>,
    /// Do not write the key space before a workload that reads
    #[arg(long)]
    pub(super) no_fill: bool,
    /// Keys whose last acknowledged write is remembered, 16 bytes each, and read back at the end; 0: none
    #[arg(long, default_value_t = 1 << 20, value_parser = value_parser!(u64).range(0..=1 << 26))]
    pub(super) check_keys: u64,
    /// Seed of keys and values
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// A line a second on standard error, also where that is no terminal
    #[arg(long)]
    pub(super) progress: bool,
    /// Write the report as JSON; `-`: to standard output, instead of text
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write histograms of each second as an HDR histogram log (V2), in nanoseconds
    #[arg(long, value_name = "FILE")]
    pub(super) hdr: Option<PathBuf>,
    /// Write a report with plots, which needs no network
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Search the highest rate of an open loop that keeps to --slo; each step is a round
    #[arg(long, requires = "slo", conflicts_with_all = ["rate", "total", "rounds", "html", "hdr"])]
    pub(super) find_max: bool,
    /// What --find-max keeps to, such as p99=10ms; several, separated by commas, hold together
    #[arg(long, value_delimiter = ',', requires = "find_max")]
    pub(super) slo: Vec<Slo>,
    /// Steps of --find-max at most, for each server
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(2..=100))]
    pub(super) steps: u32,
}

impl LoadArgs {
    /// What no flag changes.
    pub(super) fn defaults(kind: Kind) -> Self {
        let command = Self::augment_args(Command::new("bench"));
        let matches = command.get_matches_from(["bench"]);
        let args = Self::from_arg_matches(&matches).expect("every flag has a default");
        Self { kind, ..args }
    }

    pub(super) fn rounds(&self) -> u32 {
        self.rounds
            .unwrap_or(if self.compare.is_some() { 5 } else { 1 })
    }

    pub(super) fn warm_up(&self) -> Duration {
        let usual = if self.total.is_some() {
            Duration::ZERO
        } else {
            Duration::from_secs(1)
        };
        self.warm_up.unwrap_or(usual)
    }

    /// What has to be told before anything is sent.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let digits = (self.key_space - 1).to_string().len();
        if self.key_size < self.prefix.len() + digits {
            return Err(Failure::Usage(format!(
                "--key-size {} is too short for {:?} and {} different keys, which need {} bytes",
                self.key_size,
                self.prefix,
                self.key_space,
                self.prefix.len() + digits
            )));
        }
        if self.prefix.is_empty() {
            return Err(Failure::Usage(
                "--prefix must not be empty: ranges and watches would see the keys of others"
                    .into(),
            ));
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return Err(Failure::Usage(
                "--duration and --timeout must not be zero".into(),
            ));
        }
        if self.compact_every.is_some_and(|every| every.is_zero()) {
            return Err(Failure::Usage("--compact-every must not be zero".into()));
        }
        if self.kind == Kind::Watch && self.val_size < STAMP_BYTES {
            return Err(Failure::Usage(format!(
                "--val-size must be at least {STAMP_BYTES} for watch, whose values have the time in them"
            )));
        }
        if !(self.zipf_exponent.is_finite() && self.zipf_exponent >= 0.0) {
            return Err(Failure::Usage("--zipf-exponent starts at 0".into()));
        }
        Ok(())
    }
}

/// One objective: a quantile of the latency, and what it may be at most.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slo {
    /// 1 for the maximum.
    pub(super) quantile: f64,
    pub(super) most: Duration,
    pub(super) text: String,
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected something like p99=10ms, p99.9=500us or max=1s, found {text:?}");
        let (name, most) = text.split_once('=').ok_or_else(expected)?;
        let percent = match name {
            "max" => 100.0,
            _ => {
                let number = name.strip_prefix('p').ok_or_else(expected)?;
                number.parse::<f64>().map_err(|_| expected())?
            }
        };
        let most = match most.strip_suffix("us") {
            Some(number) => Duration::from_micros(number.parse().map_err(|_| expected())?),
            None => parse_duration(most)?,
        };
        if !(0.0..=100.0).contains(&percent) || most.is_zero() {
            return Err(expected());
        }
        Ok(Self {
            quantile: percent / 100.0,
            most,
            text: text.to_owned(),
        })
    }
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

    #[test]
    fn slo_known_forms_are_read_and_others_refused() {
        let slo: Slo = "p99.9=500us".parse().unwrap();
        assert!((slo.quantile - 0.999).abs() < 1e-12);
        assert_eq!(slo.most, Duration::from_micros(500));
        let slo: Slo = "max=1s".parse().unwrap();
        assert_eq!((slo.quantile, slo.most), (1.0, Duration::from_secs(1)));
        for text in [
            "p99", "99=10ms", "p101=1s", "p99=0s", "p=1s", "pNaN=1s", "p99=10",
        ] {
            assert!(text.parse::<Slo>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn defaults_of_every_workload_are_accepted() {
        for kind in [Kind::Put, Kind::Range, Kind::Watch, Kind::Lease] {
            LoadArgs::defaults(kind).check().unwrap();
        }
    }
}
