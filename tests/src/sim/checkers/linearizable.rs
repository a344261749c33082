//! Linearizability of single-key operations: there is an order of all operations on a key, in which each comes after
//! those that were answered before it was sent, and in which the answers are those of a register.
//!
//! Source: Wing and Gong, "Testing and Verifying Concurrent Objects"; Lowe, "Testing for Linearizability" (partitions by
//! object, and a cache of visited configurations). Values are unique. An operation without an answer may take effect at
//! any time or never; one whose value nobody saw can be taken as never.

use std::collections::HashSet;

/// What was asked for; values are unique in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set it. Answers what was there before.
    Put(u64),
    /// Remove it. Answers what was there before.
    Delete,
    /// Answers what is there.
    Get,
    /// Set it to the second if it is the first. Answers what was there before.
    Swap(u64, u64),
}

/// One operation on one key.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// When it was sent; no two events of a history have the same time.
    pub sent: u64,
    /// When it was answered and with what; none if it was not.
    pub answer: Option<(u64, Option<u64>)>,
    /// What was asked for.
    pub action: Action,
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Violated,
    /// It was not found within the bound of steps.
    GaveUp,
}

const STEPS_MAX: u64 = 3_000_000;

/// The register: what an action leaves.
fn apply(state: Option<u64>, action: Action) -> Option<u64> {
    match action {
        Action::Put(value) => Some(value),
        Action::Delete => None,
        Action::Get => state,
        Action::Swap(from, to) if state == Some(from) => Some(to),
        Action::Swap(..) => state,
    }
}

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

#[cfg(test)]
mod tests {
    use super::Action::{Delete, Get, Put, Swap};
    use super::*;

    fn op(sent: u64, action: Action, answer: Option<(u64, Option<u64>)>) -> Operation {
        Operation {
            sent,
            answer,
            action,
        }
    }

    #[test]
    fn stale_read_is_refused() {
        let put = op(1, Put(7), Some((2, None)));
        assert_eq!(
            check(&[put, op(3, Get, Some((4, Some(7))))]),
            Outcome::Linearizable
        );
        assert_eq!(
            check(&[put, op(3, Get, Some((4, None)))]),
            Outcome::Violated
        );
    }

    #[test]
    fn read_that_overlaps_a_write_may_see_either() {
        let put = op(1, Put(7), Some((9, None)));
        for seen in [None, Some(7)] {
            assert_eq!(
                check(&[put, op(3, Get, Some((4, seen)))]),
                Outcome::Linearizable
            );
        }
        let back = [
            op(3, Get, Some((4, Some(7)))),
            op(5, Get, Some((6, None))),
            put,
        ];
        assert_eq!(check(&back), Outcome::Violated);
    }

    #[test]
    fn write_without_an_answer_may_take_effect_late_or_never_but_once() {
        let lost = op(1, Put(7), None);
        let late = [
            lost,
            op(2, Put(8), Some((3, None))),
            op(4, Get, Some((5, Some(7)))),
        ];
        assert_eq!(check(&late), Outcome::Linearizable);
        assert_eq!(
            check(&[lost, op(2, Get, Some((3, None)))]),
            Outcome::Linearizable
        );
        let twice = [
            lost,
            op(2, Get, Some((3, Some(7)))),
            op(4, Put(8), Some((5, Some(7)))),
            op(6, Get, Some((7, Some(7)))),
        ];
        assert_eq!(check(&twice), Outcome::Violated);
    }

    #[test]
    fn swap_without_an_answer_from_a_write_without_one_may_both_take_effect() {
        let history = [
            op(1, Put(1), None),
            op(2, Swap(1, 2), None),
            op(3, Get, Some((4, Some(2)))),
        ];
        assert_eq!(check(&history), Outcome::Linearizable);
    }

    #[test]
    fn many_deletions_without_an_answer_are_checked_in_few_steps() {
        let mut history: Vec<Operation> = (0..60).map(|at| op(at, Delete, None)).collect();
        for round in 0..30 {
            let at = 100 + 10 * round;
            history.push(op(at, Put(round), Some((at + 1, None))));
            history.push(op(at + 2, Get, Some((at + 3, Some(round)))));
        }
        assert_eq!(check(&history), Outcome::Linearizable);
        history.push(op(500, Get, Some((501, Some(3)))));
        assert_eq!(check(&history), Outcome::Violated);
    }

    #[test]
    fn both_of_two_swaps_from_one_value_are_refused() {
        let history = [
            op(1, Put(1), Some((2, None))),
            op(3, Swap(1, 2), Some((6, Some(1)))),
            op(4, Swap(1, 3), Some((5, Some(1)))),
        ];
        assert_eq!(check(&history), Outcome::Violated);
        let history = [
            history[0],
            op(3, Delete, None),
            history[1],
            op(7, Get, Some((8, None))),
        ];
        assert_eq!(check(&history), Outcome::Linearizable);
    }
}
