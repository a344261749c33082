//! Files that hold a whole group's state, each complete and verified or not there at all.
//!
//! For lagging peers, for backups, and for users of the crate whose state lives in memory: instead
//! of all entries since the first, the state as of one index, and the entries after it.
//!
//! # Making one
//!
//! [`SnapshotStore::create`] gives a [`SnapshotWriter`], which is an [`std::io::Write`]: the content is
//! the caller's. It goes to a temporary file, chunk by chunk, in constant memory.
//! [`SnapshotWriter::finish`] syncs it, gives it its name and syncs the directory; so a file under
//! its final name is complete and durable. What comes back, a [`PendingSnapshot`], counts once the
//! log refers to it: [`SnapshotStore::install`] writes that record, and only then removes what is
//! older than the last two. From then on the owner may compact the log up to the snapshot's index.
//!
//! ```
//! use std::io::{Read, Write};
//! use raft_log::snapshot::{RestorePoint, SnapshotMeta, SnapshotStore};
//! use raft_log::{Base, GroupId, Index, Log, LogOptions, Record, StoreId, Term, WriteBatch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let fs = raft_log::vfs::SimFs::new(1);
//! # let (vfs, data) = (fs.shared(), std::path::Path::new("/data"));
//! let (group, store) = (GroupId(1), StoreId(0x5f0c));
//! let (log, _) = Log::open(vfs.clone(), LogOptions::new(data.join("log"), store))?;
//! let snapshots = SnapshotStore::open(vfs, data.join("snap"), store)?;
//! println!("{}", snapshots.recover(&log)?);
//! # let mut batch = WriteBatch::new();
//! # batch.push(group, Record::Compact(Base { creation: 1, ..Base::default() }));
//! # batch.push(group, Record::Entries(vec![raft_log::Entry {
//! #     index: Index(1), term: Term(1), kind: raft_log::EntryKind::Normal, payload: "x".into(),
//! # }]));
//! # log.write(batch)?;
//!
//! let mut writer = snapshots.create(SnapshotMeta {
//!     group,
//!     creation: 1,
//!     index: Index(1),
//!     term: Term(1),
//!     membership: "me".into(),
//! })?;
//! writer.write_all(b"all of the state")?;
//! let installed = snapshots.install(&log, writer.finish()?)?;
//!
//! // After a restart:
//! match snapshots.restore(&log, group)? {
//!     RestorePoint::Snapshot { snapshot, .. } => {
//!         assert_eq!(snapshot, installed.snapshot);
//!         let mut state = String::new();
//!         snapshots.open_snapshot(group, &snapshot)?.read_to_string(&mut state)?;
//!         assert_eq!(state, "all of the state");
//!     }
//!     RestorePoint::Log => { /* apply the log from its first entry */ }
//!     RestorePoint::Nothing { log_begins } => panic!("nothing before index {log_begins}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Sending and receiving
//!
//! [`SnapshotStore::send`] gives a [`SnapshotSender`]: a [`SnapshotManifest`] to announce, and
//! chunks as they lie in the file. [`SnapshotStore::receive`] takes the manifest, and the
//! [`SnapshotReceiver`] says which chunk to go on with: 0, or what a receive that was cut short by
//! a lost connection or a crash has verified already. Every chunk is verified before it is written,
//! and the whole before it gets a name. How both travel is up to the caller.
//!
//! ```
//! # use std::io::Write;
//! # use raft_log::snapshot::{SnapshotError, SnapshotMeta, SnapshotStore};
//! # use raft_log::{GroupId, Index, SnapshotRef, Term};
//! fn copy(
//!     from: &SnapshotStore,
//!     to: &SnapshotStore,
//!     group: GroupId,
//!     snapshot: &SnapshotRef,
//! ) -> Result<raft_log::snapshot::PendingSnapshot, SnapshotError> {
//!     let mut sender = from.send(group, snapshot)?;
//!     let mut receiver = to.receive(sender.manifest(), 1)?;
//!     sender.seek(receiver.next())?;
//!     while let Some((number, chunk)) = sender.next_chunk()? {
//!         receiver.push(number, &chunk)?;
//!     }
//!     receiver.finish()
//! }
//! # let open = |seed| {
//! #     SnapshotStore::open(raft_log::vfs::SimFs::new(seed).shared(), "/snap", seed.into())
//! # };
//! # let (from, to) = (open(1).unwrap(), open(2).unwrap());
//! # let (group, index, term) = (GroupId(1), Index(9), Term(1));
//! # let meta = SnapshotMeta { group, creation: 1, index, term, membership: "".into() };
//! # let mut writer = from.create(meta).unwrap();
//! # writer.write_all(b"state").unwrap();
//! # let snapshot = writer.finish().unwrap().keep();
//! # assert_eq!(copy(&from, &to, group, &snapshot).unwrap().reference().content_len, 5);
//! ```
//!
//! # What is kept
//!
//! The last two that the log referred to, and whatever is open: a reader, a sender or a
//! [`SnapshotPin`] keeps its file. [`SnapshotStore::recover`] removes, at a start, what has no
//! record. Numbers name the files; none is ever used twice in a store, so a name that was once seen
//! means the same bytes or none.
//!
//! # When a sync fails
//!
//! The first failed sync, of a file or of a directory, is final: every later call that changes something, of every handle
//! and writer, returns [`SnapshotError::Failed`] with the cause of the first. A sync is never tried again. Reading and
//! sending go on.
//!
//! What this module does not do: decide when to make a snapshot or when the log may be compacted,
//! interpret content, or speak a protocol. The layout is in `docs/FORMAT.md`, what each crash
//! leaves in `docs/DURABILITY.md`.

