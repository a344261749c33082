//! Snapshots of groups as files: what a state machine offers, and how the host makes one.
//!
//! A cut is taken between two applies, by the host's thread, and costs next to nothing: it is a consistent view. A task
//! writes it to the snapshot store, and makes the log refer to it. Meanwhile, and for a while after, the group's log is
//! held: what a member needs on top of the snapshot is not compacted away. Who sends the snapshot holds it longer.
//!
//! A member whose log cannot reach a leader's gets the newest snapshot, or a new one: [`crate::SnapshotTransfer`]. What
//! arrives goes into the log first, then into the state machine, step by step between the turns of others.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use raft_log::snapshot::{Installing, PendingSnapshot, RestorePoint, SnapshotMeta, SnapshotStore};
use raft_log::{GroupId, Index, Log, SnapshotRef};
use raft_node::core::Membership;
use raft_node::{ApplyError, StateMachine};

use crate::inbox::{Inbox, Request};
use crate::tasks::Tasks;
use crate::transfer::{Arrived, Transfers};
use crate::{HostError, Reply, TICK_MS};

/// Ticks for which a log stays held after a snapshot was made, or after its holder last said so: one minute. A snapshot
/// that nobody comes for must not fill the disk.
pub const HOLD_TICKS: u64 = 60_000 / TICK_MS;

/// Callers that wait for one snapshot; more are refused.
const WAITING_MAX: usize = 64;

/// A consistent view of a whole state machine.
pub trait Cut: Send {
    /// Writes all of its state. Called once, by a task.
    ///
    /// # Errors
    /// Of the writer, and of reading the state.
    fn write(&self, out: &mut dyn io::Write) -> io::Result<()>;
}

/// A state machine whose state can be taken out as a whole, and replaced by another's.
pub trait SnapshotState: StateMachine {
    /// The state as of [`StateMachine::applied`].
    fn cut(&self) -> Box<dyn Cut>;

    /// Begins to replace the state by that of `snapshot`, whose content is read from `content`. Until
    /// [`SnapshotState::install_step`] says that it is done the old state stays as it is, and nothing is applied.
    ///
    /// # Errors
    /// A content that does not belong to `snapshot`, or does not lie ahead of what is applied.
    fn begin_install(
        &mut self,
        snapshot: &SnapshotRef,
        content: Box<dyn io::Read + Send>,
    ) -> Result<(), ApplyError>;

    /// Goes on for a bounded time. True once the new state is in force, as a whole and at once.
    ///
    /// # Errors
    /// Of the content and of the engine. The state is the old one.
    fn install_step(&mut self) -> Result<bool, ApplyError>;

    /// True while the next step has to wait for a task, which it looks for at the next tick. Never, unless this is
    /// implemented.
    fn install_waits(&self) -> bool {
        false
    }
}

/// Replaces a state machine's state by a snapshot of the store, all at once: for a start, before anything is served.
///
/// # Errors
/// As for [`SnapshotState`], and of the store.
pub fn install<S: SnapshotState>(
    machine: &mut S,
    store: &SnapshotStore,
    group: GroupId,
    snapshot: &SnapshotRef,
) -> Result<(), ApplyError> {
    let reader = store.open_snapshot(group, snapshot);
    let reader = reader.map_err(|error| ApplyError(Box::new(error)))?;
    machine.begin_install(snapshot, Box::new(reader))?;
    while !machine.install_step()? {}
    Ok(())
}

