//! The commands that look at a data directory, on what a real server wrote and on what was broken in it.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

mod common;
mod page;
mod salvage;
mod snapshot;
mod verify;
