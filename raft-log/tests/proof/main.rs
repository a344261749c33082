//! Proof that the log keeps what it acknowledged: every crash of short workloads, random ones of long ones, every
//! flipped bit, hostile bytes, and bugs put in on purpose to see that all of this notices them.
//!
//! `FLOTILLA_LOG_RUNS=20` runs twenty times as much of whatever is drawn at random; a failure prints a line that starts
//! with `reproduce:`. What each module covers, with counts, is in `docs/TESTING.md`.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod bugs;
mod bytewise;
mod enumerate;
mod flips;
mod hostile;
mod model;
mod random;
mod renewal;
mod salvage;
mod verify;
mod world;

/// How many times the normal number of random runs to do.
fn runs() -> u64 {
    number("FLOTILLA_LOG_RUNS").unwrap_or(1)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("the variable holds a number"))
}