/// For a start, after the log and the snapshots were recovered and before the group is opened: when the log begins after
/// what the state machine has applied, the state is taken from the snapshot that the log refers to. Says which one that
/// was; none when the log has all that follows the state, or when no snapshot would do, which opening the group reports.
///
/// # Errors
/// As for [`install`], and of looking at the snapshots: when none would do, what is wrong with the newest.
pub fn restore<S: SnapshotState>(
    machine: &mut S,
    log: &Log,
    store: &SnapshotStore,
    group: GroupId,
) -> Result<Option<SnapshotRef>, ApplyError> {
    let begins_behind = |base: Index| base > machine.applied().index;
    if !log
        .group(group)
        .is_some_and(|info| begins_behind(info.base.index))
    {
        return Ok(None);
    }
    let point = store.restore(log, group);
    match point.map_err(|error| ApplyError(Box::new(error)))? {
        RestorePoint::Snapshot { snapshot, .. } => {
            install(machine, store, group, &snapshot)?;
            Ok(Some(snapshot))
        }
        RestorePoint::Log => Ok(None),
        RestorePoint::Nothing { .. } => {
            // What is wrong with the newest one says more than that there is none.
            if let Some(snapshot) = log.group(group).and_then(|info| info.snapshot) {
                let verified = store.verify(group, &snapshot);
                verified.map_err(|error| ApplyError(Box::new(error)))?;
            }
            Ok(None)
        }
    }
}

/// Is told how many bytes more were written, and may wait before it returns.
pub type Pace = Arc<dyn Fn(u64) + Send + Sync>;

/// Bytes between two calls of a [`Pace`].
const PACE_BYTES: u64 = 256 << 10;

/// What a host needs to make snapshots.
#[derive(Clone)]
pub struct SnapshotSetup {
    /// Where they go.
    pub store: SnapshotStore,
    /// Who writes them.
    pub tasks: Arc<dyn Tasks>,
    /// Holds the writing back, on the thread of the task, so that disk and processors are left for clients. None: as fast
    /// as it goes.
    pub pace: Option<Pace>,
}

impl fmt::Debug for SnapshotSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSetup").finish_non_exhaustive()
    }
}

/// A snapshot that is being taken up here.
pub(crate) struct Taking {
    /// Until the log says durably that it begins after it.
    installing: Option<Installing>,
    /// Until the state is replaced, where the log does not refer to it: then its file goes.
    pending: Option<PendingSnapshot>,
    /// Until it begins.
    reply: Option<Reply<()>>,
}

impl Taking {
    /// The log begins anew with it.
    pub(crate) fn with_log(installing: Installing, reply: Reply<()>) -> Self {
        Self {
            installing: Some(installing),
            pending: None,
            reply: Some(reply),
        }
    }

    /// It replaces the state alone.
    pub(crate) fn of_state(pending: PendingSnapshot, reply: Reply<()>) -> Self {
        Self {
            installing: None,
            pending: Some(pending),
            reply: Some(reply),
        }
    }
}

type Begin<S> = fn(&mut S, &SnapshotRef, Box<dyn io::Read + Send>) -> Result<(), ApplyError>;

/// The snapshots that are in the making, on their way, or being taken up, and the logs that are held.
pub(crate) struct Keeper<S: StateMachine> {
    pub(crate) setup: SnapshotSetup,
    cut: fn(&S) -> Box<dyn Cut>,
    pub(crate) begin: Begin<S>,
    pub(crate) step: fn(&mut S) -> Result<bool, ApplyError>,
    pub(crate) waits: fn(&S) -> bool,
    pub(crate) transfers: Transfers,
    /// Those that wait until the one in the making is made.
    pub(crate) arrived: BTreeMap<GroupId, Arrived>,
    pub(crate) taking: BTreeMap<GroupId, Taking>,
    making: BTreeMap<GroupId, Vec<Reply<SnapshotRef>>>,
    held_until: BTreeMap<GroupId, u64>,
    hold_ticks: u64,
}

impl<S: SnapshotState> Keeper<S> {
    pub(crate) fn new(setup: SnapshotSetup, hold_ticks: u64) -> Self {
        Self {
            setup,
            cut: S::cut,
            begin: S::begin_install,
            step: S::install_step,
            waits: S::install_waits,
            transfers: Transfers::default(),
            arrived: BTreeMap::new(),
            taking: BTreeMap::new(),
            making: BTreeMap::new(),
            held_until: BTreeMap::new(),
            hold_ticks,
        }
    }
}

