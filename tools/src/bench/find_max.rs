//! `--find-max`: the highest rate of an open loop at which a server keeps to objectives of latency.
//!
//! A closed loop says where to begin; then rates go up by a quarter until one fails, or down to half until one holds,
//! and the gap between the two is halved until it is small or the steps are used up. A step holds if the latencies do, and
//! nothing failed or was left out: then all that was due was answered, and what was late is in the latencies.

use serde::Serialize;

use super::args::LoadArgs;
use super::collect::quantile_ms;
use super::recorded::Seen;
use super::report::Round;
use super::run::{Servers, write};
use crate::failure::{Failure, print};

/// Where to begin, as a part of what a closed loop reaches.
const FIRST: f64 = 0.7;
const UP: f64 = 1.25;
/// The search ends when the rate that holds and the one that does not are this close.
const CLOSE: f64 = 0.03;

/// One rate that was tried.
#[derive(Clone, Debug, Serialize)]
struct Step {
    endpoint: String,
    rate: u64,
    per_second: f64,
    /// What each objective asks for, and what it was in milliseconds.
    latencies_ms: Vec<(String, f64)>,
    errors: u64,
    overflow: u64,
    holds: bool,
}

/// What was found for one server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Found {
    endpoint: String,
    /// The highest rate that held, if one did.
    rate: Option<u64>,
    steps: Vec<Step>,
}

/// Searches for each server.
pub(super) fn search(
    args: &LoadArgs,
    servers: &Servers,
    say: impl Fn(&str) -> Result<(), Failure>,
) -> Result<Vec<Found>, Failure> {
    let mut all = Vec::new();
    for side in 0..servers.0.len() {
        let (round, _) = servers.round(args, side, 0, None)?;
        let maximum = round.per_second;
        say(&format!(
            "{}: closed loop of {} clients: {maximum:.0}/s\n",
            round.endpoint, args.clients
        ))?;
        let mut search = Search::new(maximum);
        let mut steps = Vec::new();
        while let Some(rate) = search.next_rate() {
            if steps.len() == args.steps as usize {
                break;
            }
            let stepped = LoadArgs {
                rate: Some(rate),
                ..args.clone()
            };
            let number = u32::try_from(steps.len()).expect("steps are few") + 1;
            let (round, seen) = servers.round(&stepped, side, number, None)?;
            let step = judge(args, rate, &round, &seen);
            say(&line(&step))?;
            search.tell(rate, step.holds);
            steps.push(step);
        }
        let found = Found {
            endpoint: round.endpoint,
            rate: search.holds,
            steps,
        };
        match found.rate {
            Some(rate) => say(&format!("{}: holds at {rate}/s\n", found.endpoint))?,
            None => say(&format!(
                "{}: no rate that was tried holds\n",
                found.endpoint
            ))?,
        }
        all.push(found);
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all)
            .map_err(|error| Failure::failed("writing the report", error))?;
        if path.as_os_str() == "-" {
            print(&(text + "\n"))?;
        } else {
            write(path, &text)?;
        }
    }
    match all.iter().find(|found| found.rate.is_none()) {
        None => Ok(all),
        Some(found) => Err(Failure::Failed(format!(
            "{} keeps to the objectives at none of the rates that were tried; more --steps try lower ones",
            found.endpoint
        ))),
    }
}

fn judge(args: &LoadArgs, rate: u64, round: &Round, seen: &Seen) -> Step {
    let latency = seen.requests();
    let mut holds = round.faults() == 0 && round.overflow == 0;
    let mut latencies_ms = Vec::new();
    for slo in &args.slo {
        let took = quantile_ms(&latency, slo.quantile);
        holds &= took <= slo.most.as_secs_f64() * 1e3;
        latencies_ms.push((slo.text.clone(), took));
    }
    Step {
        endpoint: round.endpoint.clone(),
        rate,
        per_second: round.per_second,
        latencies_ms,
        errors: round.faults(),
        overflow: round.overflow,
        holds,
    }
}

fn line(step: &Step) -> String {
    let latencies: Vec<String> = step
        .latencies_ms
        .iter()
        .map(|(slo, took)| format!("{slo}: {took:.3} ms"))
        .collect();
    format!(
        "{}: {}/s asked, {:.0}/s reached, {}, {} errors, {} left out: {}\n",
        step.endpoint,
        step.rate,
        step.per_second,
        latencies.join(", "),
        step.errors,
        step.overflow,
        if step.holds { "holds" } else { "does not hold" }
    )
}

/// Where the search is.
struct Search {
    /// The highest rate that held.
    holds: Option<u64>,
    /// The lowest that did not.
    fails: Option<u64>,
    first: u64,
}

impl Search {
    fn new(maximum: f64) -> Self {
        Self {
            holds: None,
            fails: None,
            first: ((maximum * FIRST) as u64).max(1),
        }
    }

    /// The next rate to try; none when there is nothing left to learn.
    fn next_rate(&self) -> Option<u64> {
        match (self.holds, self.fails) {
            (None, None) => Some(self.first),
            (Some(holds), None) => Some(((holds as f64 * UP) as u64).max(holds + 1)),
            (None, Some(1)) => None,
            (None, Some(fails)) => Some((fails / 2).max(1)),
            (Some(holds), Some(fails)) => {
                let is_close = (fails - holds) as f64 <= fails as f64 * CLOSE;
                let middle = holds.midpoint(fails);
                (!is_close && middle > holds).then_some(middle)
            }
        }
    }

    fn tell(&mut self, rate: u64, holds: bool) {
        if holds {
            self.holds = Some(rate);
        } else {
            self.fails = Some(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(maximum: f64, limit: u64) -> (Option<u64>, u32) {
        let mut search = Search::new(maximum);
        let mut steps = 0;
        while let Some(rate) = search.next_rate() {
            search.tell(rate, rate <= limit);
            steps += 1;
        }
        (search.holds, steps)
    }

    #[test]
    fn search_comes_close_from_either_side_in_few_steps() {
        for (maximum, limit) in [
            (10_000.0, 9_321),
            (10_000.0, 400),
            (10.0, 100_000),
            (3.0, 2),
        ] {
            let (rate, steps) = found(maximum, limit);
            let rate = rate.unwrap();
            assert!(
                rate <= limit && rate as f64 >= limit as f64 * 0.96,
                "{rate} of {limit}"
            );
            assert!(steps <= 60, "{steps} steps to {limit}");
        }
    }

    #[test]
    fn search_ends_where_no_rate_holds() {
        assert_eq!(found(10_000.0, 0).0, None);
        assert_eq!(found(0.0, 0).0, None);
    }
}
