//! Where log lines of the server go: to standard error or output, as text or JSON.

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogOutput, ServerConfig};

/// Crates whose lines mean nothing to an operator: what fails in them is reported by whoever called them.
const CHATTY: &[&str] = &["lsm_tree"];

/// Installs the subscriber. Called once, before anything is logged.
pub(crate) fn init(config: &ServerConfig) {
    let level = config.log_level;
    // At debug and trace whoever asked wants all of it.
    let chatty = if level > Level::INFO {
        LevelFilter::from_level(level)
    } else {
        LevelFilter::OFF
    };
    let filter = Targets::new()
        .with_default(level)
        .with_targets(CHATTY.iter().map(|name| (*name, chatty)));
    let writer = match config.log_output {
        LogOutput::Stderr => BoxMakeWriter::new(std::io::stderr),
        LogOutput::Stdout => BoxMakeWriter::new(std::io::stdout),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false);
    let lines = match config.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}
