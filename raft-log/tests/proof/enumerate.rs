//! Every workload of up to three steps, times every moment at which it can be cut short.
//!
//! The idea is CrashMonkey's: most crash bugs of file systems need at most three operations. A moment is the state
//! before one operation that changes the disk, or in the middle of a write. Workloads share their beginnings, so a
//! workload is cut short only within its last step; the shorter ones cover the rest.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_log::vfs::sim::{CrashKind, Lie, SimFs};

use crate::model::{History, State};
use crate::world::{OPS, Op, World, check_crash, check_crash_in_recovery};

/// What was covered.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    workloads: AtomicU64,
    moments: AtomicU64,
    crashes: AtomicU64,
    recovery_crashes: AtomicU64,
}

fn add(count: &AtomicU64, n: usize) {
    count.fetch_add(n as u64, Ordering::Relaxed);
}

/// How thoroughly each moment is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depth {
    /// Power losses of each moment, each with another outcome.
    pub(crate) outcomes: u64,
    /// After every how many crashes the start is cut short too, at each of its operations.
    pub(crate) recovery_every: u64,
}

/// All workloads of exactly `len` steps.
pub(crate) fn workloads(len: u32) -> impl Iterator<Item = Vec<Op>> {
    let base = OPS.len();
    (0..base.pow(len)).map(move |mut number| {
        (0..len)
            .map(|_| {
                let op = OPS[number % base];
                number /= base;
                op
            })
            .collect()
    })
}

/// A workload and its number, which all its chances are drawn from.
type Numbered = (u64, Vec<Op>);

/// Steps one after the other, each durable before the next; the last one is cut short everywhere.
pub(crate) fn one_by_one(
    start: &(SimFs, State),
    (number, ops): &Numbered,
    lie: Option<Lie>,
    depth: Depth,
    counts: &Counts,
) -> Result<(), String> {
    let fs = start.0.fork(1);
    fs.crash(CrashKind::Process);
    let mut world = World::open(&fs, lie, &History::new(start.1.clone()), 100)?;
    let (last, before) = ops.split_last().expect("one step at least");
    for op in before {
        world.run(*op)?;
    }
    let mut history = world.history.clone();
    fs.keep_images();
    world.run(*last)?;
    let images = fs.take_images();
    // A clean close begins a new history: what was certain before stays so.
    if *last != Op::Close {
        history.states = world.history.states.clone();
    }
    moments(*number, &images, lie, &history, depth, counts)?;
    moments(*number, &[fs.fork(1)], lie, &world.history, depth, counts)
}

/// Steps that are queued together and written at once; `None` when a step cannot be.
pub(crate) fn together(
    start: &(SimFs, State),
    (number, ops): &Numbered,
    lie: Option<Lie>,
    depth: Depth,
    counts: &Counts,
) -> Result<(), String> {
    let fs = start.0.fork(1);
    fs.crash(CrashKind::Process);
    let mut world = World::open(&fs, lie, &History::new(start.1.clone()), 100)?;
    for op in ops {
        let Some(batch) = world.batch(*op) else {
            return Ok(());
        };
        world.history.submit(&batch);
        world
            .log
            .enqueue(batch)
            .map_err(|error| error.to_string())?;
    }
    fs.keep_images();
    while world.log.drive().map_err(|error| error.to_string())? {}
    moments(
        *number,
        &fs.take_images(),
        lie,
        &world.history,
        depth,
        counts,
    )
}

fn moments(
    number: u64,
    images: &[SimFs],
    lie: Option<Lie>,
    history: &History,
    depth: Depth,
    counts: &Counts,
) -> Result<(), String> {
    add(&counts.moments, images.len());
    for (at, image) in images.iter().enumerate() {
        let kinds = (0..=depth.outcomes).map(|n| match n {
            0 => (CrashKind::Process, 0),
            n => (CrashKind::Power, n),
        });
        for (kind, n) in kinds {
            add(&counts.crashes, 1);
            let seed = number * 1_000 + at as u64 * 8 + n;
            let place = |text| format!("{kind:?} before operation {at}, outcome {seed}: {text}");
            check_crash(&image.fork(seed), kind, lie, history).map_err(place)?;
            if seed.is_multiple_of(depth.recovery_every) {
                let fs = image.fork(seed);
                let done = check_crash_in_recovery(&fs, kind, lie, history).map_err(place)?;
                add(&counts.recovery_crashes, done);
            }
        }
    }
    Ok(())
}

/// Runs all workloads of up to three steps on as many threads as there are cores.
fn all(test: &str, run: impl Fn(&Numbered, &Counts) -> Result<(), String> + Sync) -> Counts {
    let only = crate::number("FLOTILLA_LOG_WORKLOAD");
    let chosen = move |numbered: &Numbered| only.is_none_or(|only| numbered.0 == only);
    let queue = Mutex::new((0..).zip((1..=3).flat_map(workloads)).filter(chosen));
    let counts = Counts::default();
    let work = || {
        loop {
            let Some(ops) = queue.lock().unwrap().next() else {
                return;
            };
            add(&counts.workloads, 1);
            if let Err(text) = run(&ops, &counts) {
                let (number, ops) = ops;
                panic!(
                    "{ops:?}: {text}\nreproduce: FLOTILLA_LOG_WORKLOAD={number} FLOTILLA_LOG_RUNS={} \
                     cargo test -p raft-log --test proof -- --exact enumerate::{test}",
                    crate::runs()
                );
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    counts
}

fn depth() -> Depth {
    Depth {
        outcomes: 2 * crate::runs(),
        recovery_every: 97,
    }
}

#[test]
fn workloads_of_three_steps_cut_short_anywhere_keep_what_was_acknowledged() {
    let (start, depth) = (World::prepared(None).unwrap(), depth());
    let test = "workloads_of_three_steps_cut_short_anywhere_keep_what_was_acknowledged";
    let counts = all(test, |ops, counts| {
        one_by_one(&start, ops, None, depth, counts)
    });
    eprintln!("{counts:?}");
    if crate::number("FLOTILLA_LOG_WORKLOAD").is_some() {
        return;
    }
    assert_eq!(counts.workloads.into_inner(), 17 + 17 * 17 + 17 * 17 * 17);
    assert!(counts.moments.into_inner() > 20_000);
    assert!(counts.recovery_crashes.into_inner() > 1_000);
}

#[test]
fn workloads_of_three_steps_written_at_once_and_cut_short_keep_a_prefix() {
    let (start, depth) = (World::prepared(None).unwrap(), depth());
    let test = "workloads_of_three_steps_written_at_once_and_cut_short_keep_a_prefix";
    let counts = all(test, |ops, counts| {
        together(&start, ops, None, depth, counts)
    });
    eprintln!("{counts:?}");
    if crate::number("FLOTILLA_LOG_WORKLOAD").is_some() {
        return;
    }
    assert!(counts.moments.into_inner() > 5_000);
}
