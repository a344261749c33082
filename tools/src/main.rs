//! The `flotilla` binary: flags in, exit code out. Each subcommand has a module of its own; nothing here decides
//! anything about data.

mod bench;
mod failure;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A durable key-value store that speaks etcd's v3 protocol.
#[derive(Parser)]
#[command(name = "flotilla", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure an etcd v3 endpoint, or compare two
    Bench(bench::BenchArgs),
    /// Print the version
    Version,
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Bench(args) => bench::run(&args),
        Command::Version => failure::print(&format!("flotilla {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage, and with 0 after help.
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
