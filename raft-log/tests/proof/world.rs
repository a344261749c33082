//! A log and a snapshot store on a simulated disk, what was done to them, and how one crash is judged.

use raft_log::vfs::SharedVfs;
use raft_log::vfs::sim::{CrashKind, Lie, LyingFs, SimFs};
use raft_log::{
    Base, Entry, EntryKind, GroupId, HardState, Incarnation, Index, IoMode, Log, LogError,
    LogOptions, NodeId, Record, SnapshotError, SnapshotRef, SnapshotStore, StoreId, Term,
    WriteBatch, snapshot::SnapshotMeta,
};
use std::io::Write;

use crate::model::{History, State, observe};

pub(crate) const STORE: StoreId = StoreId(0xfeed);

/// One step of a workload; the number is a group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Append(u64),
    Overwrite(u64),
    Truncate(u64),
    Compact(u64),
    HardState(u64),
    /// Begins another incarnation, or ends the guard of the one at hand.
    Incarnation(u64),
    /// A snapshot file, and then its reference.
    Snapshot(u64),
    /// Destroys the group, or creates it again.
    Destroy(u64),
    /// An entry of group 1 that fits no segment that has begun.
    Roll,
    /// A clean close, and a start.
    Close,
}

/// Every step on two groups; another incarnation of one of them.
pub(crate) const OPS: [Op; 17] = [
    Op::Append(1),
    Op::Append(2),
    Op::Overwrite(1),
    Op::Overwrite(2),
    Op::Truncate(1),
    Op::Truncate(2),
    Op::Compact(1),
    Op::Compact(2),
    Op::HardState(1),
    Op::HardState(2),
    Op::Incarnation(1),
    Op::Snapshot(1),
    Op::Snapshot(2),
    Op::Destroy(1),
    Op::Destroy(2),
    Op::Roll,
    Op::Close,
];

pub(crate) fn options() -> LogOptions {
    let mut options = LogOptions::new("/data/log", STORE);
    options.segment_bytes_min = 16 << 10;
    options.segment_bytes_max = 16 << 10;
    // Most reads come from disk.
    options.cache_bytes = 256;
    options.io = IoMode::Inline;
    options
}

/// The file system as the log is given it: it may lie.
pub(crate) fn wrap(fs: &SimFs, lie: Option<Lie>) -> SharedVfs {
    match lie {
        None => fs.shared(),
        Some(lie) => std::sync::Arc::new(LyingFs::new(fs.shared(), lie)),
    }
}

/// Why a store was not opened.
pub(crate) enum Refusal {
    /// It was, but holds what it must not hold.
    Wrong(String),
    Log(LogError),
    Snapshots(SnapshotError),
}

pub(crate) struct World {
    pub(crate) fs: SimFs,
    pub(crate) lie: Option<Lie>,
    pub(crate) log: Log,
    snapshots: SnapshotStore,
    pub(crate) history: History,
    /// No payload or snapshot number is used twice, and a creation by group 1 alone.
    pub(crate) unique: u64,
}

impl World {
    /// Opens what is there; it must be what `history` allows, and is certain from then on.
    pub(crate) fn open(
        fs: &SimFs,
        lie: Option<Lie>,
        history: &History,
        unique: u64,
    ) -> Result<Self, String> {
        Self::try_open(fs, lie, history, unique).map_err(|refusal| match refusal {
            Refusal::Wrong(text) => text,
            Refusal::Log(error) => format!("the log refuses to open: {error:?}"),
            Refusal::Snapshots(error) => format!("the snapshot store fails: {error}"),
        })
    }

    /// As [`World::open`], but what an error means is left to the caller.
    pub(crate) fn try_open(
        fs: &SimFs,
        lie: Option<Lie>,
        history: &History,
        unique: u64,
    ) -> Result<Self, Refusal> {
        let vfs = wrap(fs, lie);
        let (log, _report) = Log::open(vfs.clone(), options()).map_err(Refusal::Log)?;
        let found = observe(&log).map_err(Refusal::Wrong)?;
        history.judge(&found).map_err(Refusal::Wrong)?;
        let snapshots =
            SnapshotStore::open(vfs, "/data/snap", STORE).map_err(Refusal::Snapshots)?;
        for (id, group) in &found {
            let info = log.group(*id).expect("it was observed");
            if info.durable_index != info.last_index {
                let text = format!("group {id} was recovered and is not durable");
                return Err(Refusal::Wrong(text));
            }
            if let Some(snapshot) = &group.snapshot {
                snapshots
                    .verify(*id, snapshot)
                    .map_err(Refusal::Snapshots)?;
            }
        }
        Ok(Self {
            fs: fs.clone(),
            lie,
            log,
            snapshots,
            history: History::new(found),
            unique,
        })
    }

