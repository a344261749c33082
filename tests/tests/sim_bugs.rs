//! The simulator itself is checked: bugs are put into the product on purpose, and each must be found within a number of
//! seeds. docs/TESTING.md has the table.

use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla_tests::sim::world::Plan;
use flotilla_tests::sim::world::run::run;
use raft_log::testing::{Bug as LogBug, with_bug as with_log_bug};
use raft_node::testing::{Bug, with_bug};

const SECONDS: u64 = 60;
/// Workers: as many as CI has cores.
const WORKERS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Seeded {
    Log(LogBug),
    Node(Bug),
}

/// Each bug, and the seeds within which it must be found.
const BUGS: &[(Seeded, u64)] = &[
    (Seeded::Log(LogBug::GoOnAfterFailedSync), 40),
    (Seeded::Log(LogBug::ForgetCheckpoint), 40),
    (Seeded::Log(LogBug::TrustUnsyncedTail), 40),
    (Seeded::Log(LogBug::IgnoreBatchCrc), 40),
    (Seeded::Node(Bug::VoteNotPersisted), 120),
    (Seeded::Node(Bug::AttestBeforeSync), 40),
    (Seeded::Node(Bug::VoteTwice), 40),
    (Seeded::Node(Bug::VoteForOlderLog), 120),
    (Seeded::Node(Bug::CommitOlderTerm), 80),
    (Seeded::Node(Bug::CommitWithoutQuorum), 40),
    (Seeded::Node(Bug::ReadBeforeOwnTerm), 40),
    (Seeded::Node(Bug::ApplyBeforeSync), 40),
    (Seeded::Node(Bug::TermNotPersisted), 40),
    (Seeded::Node(Bug::HeartbeatCommitUnbounded), 40),
    (Seeded::Log(LogBug::RewriteUnverified), 40),
];

/// The first seed that finds a bug, and what it says.
fn find(bug: Seeded, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let plan = Plan::new(seed, 3, SECONDS);
        let outcome = match bug {
            Seeded::Log(bug) => with_log_bug(bug, || run(&plan, false)),
            Seeded::Node(bug) => with_bug(bug, || run(&plan, false)),
        };
        outcome.err().map(|failure| (seed, failure.message))
    })
}

#[test]
fn each_seeded_bug_is_found_within_its_seeds() {
    // Hundreds of panics are what is looked for here.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut missed = Vec::new();
        while let Some(&(bug, seeds)) = BUGS.get(next.fetch_add(1, Ordering::Relaxed)) {
            match find(bug, seeds) {
                Some((seed, text)) => {
                    let text: String = text.chars().take(100).collect();
                    eprintln!("{bug:?}: seed {seed}: {text}");
                }
                None => missed.push(bug),
            }
        }
        missed
    };
    let missed: Vec<Seeded> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| worker.join());
        results
            .flat_map(|missed| missed.expect("it catches panics"))
            .collect()
    });
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not found: {missed:?}");
}
