//! Three members as real processes on a network that goes wrong on command. After each fault the history that clients
//! saw is linearizable, and all members have the same content.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

mod begin;
mod fail_over;
mod faults;
mod full_disk;
mod hand_over;
mod idle;
mod leases;
mod majority;
mod members;
mod recover;
mod repair;
mod replace;
mod status;

use std::time::Duration;

use flotilla_tests::cluster::{Cluster, Load};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
/// etcd's defaults are 100 and 1,000; tests wait for many elections.
const QUICK: [&str; 4] = ["--heartbeat-interval", "50", "--election-timeout", "400"];
const ELECTION: Duration = Duration::from_millis(400);
const CLIENTS: usize = 6;

/// Three members that serve, and clients of them that have begun.
fn under_load() -> (Cluster, Load) {
    let cluster = Cluster::start(FLOTILLA, 3, &QUICK);
    let load = Load::start(&cluster.urls(), CLIENTS);
    load.wait_for_writes(50);
    (cluster, load)
}

/// What must hold in the end.
fn settle(cluster: &Cluster, load: Load) {
    load.wait_for_writes(50);
    load.check(&cluster.urls());
    cluster.wait_for_equal_state();
}
