//! What keeps a log going between writes: the log's own thread, the next segment, idle marks, and the removal of
//! segments that nobody needs any more.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::format::BATCH_HEADER;
use super::writer::Item;
use super::{Shared, segment, segment_size};
use crate::testing::{Bug, bug};
use crate::{ErrorKind, LogError};

/// How often the log's thread looks whether a full disk has space again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// How long nothing must have been submitted before the newest batch is marked as synced.
const IDLE: Duration = Duration::from_millis(50);

impl Shared {
    /// Removes the oldest segments that hold no live entry, once that fact is synced. They are struck off the manifest
    /// first: a segment that is missing although it is named was lost.
    pub(super) fn purge(&self) -> Result<(), LogError> {
        let mut gone = Vec::new();
        let mut core = self.core();
        while let Some(oldest) = core.files.keys().next().copied() {
            if oldest == core.segment
                || core.files.len() < 2
                || core.groups.live.get(&oldest).is_some_and(|live| *live > 0)
            {
                break;
            }
            let submitted = core.next_seq - 1;
            let after = *core.emptied.entry(oldest).or_insert(submitted);
            if core.durable < after && !bug(Bug::PurgeBeforeSync) {
                break;
            }
            core.files.remove(&oldest);
            core.emptied.remove(&oldest);
            core.groups.live.remove(&oldest);
            gone.push(oldest);
        }
        let oldest = core.files.keys().next().copied();
        drop(core);
        let Some(oldest) = oldest.filter(|_| !gone.is_empty()) else {
            return Ok(());
        };
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .manifest
            .strike(oldest)?;
        let dir = &self.options.dir;
        for id in gone {
            let path = segment::segment_path(dir, id);
            self.vfs.remove(&path).map_err(|error| {
                LogError::io("cannot remove an old segment", &path, error).latched()
            })?;
        }
        self.vfs
            .sync_dir(dir)
            .map_err(|error| LogError::io("cannot sync the log's directory", dir, error).latched())
    }

    /// Fills the next segment ahead of its use: twice as long as the one at hand, but no more than a quarter of
    /// what the disk has left, which others need as well. A full disk shows in `space`.
    pub(super) fn prepare_next(&self) {
        let mut ready = self
            .next
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if ready.is_some() {
            let mut core = self.core();
            core.full = core.stuck;
            return;
        }
        let dir = &self.options.dir;
        // Where the disk does not say, the attempt does.
        let available = self.vfs.available(dir).unwrap_or(u64::MAX);
        let wanted = (self.core().size * 2).min(available / 4);
        let size = segment_size(&self.options, wanted, 0, 0);
        let made = segment::prepare(&*self.vfs, &dir.join("next.tmp"), size);
        let mut core = self.core();
        match made {
            Ok(prepared) => {
                // A segment that is planned already takes this file.
                let free = core.files.contains_key(&core.segment);
                core.ready = free.then_some(prepared.size);
                *ready = Some(prepared);
                core.full = core.stuck;
            }
            Err(error) if error.kind() == ErrorKind::Full => core.full = true,
            Err(error) => {
                core.error.get_or_insert(error);
                let waiters = core.waiters.take_all();
                let progress = core.progress.clone();
                drop(core);
                waiters.wake();
                // Who polls is not among those that wait.
                if let Some(call) = progress {
                    call();
                }
            }
        }
    }

    /// Writes an empty batch behind the newest one, if that is synced and nothing says so. An idle log is marked once:
    /// the mark itself needs no proof.
    pub(super) fn mark_synced(&self) -> Result<bool, LogError> {
        let mut core = self.core();
        core.healthy()?;
        let len = BATCH_HEADER as u64;
        if core.busy || !core.queue.is_empty() || !core.unproven() || !core.fits(len, 0, false) {
            return Ok(false);
        }
        let mark = Item::Batch {
            seq: core.next_seq,
            offset: core.offset,
            body: Vec::new(),
            records: 0,
            votes: Vec::new(),
            created: Vec::new(),
            ended: Vec::new(),
        };
        core.queue.push(mark);
        core.next_seq += 1;
        core.offset += len;
        drop(core);
        self.flush()
    }

    /// The log's own thread: writes what nobody waits for, prepares segments, marks what is synced when the log is
    /// idle, and tries again when the disk was full.
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread that drives; how often it is woken must not put off what it does by the clock"
    )]
    pub(super) fn run(&self) {
        // When it is next looked whether a full disk has space.
        let mut look_at = Instant::now();
        loop {
            let mut core = self.core();
            if core.closed || core.error.is_some() {
                return;
            }
            let rotated = self
                .next
                .ready
                .try_lock()
                .is_ok_and(|ready| ready.is_none());
            let idle = core.busy || core.queue.is_empty();
            let (mut prepare, mut mark) = (!core.full, false);
            if core.stuck || (core.full && idle) {
                // Space comes back without anybody saying so.
                core.asleep = !core.stuck;
                let left = look_at.saturating_duration_since(Instant::now());
                let (woken, _) = self
                    .work
                    .wait_timeout(core, left)
                    .unwrap_or_else(PoisonError::into_inner);
                core = woken;
            } else if idle && !rotated && core.unproven() {
                // While somebody writes, this only looks on, and nobody pays for waking it.
                core.asleep = true;
                let seen = core.next_seq;
                let (woken, waited) = self
                    .work
                    .wait_timeout(core, IDLE)
                    .unwrap_or_else(PoisonError::into_inner);
                core = woken;
                mark = waited.timed_out() && core.next_seq == seen;
            } else if idle && !rotated {
                (core.asleep, core.dozing) = (true, true);
                core = self.work.wait(core).unwrap_or_else(PoisonError::into_inner);
            }
            (core.asleep, core.dozing) = (false, false);
            if core.closed {
                return;
            }
            if core.full || core.stuck {
                let now = Instant::now();
                prepare = now >= look_at;
                if prepare {
                    look_at = now + FULL_RETRY;
                }
            }
            drop(core);
            // Whoever waits learns of a failure by the state that it leaves.
            let _ = if mark {
                self.mark_synced()
            } else {
                self.flush()
            };
            if prepare {
                self.prepare_next();
            }
        }
    }
}
