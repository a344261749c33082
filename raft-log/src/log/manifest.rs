//! `MANIFEST`: which segments there must be.
//!
//! Two blocks, written and synced in turn, so that a crash tears at most one. A segment is named here after its own
//! name is durable and before the first batch that is acknowledged goes into it. So a missing segment that is named
//! was lost, and one that is not named yet holds nothing that another one does not hold as well. A segment is struck
//! off before it is removed. `recovery` decides what follows from a block; each start writes the file anew.

use std::io;
use std::path::{Path, PathBuf};

use super::format::{u16_at, u32_at, u64_at};
use super::segment;
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{ErrorKind, LogError, StoreId};

pub(super) const BLOCK: usize = 4096;
const USED: usize = 64;
pub(super) const MAGIC: &[u8; 8] = b"FLOTMAN\x01";
pub(super) const VERSION: u16 = 1;

/// What a block says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Counts writes; the block with the higher one is the newer.
    pub(super) generation: u64,
    /// Segments below this one hold nothing that is needed.
    pub(super) oldest: u64,
    /// The newest segment that batches may have gone into.
    pub(super) newest: u64,
    /// Batches up to this one were synced.
    pub(super) synced_seq: u64,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No file: a new log, or one that was never opened to the end.
    Absent,
    /// Both blocks verify; this is the newer one.
    Whole(Contents),
    /// One block does not verify: the other may be older by one write.
    Half(Contents),
    /// Neither verifies.
    Damaged,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Manifest {
    path: PathBuf,
    store: StoreId,
    file: Box<dyn VfsFile>,
    contents: Contents,
}

pub(super) fn encode(store: StoreId, contents: &Contents) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    out[0..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let words = [
        store.0,
        contents.generation,
        contents.oldest,
        contents.newest,
        contents.synced_seq,
    ];
    for (at, word) in words.iter().enumerate() {
        out[12 + at * 8..20 + at * 8].copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[..60]);
    out[60..USED].copy_from_slice(&crc.to_le_bytes());
    out
}

/// A block whose checksum verifies.
pub(super) enum Block {
    Sound(StoreId, Contents),
    Newer(u16),
}

pub(super) fn decode(data: &[u8]) -> Option<Block> {
    if &data[..8] != MAGIC || u32_at(data, 60) != crc32fast::hash(&data[..60]) {
        return None;
    }
    let version = u16_at(data, 8);
    if version != VERSION {
        return Some(Block::Newer(version));
    }
    if u16_at(data, 10) != 0 || u64_at(data, 52) != 0 {
        return None;
    }
    let contents = Contents {
        generation: u64_at(data, 20),
        oldest: u64_at(data, 28),
        newest: u64_at(data, 36),
        synced_seq: u64_at(data, 44),
    };
    Some(Block::Sound(StoreId(u64_at(data, 12)), contents))
}

/// Reads the manifest of a directory.
///
/// # Errors
/// A newer format, another store, and a file that cannot be opened or read. A block that cannot be read, twice, is a damaged one,
/// as long as the other one is sound.
pub(super) fn read(vfs: &SharedVfs, dir: &Path, store: StoreId) -> Result<Found, LogError> {
    let path = dir.join("MANIFEST");
    let file = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(error) => return Err(LogError::io("cannot open the manifest", &path, error)),
    };
    let (mut sound, mut unread) = (Vec::new(), None);
    for at in [0, BLOCK as u64] {
        let mut data = [0; USED];
        if let Err(error) = read_block(&*file, &mut data, at) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                unread.get_or_insert(error);
            }
            continue;
        }
        match decode(&data) {
            None => {}
            Some(Block::Newer(version)) => {
                return Err(LogError::differs(
                    ErrorKind::NewerFormat,
                    &path,
                    at,
                    format!("format {VERSION} or older"),
                    version.to_string(),
                    "open it with a newer version",
                ));
            }
            Some(Block::Sound(owner, _)) if owner != store => {
                return Err(LogError::differs(
                    ErrorKind::ForeignStore,
                    &path,
                    at,
                    format!("store {store}"),
                    owner.to_string(),
                    "the file belongs to another data directory, move it back",
                ));
            }
            Some(Block::Sound(_, contents)) => sound.push(contents),
        }
    }
    if let Some(error) = unread.filter(|_| sound.is_empty()) {
        return Err(LogError::io("cannot read the manifest", &path, error));
    }
    let newer = sound.iter().max_by_key(|contents| contents.generation);
    Ok(match (newer, sound.len()) {
        (None, _) => Found::Damaged,
        (Some(contents), 1) => Found::Half(*contents),
        (Some(contents), _) => Found::Whole(*contents),
    })
}

