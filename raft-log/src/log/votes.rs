//! The slot file `votes`: each group's term and vote, kept a second time.
//!
//! A slot is written and synced before the log batch that carries the same change, so one crash tears at most one of
//! the two. A group has two blocks, written in turn. The writer calls this; `recovery` merges it with the log.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::format::{u32_at, u64_at};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{GroupId, LogError, NodeId, StoreId, Term};

const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"FLOTVOT\x01";

/// One block that verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) group: GroupId,
    pub(super) creation: u64,
    pub(super) term: Term,
    pub(super) vote: Option<NodeId>,
}

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    /// Blocks that are neither empty nor verify.
    pub(super) damaged: usize,
}

#[derive(Debug)]
pub(super) struct Votes {
    path: PathBuf,
    store: StoreId,
    file: Box<dyn VfsFile>,
    /// Number of each group's pair of blocks, and how often it was written.
    places: BTreeMap<GroupId, (u64, u64)>,
}

fn encode(store: StoreId, slot: &Slot, sequence: u64) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    out[..8].copy_from_slice(MAGIC);
    let words = [
        store.0,
        slot.group.0,
        slot.creation,
        sequence,
        slot.term.0,
        u64::from(slot.vote.is_some()),
        slot.vote.unwrap_or_default().0,
    ];
    for (at, word) in words.iter().enumerate() {
        out[8 + at * 8..16 + at * 8].copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[..64]);
    out[64..68].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(store: StoreId, block: &[u8]) -> Option<Slot> {
    if &block[..8] != MAGIC
        || u64_at(block, 8) != store.0
        || u32_at(block, 64) != crc32fast::hash(&block[..64])
    {
        return None;
    }
    let vote = (u64_at(block, 48) == 1).then(|| NodeId(u64_at(block, 56)));
    Some(Slot {
        group: GroupId(u64_at(block, 16)),
        creation: u64_at(block, 24),
        term: Term(u64_at(block, 40)),
        vote,
    })
}

/// Reads the slots of a directory; a missing file has none.
pub(super) fn read(
    vfs: &SharedVfs,
    dir: &std::path::Path,
    store: StoreId,
) -> Result<Slots, LogError> {
    let path = dir.join("votes");
    let file = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Slots::default()),
        Err(error) => return Err(LogError::io("cannot open the vote slots", &path, error)),
    };
    let len = file
        .len()
        .map_err(|error| LogError::io("cannot read the vote slots", &path, error))?;
    let mut out = Slots::default();
    let mut block = [0; BLOCK];
    for at in 0..len / BLOCK as u64 {
        match file.read_exact_at(&mut block, at * BLOCK as u64) {
            Err(_) => out.damaged += 1,
            Ok(()) if block.iter().all(|byte| *byte == 0) => {}
            Ok(()) => match decode(store, &block) {
                Some(slot) => out.slots.push(slot),
                None => out.damaged += 1,
            },
        }
    }
    Ok(out)
}

impl Votes {
    /// Writes a new file with both blocks of each slot, syncs it, and puts it in the place of the old one.
    pub(super) fn create(
        vfs: &SharedVfs,
        dir: &std::path::Path,
        store: StoreId,
        slots: &[Slot],
    ) -> Result<Self, LogError> {
        let (path, temporary) = (dir.join("votes"), dir.join("votes.tmp"));
        let mut prepared = super::segment::prepare(&**vfs, &temporary, 0)?;
        let mut places = BTreeMap::new();
        for (number, slot) in slots.iter().enumerate() {
            let number = number as u64;
            for half in 0..2 {
                prepared
                    .file
                    .write_all_at(
                        &encode(store, slot, half),
                        (number * 2 + half) * BLOCK as u64,
                    )
                    .map_err(|error| {
                        LogError::io("cannot write the vote slots", &temporary, error)
                    })?;
            }
            places.insert(slot.group, (number, 2));
        }
        let failed = |error| LogError::io("cannot sync the vote slots", &path, error);
        prepared.file.sync_data().map_err(failed)?;
        vfs.rename(&temporary, &path).map_err(failed)?;
        vfs.sync_dir(dir).map_err(failed)?;
        prepared.file = vfs.open(&path, OpenMode::ReadWrite).map_err(failed)?;
        Ok(Self {
            path,
            store,
            file: prepared.file,
            places,
        })
    }

    /// Writes and syncs the slots of groups whose term or vote changed.
    pub(super) fn write(&mut self, slots: &[Slot]) -> Result<(), LogError> {
        for slot in slots {
            let free = self.places.len() as u64;
            let place = self.places.entry(slot.group).or_insert((free, 0));
            let block = place.0 * 2 + place.1 % 2;
            place.1 += 1;
            self.file
                .write_all_at(&encode(self.store, slot, place.1), block * BLOCK as u64)
                .map_err(|error| LogError::io("cannot write a vote slot", &self.path, error))?;
        }
        self.file
            .sync_data()
            .map_err(|error| LogError::io("cannot sync a vote slot", &self.path, error).latched())
    }
}
