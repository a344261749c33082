//! The slot file `votes`: each group's term and vote, kept a second time.
//!
//! A slot is written and synced before the log batch that carries the same change, so one crash tears at most one of
//! the two. A group has two blocks, written in turn. The writer calls this; `recovery` merges it with the log.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::format::{u32_at, u64_at, vote_of};
use crate::vfs::{OpenMode, SharedVfs, VfsFile};
use crate::{GroupId, LogError, NodeId, StoreId, Term};

pub(super) const BLOCK: usize = 4096;
/// Bytes that are read or written at a time; a multiple of a pair.
const CHUNK: usize = 1 << 20;
const EMPTY: [u8; BLOCK] = [0; BLOCK];
pub(super) const MAGIC: &[u8; 8] = b"FLOTVOT\x01";
/// Of a block that holds an incarnation too, before its checksum.
pub(super) const MAGIC_INCARNATION: &[u8; 8] = b"FLOTVOT\x02";

/// One block that verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) group: GroupId,
    pub(super) creation: u64,
    pub(super) term: Term,
    pub(super) vote: Option<NodeId>,
    /// Which of the member's logs it was written for.
    pub(super) incarnation: u64,
}

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By group.
    slots: Vec<Slot>,
    /// Groups of which one block does not verify, ascending.
    halves: Vec<GroupId>,
    /// Offsets of blocks that are neither empty nor verify.
    pub(super) damaged: Vec<u64>,
    /// Offsets of pairs with a damaged block and none that verifies: they may be anybody's.
    pub(super) orphans: Vec<u64>,
}

impl Slots {
    /// The slots of a group's present life.
    pub(super) fn of(&self, group: GroupId, creation: u64) -> &[Slot] {
        let key = (group, creation);
        let from = self
            .slots
            .partition_point(|slot| (slot.group, slot.creation) < key);
        let to = self
            .slots
            .partition_point(|slot| (slot.group, slot.creation) <= key);
        &self.slots[from..to]
    }

    /// The slots of each life of a group that has some.
    pub(super) fn by_group(&self) -> impl Iterator<Item = &[Slot]> {
        self.slots
            .chunk_by(|a, b| (a.group, a.creation) == (b.group, b.creation))
    }

    /// True when some group has seen a term.
    pub(super) fn any_vote(&self) -> bool {
        self.slots.iter().any(|slot| slot.term.0 > 0)
    }

    /// True when the other block of a group's slot is damaged.
    pub(super) fn is_half(&self, group: GroupId) -> bool {
        self.halves.binary_search(&group).is_ok()
    }

    /// Takes the two blocks of the pair at an offset: `None` for one that cannot be read.
    pub(super) fn take(&mut self, store: StoreId, at: u64, pair: [Option<&[u8]>; 2]) {
        let (before, mut owner) = (self.damaged.len(), None);
        for (half, block) in pair.into_iter().enumerate() {
            if block.is_some_and(|block| block.iter().all(|byte| *byte == 0)) {
                continue;
            }
            match block.and_then(|block| decode(store, block)) {
                Some(slot) => {
                    owner = Some(slot.group);
                    self.slots.push(slot);
                }
                None => self.damaged.push(at + (half * BLOCK) as u64),
            }
        }
        match owner {
            _ if self.damaged.len() == before => {}
            Some(group) => self.halves.push(group),
            None => self.orphans.push(at),
        }
    }
}

#[derive(Debug)]
pub(super) struct Votes {
    path: PathBuf,
    store: StoreId,
    file: Box<dyn VfsFile>,
    /// Number of each group's pair of blocks, and how often it was written.
    places: BTreeMap<GroupId, (u64, u64)>,
    /// Pairs in the file; the next new one lies behind them.
    pairs: u64,
}

pub(super) fn encode(store: StoreId, slot: &Slot, sequence: u64) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    let words = [
        store.0,
        slot.group.0,
        slot.creation,
        sequence,
        slot.term.0,
        u64::from(slot.vote.is_some()),
        slot.vote.unwrap_or_default().0,
        slot.incarnation,
    ];
    for (at, word) in words.iter().enumerate() {
        out[8 + at * 8..16 + at * 8].copy_from_slice(&word.to_le_bytes());
    }
    let (magic, end) = match slot.incarnation {
        0 => (MAGIC, 64),
        _ => (MAGIC_INCARNATION, 72),
    };
    out[..8].copy_from_slice(magic);
    let crc = crc32fast::hash(&out[..end]);
    out[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    out
}

