//! The handle on the one log of a store: submit, wait, read.
//!
//! State sits behind one short lock; writing is a role that one thread holds at a time, outside that lock. A waiter
//! on an idle log takes the role itself, so that no thread hop is paid. It knows nothing of Raft's rules.

pub mod check;
mod footer;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
pub mod inspect;
mod manifest;
mod options;
mod read;
mod recovery;
pub mod renewal;
#[cfg(all(test, feature = "fuzzing"))]
mod round_trips;
pub mod salvage;
mod segment;
mod unsynced;
mod upkeep;
mod votes;
mod waiters;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use format::FORMAT_VERSION;
pub use options::{GroupInfo, IoMode, LogOptions, LogStats, Space};
pub use recovery::RecoveryReport;

use crate::testing::{Bug, bug};
use crate::vfs::{SharedVfs, VfsFile, VfsLock};
use crate::{ErrorKind, GroupId, Index, LogError, Record, Term, WriteBatch};
use footer::{FOOTER, FOOTER_GAP};
use format::{
    BATCH_HEADER, BodyEncoder, CHECKPOINT_MAX, SEGMENT_BYTES_MAX, SEGMENT_DATA, SEGMENT_ID_MAX,
};
use index::{Groups, Position};
use votes::Slot;
use waiters::{Role, Waiters, Woken};
use writer::{Item, Next, Seal, Writer};

/// Bytes at the end of a segment that only batches without entries may take: truncations, votes and compactions go
/// through while a full disk keeps the next segment from being made. Smaller segments keep an eighth.
const RESERVE_MAX: u64 = 64 << 10;

/// Names a submitted batch. Tickets complete in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A cheap handle on the one log of a store.
#[derive(Clone)]
pub struct Log(Arc<Handles>);

/// All handles together, which the log's own thread is not one of: with the last one the log ends.
struct Handles(Arc<Shared>);

/// What becomes of a batch with entries that would have to wait for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entries {
    Refused,
    Queued,
}

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
    /// The newest batch that something on disk proves to be synced, and the newest one for which that matters.
    proven: u64,
    worth_proving: u64,
    segment: u64,
    offset: u64,
    size: u64,
    /// The length of the file that waits to become the next segment, until a segment is planned in it.
    ready: Option<u64>,
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
    /// The log's thread sleeps without an end: whoever leaves a batch unproven wakes it once, to count the idle time.
    dozing: bool,
    closed: bool,
    progress: Option<Progress>,
    stats: LogStats,
    lock: Option<Box<dyn VfsLock>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn segment_bytes_min(options: &LogOptions) -> u64 {
    options.segment_bytes_min.clamp(16 << 10, SEGMENT_BYTES_MAX)
}

/// How large a segment becomes that must hold a checkpoint and `needed` bytes.
fn segment_size(options: &LogOptions, wanted: u64, checkpoint: u64, needed: u64) -> u64 {
    let floor = segment_bytes_min(options);
    let grown = wanted.clamp(
        floor,
        options.segment_bytes_max.clamp(floor, SEGMENT_BYTES_MAX),
    );
    let whole = SEGMENT_DATA + checkpoint + BATCH_HEADER as u64 + needed;
    let size = grown
        .max(checkpoint * 8)
        .max(whole + (whole / 7 + 8).min(RESERVE_MAX))
        .next_multiple_of(4096);
    assert!(
        size <= SEGMENT_BYTES_MAX,
        "checkpoints and batches are bounded"
    );
    size
}

/// The length of the shortest segment that holds a checkpoint and `needed` bytes, and a few batches without entries.
fn smallest_size(checkpoint: u64, needed: u64) -> u64 {
    let whole = SEGMENT_DATA + checkpoint + BATCH_HEADER as u64 + needed;
    let size = whole + (whole / 7 + 8).min(RESERVE_MAX);
    size.max(16 << 10).next_multiple_of(4096)
}

