//! The search for an order, after Wing and Gong, with Lowe's cache of configurations that were visited.

use std::collections::HashSet;

use super::{Action, Operation, Outcome, apply};

const STEPS_MAX: u64 = 3_000_000;

/// Checks the history of one key, which starts empty.
#[must_use]
pub fn check(history: &[Operation]) -> Outcome {
    // What an operation without an answer depends on may show in what it left.
    let saw = |op: &Operation| match (op.answer, op.action) {
        (None, Action::Swap(from, _)) => Some(from),
        (answer, _) => answer.and_then(|(_, value)| value),
    };
    let seen: HashSet<u64> = history.iter().filter_map(saw).collect();
    let matters = |op: &&Operation| match (op.answer, op.action) {
        (Some(_), _) | (None, Action::Delete) => true,
        (None, Action::Put(value) | Action::Swap(_, value)) => seen.contains(&value),
        (None, Action::Get) => false,
    };
    let mut ops: Vec<&Operation> = history.iter().filter(matters).collect();
    ops.sort_by_key(|op| op.sent);
    let total = ops.iter().filter(|op| op.answer.is_some()).count();
    let mut done = vec![0_u64; ops.len().div_ceil(64)];
    let mut visited: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let (mut state, mut answered, mut first) = (None, 0, 0);
    // Each level of the search: the operation that was placed, the state before it, and where the next try begins.
    let mut path: Vec<(usize, Option<u64>, usize)> = Vec::new();
    let (mut candidates, mut at) = (choices(&ops, &done, first), 0);
    let mut levels: Vec<Vec<usize>> = Vec::new();
    for _ in 0..STEPS_MAX {
        if answered == total {
            return Outcome::Linearizable;
        }
        if let Some(&next) = candidates.get(at) {
            at += 1;
            let op = ops[next];
            if op.answer.is_some_and(|(_, value)| value != state) {
                continue;
            }
            let after = apply(state, op.action);
            done[next / 64] |= 1 << (next % 64);
            // If there is an order, there is one in which whatever nobody waits for is seen by what follows it directly:
            // without those that are not, it is still one.
            let sees = |at: &usize| match (ops[*at].answer, ops[*at].action) {
                (Some((_, value)), _) => value == after,
                (None, Action::Swap(from, _)) => after == Some(from),
                (None, _) => false,
            };
            let idle = op.answer.is_none()
                && (after == state || !choices(&ops, &done, first).iter().any(sees));
            if idle {
                done[next / 64] &= !(1 << (next % 64));
                continue;
            }
            if !visited.insert((done.clone(), after)) {
                done[next / 64] &= !(1 << (next % 64));
                continue;
            }
            if op.answer.is_some() && after == state {
                // What changes nothing and fits here may always come here: nothing else need be tried in its place.
                at = candidates.len();
            }
            path.push((next, state, at));
            levels.push(std::mem::take(&mut candidates));
            (state, answered) = (after, answered + usize::from(op.answer.is_some()));
            while first < ops.len() && done[first / 64] >> (first % 64) & 1 == 1 {
                first += 1;
            }
            (candidates, at) = (choices(&ops, &done, first), 0);
        } else {
            let Some((last, before, tried)) = path.pop() else {
                return Outcome::Violated;
            };
            done[last / 64] &= !(1 << (last % 64));
            answered -= usize::from(ops[last].answer.is_some());
            (state, at, first) = (before, tried, first.min(last));
            candidates = levels.pop().expect("one level for each step");
        }
    }
    Outcome::GaveUp
}

/// What may come next: whatever was sent before the first answer among what is left; answered ones first.
fn choices(ops: &[&Operation], done: &[u64], first: usize) -> Vec<usize> {
    let left = |at: &usize| done[at / 64] >> (at % 64) & 1 == 0;
    let mut bound = u64::MAX;
    let mut choices = Vec::new();
    let mut deletes = false;
    for at in (first..ops.len()).filter(left) {
        if ops[at].sent > bound {
            break;
        }
        bound = bound.min(ops[at].answer.map_or(u64::MAX, |(time, _)| time));
        // Deletions without an answer are all alike once they were sent: the first stands for the others.
        if ops[at].answer.is_none() && ops[at].action == Action::Delete {
            if deletes {
                continue;
            }
            deletes = true;
        }
        choices.push(at);
    }
    choices.sort_by_key(|at| ops[*at].answer.map_or(u64::MAX, |(time, _)| time));
    choices
}
