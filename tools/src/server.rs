//! `flotilla server`: from flags to a running server, and its exit code.

use clap::ArgMatches;

use crate::config::{self, ServerConfig};
use crate::failure::Failure;
use crate::logging;

/// Reads the configuration and serves until told to stop.
pub(crate) fn run(flags: &ArgMatches) -> Result<(), Failure> {
    let settings = config::load(flags).map_err(Failure::Usage)?;
    let config = ServerConfig::new(&settings).map_err(Failure::Usage)?;
    logging::init(&config);
    for name in config::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!(
            name,
            "a variable of the environment looks like an option, but is none"
        );
    }
    Err(Failure::Failed(
        "the configuration is valid, but this version cannot serve yet".into(),
    ))
}
