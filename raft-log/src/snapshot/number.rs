//! The counter that names snapshots: no number is handed out twice within a store, whatever
//! crashes and whatever was removed meanwhile.
//!
//! Numbers are reserved by the block. The end of the block is on disk before its first number is
//! handed out, and a start goes on behind it. The file holds two equal copies, so that one damaged
//! sector does not stop a store; where both are damaged the counter is unknown, and that is an
//! error, for guessing would be reuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SnapshotError;
use super::format::{read_exact, u32_at, u64_at};
use super::latch::Latch;
use crate::StoreId;
use crate::vfs::{OpenMode, VfsFile};

const NAME: &str = "NUMBERS";
const NAME_TMP: &str = "NUMBERS.tmp";
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"FLOTSNUM");
pub(super) const VERSION: u16 = 1;
pub(super) const COPY_LEN: usize = 40;
/// The copies lie this far apart, so that no sector and no page holds both.
pub(super) const COPY_STRIDE: usize = 4096;
/// Numbers that one write of the file reserves.
const BLOCK: u64 = 64;

/// The numbers of one store.
#[derive(Debug)]
pub(super) struct Numbers {
    latch: Arc<Latch>,
    dir: PathBuf,
    store: StoreId,
    next: u64,
    /// Invariant: `next <= reserved`, and what is on disk is at least `reserved`.
    reserved: u64,
}

impl Numbers {
    /// Reads the counter. The caller syncs the directory before it draws. A missing file counts as
    /// new only in a store without snapshots.
    pub(super) fn open(
        latch: Arc<Latch>,
        dir: &Path,
        store: StoreId,
        is_new: bool,
    ) -> Result<Self, SnapshotError> {
        let path = dir.join(NAME);
        let reserved = match latch.vfs().open(&path, OpenMode::Read) {
            Ok(file) => read(&*file, &path, store).map_err(|error| match error {
                SnapshotError::Damaged { .. } => SnapshotError::NumbersUnknown {
                    path,
                    source: Box::new(error),
                },
                other => other,
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_new => 1,
            Err(error) => {
                let source = Box::new(SnapshotError::io(&path, "open")(error));
                return Err(SnapshotError::NumbersUnknown { path, source });
            }
        };
        Ok(Self {
            latch,
            dir: dir.to_owned(),
            store,
            next: reserved,
            reserved,
        })
    }

    /// A number that was never drawn before.
    pub(super) fn draw(&mut self) -> Result<u64, SnapshotError> {
        if self.next == self.reserved {
            let reserved = self.reserved.checked_add(BLOCK).expect("2^64 snapshots");
            self.write(reserved)?;
            self.reserved = reserved;
        }
        let number = self.next;
        self.next += 1;
        Ok(number)
    }

    fn write(&self, reserved: u64) -> Result<(), SnapshotError> {
        let (path, tmp) = (self.dir.join(NAME), self.dir.join(NAME_TMP));
        let vfs = self.latch.vfs();
        match vfs.remove(&tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(SnapshotError::io(&tmp, "remove")(error));
            }
            _ => {}
        }
        let file = vfs
            .open(&tmp, OpenMode::CreateNew)
            .map_err(SnapshotError::io(&tmp, "create"))?;
        let copy = encode(self.store, reserved);
        let mut bytes = vec![0; COPY_STRIDE + COPY_LEN];
        bytes[..COPY_LEN].copy_from_slice(&copy);
        bytes[COPY_STRIDE..].copy_from_slice(&copy);
        file.write_all_at(&bytes, 0)
            .map_err(SnapshotError::io(&tmp, "write"))?;
        self.latch.sync_file(&*file, &tmp)?;
        drop(file);
        vfs.rename(&tmp, &path)
            .map_err(SnapshotError::io(&tmp, "rename"))?;
        self.latch.sync_dir(&self.dir)
    }
}

pub(super) fn encode(store: StoreId, reserved: u64) -> [u8; COPY_LEN] {
    let mut out = [0; COPY_LEN];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&store.0.to_le_bytes());
    out[24..32].copy_from_slice(&reserved.to_le_bytes());
    let crc = crc32fast::hash(&out[..36]);
    out[36..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Either copy will do: both say the same.
pub(super) fn read(file: &dyn VfsFile, path: &Path, store: StoreId) -> Result<u64, SnapshotError> {
    let first = read_copy(file, path, store, 0);
    match first {
        Err(SnapshotError::Damaged { .. }) => {
            read_copy(file, path, store, COPY_STRIDE as u64).or(first)
        }
        other => other,
    }
}

pub(super) fn read_copy(
    file: &dyn VfsFile,
    path: &Path,
    store: StoreId,
    at: u64,
) -> Result<u64, SnapshotError> {
    let mut bytes = [0; COPY_LEN];
    read_exact(file, path, &mut bytes, at, "counter")?;
    SnapshotError::expect(path, at, "counter magic", MAGIC, u64_at(&bytes, 0))?;
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    let crc = crc32fast::hash(&bytes[..36]);
    SnapshotError::expect(path, at + 36, "counter checksum", crc, u32_at(&bytes, 36))?;
    if version > VERSION {
        return Err(SnapshotError::NewerVersion {
            path: path.to_owned(),
            supported: VERSION,
            found: version,
        });
    }
    SnapshotError::expect(path, at + 8, "format version", VERSION, version)?;
    let found = StoreId(u64_at(&bytes, 16));
    if found != store {
        return Err(SnapshotError::ForeignStore {
            path: path.to_owned(),
            expected: store,
            found,
        });
    }
    Ok(u64_at(&bytes, 24))
}
