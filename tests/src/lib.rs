//! Test support. `process` runs the real binary as a real process; what is simulated has modules of its own.
//!
//! Used by the tests of this package and of `tools`. Nothing here is part of the product.

pub mod process;
pub mod sim;