    /// A store in which two groups have two entries and a vote each, closed as a killed process closes it.
    pub(crate) fn prepared(lie: Option<Lie>) -> Result<(SimFs, State), String> {
        Self::prepared_with(lie, false)
    }

    /// As [`World::prepared`]; if `filled`, the next start keeps its segment instead of taking it over.
    pub(crate) fn prepared_with(lie: Option<Lie>, filled: bool) -> Result<(SimFs, State), String> {
        let fs = SimFs::new(1);
        let mut world = Self::open(&fs, lie, &History::new(State::new()), 1)?;
        for group in [1, 2] {
            world.run(Op::Append(group))?;
            world.run(Op::HardState(group))?;
            if filled && group == 1 {
                world.fill()?;
            }
            world.run(Op::Append(group))?;
        }
        let state = world.history.newest().clone();
        drop(world);
        Ok((fs, state))
    }

    /// Writes an entry of group 1 that takes half a segment, of zeros: tests that go over all bits pass over it.
    pub(crate) fn fill(&mut self) -> Result<(), String> {
        let group = self.history.newest().get(&GroupId(1)).cloned();
        let (last, term) = group.unwrap_or_default().last();
        let mut entry = self.entry(last.next(), term.max(Term(1)), 0);
        entry.payload = vec![0; 8 << 10].into();
        let mut batch = WriteBatch::new();
        batch.push(GroupId(1), Record::Entries(vec![entry]));
        self.history.submit(&batch);
        self.log.write(batch).map_err(|error| error.to_string())?;
        self.history.ack_all();
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.unique += 1;
        self.unique
    }

    pub(crate) fn entry(&mut self, index: Index, term: Term, len: usize) -> Entry {
        let number = self.number();
        // A lost sector is zero, and so is part of a payload.
        let payload: Vec<u8> = (0..len)
            .map(|at| match at / 300 % 3 {
                2 => 0,
                _ => (number as u8).wrapping_mul(31).wrapping_add(at as u8) | 1,
            })
            .chain(number.to_le_bytes())
            .collect();
        Entry {
            index,
            term,
            kind: EntryKind::Normal,
            payload: payload.into(),
        }
    }

    /// The batch that does `op` to the newest state; `None` for what is not one batch.
    pub(crate) fn batch(&mut self, op: Op) -> Option<WriteBatch> {
        let mut batch = WriteBatch::new();
        let id = match op {
            Op::Append(id) | Op::Overwrite(id) | Op::Truncate(id) | Op::Compact(id) => GroupId(id),
            Op::HardState(id) | Op::Incarnation(id) | Op::Destroy(id) => GroupId(id),
            Op::Roll => GroupId(1),
            Op::Snapshot(_) | Op::Close => return None,
        };
        let Some(group) = self.history.newest().get(&id).cloned() else {
            // Group 1 belongs to somebody who has never heard of creations.
            let creation = match id {
                GroupId(1) => 0,
                _ => self.number(),
            };
            let base = Base {
                creation,
                ..Base::default()
            };
            batch.push(id, Record::Compact(base));
            if !matches!(op, Op::Destroy(_)) {
                let entry = self.entry(Index(1), Term(1), 40);
                batch.push(id, Record::Entries(vec![entry]));
            }
            return Some(batch);
        };
        let (last, term) = group.last();
        let record = match op {
            Op::Append(_) => Record::Entries(vec![self.entry(last.next(), term.max(Term(1)), 40)]),
            Op::Roll => Record::Entries(vec![self.entry(last.next(), term.max(Term(1)), 12 << 10)]),
            Op::Overwrite(_) => {
                let from = last.max(group.base.index.next());
                let term = Term(term.0 + 1);
                let entries = vec![
                    self.entry(from, term, 30),
                    self.entry(from.next(), term, 700),
                ];
                Record::Entries(entries)
            }
            Op::Truncate(_) => Record::Truncate(last.max(group.base.index.next())),
            Op::Compact(_) => Record::Compact(Base {
                index: last,
                term,
                creation: group.base.creation,
                membership: b"members".as_slice().into(),
            }),
            Op::HardState(_) => Record::HardState(HardState {
                term: Term(group.hard.term.max(term).0 + 1),
                vote: Some(NodeId(self.number())),
                commit: last,
            }),
            Op::Incarnation(_) => Record::Incarnation(Incarnation {
                number: group.incarnation.number + u64::from(!group.incarnation.guarded),
                guarded: !group.incarnation.guarded,
            }),
            Op::Destroy(_) => Record::Destroy,
            Op::Snapshot(_) | Op::Close => unreachable!("returned above"),
        };
        batch.push(id, record);
        Some(batch)
    }

