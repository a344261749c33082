//! The first failed sync of a store, of whatever file or directory, is the last that it makes.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use raft_log::snapshot::{Compression, SnapshotError, SnapshotStore};
use raft_log::vfs::{OpenMode, SharedVfs, SimFs, Vfs, VfsFile, VfsLock};
use raft_log::{GroupId, IoMode, Log, SnapshotRef};

use crate::common::*;

/// Counts syncs, and fails one of them.
#[derive(Debug)]
struct Syncs {
    inner: SimFs,
    fails: u64,
    count: AtomicU64,
    /// What was synced when it failed.
    failed: Mutex<Option<String>>,
}

impl Syncs {
    fn note(&self, what: &Path) -> io::Result<()> {
        if self.count.fetch_add(1, Relaxed) != self.fails {
            return Ok(());
        }
        *self.failed.lock().unwrap() = Some(what.display().to_string());
        Err(io::Error::other("the disk is broken"))
    }

    fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap().clone()
    }
}

#[derive(Clone, Debug)]
struct Watched(Arc<Syncs>);

impl Vfs for Watched {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn VfsFile>> {
        Ok(Box::new(WatchedFile {
            inner: self.0.inner.open(path, mode)?,
            path: path.to_owned(),
            fs: self.clone(),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.inner.remove(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.note(path)?;
        self.0.inner.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.inner.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.note(path)?;
        self.0.inner.sync_dir(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.0.inner.available(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn VfsLock>> {
        self.0.inner.lock(path)
    }
}

#[derive(Debug)]
struct WatchedFile {
    inner: Box<dyn VfsFile>,
    path: std::path::PathBuf,
    fs: Watched,
}

impl VfsFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fs.0.note(&self.path)?;
        self.inner.sync_data()
    }
}

/// The oldest snapshot, if an earlier failure has left one.
fn oldest(store: &SnapshotStore) -> Result<Option<SnapshotRef>, SnapshotError> {
    store
        .list()?
        .into_iter()
        .next()
        .map(|file| file.state)
        .transpose()
}

fn snapshot_of_nobody() -> SnapshotRef {
    let fs = SimFs::new(1);
    write(&open(&fs).unwrap(), 77, b"nobody").unwrap()
}

type Step = fn(&SnapshotStore, &Log) -> Result<(), SnapshotError>;

/// Everything that changes a store. The numbers of snapshots follow from the order: 1, 2, 3 and so on.
const STEPS: [(&str, Step); 9] = [
    ("first install", |store, log| {
        install(store, log, 1, b"x").map(drop)
    }),
    ("install of several syncs", |store, log| {
        install(store, log, 2, &content(10_000)).map(drop)
    }),
    ("install that removes the oldest", |store, log| {
        install(store, log, 3, b"z").map(drop)
    }),
    ("receive that is given up", |store, _| {
        let (manifest, chunks) = offer(&peer(64, Compression::None), 6, b"given up");
        let mut receiver = store.receive(manifest, CREATION)?;
        receiver.push(0, &chunks[0])?;
        receiver.abort()
    }),
    ("receive", |store, log| {
        let (manifest, chunks) = offer(&peer(1000, Compression::Lz4), 5, &content(9_000));
        let mut receiver = store.receive(manifest, CREATION)?;
        push_rest(&mut receiver, &chunks)?;
        let installed = store.install(log, receiver.finish()?)?;
        installed.retention
    }),
    ("install while the oldest is read", |store, log| {
        let Some(oldest) = oldest(store)? else {
            return install(store, log, 7, b"y").map(drop);
        };
        let reader = store.open_snapshot(GROUP, &oldest)?;
        install(store, log, 7, b"y")?;
        drop(reader);
        Ok(())
    }),
    ("removal", |store, _| {
        let any = oldest(store)?.unwrap_or_else(snapshot_of_nobody);
        store.remove(GROUP, &any)
    }),
    ("start", |store, log| {
        let _orphan = make(store, meta(8), b"orphan")?.keep();
        store.recover(log).map(drop)
    }),
    ("removal of a group", |store, _| {
        let mut other = meta(1);
        other.group = GroupId(8);
        let _kept = make(store, other, b"other")?.keep();
        store.remove_group(GroupId(8))
    }),
];

/// True while some sync was left to fail.
fn fail_one(fails: u64, io: IoMode) -> bool {
    let fs = SimFs::new(fails);
    let log = log_with_entries(&fs, 20);
    let watched = Watched(Arc::new(Syncs {
        inner: fs.clone(),
        fails,
        count: AtomicU64::new(0),
        failed: Mutex::default(),
    }));
    let shared: SharedVfs = Arc::new(watched.clone());
    let mut options = coarse_options();
    options.io = io;
    let store = match SnapshotStore::open_with(shared, options) {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains("the disk is broken"), "{error}");
            assert_eq!(watched.0.count.load(Relaxed), fails + 1);
            return true;
        }
    };
    for (name, step) in STEPS {
        let before = watched.0.failed();
        let outcome = step(&store, &log);
        let place = format!("sync {fails} on {io:?}, step {name:?}: {outcome:?}");
        let Some(culprit) = watched.0.failed() else {
            outcome.expect(name);
            continue;
        };
        match outcome {
            // Whoever lets a file go last has nobody to tell; the store knows.
            Ok(()) => assert!(before.is_none() && name.contains("read"), "{place}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("the disk is broken"), "{place}");
                assert!(text.contains(&culprit), "{place}, not {culprit}");
                let latched = matches!(error, SnapshotError::Failed { .. });
                assert!(before.is_none() || latched, "{place}");
            }
        }
    }
    let Some(culprit) = watched.0.failed() else {
        return false;
    };
    assert_eq!(watched.0.count.load(Relaxed), fails + 1, "synced {culprit}");
    let refused = store.create(meta(9)).unwrap_err();
    assert!(matches!(refused, SnapshotError::Failed { .. }), "{refused}");
    // What the log refers to is still read.
    if let Some(snapshot) = log.group(GROUP).unwrap().snapshot {
        store.verify(GROUP, &snapshot).unwrap();
        assert!(store.send(GROUP, &snapshot).unwrap().next_chunk().is_ok());
        assert!(!store.list().unwrap().is_empty());
    }
    true
}

#[test]
fn store_after_any_failed_sync_makes_no_other_and_names_the_first_cause() {
    for io in [IoMode::Inline, IoMode::Thread] {
        let mut syncs = 0;
        while fail_one(syncs, io) {
            syncs += 1;
        }
        // Each step syncs a file, a directory or both at least once.
        assert!(syncs > 2 * STEPS.len() as u64, "{syncs}");
    }
}

#[test]
fn store_after_a_failed_write_or_a_full_disk_goes_on() {
    let fs = SimFs::new(1);
    let store = open(&fs).unwrap();
    write(&store, 1, b"x").unwrap();
    fs.fail_next(raft_log::vfs::sim::Fault::Write);
    write(&store, 2, b"x").unwrap_err();
    fs.set_capacity(Some(0));
    write(&store, 2, b"x").unwrap_err();
    fs.set_capacity(None);
    write(&store, 2, b"x").unwrap();
}
