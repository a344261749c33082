//! A store with one member: whatever crashes and wherever, what was acknowledged is there, and nothing twice.

use flotilla_tests::sim::run::{each_point, each_seed, is_narrowed};
use flotilla_tests::sim::solo::{Coverage, Crash, POWER, PROCESS, PROCESS_THEN_POWER, Solo};
use raft_log::vfs::sim::CrashKind;

const ANY: &[Crash] = &[PROCESS, POWER, POWER, PROCESS_THEN_POWER];

/// A short run that crashes after `point` operations, and what follows. True when it ended before that.
fn crash_after(seed: u64, point: u64, crashes: &'static [Crash], total: &mut Coverage) -> bool {
    let mut solo = Solo::new(seed, point, crashes);
    solo.node.fs.fail_after(point);
    let finished = solo.run(6) && !solo.node.fs.is_down();
    for _ in 0..2 {
        solo.crash();
        solo.recover();
        solo.rounds(2);
    }
    solo.finish();
    add(total, &solo.coverage);
    finished
}

fn add(total: &mut Coverage, run: &Coverage) {
    for (what, count) in run {
        *total.entry(what).or_default() += count;
    }
}

/// The runs together must have reached what they are for.
fn reached(total: &Coverage, wanted: &[&str]) {
    eprintln!("{total:?}");
    for what in wanted {
        assert!(
            is_narrowed() || total.get(what).is_some_and(|count| *count > 0),
            "no run reached: {what}"
        );
    }
}

const AFTER_CRASHES: &[&str] = &[
    "clean stops",
    "engine batches lost",
    "recoveries of a compacted log",
    "recoveries of a purged log",
    "recoveries of unacknowledged entries",
    "recoveries that replay",
    "starts that failed",
];

#[test]
fn process_crash_at_every_operation_keeps_what_was_acknowledged() {
    let mut total = Coverage::new();
    each_point(1, 6, |seed, point| {
        crash_after(seed, point, &[PROCESS], &mut total)
    });
    reached(&total, AFTER_CRASHES);
}

#[test]
fn power_loss_at_every_operation_keeps_what_was_acknowledged() {
    let mut total = Coverage::new();
    each_point(1_000, 12, |seed, point| {
        crash_after(seed, point, &[POWER], &mut total)
    });
    reached(&total, AFTER_CRASHES);
}

#[test]
fn process_crash_then_power_loss_keeps_what_was_acknowledged() {
    let mut total = Coverage::new();
    each_point(2_000, 6, |seed, point| {
        crash_after(seed, point, &[PROCESS_THEN_POWER], &mut total)
    });
    reached(&total, AFTER_CRASHES);
}

#[test]
fn crash_at_every_operation_of_a_start_keeps_what_was_acknowledged() {
    let mut total = Coverage::new();
    each_seed(3_000, 24, |seed| {
        for start_point in 0.. {
            let mut solo = Solo::new(seed, start_point, ANY);
            solo.node.fs.fail_after(30 + 7 * (seed % 12));
            solo.run(6);
            solo.crash();
            solo.node.fs.fail_after(start_point);
            let finished = solo.attempt();
            if !finished {
                solo.recover();
            }
            solo.rounds(2);
            solo.crash();
            solo.recover();
            solo.finish();
            add(&mut total, &solo.coverage);
            if finished {
                break;
            }
        }
    });
    reached(&total, &["starts that failed"]);
}

#[test]
fn crashes_in_a_long_run_keep_what_was_acknowledged() {
    let mut total = Coverage::new();
    each_seed(10_000, 48, |seed| {
        let mut solo = Solo::new(seed, 0, ANY);
        solo.arm_crash(300);
        solo.run(30);
        for _ in 0..10 {
            solo.crash();
            solo.recover();
            solo.arm_crash(300);
            solo.rounds(30);
        }
        solo.crash();
        solo.recover();
        solo.finish();
        add(&mut total, &solo.coverage);
    });
    reached(&total, AFTER_CRASHES);
}

#[test]
fn failing_disk_stops_the_store_and_keeps_what_was_acknowledged() {
    let mut total = Coverage::new();
    each_seed(20_000, 160, |seed| {
        let mut solo = Solo::new(seed, 0, ANY);
        solo.arm_fault();
        solo.run(10);
        for _ in 0..8 {
            solo.crash();
            solo.recover();
            solo.arm_fault();
            solo.rounds(10);
        }
        solo.crash();
        solo.recover();
        solo.finish();
        add(&mut total, &solo.coverage);
    });
    reached(&total, &["stops by a fault", "recoveries of a purged log"]);
}

#[test]
fn full_disk_refuses_and_goes_on_when_it_has_room_again() {
    let mut total = Coverage::new();
    each_seed(30_000, 72, |seed| {
        let mut solo = Solo::new(seed, 0, ANY);
        solo.run(6);
        for _ in 0..8 {
            solo.fill_disk();
            let runs = solo.rounds(8);
            if runs && seed % 3 > 0 {
                solo.free_disk();
                solo.rounds(2);
            } else {
                solo.crash();
                solo.recover();
            }
        }
        solo.finish();
        add(&mut total, &solo.coverage);
    });
    reached(
        &total,
        &["refusals of a full disk", "starts that a full disk refused"],
    );
}

#[test]
fn read_while_a_long_log_is_replayed_sees_what_was_acknowledged() {
    each_seed(50_000, 3, |seed| {
        let mut solo = Solo::new(seed, 0, ANY);
        assert!(solo.run(1));
        // More than two slices of the host.
        for _ in 0..13 {
            solo.burst(100);
        }
        let applied = solo.node.applied();
        solo.node.crash(CrashKind::Power, 0);
        let served = solo.read_while_replaying();
        assert!(served > 0, "reads are served in the end");
        assert!(solo.node.applied() > applied, "all is replayed");
        solo.finish();
    });
}

#[test]
fn same_seed_gives_the_same_run() {
    each_seed(40_000, 4, |seed| {
        let run = || {
            let mut solo = Solo::new(seed, 1, ANY);
            solo.arm_crash(200);
            solo.run(20);
            for _ in 0..4 {
                solo.crash();
                solo.recover();
                solo.arm_fault();
                solo.rounds(10);
            }
            let digest = solo.oracle.get().digest();
            (digest, solo.node.fs.op_count(), solo.coverage)
        };
        assert_eq!(run(), run());
    });
}
