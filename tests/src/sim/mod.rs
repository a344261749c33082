//! Simulated stores and clusters: the real log, core, host and state machine on simulated disks and a simulated
//! network, on one thread, from one seed.
//!
//! - [`Node`](node::Node): one member, started, stepped and crashed on command.
//! - [`Solo`](solo::Solo): a store with one member under random clients, faults and crashes.
//! - [`Cluster`](cluster::Cluster): several members and a network between them.
//! - [`Oracle`](oracle::Oracle) and [`Model`](model::Model): what must be true of them. Whatever is not ends in a panic.
//! - [`run`]: seeds, counts, and the line that runs a failing run again.
//!
//! Everything random is drawn from the seed; nothing reads a clock or starts a thread.

pub mod bugs;
mod check;
pub mod checkers;
pub mod cluster;
pub mod forwarding;
pub mod model;
pub mod node;
pub mod oracle;
pub mod run;
pub mod settings;
pub mod sinks;
pub mod solo;
pub mod tasks;
pub mod workload;
pub mod world;
