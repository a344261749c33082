//! The handle on the one log of a store: submit, wait, read.
//!
//! State sits behind one short lock; writing is a role that one thread holds at a time, outside that lock. A waiter
//! on an idle log takes the role itself, so that no thread hop is paid. It knows nothing of Raft's rules.

mod format;
mod index;
pub mod inspect;
mod options;
mod read;
mod recovery;
mod segment;
mod votes;
mod waiters;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use format::FORMAT_VERSION;
pub use options::{GroupInfo, IoMode, LogOptions, LogStats, Space};
pub use recovery::RecoveryReport;

use crate::testing::{Bug, bug};
use crate::vfs::{SharedVfs, VfsFile, VfsLock};
use crate::{ErrorKind, GroupId, Index, LogError, Record, Term, WriteBatch};
use format::{BATCH_HEADER, BodyEncoder, SEGMENT_DATA};
use index::{Groups, Position};
use votes::Slot;
use waiters::{Waiters, Woken};
use writer::{Item, Next, Writer};

/// How often the log's thread looks whether a full disk has space again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Names a submitted batch. Tickets complete in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A cheap handle on the one log of a store.
#[derive(Clone)]
pub struct Log(Arc<Handles>);

/// All handles together, which the log's own thread is not one of: with the last one the log ends.
struct Handles(Arc<Shared>);

type Progress = Arc<dyn Fn() + Send + Sync>;

struct Shared {
    options: LogOptions,
    vfs: SharedVfs,
    core: Mutex<Core>,
    writer: Mutex<Writer>,
    next: Next,
    work: Condvar,
}

struct Core {
    groups: Groups,
    files: BTreeMap<u64, Arc<dyn VfsFile>>,
    /// Segments seen without live entries, and the batch that must be synced before they may go.
    emptied: BTreeMap<u64, u64>,
    queue: Vec<Item>,
    next_seq: u64,
    durable: u64,
    segment: u64,
    offset: u64,
    size: u64,
    error: Option<LogError>,
    busy: bool,
    /// The next segment cannot be prepared: no new work should be taken.
    full: bool,
    /// What is queued does not fit the segment at hand, and there is no space for another.
    stuck: bool,
    /// Threads that wait for a sync of somebody else.
    waiters: Waiters,
    /// The log's thread waits for work; whoever wakes it clears this, so that nobody else does.
    asleep: bool,
    closed: bool,
    progress: Option<Progress>,
    stats: LogStats,
    lock: Option<Box<dyn VfsLock>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How large a segment becomes that must hold a checkpoint and `needed` bytes.
fn segment_size(options: &LogOptions, wanted: u64, checkpoint: u64, needed: u64) -> u64 {
    let floor = options.segment_bytes_min.max(16 << 10);
    let grown = wanted.clamp(floor, options.segment_bytes_max.max(floor));
    grown
        .max(checkpoint * 8)
        .max(SEGMENT_DATA + checkpoint + BATCH_HEADER as u64 + needed)
        .next_multiple_of(4096)
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({})", self.0.options.dir.display())
    }
}

