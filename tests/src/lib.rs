//! Test support. `process` runs the real binary as a real process, `cluster` several of them with a network between them
//! that goes wrong on command; what is simulated has modules of its own.
//!
//! Used by the tests of this package and of `tools`. Nothing here is part of the product.

pub mod cluster;
pub mod pki;
pub mod process;
pub mod sim;