mod catalog;
mod chunk;
mod error;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod install;
mod latch;
mod number;
mod options;
mod output;
mod pending;
mod pins;
mod reader;
mod receiver;
mod restore;
#[cfg(all(test, feature = "fuzzing"))]
mod round_trips;
mod sender;
mod shared;
mod syncer;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

pub use catalog::{Catalog, SnapshotFile};
use catalog::{PART_SUFFIX, TMP_SUFFIX, parse_part_name};
pub use chunk::Compression;
pub use error::SnapshotError;
use format::{Header, MEMBERSHIP_MAX};
pub use inspect::{ChunkInfo, SnapshotDetails};
pub use install::{Installed, Installing, SnapshotReport};
use latch::Latch;
use number::Numbers;
pub use options::{SnapshotMeta, SnapshotOptions};
use output::Output;
pub use pending::PendingSnapshot;
pub use pins::SnapshotPin;
pub use reader::SnapshotReader;
pub use receiver::SnapshotReceiver;
pub use restore::{RestorePoint, restore_point};
pub use sender::{SnapshotManifest, SnapshotSender};
use shared::Shared;
pub use writer::SnapshotWriter;

use crate::vfs::{OpenMode, SharedVfs};
use crate::{GroupId, SnapshotRef, StoreId};

/// The snapshots of all groups of one store. Cheap to clone; the caller holds the store's lock.
#[derive(Clone, Debug)]
pub struct SnapshotStore(Arc<Shared>);

impl SnapshotStore {
    /// Opens the store in `dir` with the default options.
    ///
    /// # Errors
    /// As [`SnapshotStore::open_with`].
    pub fn open(
        vfs: SharedVfs,
        dir: impl Into<PathBuf>,
        store: StoreId,
    ) -> Result<Self, SnapshotError> {
        Self::open_with(vfs, SnapshotOptions::new(dir, store))
    }

