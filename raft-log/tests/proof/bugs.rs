//! Bugs put in on purpose: the checks of this suite must find each one.
//!
//! Bugs below the log are lies of the file system, which need no change to the product; the others sit behind
//! `raft_log::testing`, which only exists with the feature `seeded-bugs`. A bug that is not found means that a check, a
//! workload or an outcome of a crash is missing, not that the log is right.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raft_log::testing::{Bug, with_bug};
use raft_log::vfs::sim::Lie;

use crate::enumerate::{Counts, Depth, one_by_one, together, workloads};
use crate::random::{self, Trouble};
use crate::world::World;
use crate::{flips, hostile};

/// Runs one check; what it found, or how it panicked.
fn attempt(check: impl FnOnce() -> Result<(), String>) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(check)) {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(match panic.downcast_ref::<String>() {
            Some(text) => format!("panic: {text}"),
            None => "panic".to_owned(),
        }),
    }
}

/// The first thing that any check finds wrong.
fn hunt(lie: Option<Lie>) -> Option<String> {
    let depth = Depth {
        outcomes: 2,
        recovery_every: 31,
    };
    let counts = Counts::default();
    let start = match World::prepared(lie) {
        Ok(start) => start,
        Err(text) => return Some(format!("preparation: {text}")),
    };
    for (number, ops) in (0..).zip((1..=2).flat_map(workloads)) {
        let numbered = (number, ops);
        let found = attempt(|| one_by_one(&start, &numbered, lie, depth, &counts))
            .or_else(|| attempt(|| together(&start, &numbered, lie, depth, &counts)));
        if let Some(text) = found {
            return Some(format!("workload {:?}: {text}", numbered.1));
        }
    }
    for seed in 0..60 {
        for trouble in [Trouble::None, Trouble::Disk, Trouble::Full] {
            if let Some(text) = attempt(|| random::run(seed, trouble, lie)) {
                return Some(text);
            }
        }
    }
    attempt(|| flips::flip_all(false, 5).map(drop))
        .or_else(|| attempt(|| flips::foreign_batches().map(drop)))
        .or_else(|| attempt(|| hostile::files_of_another_length(7)))
}

fn found(name: &str, text: Option<String>) {
    let text = text.unwrap_or_else(|| panic!("{name} was not found"));
    // The first line says which check it was.
    let line: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect();
    eprintln!("{name}: {line}");
}

fn finds_bug(bug: Bug) {
    found(&format!("{bug:?}"), with_bug(bug, || hunt(None)));
}

fn finds_lie(lie: Lie) {
    found(&format!("{lie:?}"), hunt(Some(lie)));
}

#[test]
fn log_without_a_bug_passes_every_check() {
    assert_eq!(hunt(None), None);
}

#[test]
fn skipped_sync_of_a_batch_is_found() {
    finds_lie(Lie::SkipSync(".seg"));
}

#[test]
fn skipped_sync_of_a_new_segment_is_found() {
    finds_lie(Lie::SkipSync("next.tmp"));
}

#[test]
fn skipped_sync_of_a_new_vote_file_is_found() {
    finds_lie(Lie::SkipSync("votes.tmp"));
}

#[test]
fn skipped_sync_of_a_snapshot_is_found() {
    finds_lie(Lie::SkipSync(".snap.tmp"));
}

#[test]
fn skipped_sync_of_directories_is_found() {
    finds_lie(Lie::SkipSyncDir);
}

#[test]
fn sync_that_returns_early_is_found() {
    finds_lie(Lie::LateSync(".seg"));
}

#[test]
fn sync_that_is_tried_again_is_found() {
    finds_lie(Lie::RetrySync(".seg"));
}

#[test]
fn write_that_stops_early_is_found() {
    finds_lie(Lie::ShortWrite(".seg", 512));
}

#[test]
fn trusted_unsynced_tail_is_found() {
    finds_bug(Bug::TrustUnsyncedTail);
}

#[test]
fn forgotten_checkpoint_is_found() {
    finds_bug(Bug::ForgetCheckpoint);
}

#[test]
fn ignored_crc_of_a_batch_is_found() {
    finds_bug(Bug::IgnoreBatchCrc);
}

#[test]
fn rewritten_unverified_record_is_found() {
    finds_bug(Bug::RewriteUnverified);
}

#[test]
fn reused_salt_is_found() {
    finds_bug(Bug::ReuseSalt);
}

#[test]
fn segment_removed_too_early_is_found() {
    finds_bug(Bug::PurgeBeforeSync);
}

#[test]
fn forgotten_vote_slot_is_found() {
    finds_bug(Bug::ForgetVoteSlot);
}

#[test]
fn vote_slots_kept_of_a_destroyed_group_are_found() {
    finds_bug(Bug::KeepDeadVotes);
}

#[test]
fn acknowledgement_before_the_sync_is_found() {
    finds_bug(Bug::AckBeforeSync);
}

#[test]
fn log_that_goes_on_after_a_failed_sync_is_found() {
    finds_bug(Bug::GoOnAfterFailedSync);
}

#[test]
fn forgotten_truncation_is_found() {
    finds_bug(Bug::ForgetTruncation);
}