/// Tries a second time: a block that only failed to be read once may be the one that names the newest segment, and without it
/// nobody would miss that.
fn read_block(file: &dyn VfsFile, data: &mut [u8], at: u64) -> io::Result<()> {
    match file.read_exact_at(data, at) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => file.read_exact_at(data, at),
        outcome => outcome,
    }
}

/// Offsets of the blocks that do not verify; none when there is no file that can be read.
pub(super) fn damaged(vfs: &SharedVfs, dir: &Path) -> Vec<u64> {
    let Ok(file) = vfs.open(&dir.join("MANIFEST"), OpenMode::Read) else {
        return Vec::new();
    };
    let mut offsets = vec![0, BLOCK as u64];
    offsets.retain(|at| {
        let mut data = [0; USED];
        file.read_exact_at(&mut data, *at).is_err() || decode(&data).is_none()
    });
    offsets
}

impl Manifest {
    /// Writes a new file and puts it in the place of the old one.
    #[cfg(test)]
    pub(super) fn create(
        vfs: &SharedVfs,
        dir: &Path,
        store: StoreId,
        contents: Contents,
    ) -> Result<Self, LogError> {
        Self::prepare(vfs, dir, store, contents)?;
        Self::publish(vfs, dir, store, contents)
    }

    /// Writes and syncs a new file with both blocks alike, under a temporary name; without room for it nothing is left of it.
    pub(super) fn prepare(
        vfs: &SharedVfs,
        dir: &Path,
        store: StoreId,
        contents: Contents,
    ) -> Result<(), LogError> {
        let temporary = dir.join("MANIFEST.tmp");
        let failed = |error| LogError::io("cannot write the manifest", &temporary, error);
        let prepared = segment::prepare(&**vfs, &temporary, 0)?;
        let block = encode(store, &contents);
        let written = prepared.file.write_all_at(&[block, block].concat(), 0);
        if let Err(error) = written.and_then(|()| prepared.file.sync_data()) {
            drop(prepared);
            let _ = vfs.remove(&temporary);
            return Err(failed(error));
        }
        Ok(())
    }

    /// Puts the file that was prepared in the place of the old one.
    pub(super) fn publish(
        vfs: &SharedVfs,
        dir: &Path,
        store: StoreId,
        contents: Contents,
    ) -> Result<Self, LogError> {
        let (path, temporary) = (dir.join("MANIFEST"), dir.join("MANIFEST.tmp"));
        let failed = |error| LogError::io("cannot sync the manifest", &path, error);
        vfs.rename(&temporary, &path).map_err(failed)?;
        vfs.sync_dir(dir).map_err(failed)?;
        let file = vfs.open(&path, OpenMode::ReadWrite).map_err(failed)?;
        Ok(Self {
            path,
            store,
            file,
            contents,
        })
    }

    /// Takes the file over as it is, on a disk without room for a new one. `found` is its newest block, which may be in
    /// memory only: it is written again and synced before the other one says `contents`.
    pub(super) fn refresh(
        vfs: &SharedVfs,
        dir: &Path,
        store: StoreId,
        found: Contents,
        contents: Contents,
    ) -> Result<Self, LogError> {
        let path = dir.join("MANIFEST");
        let failed = |error| LogError::io("cannot write the manifest anew", &path, error);
        let file = vfs.open(&path, OpenMode::ReadWrite).map_err(failed)?;
        let at = found.generation % 2 * BLOCK as u64;
        file.write_all_at(&encode(store, &found), at)
            .map_err(failed)?;
        file.sync_data().map_err(failed)?;
        let mut manifest = Self {
            path: path.clone(),
            store,
            file,
            contents: found,
        };
        manifest.write(contents)?;
        manifest.write(contents)?;
        Ok(manifest)
    }