    /// Opens the store, creating it if needed: deletes what unfinished writers left, and syncs the
    /// directories, since a name that is visible after a crash need not be durable. Options out of
    /// bounds are brought within them.
    ///
    /// # Errors
    /// Of the file system; [`SnapshotError::NumbersUnknown`] when the counter of numbers is lost.
    pub fn open_with(vfs: SharedVfs, options: SnapshotOptions) -> Result<Self, SnapshotError> {
        let options = options.bounded();
        let (dir, latch) = (&options.dir, Latch::new(Arc::clone(&vfs)));
        latch.create_dir_all(dir)?;
        let catalog = Catalog::new(Arc::clone(&vfs), dir, Some(options.store));
        let mut is_new = true;
        for group in catalog.groups()? {
            let dir = catalog.group_dir(group);
            for name in catalog.names(group)? {
                if name.ends_with(TMP_SUFFIX) {
                    pins::remove(&vfs, &dir.join(name))?;
                } else {
                    is_new = false;
                }
            }
            latch.sync_dir(&dir)?;
        }
        let numbers = Numbers::open(Arc::clone(&latch), dir, options.store, is_new)?;
        latch.sync_dir(dir)?;
        Ok(Self(Shared::new(catalog, options, numbers, latch)))
    }

    /// Begins a snapshot. One of each group can be in the making, until it is installed or dropped.
    ///
    /// # Panics
    /// If the membership is longer than 1 MiB.
    pub fn create(&self, meta: SnapshotMeta) -> Result<SnapshotWriter, SnapshotError> {
        let len = meta.membership.len();
        assert!(len <= MEMBERSHIP_MAX, "a membership of {len} bytes");
        self.0.latch.healthy()?;
        let claim = self.0.claim_making(meta.group)?;
        let key = (meta.index, meta.term, self.0.draw_number()?);
        let header = Header {
            store: self.0.options.store,
            group: meta.group,
            creation: meta.creation,
            index: meta.index,
            term: meta.term,
            number: key.2,
            chunk_size: self.0.options.chunk_bytes,
            origin: None,
            membership: meta.membership,
        };
        let catalog = &self.0.catalog;
        let output = self.new_output(meta.group, catalog.tmp_path(meta.group, key))?;
        let path = catalog.path(meta.group, key);
        SnapshotWriter::create(claim, path, header, output)
    }

    /// Begins to receive a snapshot into the group's `creation`, or goes on where an earlier receive
    /// under an equal manifest was cut short. A partial file of another snapshot of the group is
    /// removed, and beyond [`receives_max`](SnapshotOptions::receives_max) the oldest one of any
    /// group.
    pub fn receive(
        &self,
        manifest: SnapshotManifest,
        creation: u64,
    ) -> Result<SnapshotReceiver, SnapshotError> {
        self.0.latch.healthy()?;
        let group = manifest.group;
        let claim = self.0.claim_receiving(group)?;
        let header = SnapshotReceiver::header(&claim, &manifest, creation)?;
        let output = match self.find_part(group, &header)? {
            Some(output) => output,
            None => {
                self.make_room_for_part()?;
                let snapshot = &manifest.snapshot;
                let key = (snapshot.index, snapshot.term, self.0.draw_number()?);
                let output = self.new_output(group, self.0.catalog.part_path(group, key))?;
                // So that a power cut does not take the name of what was synced.
                self.sync_group(group)?;
                output
            }
        };
        SnapshotReceiver::start(claim, manifest, header, output)
    }

    /// Opens a snapshot for reading; header and footer are verified and agree with `snapshot`.
    pub fn open_snapshot(
        &self,
        group: GroupId,
        snapshot: &SnapshotRef,
    ) -> Result<SnapshotReader, SnapshotError> {
        let pin = self.pin(group, snapshot);
        let (file, header, footer) = self.0.catalog.load(group, snapshot)?;
        let path = self.path(group, snapshot);
        Ok(SnapshotReader::new(path, file, header, footer, Some(pin)))
    }

    /// Opens a snapshot for sending; header and footer are verified and agree with `snapshot`.
    pub fn send(
        &self,
        group: GroupId,
        snapshot: &SnapshotRef,
    ) -> Result<SnapshotSender, SnapshotError> {
        let pin = self.pin(group, snapshot);
        let (file, header, footer) = self.0.catalog.load(group, snapshot)?;
        let path = self.path(group, snapshot);
        Ok(SnapshotSender::new(path, file, header, footer, pin))
    }

