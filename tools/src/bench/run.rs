//! A run: rounds that take turns, what they wrote read back, and the reports.

use std::io::{IsTerminal, stderr};
use std::sync::Arc;

use super::args::LoadArgs;
use super::client::Target;
use super::collect::Sinks;
use super::compare::Comparison;
use super::hdr::HdrLog;
use super::ledger::{Checked, Ledger};
use super::load;
use super::machine::Machine;
use super::recorded::Seen;
use super::report::{Document, Round, Side, percentiles};
use super::{find_max, html};
use crate::failure::{Failure, print};
use crate::user::User;

/// The servers of a run, and what each has acknowledged.
pub(super) struct Servers(pub(super) Vec<(Target, Arc<Ledger>)>);

impl Servers {
    pub(super) fn new(args: &LoadArgs, user: Option<&User>) -> Result<Self, Failure> {
        let mut targets = vec![Target::new(&args.endpoint, &args.pids, args, user)?];
        if let Some(second) = &args.compare {
            targets.push(Target::new(second, &args.compare_pids, args, user)?);
        }
        let ledgers = targets
            .into_iter()
            .map(|target| (target, Arc::new(Ledger::new(args))));
        Ok(Self(ledgers.collect()))
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        self.0.iter().map(|(target, _)| target.clone()).collect()
    }

    /// Writes the key space, where the workload reads it.
    pub(super) fn fill(&self, args: &LoadArgs) -> Result<(), Failure> {
        if !args.no_fill && args.kind.reads() {
            for (target, ledger) in &self.0 {
                load::fill(args, target, ledger)?;
            }
        }
        Ok(())
    }

    /// Reads back what was acknowledged.
    pub(super) fn read_back(&self, args: &LoadArgs) -> Result<Vec<Checked>, Failure> {
        let runtime = load::runtime()?;
        let sides = self
            .0
            .iter()
            .filter(|(_, ledger)| ledger.acknowledged() > 0);
        sides
            .map(|(target, ledger)| runtime.block_on(ledger.read_back(args, target)))
            .collect()
    }

    /// One round against one of them.
    pub(super) fn round(
        &self,
        args: &LoadArgs,
        side: usize,
        number: u32,
        hdr: Option<&mut HdrLog>,
    ) -> Result<(Round, Seen), Failure> {
        let (target, ledger) = &self.0[side];
        let mut sinks = Sinks {
            progress: args.progress || stderr().is_terminal(),
            hdr,
            label: target.name.clone(),
            pids: target.pids.clone(),
        };
        let seed = args.seed.wrapping_add(u64::from(number) * 1_000_003);
        let recorded = load::run_round(args, target, ledger, seed, &mut sinks)?;
        Ok(Round::new(number, side, &target.name, recorded))
    }

    /// All rounds, in turns. `done` is told of each.
    pub(super) fn rounds(
        &self,
        args: &LoadArgs,
        mut hdr: Option<&mut HdrLog>,
        mut done: impl FnMut(&Round) -> Result<(), Failure>,
    ) -> Result<(Vec<Round>, Vec<Side>), Failure> {
        let side = |(target, _): &(Target, _)| Side {
            name: target.name.clone(),
            seen: Seen::default(),
        };
        let mut sides: Vec<Side> = self.0.iter().map(side).collect();
        let mut rounds = Vec::new();
        for number in 0..args.rounds() {
            let mut order: Vec<usize> = (0..sides.len()).collect();
            if number % 2 == 1 {
                order.reverse(); // whatever the first of a pair leaves behind hits both sides equally often
            }
            for at in order {
                let (round, seen) = self.round(args, at, number, hdr.as_deref_mut())?;
                sides[at].seen.merge(&seen);
                done(&round)?;
                rounds.push(round);
            }
        }
        Ok((rounds, sides))
    }
}

/// Fails if an acknowledged write is lost.
pub(super) fn judge(read_back: &[Checked]) -> Result<(), Failure> {
    let lost: u64 = read_back.iter().map(|checked| checked.lost).sum();
    if lost == 0 {
        return Ok(());
    }
    let keys: Vec<String> = read_back
        .iter()
        .flat_map(|one| {
            one.lost_keys
                .iter()
                .map(|key| format!("\n  {}: {key}", one.endpoint))
        })
        .collect();
    Err(Failure::Failed(format!(
        "{lost} acknowledged writes are lost, unless somebody else deletes there; the first {}:{}",
        keys.len(),
        keys.concat()
    )))
}

/// Runs one workload as the flags ask for.
pub(super) fn run(args: &LoadArgs) -> Result<(), Failure> {
    args.check()?;
    let user = args.user.user()?;
    let servers = Servers::new(args, user.as_ref())?;
    // Standard output is the document's, if it goes there.
    let is_quiet = args
        .json
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    let say = |text: &str| if is_quiet { Ok(()) } else { print(text) };
    servers.fill(args)?;
    if args.find_max {
        let found = find_max::search(args, &servers, say);
        return finish(args, &servers, say, found.map(|_| ()));
    }
    let machine = Machine::look(&servers.targets())?;
    let mut hdr = match &args.hdr {
        Some(path) => Some(HdrLog::create(path, args.kind.name())?),
        None => None,
    };
    let (rounds, sides) = servers.rounds(args, hdr.as_mut(), |round| say(&round.to_string()))?;
    if let Some(hdr) = hdr {
        hdr.finish()?;
    }
    say(&percentiles(&sides))?;
    let comparison = args.compare.is_some().then(|| Comparison::new(&rounds));
    if let Some(comparison) = &comparison {
        say(&comparison.to_string())?;
    }
    let read_back = servers.read_back(args)?;
    for checked in &read_back {
        say(&format!("{}\n", checked.summary()))?;
    }
    let document = Document::new(args, &machine, &rounds, comparison.as_ref(), &read_back);
    if is_quiet {
        print(&document.json()?)?;
    } else if let Some(path) = &args.json {
        write(path, &document.json()?)?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(&document, &sides))?;
    }
    judge(&read_back)?;
    let faults: u64 = rounds.iter().map(Round::faults).sum();
    if faults > 0 {
        return Err(Failure::Failed(format!(
            "{faults} requests failed, or events are missing; the report has which"
        )));
    }
    Ok(())
}

/// What is read back counts more than what else went wrong.
fn finish(
    args: &LoadArgs,
    servers: &Servers,
    say: impl Fn(&str) -> Result<(), Failure>,
    result: Result<(), Failure>,
) -> Result<(), Failure> {
    let read_back = servers.read_back(args)?;
    for checked in &read_back {
        say(&format!("{}\n", checked.summary()))?;
    }
    judge(&read_back)?;
    result
}

pub(super) fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::failed(format!("writing {}", path.display()), error))
}
