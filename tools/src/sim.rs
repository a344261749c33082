//! `flotilla sim`: simulated clusters under faults, from seeds. Built with the feature `sim` only.

use std::panic;
use std::time::{Duration, Instant};

use clap::Args;
use flotilla_tests::sim::bugs;
use flotilla_tests::sim::world::Plan;
use flotilla_tests::sim::world::fault::SECOND;
use flotilla_tests::sim::world::run::{self, Failure as Failed, Report};
use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::failure::{Failure, print};

/// Every so many seeds, one is run twice, to see that its trace is the same.
const TWICE_EVERY: u64 = 64;

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct SimArgs {
    /// The seed, or the first of them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Members.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=5))]
    nodes: u8,
    /// Simulated seconds with clients and faults; peace comes after them.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Print what happens, of one seed.
    #[arg(long)]
    trace: bool,
    /// Look for a shorter schedule of faults with which a failing seed fails, and print it.
    #[arg(long)]
    minimize: bool,
    /// Only these faults of the seed, by their numbers, as a minimized failure names them.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    faults: Option<Vec<usize>>,
    /// Put a bug into the product, to see it found. Builds with the feature `seeded-bugs` have some; `list` names them.
    #[arg(long, value_name = "NAME")]
    bug: Option<String>,
    /// Run seeds from a random one on, for so many seconds of wall time, and stop at the first that fails.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["seed", "seeds", "faults"])]
    random_for: Option<u64>,
}

pub(crate) fn run(args: &SimArgs) -> Result<(), Failure> {
    if args.nodes == 4 {
        return Err(Failure::Usage("--nodes is 3 or 5".to_owned()));
    }
    let bugs: Vec<String> = bugs::all().into_iter().map(|(name, _)| name).collect();
    if args.bug.as_deref() == Some("list") {
        return print(
            &bugs
                .iter()
                .map(|name| format!("{name}\n"))
                .collect::<String>(),
        );
    }
    if args.bug.as_ref().is_some_and(|bug| !bugs.contains(bug)) {
        return Err(Failure::Usage(
            "this build has no bug of that name; --bug list names those it has".to_owned(),
        ));
    }
    // What a run fails with is printed with its seed.
    panic::set_hook(Box::new(|_| {}));
    let mut total = std::collections::BTreeMap::new();
    let mut failed = 0;
    let (first, count) = match args.random_for {
        Some(seconds) => {
            let first = random_seed()?;
            print(&format!("seeds from {first} on, for {seconds} s\n"))?;
            (first, u64::MAX)
        }
        None => (args.seed, args.seeds),
    };
    let started = Instant::now();
    let limit = args.random_for.map(Duration::from_secs);
    let mut ran = 0;
    for seed in first..first.saturating_add(count) {
        if limit.is_some_and(|limit| failed > 0 || started.elapsed() >= limit) {
            break;
        }
        ran += 1;
        let mut plan = Plan::new(seed, args.nodes.into(), args.seconds);
        if let Some(numbers) = &args.faults {
            plan = plan.only(numbers);
        }
        if let Some(bug) = &args.bug {
            plan = plan.with_bug(bug);
        }
        match once(&plan, args.trace, seed % TWICE_EVERY == 0) {
            Ok(report) => {
                for (what, count) in report.coverage {
                    *total.entry(what).or_insert(0_u64) += count;
                }
                if count == 1 {
                    print(&format!("trace {:016x}\n", report.trace_hash))?;
                }
            }
            Err(failure) => {
                failed += 1;
                print(&format!("{failure}\n"))?;
                if args.minimize {
                    let small = run::minimize(*failure);
                    print(&format!("shortest: {small}\n{}", faults(&small.plan)))?;
                }
            }
        }
    }
    for (what, count) in total {
        print(&format!("{count:>10} {what}\n"))?;
    }
    print(&format!("{ran:>10} seeds\n"))?;
    if failed > 0 {
        return Err(Failure::Failed(format!("{failed} of {ran} seeds failed")));
    }
    Ok(())
}

/// Small enough to be typed.
fn random_seed() -> Result<u64, Failure> {
    let drawn = SysRng.try_next_u32();
    drawn
        .map(u64::from)
        .map_err(|error| Failure::failed("cannot draw a seed", error))
}

fn once(plan: &Plan, tell: bool, twice: bool) -> Result<Report, Box<Failed>> {
    let report = run::run(plan, tell)?;
    if twice && run::run(plan, false)? != report {
        return Err(Box::new(Failed {
            message: "two runs of the seed differ".to_owned(),
            plan: plan.clone(),
        }));
    }
    Ok(report)
}

fn faults(plan: &Plan) -> String {
    let line = |scheduled: &flotilla_tests::sim::world::fault::Scheduled| {
        format!(
            "{:>8.2}s  fault {}: {:?}\n",
            scheduled.at as f64 / SECOND as f64,
            scheduled.number,
            scheduled.fault
        )
    };
    plan.faults.iter().map(line).collect()
}
