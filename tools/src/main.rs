//! The `flotilla` binary: flags in, exit code out. Each subcommand has a module of its own; nothing here decides
//! anything about data.

mod bench;
mod config;
mod failure;
mod log;
mod logging;
mod recover;
mod server;
#[cfg(feature = "sim")]
mod sim;
mod snapshot;
mod status;
mod tls;
mod user;

use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::bench::BenchArgs;
use crate::failure::{Failure, print};
use crate::log::LogArgs;
use crate::recover::RecoverArgs;
use crate::snapshot::SnapshotArgs;
use crate::status::StatusArgs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn command() -> Command {
    let command = Command::new("flotilla")
        .version(VERSION)
        .about("A durable key-value store that speaks etcd's v3 protocol")
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(config::server_command())
        .subcommand(config::config_command())
        // After the flags, which bring a text of their own.
        .subcommand(
            LogArgs::augment_args(Command::new("log")).about("Look at the log of a data directory"),
        )
        .subcommand(
            SnapshotArgs::augment_args(Command::new("snapshot"))
                .about("Back up and restore, and look at the snapshots of a data directory"),
        )
        .subcommand(
            StatusArgs::augment_args(Command::new("status"))
                .about("Show all members of a cluster, and whether it is healthy"),
        )
        .subcommand(
            RecoverArgs::augment_args(Command::new("recover"))
                .about("Make what is left of a lost majority a cluster of its own"),
        )
        .subcommand(
            BenchArgs::augment_args(Command::new("bench"))
                .about("Measure an etcd v3 endpoint, or compare two"),
        )
        .subcommand(Command::new("version").about("Print the version"));
    #[cfg(feature = "sim")]
    let command = command.subcommand(
        sim::SimArgs::augment_args(Command::new("sim"))
            .about("Run simulated clusters under faults, from seeds"),
    );
    command
}

fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("server", flags)) => server::run(flags),
        Some(("config", matches)) => match matches.subcommand() {
            Some(("show", flags)) => {
                let settings = config::load(flags).map_err(Failure::Usage)?;
                print(&config::show(
                    &settings,
                    flags.get_flag("origin"),
                    flags.get_flag("changed"),
                ))
            }
            _ => unreachable!("clap requires one of the subcommands of config"),
        },
        Some(("log", flags)) => {
            let args = LogArgs::from_arg_matches(flags)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            log::run(&args)
        }
        Some(("snapshot", flags)) => {
            let args = SnapshotArgs::from_arg_matches(flags)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            snapshot::run(&args)
        }
        Some(("status", flags)) => {
            let args = StatusArgs::from_arg_matches(flags)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            status::run(&args)
        }
        Some(("recover", flags)) => {
            let args = RecoverArgs::from_arg_matches(flags)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            recover::run(&args)
        }
        Some(("bench", flags)) => {
            let args = BenchArgs::from_arg_matches(flags)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            bench::run(&args)
        }
        #[cfg(feature = "sim")]
        Some(("sim", flags)) => {
            let args = sim::SimArgs::from_arg_matches(flags)
                .map_err(|error| Failure::Usage(error.to_string()))?;
            sim::run(&args)
        }
        Some(("version", _)) => print(&format!("flotilla {VERSION}\n")),
        _ => unreachable!("clap requires one of the subcommands"),
    }
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage, and with 0 after help.
    let args = config::with_two_dashes(std::env::args_os());
    match run(&command().get_matches_from(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn command_definition_is_consistent() {
        super::command().debug_assert();
    }
}