impl Log {
    /// Opens or creates the log of a store, and says what it found.
    ///
    /// # Errors
    /// Damage, a suspect tail, a foreign or newer log, a directory in use, and failures of the file system.
    pub fn open(vfs: SharedVfs, options: LogOptions) -> Result<(Self, RecoveryReport), LogError> {
        let dir = &options.dir;
        vfs.create_dir_all(dir)
            .map_err(|error| LogError::io("cannot make the log's directory", dir, error))?;
        let lock = vfs
            .lock(&dir.join("LOCK"))
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::WouldBlock => LogError::at(
                    ErrorKind::Locked,
                    &dir.join("LOCK"),
                    0,
                    "another process uses this data directory; stop it first",
                ),
                _ => LogError::io("cannot lock the log's directory", dir, error),
            })?;
        let found = recovery::recover(&vfs, &options)?;
        let file = Arc::clone(found.files.get(&found.segment).expect("just made"));
        let writer = Writer {
            vfs: Arc::clone(&vfs),
            dir: dir.clone(),
            store: options.store_id,
            votes: found.votes,
            segment: found.segment,
            file,
            chain: found.chain,
            synced_seq: found.seq,
            backlog: Default::default(),
            buffer: Vec::new(),
            syncs: 0,
            bytes: 0,
        };
        let core = Core {
            groups: found.groups,
            files: found.files,
            emptied: BTreeMap::new(),
            queue: Vec::new(),
            next_seq: found.seq + 1,
            durable: found.seq,
            segment: found.segment,
            offset: found.offset,
            size: found.size,
            error: None,
            busy: false,
            waiters: Waiters::default(),
            asleep: false,
            full: false,
            stuck: false,
            closed: false,
            progress: None,
            stats: LogStats::default(),
            lock: Some(lock),
            thread: None,
        };
        let shared = Arc::new(Shared {
            vfs,
            options,
            core: Mutex::new(core),
            writer: Mutex::new(writer),
            next: Next {
                ready: Mutex::new(None),
            },
            work: Condvar::new(),
        });
        if shared.options.io == IoMode::Inline {
            // A log with a thread leaves this to it: filling a segment takes longer than many a recovery.
            shared.prepare_next();
        }
        shared.purge()?;
        if shared.options.io == IoMode::Thread {
            let own = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name("flotilla-log".into())
                .spawn(move || own.run())
                .map_err(|error| {
                    LogError::io("cannot start the log's thread", &shared.options.dir, error)
                })?;
            shared.core().thread = Some(thread);
        }
        Ok((Self(Arc::new(Handles(shared))), found.report))
    }

    /// Queues a batch; reads see it at once. It is durable when its ticket completes.
    ///
    /// # Errors
    /// A batch that is too large or contradicts a group's state, of which nothing is taken; the latched failure.
    pub fn submit(&self, batch: WriteBatch) -> Result<Ticket, LogError> {
        let (mut core, ticket) = self.0.enqueue(batch)?;
        if !core.busy {
            core.wake(&self.0.work);
        }
        Ok(ticket)
    }

    /// As [`Log::submit`], but lets the log's thread sleep: for callers who then [`Log::wait`] or [`Log::drive`]
    /// themselves, or [`Log::wake`] it once they know that they will not.
    ///
    /// # Errors
    /// As [`Log::submit`].
    pub fn enqueue(&self, batch: WriteBatch) -> Result<Ticket, LogError> {
        self.0.enqueue(batch).map(|(_, ticket)| ticket)
    }

    /// Lets the log's thread write what is queued.
    pub fn wake(&self) {
        let mut core = self.0.core();
        if !core.busy && !core.queue.is_empty() {
            core.wake(&self.0.work);
        }
    }

    /// Submits and waits, without waking the log's thread.
    ///
    /// # Errors
    /// As [`Log::submit`] and [`Log::wait`].
    pub fn write(&self, batch: WriteBatch) -> Result<(), LogError> {
        let (core, ticket) = self.0.enqueue(batch)?;
        self.0.wait(core, ticket)
    }

    /// Blocks until the batch is synced.
    ///
    /// # Errors
    /// The latched failure; [`ErrorKind::Full`] while there is no space for the batch. It is kept, and written once there
    /// is: wait again, or poll.
    pub fn wait(&self, ticket: Ticket) -> Result<(), LogError> {
        self.0.wait(self.0.core(), ticket)
    }

    /// True when the batch is synced.
    ///
    /// # Errors
    /// The latched failure, if it struck before the batch was synced.
    pub fn is_durable(&self, ticket: Ticket) -> Result<bool, LogError> {
        let core = self.0.core();
        if core.durable >= ticket.0 {
            return Ok(true);
        }
        core.healthy().map(|()| false)
    }

    /// Writes and syncs what is queued, on this thread. False when there was nothing to do, or no space.
    ///
    /// # Errors
    /// The latched failure.
    pub fn drive(&self) -> Result<bool, LogError> {
        let worked = match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::Full => false,
            other => other?,
        };
        self.0.prepare_next();
        Ok(worked)
    }

    /// Sets what is called after each sync that completed tickets, and on failure.
    pub fn on_progress(&self, call: Box<dyn Fn() + Send + Sync>) {
        self.0.core().progress = Some(Arc::from(call));
    }

    /// The groups, ascending.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.0.core().groups.map.keys().copied().collect()
    }

    /// What the log holds of a group.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<GroupInfo> {
        let core = self.0.core();
        let group = core.groups.map.get(&id)?;
        let last_index = group.last();
        let waiting = group
            .unsynced
            .iter()
            .filter(|batch| batch.0 > core.durable)
            .map(|batch| batch.1.prev())
            .min();
        Some(GroupInfo {
            base: group.base.clone(),
            last_index,
            last_term: group.term_at(last_index).unwrap_or_default(),
            hard_state: group.hard_state,
            snapshot: group.snapshot.clone(),
            durable_index: waiting.map_or(last_index, |index| {
                index.min(last_index).max(group.base.index)
            }),
        })
    }

    /// The term of an entry, or of the base; `None` outside the log.
    #[must_use]
    pub fn term_at(&self, id: GroupId, index: Index) -> Option<Term> {
        self.0.core().groups.map.get(&id)?.term_at(index)
    }

    /// The groups whose entries keep the oldest segment from being removed; empty while there is only one.
    #[must_use]
    pub fn needs_compaction(&self) -> Vec<GroupId> {
        let core = self.0.core();
        let Some(oldest) = core
            .files
            .keys()
            .next()
            .copied()
            .filter(|oldest| *oldest != core.segment)
        else {
            return Vec::new();
        };
        let pins = core
            .groups
            .map
            .iter()
            .filter(|(_, group)| group.entries.front().is_some_and(|at| at.segment == oldest));
        pins.map(|(id, _)| *id).collect()
    }

    /// Whether new work should be taken.
    #[must_use]
    pub fn space(&self) -> Space {
        if self.0.core().full {
            Space::Full
        } else {
            Space::Available
        }
    }

    /// Counters since the log was opened.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let core = self.0.core();
        LogStats {
            segments: core.files.len() as u64,
            queued: core.next_seq - 1 - core.durable,
            cache_bytes: core.groups.cached as u64,
            ..core.stats
        }
    }

    /// Writes what is queued, proves it synced, stops the thread and gives the directory up.
    ///
    /// # Errors
    /// The latched failure, or a full disk; the log is closed all the same.
    pub fn close(&self) -> Result<(), LogError> {
        if self.0.core().closed {
            return Ok(());
        }
        let drained = self.0.drain().and_then(|()| {
            // An empty batch: its header says that everything before it is synced.
            drop(self.0.enqueue(WriteBatch::new())?);
            self.0.drain()
        });
        self.0.stop();
        drained
    }
}