impl<S: StateMachine> Keeper<S> {
    /// Takes a snapshot of what is applied now, or lets the caller wait for the one that is in the making.
    pub(crate) fn make(
        &mut self,
        log: &Log,
        inbox: &Arc<Inbox<S::Output>>,
        group: GroupId,
        machine: &S,
        reply: Reply<SnapshotRef>,
    ) {
        if let Some(waiting) = self.making.get_mut(&group) {
            if waiting.len() >= WAITING_MAX {
                return reply(Err(HostError::Busy));
            }
            return waiting.push(reply);
        }
        let Some(info) = log.group(group) else {
            return reply(Err(HostError::NoGroup));
        };
        let applied = machine.applied();
        let unusable = self.transfers.unusable(group);
        let made = info.snapshot.filter(|made| unusable != Some(made.number));
        if let Some(snapshot) = made.filter(|made| made.index == applied.index) {
            return reply(Ok(snapshot));
        }
        let membership = applied.membership.map(|(_, members)| members.encode());
        let meta = SnapshotMeta {
            group,
            creation: info.base.creation,
            index: applied.index,
            term: applied.term,
            membership: membership.unwrap_or(info.base.membership),
        };
        assert!(
            Membership::decode(&meta.membership).is_ok(),
            "a group has a membership at every index"
        );
        let work = Work {
            cut: (self.cut)(machine),
            store: self.setup.store.clone(),
            log: log.clone(),
            meta,
            pace: self.setup.pace.clone(),
        };
        self.making.insert(group, vec![reply]);
        let done = Done {
            inbox: Arc::clone(inbox),
            group,
            result: Some(Err(HostError::Snapshot("it was given up".to_owned()))),
        };
        let task = Box::new(move || {
            let result = work.run();
            done.tell(result.map_err(|error| HostError::Snapshot(error.to_string())));
        });
        // One that is not run says so when it is dropped.
        drop(self.setup.tasks.run(task));
    }

    /// A snapshot is made, or was not.
    pub(crate) fn made(
        &mut self,
        now: u64,
        group: GroupId,
        result: &Result<SnapshotRef, HostError>,
    ) {
        self.hold(now, group);
        for reply in self.making.remove(&group).into_iter().flatten() {
            reply(result.clone());
        }
    }

    pub(crate) fn is_making(&self, group: GroupId) -> bool {
        self.making.contains_key(&group)
    }

    /// Those that have arrived and need not wait any more.
    pub(crate) fn take_arrived(&mut self) -> Vec<(GroupId, Arrived)> {
        let arrived = std::mem::take(&mut self.arrived);
        let (wait, ready) = arrived
            .into_iter()
            .partition(|(group, _)| self.making.contains_key(group));
        self.arrived = wait;
        ready.into_iter().collect()
    }

    /// The log says durably that it begins after the snapshot, or has what that covers: who sent it is told, and older files
    /// go. True the first time.
    pub(crate) fn acknowledge(&mut self, group: GroupId) -> bool {
        let Some(taking) = self.taking.get_mut(&group) else {
            return false;
        };
        let Some(reply) = taking.reply.take() else {
            return false;
        };
        reply(Ok(()));
        let Some(installing) = taking.installing.take() else {
            return true;
        };
        let store = self.setup.store.clone();
        // Where no task runs, the next install or start removes them.
        drop(self.setup.tasks.run(Box::new(move || {
            if let Err(error) = store.end_install(installing) {
                tracing::warn!(%error, "an old snapshot could not be removed; the next start removes it");
            }
        })));
        true
    }

    /// The state machine has taken the snapshot up. A file that the log does not refer to goes, by a task or at the next start.
    pub(crate) fn end_taking(&mut self, group: GroupId) {
        if let Some(pending) = self.taking.remove(&group).and_then(|taking| taking.pending) {
            drop(self.setup.tasks.run(Box::new(move || drop(pending))));
        }
    }

