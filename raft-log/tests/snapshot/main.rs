//! Snapshots on the simulated file system: whole or absent after any crash, never silently
//! different, and never without their place in the log.
#![expect(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;
mod damage;
mod install;
mod install_crash;
mod latch;
mod numbers;
mod receive;
mod restore;
mod round_trip;