impl Deref for Handles {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        // What is queued stays unwritten; but when this returns, the directory can be opened again.
        self.stop();
    }
}

impl Core {
    /// Wakes the log's thread if it sleeps.
    fn wake(&mut self, work: &Condvar) {
        if std::mem::take(&mut self.asleep) {
            work.notify_one();
        }
    }

    fn healthy(&self) -> Result<(), LogError> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None if self.closed => Err(LogError::new(ErrorKind::Failed, "the log is closed")),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a batch; still holds the lock, for what the caller does next.
    fn enqueue(&self, batch: WriteBatch) -> Result<(MutexGuard<'_, Core>, Ticket), LogError> {
        let (total, longest) =
            batch
                .records()
                .iter()
                .fold((0, 0), |(sum, longest), (_, record)| {
                    let (len, payload) = format::encoded_len(record);
                    (sum + len, longest.max(payload))
                });
        if longest > format::RECORD_PAYLOAD_MAX || total > format::BATCH_BODY_MAX {
            return Err(LogError::new(
                ErrorKind::TooLarge,
                format!(
                    "a batch of {total} bytes with a record of {longest} is too large; split it"
                ),
            ));
        }
        let mut body = BodyEncoder::default();
        body.bytes.reserve_exact(total);
        let mut places = Vec::new();
        for (group, record) in batch.records() {
            body.push(*group, record, &mut places);
        }
        let mut core = self.core();
        core.healthy()?;
        core.groups
            .check(batch.records())
            .map_err(|(unknown, text)| {
                LogError::new(
                    if unknown {
                        ErrorKind::UnknownGroup
                    } else {
                        ErrorKind::InvalidBatch
                    },
                    text,
                )
            })?;
        let len = (BATCH_HEADER + body.bytes.len()) as u64;
        if core.offset + len > core.size {
            self.plan_segment(&mut core, len);
        }
        let (seq, offset, segment) = (core.next_seq, core.offset, core.segment);
        let mut votes = Vec::new();
        let mut places = places.into_iter();
        for (id, record) in batch.into_records() {
            let before = core.groups.map.get(&id).map(|group| group.hard_state);
            let hard_state = if let Record::HardState(state) = &record {
                Some(*state)
            } else {
                None
            };
            core.groups.apply(seq, id, record, || {
                let (at, len) = places.next().expect("one place per entry");
                Position {
                    segment,
                    offset: offset + BATCH_HEADER as u64 + u64::from(at),
                    len,
                }
            });
            let Some(state) = hard_state.filter(|new| {
                before.is_none_or(|old| (old.term, old.vote) != (new.term, new.vote))
            }) else {
                continue;
            };
            let creation = core.groups.map[&id].base.creation;
            votes.retain(|slot: &Slot| slot.group != id);
            votes.push(Slot {
                group: id,
                creation,
                term: state.term,
                vote: state.vote,
            });
        }
        core.queue.push(Item::Batch {
            seq,
            offset,
            body: body.bytes,
            records: body.records,
            votes,
        });
        core.offset += len;
        core.next_seq += 1;
        core.stats.batches += 1;
        Ok((core, Ticket(seq)))
    }

