//! A whole run: faults, then peace; what must hold in the end; many runs; and how a failing one gets shorter.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::bugs;
use super::super::checkers::linearizable::{Outcome, check};
use super::super::solo::Coverage;
use super::{Plan, World};
use crate::sim::world::fault::SECOND;

/// Ticks within which a cluster in peace must come to rest: nobody asks, nothing fails.
const PEACE_TICKS_MAX: u64 = 60 * SECOND;
/// Ticks more for each entry, where a member that came last gets one after the other: more than the way there and back.
const ENTRY_TICKS_MAX: u64 = 4;

/// What a run that went well was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The hash of everything that happened.
    pub trace_hash: u64,
    /// What happened, counted.
    pub coverage: Coverage,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What must not be.
    pub message: String,
    /// The run.
    pub plan: Plan,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            seed,
            nodes,
            ref faults,
            ref bug,
            ..
        } = self.plan;
        let features = if bug.is_some() { "seeded-bugs" } else { "sim" };
        write!(
            f,
            "seed {seed}, {nodes} members, {} faults: {}\nreproduce: cargo run --release -p flotilla --features \
             {features} -- sim {}",
            faults.len(),
            self.message,
            self.plan.options()
        )
    }
}

/// Runs a plan to its end.
///
/// # Errors
/// When something was not as it must be.
pub fn run(plan: &Plan, tell: bool) -> Result<Report, Box<Failure>> {
    let whole = || {
        let mut world = World::new(plan.clone(), tell);
        world.run_until(plan.ticks);
        world.peace();
        world.verdict();
        Report {
            trace_hash: world.trace_hash(),
            coverage: world.coverage().clone(),
        }
    };
    let bugged = || match &plan.bug {
        Some(bug) => bugs::with(bug, whole),
        None => whole(),
    };
    catch_unwind(AssertUnwindSafe(bugged)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Box::new(Failure {
            message: text.unwrap_or_else(|| "a panic without a text".to_owned()),
            plan: plan.clone(),
        })
    })
}

/// Leaves out whatever a failing run fails without: time first, then halves of the faults, single ones last.
#[must_use]
pub fn minimize(failure: Failure) -> Failure {
    let mut best = failure;
    let mut step = best.plan.ticks / SECOND / 2;
    while step > 0 {
        let mut plan = best.plan.clone();
        plan.ticks = plan.ticks.saturating_sub(step * SECOND).max(SECOND);
        if plan.ticks == best.plan.ticks {
            break;
        }
        plan.faults.retain(|scheduled| scheduled.at < plan.ticks);
        match run(&plan, false) {
            Err(smaller) => best = *smaller,
            Ok(_) => step /= 2,
        }
    }
    let mut size = best.plan.faults.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < best.plan.faults.len() {
            let mut plan = best.plan.clone();
            let end = (at + size).min(plan.faults.len());
            plan.faults.drain(at..end);
            plan.shortened = true;
            match run(&plan, false) {
                Err(smaller) => best = *smaller,
                Ok(_) => at += size,
            }
        }
        size /= 2;
    }
    best
}

impl World {
    /// Faults stop, clients stop: within a bounded time there is one leader, everybody has everything, and nobody waits.
    fn peace(&mut self) {
        self.clients_stopped = true;
        self.heal();
        let one_by_one = self.settings.message_bytes == 1 && self.settings.inflight_messages == 1;
        let entries = if one_by_one {
            self.oracle.get().last().0
        } else {
            0
        };
        let ticks = PEACE_TICKS_MAX + entries * ENTRY_TICKS_MAX;
        let end = self.now + ticks;
        while !self.is_at_rest() {
            assert!(
                self.now < end,
                "after {ticks} ticks of peace the members do not agree: {}",
                self.places()
            );
            self.run_until(self.now + SECOND / 10);
            self.stop_strangers();
        }
    }

    fn is_at_rest(&mut self) -> bool {
        let (last, waits) = {
            let oracle = self.oracle.get();
            (oracle.last(), !oracle.waiting().is_empty())
        };
        let mut terms = Vec::new();
        let mut leaders = 0;
        let Some(membership) = self.membership() else {
            return false;
        };
        let present = |member: &&super::Member| !member.lost && membership.contains(member.node.id);
        for member in self.members.iter().filter(present) {
            if !member.node.is_up() {
                return false;
            }
            let status = member.node.core_status();
            if status.guarded
                || status.applied != last
                || status.last_index != last
                || status.commit != last
            {
                return false;
            }
            leaders += usize::from(status.committed_in_term);
            terms.push(status.term);
        }
        let same = terms.windows(2).all(|pair| pair[0] == pair[1]);
        !waits && leaders == 1 && same && self.watchers_are_done()
    }

    fn places(&self) -> String {
        let place = |member: &super::Member| {
            if member.node.is_up() {
                format!("{:?}", member.node.core_status())
            } else {
                format!("{} is down", member.node.id)
            }
        };
        let places: Vec<String> = self.members.iter().map(place).collect();
        let waiting = self.oracle.get().waiting().len();
        format!("{}; {waiting} wait", places.join("; "))
    }

    /// What can only be said at the end.
    fn verdict(&mut self) {
        for member in self.members.iter().filter(|member| member.node.is_up()) {
            if let Err(text) = self.witness.final_hash(&member.node) {
                panic!("{text}");
            }
        }
        if let Some(member) = self.members.iter().find(|member| member.node.is_up()) {
            member.node.check_state();
        }
        for (key, history) in self.histories.by_key().iter().enumerate() {
            match check(history) {
                Outcome::Linearizable => {}
                Outcome::Violated => panic!("the history of register {key} is not linearizable"),
                Outcome::GaveUp => self.count("histories too hard to check"),
            }
        }
        let (terms, hashes) = (self.witness.terms_led(), self.witness.hashes_compared());
        let copies = self.oracle.get().second_copies();
        let (cuts, compared) = self.oracle.get().snapshots();
        *self.coverage.entry("snapshots cut").or_default() += cuts;
        *self.coverage.entry("snapshots compared").or_default() += compared;
        *self.coverage.entry("second copies dropped").or_default() += copies;
        *self.coverage.entry("elections won").or_default() += terms;
        *self.coverage.entry("state hashes compared").or_default() += hashes;
    }
}
