//! Our log against raft-engine, okaywal and the disk itself, alternating on one machine.
//!
//! Every engine in turn appends random entries of 256 B for a short slice, each append waiting for its sync; the rounds
//! repeat, and a figure is the median over the rounds. Engines run with their own defaults, raft-engine without
//! compression. `limit` is no log at all: one write and one fdatasync of as many bytes as ours writes, at ascending
//! offsets of a file that is filled with zeros beforehand. It says nothing about reads.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints what it measures"
)]

mod measure;
mod reopen;
mod report;
mod wals;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use measure::{Point, Workload};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What any step of the comparison may fail with.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Entries of the reopened log.
const REOPEN_ENTRIES: u64 = 2_000_000;

const USAGE: &str = "\
usage: log-compare [--only NAME,NAME] [--rounds N] [--slice-ms N] [--dir DIR] [--write FILE]

  --only NAMES    out of one-writer, groups-16, groups-64, batch-64, reopen   [default: all]
  --rounds N      slices of each engine and workload                          [default: 9]
  --slice-ms N    length of a slice in milliseconds                           [default: 500]
  --dir DIR       an existing directory on the disk to measure                [default: target]
  --write FILE    where the table goes, between its markers                   [default: docs/BENCHMARKS.md;
                  an empty name, and a run of only some workloads, write none]";

struct Options {
    only: Vec<String>,
    rounds: usize,
    slice: Duration,
    dir: PathBuf,
    write: PathBuf,
}

fn options() -> Result<Options, Failure> {
    let mut found = Options {
        only: Vec::new(),
        rounds: 9,
        slice: Duration::from_millis(500),
        dir: "target".into(),
        write: "docs/BENCHMARKS.md".into(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or(format!("{name} needs a value\n{USAGE}"));
        match name.as_str() {
            "--only" => found.only = value()?.split(',').map(str::to_owned).collect(),
            "--rounds" => found.rounds = value()?.parse::<usize>()?.max(1),
            "--slice-ms" => found.slice = Duration::from_millis(value()?.parse()?),
            "--dir" => found.dir = value()?.into(),
            "--write" => found.write = value()?.into(),
            "--help" => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            _ => return Err(format!("unknown argument {name}\n{USAGE}").into()),
        }
    }
    Ok(found)
}

fn run() -> Result<(), Failure> {
    let options = options()?;
    // As the server does; else the first touch of a huge page, 5 ms, is the p99 of every engine.
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true)?;
    let began = Instant::now();
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|n| n == name);
    let mut points: Vec<(&str, Point)> = Vec::new();
    for work in Workload::ALL {
        if wanted(work.name) {
            eprintln!("{}: {} rounds", work.name, options.rounds);
            let dir = tempfile::tempdir_in(&options.dir)?;
            let point = measure::run(&work, dir.path(), options.rounds, options.slice)?;
            points.push((work.name, point));
        }
    }
    let reopened = if wanted("reopen") {
        eprintln!("reopen: {REOPEN_ENTRIES} entries");
        let dir = tempfile::tempdir_in(&options.dir)?;
        Some(reopen::run(dir.path(), REOPEN_ENTRIES)?)
    } else {
        None
    };

    let table = report::table(&points, reopened.as_ref());
    println!("{table}");
    for line in report::ratios(&points, reopened.as_ref()) {
        println!("{line}");
    }
    if options.only.is_empty() && !options.write.as_os_str().is_empty() {
        report::write(&options.write, &table)?;
        eprintln!("wrote the table into {}", options.write.display());
    }
    eprintln!("took {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-compare: {error}");
            ExitCode::FAILURE
        }
    }
}