    /// Lets the next batch begin a segment, whose checkpoint is the state as of now.
    fn plan_segment(&self, core: &mut Core, needed: u64) {
        let mut body = BodyEncoder::default();
        for (group, state) in core.groups.checkpoint() {
            if !bug(Bug::ForgetCheckpoint) {
                body.push_checkpoint(group, &state);
            }
        }
        let size = segment_size(
            &self.options,
            core.size * 2,
            body.bytes.len() as u64,
            needed,
        );
        core.segment += 1;
        core.size = size;
        core.offset = SEGMENT_DATA + (BATCH_HEADER + body.bytes.len()) as u64;
        let seq = core.next_seq - 1;
        core.queue.push(Item::Rotate {
            segment: core.segment,
            size,
            seq,
            body: body.bytes,
            records: body.records,
        });
    }

    /// Takes the writer's role, if it is free, and writes all that is queued.
    fn flush(&self) -> Result<bool, LogError> {
        let mut core = self.core();
        core.healthy()?;
        if core.busy || (core.durable + 1 == core.next_seq && core.queue.is_empty()) {
            return Ok(false);
        }
        core.busy = true;
        let items = std::mem::take(&mut core.queue);
        let newest = core.next_seq - 1;
        core.waiters.queue_taken(newest);
        drop(core);
        let role = Role(self);
        if bug(Bug::PurgeBeforeSync) {
            self.purge()?;
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.backlog.extend(items);
        let outcome = loop {
            let stepped = writer.step(&self.next);
            let more = matches!(stepped, Ok(true));
            let mut core = self.core();
            core.durable = writer.synced_seq;
            core.stats.syncs = writer.syncs;
            core.stats.bytes_written = writer.bytes;
            core.stuck = matches!(&stepped, Err(error) if error.kind() == ErrorKind::Full);
            core.full |= core.stuck;
            let segment = writer.segment;
            if core
                .files
                .insert(segment, Arc::clone(&writer.file))
                .is_none()
            {
                // The thread prepares the one after this.
                core.wake(&self.work);
            }
            if let Err(error) = &stepped
                && error.kind() != ErrorKind::Full
            {
                core.error = Some(error.clone());
            }
            let durable = core.durable;
            core.groups.trim_cache(self.options.cache_bytes, durable);
            let last = !more || writer.backlog.is_empty();
            // After the last step the role's end tells them.
            let ready = (!last).then(|| core.waiters.take_written(durable));
            drop(core);
            if let Some(ready) = ready {
                ready.wake();
            }
            if last {
                break stepped.map(|_| true);
            }
        };
        drop(writer);
        let purged = self.purge();
        if let Err(error) = &purged {
            self.core().error.get_or_insert_with(|| error.clone());
        }
        drop(role);
        let progress = self.core().progress.clone();
        if let Some(call) = progress {
            call();
        }
        outcome.and_then(|worked| purged.map(|()| worked))
    }

    fn wait<'a>(&'a self, mut core: MutexGuard<'a, Core>, ticket: Ticket) -> Result<(), LogError> {
        loop {
            if core.durable >= ticket.0 || bug(Bug::AckBeforeSync) {
                return Ok(());
            }
            core.healthy()?;
            if core.busy {
                let place = core.waiters.join(ticket.0);
                drop(core);
                if place.wait() == Woken::Durable {
                    return Ok(());
                }
                core = self.core();
                continue;
            }
            if core.stuck && self.options.io == IoMode::Thread {
                // The log's thread tries again; everybody else would only repeat the failure.
                return Err(LogError::new(
                    ErrorKind::Full,
                    "the disk is full; the batch is kept and written once there is space",
                ));
            }
            drop(core);
            self.flush()?;
            core = self.core();
        }
    }

