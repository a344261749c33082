//! The simulator itself is checked: bugs are put into the product on purpose, and each must be found within a number of
//! seeds. docs/TESTING.md has the table. `FLOTILLA_SIM_BUG` looks for one of them alone.

use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla_tests::sim::bugs;
use flotilla_tests::sim::world::Plan;
use flotilla_tests::sim::world::fault::SECOND;
use flotilla_tests::sim::world::run::{Failure, minimize, run};

const SECONDS: u64 = 60;
/// Workers: as many as CI has cores.
const WORKERS: usize = 2;

/// The first of the seeds that finds a bug.
fn find(bug: &str, seeds: u64) -> Option<Box<Failure>> {
    let plan = |seed| Plan::new(seed, 3, SECONDS).with_bug(bug);
    (1..=seeds).find_map(|seed| run(&plan(seed), false).err())
}

#[test]
fn each_seeded_bug_is_found_within_its_seeds() {
    // Hundreds of panics are what is looked for here.
    std::panic::set_hook(Box::new(|_| {}));
    let one = std::env::var("FLOTILLA_SIM_BUG").ok();
    let wanted = |(bug, _): &(String, u64)| one.as_ref().is_none_or(|one| one == bug);
    let all: Vec<_> = bugs::all().into_iter().filter(wanted).collect();
    assert!(!all.is_empty(), "there is no bug {one:?}");
    let next = AtomicUsize::new(0);
    let work = || {
        let mut missed = Vec::new();
        while let Some((bug, seeds)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            match find(bug, *seeds) {
                Some(failure) => {
                    let text: String = failure.message.chars().take(120).collect();
                    eprintln!("{bug}: seed {}: {text}", failure.plan.seed);
                }
                None => missed.push(bug.as_str()),
            }
        }
        missed
    };
    let missed: Vec<&str> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| worker.join());
        results
            .flat_map(|missed| missed.expect("it catches panics"))
            .collect()
    });
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn failing_run_shortens_to_one_that_still_fails_and_prints_how_to_repeat_it() {
    std::panic::set_hook(Box::new(|_| {}));
    let failure = find("AckBeforeSync", 40).expect("the other test has found it");
    let before = failure.plan.clone();
    let small = minimize(*failure);
    // As the printed options say: the seed's own list of that many seconds, less what was left out.
    let seconds = small.plan.ticks / SECOND;
    let same = Plan::new(before.seed, before.nodes, seconds).with_bug("AckBeforeSync");
    let again = run(&same.only(&numbers(&small)), false);
    drop(std::panic::take_hook());
    assert!(
        small.plan.faults.len() * 4 <= before.faults.len(),
        "{small}"
    );
    assert!(small.plan.ticks <= before.ticks);
    let again = again.expect_err("the printed options fail as well");
    assert_eq!(again.message, small.message);
    let line = small.to_string();
    let line = line.lines().last().expect("two lines");
    let numbers: Vec<String> = numbers(&small).iter().map(usize::to_string).collect();
    let options = format!("--faults {} --bug AckBeforeSync", numbers.join(","));
    assert!(line.starts_with("reproduce: cargo run --release"), "{line}");
    assert!(line.ends_with(&options), "{line}");
}

fn numbers(failure: &Failure) -> Vec<usize> {
    let faults = failure.plan.faults.iter();
    faults.map(|scheduled| scheduled.number).collect()
}