    /// Whether the store can still make and take snapshots.
    ///
    /// # Errors
    /// [`SnapshotError::Failed`] once a sync has failed: nothing is changed any more until the process ends.
    pub fn healthy(&self) -> Result<(), SnapshotError> {
        self.0.latch.healthy()
    }

    /// Keeps a snapshot from being removed while the pin lives. Whether it is there shows when it
    /// is opened.
    #[must_use]
    pub fn pin(&self, group: GroupId, snapshot: &SnapshotRef) -> SnapshotPin {
        self.0.pins.pin(&self.path(group, snapshot))
    }

    /// Reads a whole snapshot and checks every checksum.
    pub fn verify(&self, group: GroupId, snapshot: &SnapshotRef) -> Result<(), SnapshotError> {
        let mut reader = self.open_snapshot(group, snapshot)?;
        while !reader.next_chunk()?.is_empty() {}
        Ok(())
    }

    /// All files under a final name, ordered by group, index, term and number. Damage to one does
    /// not hide the others.
    pub fn list(&self) -> Result<Vec<SnapshotFile>, SnapshotError> {
        self.0.catalog.list()
    }

    /// Removes a snapshot for good, as soon as nobody has it open; one that is not there is removed
    /// already.
    ///
    /// Danger: it does not ask the log whether the snapshot is needed.
    pub fn remove(&self, group: GroupId, snapshot: &SnapshotRef) -> Result<(), SnapshotError> {
        self.0.pins.remove(&self.path(group, snapshot))?;
        self.sync_group(group)
    }

    /// The partial file of a receive that `header` begins as well. Others of the group are removed.
    fn find_part(&self, group: GroupId, header: &Header) -> Result<Option<Output>, SnapshotError> {
        let mut found = None;
        for name in self.0.catalog.names(group)? {
            if !name.ends_with(PART_SUFFIX) {
                continue;
            }
            let path = self.0.catalog.group_dir(group).join(name);
            let opened = self.0.catalog.vfs.open(&path, OpenMode::ReadWrite);
            let file = opened.map_err(SnapshotError::io(&path, "open"))?;
            let same = Header::read(&*file, &path, Some(self.0.options.store)).is_ok_and(|found| {
                Header {
                    number: header.number,
                    ..found
                } == *header
            });
            if same && found.is_none() {
                found = Some(Output::new(&self.0.latch, file, path, &self.0.options));
            } else {
                drop(file);
                pins::remove(&self.0.catalog.vfs, &path)?;
            }
        }
        Ok(found)
    }

    /// Removes the oldest partial files that no receive uses, so that one more is within the bound.
    fn make_room_for_part(&self) -> Result<(), SnapshotError> {
        let mut parts: Vec<(u64, PathBuf)> = Vec::new();
        let mut used = 0;
        for group in self.0.catalog.groups()? {
            let dir = self.0.catalog.group_dir(group);
            for name in self.0.catalog.names(group)? {
                match parse_part_name(&name) {
                    Some(_) if self.0.is_receiving(group) => used += 1,
                    Some((_, _, number)) => parts.push((number, dir.join(name))),
                    None => {}
                }
            }
        }
        parts.sort_unstable();
        let surplus = (used + parts.len() + 1).saturating_sub(self.0.options.receives_max);
        for (_, path) in parts.into_iter().take(surplus) {
            pins::remove(&self.0.catalog.vfs, &path)?;
        }
        Ok(())
    }

    /// Makes a file, and its directory if need be.
    fn new_output(&self, group: GroupId, path: PathBuf) -> Result<Output, SnapshotError> {
        self.0
            .latch
            .create_dir_all(&self.0.catalog.group_dir(group))?;
        let file = self
            .0
            .catalog
            .vfs
            .open(&path, OpenMode::CreateNew)
            .map_err(SnapshotError::io(&path, "create"))?;
        Ok(Output::new(&self.0.latch, file, path, &self.0.options))
    }

    fn path(&self, group: GroupId, snapshot: &SnapshotRef) -> PathBuf {
        self.0.catalog.path(group, catalog::key_of(snapshot))
    }
}
