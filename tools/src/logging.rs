//! Where log lines of the server go: to standard error, as text or JSON.

use crate::config::{LogFormat, ServerConfig};

/// Installs the subscriber. Called once, before anything is logged.
pub(crate) fn init(config: &ServerConfig) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(config.log_level)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match config.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
