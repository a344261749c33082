//! Counts of ranges: what is summed up is what a look at each key finds, whatever is written meanwhile.

use multiraft::{InlineTasks, Task, Tasks};

use super::*;
use crate::mvcc::counting::Found;

fn key(number: u32) -> String {
    format!("/{:02}/{number:07}", number % 13)
}

fn filled(keys: u32, tasks: Arc<dyn Tasks>) -> Rig {
    let mut rig = Rig::new();
    rig.machine.run_tasks_on(tasks);
    let ops: Vec<_> = (0..keys).map(|number| put(&key(number), "v")).collect();
    for some in ops.chunks(500) {
        rig.apply(some);
    }
    rig
}

fn count(rig: &Rig, from: &str, to: &[u8]) -> i64 {
    let request = RangeRequest {
        range_end: Bytes::copy_from_slice(to),
        count_only: true,
        ..point(from)
    };
    rig.store.range(&request).unwrap().count
}

/// A list without a limit looks at each key.
fn listed(rig: &Rig, from: &str, to: &[u8]) -> i64 {
    let request = RangeRequest {
        range_end: Bytes::copy_from_slice(to),
        keys_only: true,
        ..point(from)
    };
    let keys = rig.store.range(&request).unwrap().kvs.len();
    i64::try_from(keys).unwrap()
}

fn are_there(rig: &Rig) -> bool {
    let index = rig.machine.applied().index;
    matches!(rig.store.counting().at(index), Found::These(_))
}

/// Some changes, small and large, new keys and known ones.
fn change(rig: &mut Rig, rng: &mut StdRng) {
    let ops: Vec<_> = (0..300)
        .map(|_| match rng.random_range(0..40) {
            0 => {
                let from = rng.random_range(0..13);
                let to = format!("/{from:02}/{:07}", rng.random_range(0..60_000));
                delete(
                    &format!("/{from:02}/{:07}", rng.random_range(0..60_000)),
                    &to,
                )
            }
            1..6 => delete(&key(rng.random_range(0..60_000)), ""),
            _ => put(&key(rng.random_range(0..60_000)), "w"),
        })
        .collect();
    rig.apply(&ops);
}

fn check(rig: &Rig, rng: &mut StdRng) {
    assert!(are_there(rig));
    assert_eq!(count(rig, "\0", &[0]), listed(rig, "\0", &[0]));
    for _ in 0..5 {
        let [from, to] = [(); 2].map(|()| key(rng.random_range(0..60_000)));
        let found = count(rig, &from, to.as_bytes());
        assert_eq!(found, listed(rig, &from, to.as_bytes()), "{from} {to}");
        let request = RangeRequest {
            range_end: Bytes::from_static(&[0]),
            limit: 3,
            ..point(&from)
        };
        let some = rig.store.range(&request).unwrap();
        assert_eq!(some.count, listed(rig, &from, &[0]));
    }
}

#[test]
fn counts_begin_with_a_long_count_and_follow_what_is_written() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut rig = filled(30_000, Arc::new(InlineTasks));
    assert_eq!(count(&rig, "/00/", b"/01/"), 2_308);
    assert!(!are_there(&rig), "so few are not worth it");
    assert_eq!(count(&rig, "\0", &[0]), 30_000);
    for _ in 0..40 {
        check(&rig, &mut rng);
        change(&mut rig, &mut rng);
    }
    // All in one place, and nothing anywhere.
    let ops: Vec<_> = (0..9_000)
        .map(|number| put(&format!("/05/0000000/{number:05}"), "x"))
        .collect();
    rig.apply(&ops);
    check(&rig, &mut rng);
    rig.one(delete("\0", "\u{7f}")).unwrap();
    check(&rig, &mut rng);
    assert_eq!(count(&rig, "\0", &[0]), 0);
    change(&mut rig, &mut rng);
    check(&rig, &mut rng);
}

#[test]
fn counts_begin_after_many_short_ones() {
    let rig = filled(30_000, Arc::new(InlineTasks));
    let mut counted = 0;
    while counted < 20_000 {
        assert!(!are_there(&rig), "{counted} are not worth it");
        counted += count(&rig, "/00/", b"/01/");
    }
    assert!(are_there(&rig));
}

/// Runs a task when the test says so.
#[derive(Default)]
struct Later(Mutex<Option<Task>>);

impl Tasks for Later {
    fn run(&self, task: Task) -> Result<(), Task> {
        *self.0.lock().unwrap() = Some(task);
        Ok(())
    }
}

#[test]
fn changes_while_all_keys_are_walked_over_are_made_up_for() {
    for is_seen_by_the_walk in [true, false] {
        let mut rng = StdRng::seed_from_u64(4);
        let later = Arc::new(Later::default());
        let mut rig = filled(30_000, later.clone());
        assert_eq!(count(&rig, "\0", &[0]), 30_000);
        let task = later.0.lock().unwrap().take().unwrap();
        change(&mut rig, &mut rng);
        let opened = rig.store.open().unwrap();
        for _ in 0..10 {
            change(&mut rig, &mut rng);
        }
        assert!(!are_there(&rig));
        if is_seen_by_the_walk {
            task();
        } else {
            rig.store.counting().walk(1, &opened);
        }
        check(&rig, &mut rng);
        change(&mut rig, &mut rng);
        check(&rig, &mut rng);
    }
}

#[test]
fn counts_of_a_state_that_was_replaced_or_closed_are_gone() {
    let later = Arc::new(Later::default());
    let rig = filled(30_000, later.clone());
    let walk = || {
        assert_eq!(count(&rig, "\0", &[0]), 30_000);
        later.0.lock().unwrap().take()
    };
    let task = walk().unwrap();
    rig.store.counting().forget();
    task();
    assert!(!are_there(&rig), "the walk was over another state");
    let task = walk().unwrap();
    task();
    assert!(are_there(&rig));
    rig.store.counting().forget();
    assert!(!are_there(&rig));
    let task = walk().unwrap();
    rig.store.close();
    task();
    assert!(!are_there(&rig));
    assert!(walk().is_none(), "nobody walks any more");
}