    fn drain(&self) -> Result<(), LogError> {
        let target = Ticket(self.core().next_seq - 1);
        let mut core = self.core();
        while core.durable < target.0 {
            core.healthy()?;
            if core.busy {
                let place = core.waiters.join(target.0);
                drop(core);
                place.wait();
                core = self.core();
                continue;
            }
            drop(core);
            self.flush()?;
            core = self.core();
        }
        Ok(())
    }

    /// Removes the oldest segments that hold no live entry, once that fact is synced.
    fn purge(&self) -> Result<(), LogError> {
        loop {
            let mut core = self.core();
            let Some(oldest) = core.files.keys().next().copied() else {
                return Ok(());
            };
            if oldest == core.segment
                || core.files.len() < 2
                || core.groups.live.get(&oldest).is_some_and(|live| *live > 0)
            {
                return Ok(());
            }
            let submitted = core.next_seq - 1;
            let after = *core.emptied.entry(oldest).or_insert(submitted);
            if core.durable < after && !bug(Bug::PurgeBeforeSync) {
                return Ok(());
            }
            core.files.remove(&oldest);
            core.emptied.remove(&oldest);
            core.groups.live.remove(&oldest);
            drop(core);
            let path = segment::segment_path(&self.options.dir, oldest);
            let failed =
                |error| LogError::io("cannot remove an old segment", &path, error).latched();
            self.vfs.remove(&path).map_err(failed)?;
            self.vfs.sync_dir(&self.options.dir).map_err(failed)?;
        }
    }

    /// Fills the next segment ahead of its use; a full disk shows in `space`.
    fn prepare_next(&self) {
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
        let size = segment_size(&self.options, self.core().size * 2, 0, 0);
        let made = segment::prepare(&*self.vfs, &self.options.dir.join("next.tmp"), size);
        let mut core = self.core();
        match made {
            Ok(prepared) => {
                *ready = Some(prepared);
                core.full = core.stuck;
            }
            Err(error) if error.kind() == ErrorKind::Full => core.full = true,
            Err(error) => {
                core.error.get_or_insert(error);
                let waiters = core.waiters.take_all();
                drop(core);
                waiters.wake();
            }
        }
    }

    /// The log's own thread: writes what nobody waits for, prepares segments, and tries again when the disk was full.
    fn run(&self) {
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
            let mut prepare = !core.full;
            if core.stuck || (core.full && idle) {
                // Space comes back without anybody saying so.
                core.asleep = !core.stuck;
                let (woken, waited) = self
                    .work
                    .wait_timeout(core, FULL_RETRY)
                    .unwrap_or_else(PoisonError::into_inner);
                (core, prepare) = (woken, waited.timed_out());
                core.asleep = false;
            } else if idle && !rotated {
                core.asleep = true;
                core = self.work.wait(core).unwrap_or_else(PoisonError::into_inner);
                core.asleep = false;
            }
            if core.closed {
                return;
            }
            drop(core);
            // Whoever waits learns of a failure by the state that it leaves.
            let _ = self.flush();
            if prepare {
                self.prepare_next();
            }
        }
    }

    fn stop(&self) {
        let mut core = self.core();
        core.closed = true;
        let thread = core.thread.take();
        let waiters = core.waiters.take_all();
        drop(core);
        self.work.notify_all();
        waiters.wake();
        // The last handle may go in a call that the thread itself makes.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread has already poisoned the log through its role.
            let _ = thread.join();
        }
        self.core().lock = None;
    }
}

/// The writer's role: given back when dropped; a panic while it is held fails the log.
struct Role<'a>(&'a Shared);

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let mut core = self.0.core();
        core.busy = false;
        if std::thread::panicking() {
            core.error.get_or_insert_with(|| {
                LogError::new(
                    ErrorKind::Failed,
                    "the log's writer panicked; restart the process",
                )
            });
        }
        let durable = core.durable;
        let failed = core.stuck || core.error.is_some();
        let written = core.waiters.take_written(durable);
        let next = if failed {
            core.waiters.take_all()
        } else {
            core.waiters.take_first()
        };
        // What nobody waits for is its thread's to write, and a full disk to watch; a failure ends it.
        if failed || (!core.queue.is_empty() && next.is_empty()) {
            core.wake(&self.0.work);
        }
        drop(core);
        // The next writer first: the disk works while the others are woken.
        next.wake();
        written.wake();
    }
}

/// The path of a segment in a log's directory.
#[must_use]
pub fn segment_path(dir: &Path, id: u64) -> PathBuf {
    segment::segment_path(dir, id)
}