    /// Names a new newest segment.
    pub(super) fn name(&mut self, newest: u64, synced_seq: u64) -> Result<(), LogError> {
        assert!(newest > self.contents.newest, "segments are named in order");
        self.write(Contents {
            newest,
            synced_seq,
            ..self.contents
        })
    }

    /// Strikes off what is older than `oldest`.
    pub(super) fn strike(&mut self, oldest: u64) -> Result<(), LogError> {
        assert!(
            oldest >= self.contents.oldest && oldest <= self.contents.newest,
            "the newest segment stays"
        );
        self.write(Contents {
            oldest,
            ..self.contents
        })
    }

    fn write(&mut self, mut contents: Contents) -> Result<(), LogError> {
        contents.generation = self.contents.generation + 1;
        let at = contents.generation % 2 * BLOCK as u64;
        let failed = |error| LogError::io("cannot write the manifest", &self.path, error).latched();
        self.file
            .write_all_at(&encode(self.store, &contents), at)
            .map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        self.contents = contents;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::vfs::SimFs;
    use crate::vfs::sim::Fault;

    const FIRST: Contents = Contents {
        generation: 4,
        oldest: 2,
        newest: 3,
        synced_seq: 17,
    };

    #[test]
    fn manifest_with_one_bad_block_gives_the_other_and_with_two_nothing() {
        let fs = SimFs::new(1);
        let vfs: SharedVfs = Arc::new(fs.clone());
        let dir = Path::new("/");
        assert_eq!(read(&vfs, dir, StoreId(1)).unwrap(), Found::Absent);
        let mut manifest = Manifest::create(&vfs, dir, StoreId(1), FIRST).unwrap();
        assert_eq!(read(&vfs, dir, StoreId(1)).unwrap(), Found::Whole(FIRST));
        manifest.name(4, 20).unwrap();
        manifest.strike(3).unwrap();
        let last = Contents {
            generation: 6,
            oldest: 3,
            newest: 4,
            synced_seq: 20,
        };
        assert_eq!(read(&vfs, dir, StoreId(1)).unwrap(), Found::Whole(last));
        // Generation 6 lies in the first block, 5 in the second.
        fs.corrupt("/MANIFEST", 30, 1).unwrap();
        let before = Contents {
            generation: 5,
            oldest: 2,
            ..last
        };
        assert_eq!(read(&vfs, dir, StoreId(1)).unwrap(), Found::Half(before));
        fs.corrupt("/MANIFEST", 4096, 1).unwrap();
        assert_eq!(read(&vfs, dir, StoreId(1)).unwrap(), Found::Damaged);
    }

    #[test]
    fn manifest_whose_newer_block_fails_to_be_read_once_is_whole() {
        let fs = SimFs::new(1);
        let vfs: SharedVfs = Arc::new(fs.clone());
        let dir = Path::new("/");
        let mut manifest = Manifest::create(&vfs, dir, StoreId(1), FIRST).unwrap();
        manifest.name(4, 20).unwrap();
        for nth in 0..2 {
            fs.fail_nth(Fault::Read, nth);
            let Found::Whole(found) = read(&vfs, dir, StoreId(1)).unwrap() else {
                panic!("both blocks can be read");
            };
            assert_eq!(found.newest, 4);
            assert_eq!(fs.take_struck(), [Fault::Read]);
        }
        // Its place is the second one, which is read after the first.
        fs.fail_nth(Fault::Read, 1);
        fs.fail_nth(Fault::Read, 2);
        assert_eq!(read(&vfs, dir, StoreId(1)).unwrap(), Found::Half(FIRST));
    }

    #[test]
    fn manifest_of_another_store_or_a_newer_version_is_refused() {
        let vfs: SharedVfs = Arc::new(SimFs::new(1));
        let dir = Path::new("/");
        Manifest::create(&vfs, dir, StoreId(1), FIRST).unwrap();
        let error = read(&vfs, dir, StoreId(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ForeignStore, "{error}");
        let mut block = encode(StoreId(1), &FIRST);
        block[8] = 9;
        let crc = crc32fast::hash(&block[..60]);
        block[60..64].copy_from_slice(&crc.to_le_bytes());
        let file = vfs
            .open(&dir.join("MANIFEST"), OpenMode::ReadWrite)
            .unwrap();
        file.write_all_at(&block, 0).unwrap();
        let error = read(&vfs, dir, StoreId(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NewerFormat, "{error}");
    }
}
