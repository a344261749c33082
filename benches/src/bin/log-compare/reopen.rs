//! How long a log takes to open that holds many entries: ours and raft-engine's, alternating.
//!
//! Both hold the same entries, written by large batches and closed cleanly; both are read from the page cache, as after
//! a restart of the process and not of the machine. Both have the sizes of files that they have by default. okaywal keeps no index, so its recovery is another task.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use raft_log::{GroupId, Index, LogOptions};

use crate::Failure;
use crate::measure::Payloads;
use crate::wals::{Ours, RaftEngine, RaftEngineBatch, STORE, our_batch, our_group};

const GROUPS: u64 = 16;
const BATCH: usize = 64;
/// Batches between two syncs while the logs are filled.
const SYNC_EVERY: u64 = 64;
const ROUNDS: usize = 5;

/// Seconds per reopening, one per round.
pub(crate) struct Reopened {
    pub(crate) entries: u64,
    pub(crate) ours: Vec<f64>,
    pub(crate) raft_engine: Vec<f64>,
}

/// Calls `write` with group, first index and payloads of each batch, group by group in turn.
fn fill(
    entries: u64,
    mut write: impl FnMut(u64, u64, &[Bytes], bool) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut payloads, mut batch) = (Payloads::new(1), Vec::new());
    let rounds = entries / (GROUPS * BATCH as u64);
    for round in 0..rounds {
        for group in 1..=GROUPS {
            payloads.take(BATCH, &mut batch);
            let sync = (round * GROUPS + group).is_multiple_of(SYNC_EVERY) || round + 1 == rounds;
            write(group, 1 + round * BATCH as u64, &batch, sync)?;
        }
    }
    Ok(())
}

/// Fills both logs, then opens each of them a few times.
pub(crate) fn run(dir: &Path, entries: u64) -> Result<Reopened, Failure> {
    let (our_dir, peer_dir) = (dir.join("ours"), dir.join("raft-engine"));
    let per_group = entries / (GROUPS * BATCH as u64) * BATCH as u64;
    let ours = Ours::open_with(LogOptions::new(&our_dir, STORE))?;
    for group in 1..=GROUPS {
        ours.0.wait(our_group(&ours.0, GroupId(group))?)?;
    }
    fill(entries, |group, first, payloads, sync| {
        let ticket = ours.0.enqueue(our_batch(GroupId(group), first, payloads))?;
        if sync {
            ours.0.wait(ticket)?;
        }
        Ok(())
    })?;
    ours.0.close()?;
    drop(ours);

    let peer = RaftEngine::open(&peer_dir)?;
    let mut parts = RaftEngineBatch::default();
    fill(entries, |group, first, payloads, sync| {
        peer.append(&mut parts, (group, first), payloads, sync)
    })?;
    drop(peer);

    let mut found = Reopened {
        entries: per_group * GROUPS,
        ours: Vec::new(),
        raft_engine: Vec::new(),
    };
    // The first round warms the page cache for both.
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let ours = Ours::open_with(LogOptions::new(&our_dir, STORE))?;
        let our_time = start.elapsed().as_secs_f64();
        let last = ours.0.group(GroupId(GROUPS)).map(|info| info.last_index);
        if last != Some(Index(per_group)) {
            return Err(format!("our log ends at {last:?}, not at {per_group}").into());
        }
        ours.0.close()?;
        drop(ours);

        let start = Instant::now();
        let peer = RaftEngine::open(&peer_dir)?;
        let peer_time = start.elapsed().as_secs_f64();
        let last = peer.0.last_index(GROUPS);
        if last != Some(per_group) {
            return Err(format!("raft-engine ends at {last:?}, not at {per_group}").into());
        }
        if round > 0 {
            found.ours.push(our_time);
            found.raft_engine.push(peer_time);
        }
    }
    Ok(found)
}
