//! Small histories with known verdicts.

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
