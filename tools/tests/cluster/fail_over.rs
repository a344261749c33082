//! How long nothing can be written after the leader was killed, again and again on the same cluster, and that nothing is lost
//! meanwhile.
//!
//! `FLOTILLA_FAIL_OVERS=100 cargo test -p flotilla --test cluster fail_over -- --nocapture --test-threads 1`
//! prints the figures that docs/BENCHMARKS.md has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flotilla_tests::cluster::{Client, Cluster, Load};

use super::{FLOTILLA, settle};

/// What one attempt to write may take: what was on its way to the dead leader is not waited for.
const ATTEMPT: Duration = Duration::from_millis(150);
/// Clients of each member that is left, which only take the time.
const CLIENTS: usize = 3;
/// Clients whose history is recorded.
const RECORDED: usize = 3;

/// From the kill of the leader to the next acknowledged write, that many times.
#[expect(
    clippy::print_stdout,
    reason = "the figures are what it is run by hand for"
)]
fn fail_overs(flags: &[&str], bound: Duration) {
    let rounds = std::env::var("FLOTILLA_FAIL_OVERS").map_or(2, |text| text.parse().unwrap());
    let mut cluster = Cluster::start(FLOTILLA, 3, flags);
    let load = Load::start(&cluster.urls(), RECORDED);
    let mut took = Vec::new();
    for round in 0..rounds {
        let leader = cluster.leader();
        let survivors: Vec<_> = (0..3).filter(|member| *member != leader).collect();
        let urls = cluster.urls();
        for member in &survivors {
            cluster.client(*member).put("warm", "up").unwrap();
        }
        let killed = Instant::now();
        cluster.kill(leader);
        let is_over = AtomicBool::new(false);
        let first = thread::scope(|scope| {
            let (is_over, urls) = (&is_over, &urls);
            let clients = survivors.iter().flat_map(|member| vec![*member; CLIENTS]);
            let tries: Vec<_> = clients
                .map(|member| scope.spawn(move || first_write(&urls[member], killed, is_over)))
                .collect();
            let times = tries.into_iter().filter_map(|one| one.join().unwrap());
            times.min().unwrap()
        });
        assert!(first < bound, "round {round}: {first:?}");
        took.push(first);
        cluster.start_all();
        load.next_keys();
    }
    let written = load.written();
    settle(&cluster, load);
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{flags:?}: {rounds} fail-overs, {written} writes: p50 {:?}, p90 {:?}, p99 {:?}, worst {:?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

/// Tries to write until it succeeds, or another client has.
fn first_write(url: &str, killed: Instant, is_over: &AtomicBool) -> Option<Duration> {
    let client = Client::new(url, ATTEMPT);
    while !is_over.load(Ordering::SeqCst) {
        if client.put("key", "value").is_ok() {
            is_over.store(true, Ordering::SeqCst);
            return Some(killed.elapsed());
        }
    }
    None
}

#[test]
fn fail_over_at_default_timers_takes_seconds_at_most() {
    fail_overs(&[], Duration::from_secs(8));
}

#[test]
fn fail_over_at_quick_timers_takes_less() {
    let flags = ["--heartbeat-interval", "50", "--election-timeout", "300"];
    fail_overs(&flags, Duration::from_secs(5));
}
