//! How a subcommand ends: the exit codes of the binary, and writing to standard output.
//!
//! 0: fine. 1: the operation failed. 2: wrong usage. 3: data is damaged.

use std::error::Error;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Why a subcommand did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The operation failed; trying again may help. Exit code 1.
    Failed(String),
    /// Flags, environment or configuration file are wrong. Exit code 2.
    Usage(String),
    /// Data is damaged or missing; nothing was changed. Exit code 3.
    Damaged(String),
}

impl Failure {
    /// Wraps any error as [`Failure::Failed`], saying what was being done.
    pub(crate) fn failed(doing: impl Display, error: impl Display) -> Self {
        Self::Failed(format!("{doing}: {error}"))
    }

    /// Adds what went wrong after this; how the process ends stays as it is.
    pub(crate) fn then(self, next: &Self) -> Self {
        let (Self::Failed(after) | Self::Usage(after) | Self::Damaged(after)) = next;
        self.map(|text| format!("{text}; while stopping: {after}"))
    }

    /// The same failure in other words.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Failed(text) => Self::Failed(change(text)),
            Self::Usage(text) => Self::Usage(change(text)),
            Self::Damaged(text) => Self::Damaged(change(text)),
        }
    }

    /// Says on standard error what happened, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let (code, text) = match self {
            Self::Failed(text) => (1, text),
            Self::Usage(text) => (2, text),
            Self::Damaged(text) => (3, text),
        };
        // A closed standard error leaves nobody to tell; the exit code still does.
        let _ = writeln!(std::io::stderr(), "error: {text}");
        ExitCode::from(code)
    }
}

/// An error with its sources: the outermost alone often says only which layer failed.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// Writes to standard output. A reader that has gone away (`| head`) is not an error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed("writing to standard output", error))
        }
        _ => Ok(()),
    }
}
