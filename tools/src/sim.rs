//! `flotilla sim`: simulated clusters under faults, from seeds. Built with the feature `sim` only.

use std::panic;

use clap::Args;
use flotilla_tests::sim::world::Plan;
use flotilla_tests::sim::world::run::{self, Failure as Failed, Report};

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
}

pub(crate) fn run(args: &SimArgs) -> Result<(), Failure> {
    if args.nodes == 4 {
        return Err(Failure::Usage("--nodes is 3 or 5".to_owned()));
    }
    // What a run fails with is printed with its seed.
    panic::set_hook(Box::new(|_| {}));
    let mut total = std::collections::BTreeMap::new();
    let mut failed = 0;
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let plan = Plan::new(seed, args.nodes.into(), args.seconds);
        match once(&plan, args.trace, seed % TWICE_EVERY == 0) {
            Ok(report) => {
                for (what, count) in report.coverage {
                    *total.entry(what).or_insert(0_u64) += count;
                }
                if args.seeds == 1 {
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
    if failed > 0 {
        return Err(Failure::Failed(format!(
            "{failed} of {} seeds failed",
            args.seeds
        )));
    }
    Ok(())
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
        format!("{:>10} {:?}\n", scheduled.at, scheduled.fault)
    };
    plan.faults.iter().map(line).collect()
}