    /// Writes a snapshot file of a group; the batch that refers to it.
    pub(crate) fn snapshot(&mut self, id: u64) -> Result<Option<WriteBatch>, String> {
        let id = GroupId(id);
        let Some(group) = self.history.newest().get(&id).cloned() else {
            return Ok(None);
        };
        let (index, term) = group.last();
        let meta = SnapshotMeta {
            group: id,
            creation: group.base.creation,
            index,
            term,
            membership: b"members".as_slice().into(),
        };
        let reference = self.write_snapshot(meta)?;
        let mut batch = WriteBatch::new();
        batch.push(id, Record::SnapshotRef(reference));
        Ok(Some(batch))
    }

    fn write_snapshot(&self, meta: SnapshotMeta) -> Result<SnapshotRef, String> {
        let text = |error: &dyn std::fmt::Display| format!("no snapshot: {error}");
        let writer = self.snapshots.create(meta);
        let mut writer = writer.map_err(|error| text(&error))?;
        writer.write_all(&[7; 700]).map_err(|error| text(&error))?;
        let pending = writer.finish().map_err(|error| text(&error))?;
        Ok(pending.keep())
    }

    /// Does `op` and waits until it is durable.
    pub(crate) fn run(&mut self, op: Op) -> Result<(), String> {
        let batch = match op {
            Op::Snapshot(id) => self.snapshot(id)?,
            Op::Close => {
                self.log.close().map_err(|error| error.to_string())?;
                let history = self.history.clone();
                *self = Self::open(&self.fs, self.lie, &history, self.unique)?;
                return Ok(());
            }
            op => self.batch(op),
        };
        let Some(batch) = batch else { return Ok(()) };
        self.history.submit(&batch);
        self.log.write(batch).map_err(|error| error.to_string())?;
        self.history.ack_all();
        Ok(())
    }
}

/// Crashes `fs` and starts: the log must hold what `history` allows, take another write, and after a power loss hold
/// exactly that, also when it is opened twice.
pub(crate) fn check_crash(
    fs: &SimFs,
    kind: CrashKind,
    lie: Option<Lie>,
    history: &History,
) -> Result<(), String> {
    fs.crash(kind);
    let mut world = World::open(fs, lie, history, 1 << 20)?;
    world.run(Op::Append(1))?;
    let certain = History::new(world.history.newest().clone());
    drop(world);
    fs.crash(CrashKind::Power);
    drop(World::open(fs, lie, &certain, 0)?);
    fs.crash(CrashKind::Process);
    drop(World::open(fs, lie, &certain, 0)?);
    Ok(())
}

/// Crashes `fs`, starts, and crashes again at each operation of that start.
pub(crate) fn check_crash_in_recovery(
    fs: &SimFs,
    kind: CrashKind,
    lie: Option<Lie>,
    history: &History,
) -> Result<usize, String> {
    fs.crash(kind);
    fs.keep_images();
    let world = World::open(fs, lie, history, 1 << 20)?;
    let images = fs.take_images();
    // What a power loss left is on the disk, so each later start must find the same. A process leaves more behind than
    // is on the disk, and losing power during the start may take it.
    let settled = History::new(world.history.newest().clone());
    drop(world);
    for (at, image) in images.iter().enumerate() {
        let second = [CrashKind::Power, CrashKind::Process][at % 2];
        let allowed = match (kind, second) {
            (CrashKind::Process, CrashKind::Power) => history,
            _ => &settled,
        };
        check_crash(&image.fork(at as u64), second, lie, allowed)
            .map_err(|text| format!("{second:?} at operation {at} of the start: {text}"))?;
    }
    Ok(images.len())
}