pub(super) fn decode(store: StoreId, block: &[u8]) -> Option<Slot> {
    let (end, incarnation) = match &block[..8] {
        magic if magic == MAGIC => (64, 0),
        magic if magic == MAGIC_INCARNATION => (72, u64_at(block, 64)),
        _ => return None,
    };
    if u64_at(block, 8) != store.0 || u32_at(block, end) != crc32fast::hash(&block[..end]) {
        return None;
    }
    let vote = vote_of(u64_at(block, 48), u64_at(block, 56))?;
    Some(Slot {
        group: GroupId(u64_at(block, 16)),
        creation: u64_at(block, 24),
        term: Term(u64_at(block, 40)),
        vote,
        incarnation,
    })
}

/// The offset of the other block of a pair.
pub(super) fn other_half(at: u64) -> u64 {
    at ^ BLOCK as u64
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
    let mut chunk = vec![0; CHUNK.min(len as usize / BLOCK * BLOCK)];
    let mut at = 0;
    while at < len / BLOCK as u64 * BLOCK as u64 {
        let size = chunk.len().min((len - at) as usize / BLOCK * BLOCK);
        let whole = file.read_exact_at(&mut chunk[..size], at).is_ok();
        for pair in (0..size).step_by(2 * BLOCK) {
            let mut readable = [false; 2];
            for (half, readable) in readable.iter_mut().enumerate() {
                let start = pair + half * BLOCK;
                *readable = match chunk[..size].get_mut(start..start + BLOCK) {
                    // The file grows by blocks: the second one of a pair may not be there yet.
                    None => continue,
                    Some(_) if whole => true,
                    Some(block) => file.read_exact_at(block, at + start as u64).is_ok(),
                };
            }
            let block = |half: usize| {
                let start = pair + half * BLOCK;
                match chunk[..size].get(start..start + BLOCK) {
                    None => Some(&EMPTY[..]),
                    found => found.filter(|_| readable[half]),
                }
            };
            out.take(store, at + pair as u64, [block(0), block(1)]);
        }
        at += size as u64;
    }
    out.slots.sort_by_key(|slot| (slot.group, slot.creation));
    out.halves.sort_unstable();
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
            places.insert(slot.group, (number as u64, 2));
        }
        let (mut at, pairs) = (0, CHUNK / BLOCK / 2);
        for part in slots.chunks(pairs) {
            let halves = part.iter().flat_map(|slot| [(slot, 0), (slot, 1)]);
            let bytes: Vec<u8> = halves
                .flat_map(|(slot, half)| encode(store, slot, half))
                .collect();
            prepared
                .file
                .write_all_at(&bytes, at)
                .map_err(|error| LogError::io("cannot write the vote slots", &temporary, error))?;
            at += bytes.len() as u64;
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
            pairs: slots.len() as u64,
        })
    }

    /// As [`Votes::create`], on a disk without room for a new file: writes the blocks of the old one anew, one of each
    /// pair after the other, each synced. A slot that somebody was told about is on the disk, so it is not torn with its
    /// other block; and what was told to nobody may go.
    pub(super) fn refresh(
        vfs: &SharedVfs,
        dir: &std::path::Path,
        store: StoreId,
        slots: &[Slot],
    ) -> Result<Self, LogError> {
        let path = dir.join("votes");
        let failed = |error| LogError::io("cannot write the vote slots anew", &path, error);
        let file = vfs.open(&path, OpenMode::ReadWrite).map_err(failed)?;
        let pairs = file.len().map_err(failed)?.div_ceil(2 * BLOCK as u64);
        let (mut owners, mut free) = (BTreeMap::new(), Vec::new());
        for pair in (0..pairs).rev() {
            let owner = [0, 1].into_iter().find_map(|half| {
                let mut block = EMPTY;
                let at = (pair * 2 + half) * BLOCK as u64;
                file.read_exact_at(&mut block, at).ok()?;
                decode(store, &block)
            });
            let live = owner.filter(|owner| {
                let at = slots.binary_search_by_key(&owner.group, |slot| slot.group);
                at.is_ok() && !owners.contains_key(&owner.group)
            });
            match live {
                Some(slot) => drop(owners.insert(slot.group, pair)),
                None => free.push(pair),
            }
        }
        let mut end = pairs;
        let mut places = BTreeMap::new();
        for slot in slots {
            let pair = owners.get(&slot.group).copied().or_else(|| free.pop());
            let pair = pair.unwrap_or_else(|| {
                end += 1;
                end - 1
            });
            places.insert(slot.group, (pair, 2));
        }
        for half in [0, 1] {
            let at = |pair: u64| (pair * 2 + half) * BLOCK as u64;
            for slot in slots {
                let block = encode(store, slot, half);
                let place = at(places[&slot.group].0);
                file.write_all_at(&block, place).map_err(failed)?;
            }
            for pair in &free {
                file.write_all_at(&EMPTY, at(*pair)).map_err(failed)?;
            }
            file.sync_data().map_err(failed)?;
        }
        vfs.sync_dir(dir).map_err(failed)?;
        Ok(Self {
            path,
            store,
            file,
            places,
            pairs: end,
        })
    }

    /// True when the file says something of a group.
    pub(super) fn has(&self, group: GroupId) -> bool {
        self.places.get(&group).is_some_and(|place| place.1 > 0)
    }

    /// Empties and syncs the slots of groups whose end is synced: a later life of the same id must not find them. A crash
    /// meanwhile may leave any of them, which nobody asks for while the group is not there.
    pub(super) fn clear(&mut self, groups: &[GroupId]) -> Result<(), LogError> {
        for group in groups {
            let Some(place) = self.places.get_mut(group) else {
                continue;
            };
            place.1 = 0;
            let at = place.0 * 2 * BLOCK as u64;
            self.file
                .write_all_at(&[EMPTY, EMPTY].concat(), at)
                .map_err(|error| LogError::io("cannot empty a vote slot", &self.path, error))?;
        }
        self.file
            .sync_data()
            .map_err(|error| LogError::io("cannot sync a vote slot", &self.path, error).latched())
    }

    /// Writes and syncs the slots of groups whose term or vote changed.
    pub(super) fn write(&mut self, slots: &[Slot]) -> Result<(), LogError> {
        for slot in slots {
            let place = self.places.entry(slot.group).or_insert_with(|| {
                self.pairs += 1;
                (self.pairs - 1, 0)
            });
            let block = place.0 * 2 + place.1 % 2;
            let fresh = place.1 == 0;
            let mut bytes = encode(self.store, slot, place.1 + 1).to_vec();
            if fresh {
                // Both at once, so that a full disk does not get in the way of the second vote.
                bytes.extend_from_slice(&EMPTY);
            }
            self.file
                .write_all_at(&bytes, block * BLOCK as u64)
                .map_err(|error| LogError::io("cannot write a vote slot", &self.path, error))?;
        }
        self.file.sync_data().map_err(|error| {
            LogError::io("cannot sync a vote slot", &self.path, error).latched()
        })?;
        // Only now: what a full disk has cut short is written again in the same place, and not beside it.
        for slot in slots {
            if let Some(place) = self.places.get_mut(&slot.group) {
                place.1 += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::vfs::SimFs;

    fn slot(group: u64, term: u64) -> Slot {
        Slot {
            group: GroupId(group),
            creation: 0,
            term: Term(term),
            vote: None,
            incarnation: 0,
        }
    }

    #[test]
    fn slots_written_anew_in_place_keep_those_that_live_and_drop_the_others() {
        let vfs: SharedVfs = Arc::new(SimFs::new(1));
        let (dir, store) = (Path::new("/"), StoreId(1));
        let all = [slot(1, 1), slot(2, 1), slot(3, 1)];
        drop(Votes::create(&vfs, dir, store, &all).unwrap());
        let mut votes = Votes::refresh(&vfs, dir, store, &[slot(1, 5), slot(3, 6)]).unwrap();
        votes.write(&[slot(4, 7), slot(3, 8)]).unwrap();
        let found = read(&vfs, dir, store).unwrap();
        assert!(found.damaged.is_empty());
        let terms = |group| {
            let mine = found.of(GroupId(group), 0).iter();
            mine.map(|slot| slot.term.0).collect::<Vec<_>>()
        };
        assert_eq!([terms(1), terms(2)], [vec![5, 5], vec![]]);
        assert_eq!([terms(3), terms(4)], [vec![8, 6], vec![7]]);
    }
}
