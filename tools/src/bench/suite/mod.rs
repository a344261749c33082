//! `flotilla bench suite`: two running servers beside each other at everything that one table asks for, as far as a load
//! generator can drive it by itself. Prints the table for `docs/BENCHMARKS.md`.

mod rows;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};

use super::args::{Kind, LoadArgs, parse_duration};
use super::machine::Machine;
use super::run::{Servers, write};
use crate::failure::{Failure, print};
use crate::tls::TlsArgs;
use crate::user::UserArgs;
use table::Table;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Row {
    /// Puts by one client
    Put1,
    /// By 64, and the servers' CPU per put
    Put64,
    /// By 256
    Put256,
    /// Linearizable reads of one key by 64
    Get,
    /// Transactions by 64
    Txn,
    /// Ranges of 100 keys by 16
    Range,
    /// Latencies in an open loop at 70 % of what the peer can do
    Tails,
    /// Peak memory, as far as the run has come
    Memory,
    /// Lists of 100,000 keys of 1 KiB, in one answer and as a stream
    List,
    /// Events to 1,000 watchers of one prefix
    Watch,
    /// The longest time without an acknowledgement, with compactions
    Gap,
}

/// Flags of `flotilla bench suite`.
#[derive(Args, Clone, Debug)]
pub(super) struct SuiteArgs {
    /// Our server; of several members, separated by commas, each gets its share of the connections
    #[arg(long, value_name = "URLS")]
    endpoint: String,
    /// What it is compared with
    #[arg(long, value_name = "URLS")]
    peer: String,
    /// Processes of our server, on this machine: for CPU and memory
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pids: Vec<u32>,
    /// Processes of the peer
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    peer_pids: Vec<u32>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    user: UserArgs,
    /// What to measure [default: all, in this order]
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Rounds of each row for each server, in turns
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Length of a round
    #[arg(long, default_value = "4s", value_parser = parse_duration)]
    duration: Duration,
    /// What a round begins with and does not count
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warm_up: Duration,
    /// TCP connections; with fewer clients, one for each
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    conns: u32,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    key_space: u64,
    /// Length of a value in bytes
    #[arg(long, default_value_t = 256)]
    val_size: usize,
    /// Keys of the list
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=10_000_000))]
    list_keys: u64,
    /// Lists in each round
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..))]
    lists: u64,
    /// Watchers of one prefix
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=100_000))]
    watchers: u32,
    /// Puts that the watchers see in each round
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u64).range(1..))]
    watched_puts: u64,
    /// How long the longest gap is looked for
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
    gap_duration: Duration,
    /// How often history is compacted meanwhile
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    compact_every: Duration,
    /// A directory on the disk that the servers use, to say what a sync takes there
    #[arg(long, default_value = ".", value_name = "DIR")]
    sync_dir: PathBuf,
    /// Write the table there as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seed of keys and values
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl SuiteArgs {
    /// A workload of these servers. The peer is the first side, so ratios are ours over its.
    fn load(&self, kind: Kind) -> LoadArgs {
        LoadArgs {
            endpoint: self.peer.clone(),
            compare: Some(self.endpoint.clone()),
            pids: self.peer_pids.clone(),
            compare_pids: self.pids.clone(),
            tls: self.tls.clone(),
            user: self.user.clone(),
            rounds: Some(self.rounds),
            duration: self.duration,
            warm_up: Some(self.warm_up),
            conns: self.conns,
            key_space: self.key_space,
            val_size: self.val_size,
            seed: self.seed,
            ..LoadArgs::defaults(kind)
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = self.rows.clone();
        if rows.is_empty() {
            rows = Row::value_variants().to_vec();
        }
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// A cluster has other aims than one node.
    fn is_cluster(&self) -> bool {
        self.endpoint.contains(',')
    }
}

/// Measures all rows, and prints the table.
pub(super) fn run(args: &SuiteArgs) -> Result<(), Failure> {
    let load = args.load(Kind::Put);
    load.check()?;
    let user = args.user.user()?;
    let mut machine = Machine::look(&Servers::new(&load, user.as_ref())?.targets())?;
    machine.measure_syncs(&args.sync_dir)?;
    let mut suite = rows::Suite {
        args,
        user,
        table: Table::default(),
        maxima: Vec::new(),
    };
    for row in args.rows() {
        suite.measure(row)?;
    }
    let text = format!("{machine}\n\n{}", suite.table);
    print(&text)?;
    if let Some(path) = &args.out {
        write(path, &text)?;
    }
    suite.table.judge()
}