    /// Keeps the log of a group from being compacted for a while from now.
    pub(crate) fn hold(&mut self, now: u64, group: GroupId) {
        self.held_until.insert(group, now + self.hold_ticks);
    }

    /// Lets the log go.
    pub(crate) fn release(&mut self, group: GroupId) {
        self.held_until.remove(&group);
    }

    pub(crate) fn is_held(&mut self, now: u64, group: GroupId) -> bool {
        if self
            .held_until
            .get(&group)
            .is_some_and(|until| *until <= now)
        {
            self.held_until.remove(&group);
        }
        self.making.contains_key(&group) || self.held_until.contains_key(&group)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.making.is_empty()
    }

    pub(crate) fn fail(&mut self) {
        for reply in std::mem::take(&mut self.making).into_values().flatten() {
            reply(Err(HostError::Stopped));
        }
        let arrived = std::mem::take(&mut self.arrived).into_values();
        let taking = std::mem::take(&mut self.taking).into_values();
        for reply in arrived
            .map(|arrived| arrived.reply)
            .chain(taking.filter_map(|taking| taking.reply))
        {
            reply(Err(HostError::Stopped));
        }
    }
}

struct Work {
    cut: Box<dyn Cut>,
    store: SnapshotStore,
    log: Log,
    meta: SnapshotMeta,
    pace: Option<Pace>,
}

/// A writer that is held back.
struct Paced<'a> {
    out: &'a mut dyn io::Write,
    pace: &'a Pace,
    bytes: u64,
}

impl io::Write for Paced<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let wrote = self.out.write(buf)?;
        self.bytes += wrote as u64;
        if self.bytes >= PACE_BYTES {
            (self.pace)(std::mem::take(&mut self.bytes));
        }
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Work {
    fn run(self) -> Result<SnapshotRef, Box<dyn Error>> {
        let mut writer = self.store.create(self.meta)?;
        let wrote = match &self.pace {
            None => self.cut.write(&mut writer),
            Some(pace) => self.cut.write(&mut Paced {
                out: &mut writer,
                pace,
                bytes: 0,
            }),
        };
        // The view is of no use any more, and keeps superseded values alive.
        drop(self.cut);
        wrote?;
        let installed = self.store.install(&self.log, writer.finish()?)?;
        if let Err(error) = installed.retention {
            tracing::warn!(%error, "an old snapshot could not be removed; the next start removes it");
        }
        Ok(installed.snapshot)
    }
}

/// Tells the host, whatever becomes of the task.
struct Done<O> {
    inbox: Arc<Inbox<O>>,
    group: GroupId,
    result: Option<Result<SnapshotRef, HostError>>,
}

impl<O> Done<O> {
    fn tell(mut self, result: Result<SnapshotRef, HostError>) {
        self.result = Some(result);
    }
}

impl<O> Drop for Done<O> {
    fn drop(&mut self) {
        if let Some(result) = self.result.take() {
            let group = self.group;
            // A stopped host has answered already.
            drop(self.inbox.push(Request::Made { group, result }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn paced_writer_tells_of_all_but_the_last_bytes_and_changes_none() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&told);
        let pace: Pace = Arc::new(move |bytes| into.lock().unwrap().push(bytes));
        let content: Vec<u8> = (0..PACE_BYTES * 3 + 77).map(|at| at as u8).collect();
        let mut out = Vec::new();
        let mut paced = Paced {
            out: &mut out,
            pace: &pace,
            bytes: 0,
        };
        for piece in content.chunks(1_000) {
            paced.write_all(piece).unwrap();
        }
        paced.flush().unwrap();
        assert!(out == content);
        let told = told.lock().unwrap();
        assert!(told.iter().all(|bytes| *bytes >= PACE_BYTES), "{told:?}");
        let left = content.len() as u64 - told.iter().sum::<u64>();
        assert!(told.len() == 2 && left < PACE_BYTES, "{told:?}");
    }
}
