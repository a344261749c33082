//! Whole clusters under mixed faults, from one seed each: see `flotilla_tests::sim::world`.

use std::collections::BTreeMap;

use flotilla_tests::sim::run::{each_seed, is_narrowed};
use flotilla_tests::sim::world::Plan;
use flotilla_tests::sim::world::run::run;

/// Runs one seed, and panics with the line that runs it again.
fn must_run(seed: u64, nodes: usize, seconds: u64) -> flotilla_tests::sim::world::run::Report {
    run(&Plan::new(seed, nodes, seconds), false).unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn mixed_faults_break_no_property_and_peace_brings_agreement() {
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    each_seed(1, 28, |seed| {
        let report = must_run(seed, if seed % 4 == 0 { 5 } else { 3 }, 120);
        for (what, count) in report.coverage {
            *total.entry(what).or_default() += count;
        }
    });
    eprintln!("{total:?}");
    for what in [
        "bad networks",
        "changes made",
        "clock jumps",
        "clock rates",
        "clusters that read by lease",
        "commands acknowledged",
        "commands forwarded",
        "compactions",
        "crashes",
        "disk errors",
        "elections won",
        "full disks",
        "crashes while a snapshot is under way",
        "leaders cut off",
        "leaders with old mail",
        "linearizable reads",
        "logs begun anew",
        "logs lost",
        "members gone",
        "members that flap",
        "members that lag",
        "outcomes unknown",
        "partitions",
        "pauses",
        "power losses",
        "power losses of all",
        "renewals",
        "rotten bits",
        "second copies dropped",
        "receives begun",
        "receives resumed",
        "slow appliers",
        "slow disks",
        "slow watchers",
        "snapshots compared",
        "snapshots taken",
        "state hashes compared",
        "transfers",
    ] {
        let count = total.get(what).copied().unwrap_or(0);
        assert!(is_narrowed() || count > 0, "never: {what}");
    }
    assert!(
        !total.contains_key("histories too hard to check"),
        "{total:?}"
    );
}

#[test]
fn same_seed_gives_the_same_trace() {
    each_seed(500, 3, |seed| {
        let first = must_run(seed, 3, 30);
        let second = must_run(seed, 3, 30);
        assert_eq!(first, second);
    });
}

/// One line per run: seed, members, seconds, and after a `#` what it found.
const SEEDS: &str = include_str!("../seeds/world.txt");

#[test]
fn seeds_that_found_something_run() {
    for line in SEEDS.lines() {
        let numbers = line.split('#').next().unwrap_or("");
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(|number| number.parse().expect("three numbers"))
            .collect();
        if let [seed, nodes, seconds] = numbers[..] {
            must_run(seed, nodes as usize, seconds);
        }
    }
}