fn reserve(size: u64) -> u64 {
    (size / 8).min(RESERVE_MAX)
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({})", self.0.options.dir.display())
    }
}

impl Log {
    /// Opens or creates the log of a store, and says what it found.
    ///
    /// Each call makes a segment of at least [`LogOptions::segment_bytes_min`]. If less than half of that is in the newest
    /// one, the new one takes its place; so a log that is opened often grows by what is written only.
    ///
    /// # Errors
    /// Damage, a suspect tail, a foreign or newer log, a directory in use, and failures of the file system;
    /// [`ErrorKind::Full`] where there is no space for what must be written again, with how much is missing. Where
    /// nothing must be, a log on a full disk opens for reading, and says [`Space::Full`].
    pub fn open(vfs: SharedVfs, options: LogOptions) -> Result<(Self, RecoveryReport), LogError> {
        let dir = &options.dir;
        let lock = Self::lock(&vfs, dir)?;
        let found = recovery::recover(&vfs, &options)?;
        let writer = Writer {
            vfs: Arc::clone(&vfs),
            dir: dir.clone(),
            store: options.store_id,
            votes: found.votes,
            manifest: found.manifest,
            segment: found.segment,
            first_seq: found.first_seq,
            size: found.size,
            file: found.file,
            chain: found.chain,
            synced_seq: found.seq,
            proven_seq: found.seq,
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
            proven: found.seq,
            worth_proving: 0,
            segment: found.segment,
            offset: found.offset,
            size: found.size,
            ready: None,
            error: None,
            busy: false,
            waiters: Waiters::default(),
            asleep: false,
            dozing: false,
            full: found.waits,
            stuck: found.waits,
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
        if found.waits {
            let mut core = shared.core();
            shared.plan(&mut core, None, |checkpoint| smallest_size(checkpoint, 0));
            drop(core);
            // What was purged may have made room.
            match shared.flush() {
                Err(error) if error.kind() != ErrorKind::Full => return Err(error),
                _ => {}
            }
        }
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

    /// Makes the directory if needed, and keeps others out of it.
    fn lock(vfs: &SharedVfs, dir: &Path) -> Result<Box<dyn VfsLock>, LogError> {
        renewal::finish(&**vfs, dir)?;
        vfs.create_dir_all(dir)
            .map_err(|error| LogError::io("cannot make the log's directory", dir, error))?;
        let path = dir.join("LOCK");
        let lock = vfs.lock(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => LogError::of(
                ErrorKind::Locked,
                &path,
                "another process uses this data directory; stop it first",
            ),
            _ => LogError::io("cannot lock the log's directory", dir, error),
        })?;
        renewal::set_aside(&**vfs, dir)?;
        Ok(lock)
    }

    /// Queues a batch; reads see it at once. It is durable when its ticket completes.
    ///
    /// # Errors
    /// A batch that is too large or contradicts a group's state, of which nothing is taken; the latched failure.
    /// [`ErrorKind::Full`] for a batch with entries that would have to wait for space: nothing of it is taken either, so
    /// it does not stand before the batches without entries, which are still taken. A compaction is one of them, and
    /// gives space back. [`Log::space`] says so before it comes to this.
    pub fn submit(&self, batch: WriteBatch) -> Result<Ticket, LogError> {
        let (mut core, ticket) = self.0.enqueue(batch, Entries::Refused)?;
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
        let queued = self.0.enqueue(batch, Entries::Refused);
        queued.map(|(_, ticket)| ticket)
    }

    /// As [`Log::enqueue`], but takes entries on a full disk as well: for an owner that was told too late, and cannot take
    /// back what it has accepted.
    ///
    /// Danger: until there is space, everything that is queued later waits behind them, also what would give space back.
    ///
    /// # Errors
    /// As [`Log::submit`], without [`ErrorKind::Full`].
    pub fn enqueue_accepted(&self, batch: WriteBatch) -> Result<Ticket, LogError> {
        let queued = self.0.enqueue(batch, Entries::Queued);
        queued.map(|(_, ticket)| ticket)
    }

    /// Lets the log's thread write what is queued.
    pub fn wake(&self) {
        let mut core = self.0.core();
        if !core.busy && !core.queue.is_empty() {
            core.wake(&self.0.work);
        }
    }

    /// Submits and waits, without waking the log's thread. A full log without one looks for space first.
    ///
    /// # Errors
    /// As [`Log::submit`] and [`Log::wait`].
    pub fn write(&self, batch: WriteBatch) -> Result<(), LogError> {
        if self.0.options.io == IoMode::Inline && self.space() == Space::Full {
            self.drive()?;
        }
        let (core, ticket) = self.0.enqueue(batch, Entries::Refused)?;
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
        if core.durable >= ticket.0 || bug(Bug::AckBeforeSync) {
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

    /// Writes a mark that the newest batch was synced, if nothing follows that proves it: from then on damage to that
    /// batch is told from a torn write. The log's own thread does so when the log has been idle for a moment; with
    /// [`IoMode::Inline`] the caller may. False when there was nothing to prove, or work is queued.
    ///
    /// # Errors
    /// The latched failure.
    pub fn mark_synced(&self) -> Result<bool, LogError> {
        self.0.mark_synced()
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
        let waiting = group.unsynced.first(core.durable).map(Index::prev);
        Some(GroupInfo {
            base: group.base.clone(),
            last_index,
            last_term: group.term_at(last_index).unwrap_or_default(),
            hard_state: group.hard_state,
            snapshot: group.snapshot.clone(),
            incarnation: group.incarnation,
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
        let pins = core.groups.map.iter().filter(|(_, group)| {
            group
                .entries
                .front()
                .is_some_and(|at| at.segment() == oldest)
        });
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
        let core = self.0.core();
        if core.closed {
            return Ok(());
        }
        if core.stuck && core.durable + 1 == core.next_seq {
            // It never had a segment of its own, and what is there needs no proof.
            drop(core);
            self.0.stop();
            return Ok(());
        }
        drop(core);
        let drained = self.0.drain().and_then(|()| {
            self.0.seal();
            // An empty batch: its header says that everything before it is synced.
            drop(self.0.enqueue(WriteBatch::new(), Entries::Refused)?);
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

    /// True when a batch of so many bytes can go into the segment at hand, and its entries into the footer.
    fn fits(&self, len: u64, growth: u64, entries: bool) -> bool {
        let kept = if entries { reserve(self.size) } else { 0 };
        let footer = self.groups.footer_room(self.segment) + growth;
        self.offset + len + footer + kept <= self.size
    }

    /// What the footer says if the segment at hand ends now.
    fn end(&self) -> Seal {
        Seal {
            index: footer::index_of(&self.groups, self.segment),
            end: self.offset,
        }
    }

    /// True when the newest batch is synced and nothing on disk says so.
    fn unproven(&self) -> bool {
        self.durable >= self.worth_proving && self.worth_proving > self.proven
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
    fn enqueue(
        &self,
        batch: WriteBatch,
        waiting: Entries,
    ) -> Result<(MutexGuard<'_, Core>, Ticket), LogError> {
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
                    "a batch of {total} bytes with a payload of {longest} is too large, the limits are {} and {}; split it",
                    format::BATCH_BODY_MAX,
                    format::RECORD_PAYLOAD_MAX
                ),
            ));
        }
        let mut body = BodyEncoder::compressing(self.options.lz4_bytes_min);
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
        if core.groups.checkpoint_bytes(batch.records()) > CHECKPOINT_MAX {
            return Err(LogError::new(
                ErrorKind::TooLarge,
                format!(
                    "the groups' bases and memberships would take more than {CHECKPOINT_MAX} bytes; destroy groups"
                ),
            ));
        }
        let len = (BATCH_HEADER + body.bytes.len()) as u64;
        let growth = Groups::footer_growth(batch.records());
        let fits = core.fits(len, growth, growth > 0);
        if growth > 0 && waiting == Entries::Refused && (core.stuck || (core.full && !fits)) {
            return Err(LogError::new(
                ErrorKind::Full,
                "the disk has no space for another segment; compact groups or make space, and submit the entries again",
            ));
        }
        if !fits {
            self.plan_segment(&mut core, len + growth);
        }
        let (seq, offset, segment) = (core.next_seq, core.offset, core.segment);
        let (mut votes, mut created, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut places = places.into_iter();
        for (id, record) in batch.into_records() {
            // What its slot says: the term and vote of its log, and which log that is.
            let slot_of = |groups: &Groups| groups.map.get(&id).map(|group| group.slot(id));
            let before = slot_of(&core.groups);
            if before.is_none() {
                created.push(id);
            }
            if matches!(record, Record::Destroy) {
                ended.push(id);
            }
            let promises = matches!(record, Record::HardState(_) | Record::Incarnation(_));
            core.groups.apply(seq, id, record, || {
                let (at, len) = places.next().expect("one place per entry");
                Position::new(segment, offset + BATCH_HEADER as u64 + u64::from(at), len)
            });
            let after = slot_of(&core.groups).filter(|_| promises);
            if let Some(slot) = after.filter(|_| after != before) {
                votes.retain(|slot: &Slot| slot.group != id);
                votes.push(slot);
            }
        }
        core.queue.push(Item::Batch {
            seq,
            offset,
            body: body.bytes,
            records: body.records,
            votes,
            created,
            ended,
        });
        core.offset += len;
        core.next_seq += 1;
        core.stats.batches += 1;
        if body.records > 0 {
            core.worth_proving = seq;
        }
        Ok((core, Ticket(seq)))
    }

    /// Lets the next batch begin a segment, whose checkpoint is the state as of now.
    fn plan_segment(&self, core: &mut Core, needed: u64) {
        // What must be filled while somebody waits is kept short.
        let wanted = core.ready.take().unwrap_or(core.size / 2);
        let needed = needed + FOOTER_GAP + FOOTER as u64;
        let seal = Some(core.end());
        self.plan(core, seal, |checkpoint| {
            segment_size(&self.options, wanted, checkpoint, needed)
        });
    }

    /// Ends the segment at hand; the next one has the length that the checkpoint's asks for.
    fn plan(&self, core: &mut Core, seal: Option<Seal>, size: impl FnOnce(u64) -> u64) {
        let mut body = BodyEncoder::default();
        for (group, state) in core.groups.checkpoint() {
            if !bug(Bug::ForgetCheckpoint) {
                body.push_checkpoint(group, &state);
            }
        }
        let size = size(body.bytes.len() as u64);
        assert!(core.segment < SEGMENT_ID_MAX, "no store lives that long");
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
            seal,
        });
    }

    /// Lets the segment at hand end with a footer, which also proves the batches before it synced.
    fn seal(&self) {
        let mut core = self.core();
        let seal = Item::Seal(core.end());
        core.queue.push(seal);
    }

    /// Takes the writer's role, if it is free, and writes all that is queued.
    fn flush(&self) -> Result<bool, LogError> {
        let mut core = self.core();
        core.healthy()?;
        let idle = core.durable + 1 == core.next_seq && core.queue.is_empty() && !core.stuck;
        if core.busy || idle {
            return Ok(false);
        }
        core.busy = true;
        let items = std::mem::take(&mut core.queue);
        let newest = core.next_seq - 1;
        core.waiters.queue_taken(newest);
        drop(core);
        let role = Role::new(self);
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
            core.proven = writer.proven_seq;
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

/// The path of a segment in a log's directory.
#[must_use]
pub fn segment_path(dir: &Path, id: u64) -> PathBuf {
    segment::segment_path(dir, id)
}
