//! The footer of a sealed segment: where the entries lie that were live when the segment ended.
//!
//! It is written by the run that filled the segment, once, when nothing more will go into it. It is a hint, with which
//! a start need not read the segment: the checkpoint of the next segment says what every group looked like at that
//! point, and the footer adds the places of the entries. Whatever does not verify, or does not fit, is scanned
//! instead. Nothing here decides about damage.

use super::format::{SEGMENT_DATA, u16_at, u32_at, u64_at};
use super::index::{Group, Groups, Position};
use crate::vfs::VfsFile;
use crate::{GroupId, Index, Term};

/// Length of the fixed part, the last bytes of the file.
pub(super) const FOOTER: usize = 64;
/// Zeros that stay between the last batch and the index: what ends the log looks the same with and without a footer.
pub(super) const FOOTER_GAP: u64 = 64;
/// Bytes of a group in the index, before its runs and places.
pub(super) const GROUP_HEADER: u64 = 24;
/// Bytes of a run of one term.
pub(super) const RUN: u64 = 16;
/// Bytes of an entry's place.
pub(super) const PLACE: u64 = 8;

pub(super) const MAGIC: &[u8; 8] = b"FLOTFTR\x01";
pub(super) const VERSION: u16 = 1;

/// What a footer says besides its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// As in the headers of the segment's batches.
    pub(super) salt: u64,
    /// The sequence of the first batch after the checkpoint.
    pub(super) first_seq: u64,
    /// The last batch; it was synced before the footer was written.
    pub(super) last_seq: u64,
    /// Where that batch ends, in bytes.
    pub(super) end: u64,
    /// The chain value behind it.
    pub(super) chain: u32,
}

/// The places of one group's entries in a segment, and the terms that begin there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) group: GroupId,
    pub(super) first: Index,
    pub(super) runs: Vec<(Index, Term)>,
    pub(super) places: Vec<Position>,
}

impl Sealed {
    /// The last of the entries, of which there is at least one.
    fn last(&self) -> Index {
        Index(self.first.0 + (self.places.len() as u64 - 1))
    }
}

impl Footer {
    /// The bytes that end the segment: the index, and the fixed part behind it.
    pub(super) fn encode(&self, mut index: Vec<u8>) -> Vec<u8> {
        let mut out = [0; FOOTER];
        out[0..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(index.len() as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.salt.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.last_seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.end.to_le_bytes());
        out[48..52].copy_from_slice(&self.chain.to_le_bytes());
        out[52..56].copy_from_slice(&crc32fast::hash(&index).to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        index.extend_from_slice(&out);
        index
    }

    /// The fixed part and the length and checksum of the index, if the fixed part verifies for this segment.
    fn decode(data: &[u8], salt: u64) -> Option<(Self, u32, u32)> {
        if data.len() != FOOTER
            || &data[..8] != MAGIC
            || u16_at(data, 8) != VERSION
            || u16_at(data, 10) != 0
            || u64_at(data, 16) != salt
            || u32_at(data, 56) != 0
            || u32_at(data, 60) != crc32fast::hash(&data[..60])
        {
            return None;
        }
        let footer = Self {
            salt,
            first_seq: u64_at(data, 24),
            last_seq: u64_at(data, 32),
            end: u64_at(data, 40),
            chain: u32_at(data, 48),
        };
        Some((footer, u32_at(data, 12), u32_at(data, 52)))
    }

    /// Reads a segment's footer and index from the end of its file; `None` when there is none that verifies.
    pub(super) fn read(file: &dyn VfsFile, len: u64, salt: u64) -> Option<(Self, Vec<u8>)> {
        let at = len.checked_sub(FOOTER as u64)?;
        let mut fixed = [0; FOOTER];
        file.read_exact_at(&mut fixed, at).ok()?;
        let (footer, index_len, crc) = Self::decode(&fixed, salt)?;
        let start = at.checked_sub(u64::from(index_len))?;
        if footer.end.checked_add(FOOTER_GAP)? > start || footer.end < SEGMENT_DATA {
            return None;
        }
        let mut index = vec![0; index_len as usize];
        file.read_exact_at(&mut index, start).ok()?;
        (crc32fast::hash(&index) == crc).then_some((footer, index))
    }
}

/// Where the batches of a file end at the latest, because its footer begins there.
pub(super) fn batches_end(data: &[u8], salt: u64) -> usize {
    let whole = data.len();
    let fixed = data.get(whole.saturating_sub(FOOTER)..).unwrap_or_default();
    let Some((_, index, _)) = Footer::decode(fixed, salt) else {
        return whole;
    };
    (whole - FOOTER).saturating_sub(index as usize)
}

/// The index of a segment that ends now.
pub(super) fn index_of(groups: &Groups, segment: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, group) in &groups.map {
        let skip = group.entries.partition_point(|at| at.segment() < segment);
        if skip == group.entries.len() {
            continue;
        }
        let first = Index(group.first_held() + skip as u64);
        let runs: Vec<(Index, Term)> = group.runs_from(first).collect();
        out.extend_from_slice(&id.0.to_le_bytes());
        out.extend_from_slice(&first.0.to_le_bytes());
        out.extend_from_slice(&((group.entries.len() - skip) as u32).to_le_bytes());
        out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
        for (index, term) in runs {
            out.extend_from_slice(&index.0.to_le_bytes());
            out.extend_from_slice(&term.0.to_le_bytes());
        }
        for at in group.entries.range(skip..) {
            out.extend_from_slice(&at.packed().to_le_bytes());
        }
    }
    out
}

/// The groups of an index; `None` when it makes no sense for a segment whose batches end at `end`.
pub(super) fn parse(mut index: &[u8], segment: u64, end: u64) -> Option<Vec<Sealed>> {
    let mut out: Vec<Sealed> = Vec::new();
    while !index.is_empty() {
        let (head, rest) = index.split_at_checked(GROUP_HEADER as usize)?;
        let group = GroupId(u64_at(head, 0));
        let first = Index(u64_at(head, 8));
        let (count, run_count) = (u32_at(head, 16) as usize, u32_at(head, 20) as usize);
        let last = first.0.checked_add(count as u64)?.checked_sub(1)?;
        let (runs, rest) = rest.split_at_checked(run_count.checked_mul(RUN as usize)?)?;
        let (places, rest) = rest.split_at_checked(count.checked_mul(PLACE as usize)?)?;
        let runs: Vec<(Index, Term)> = runs
            .chunks_exact(RUN as usize)
            .map(|run| (Index(u64_at(run, 0)), Term(u64_at(run, 8))))
            .collect();
        let ordered = runs.first().is_some_and(|run| run.0 == first)
            && runs
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
            && runs.last().is_some_and(|run| run.0.0 <= last)
            && out.last().is_none_or(|before| before.group < group);
        if !ordered || count == 0 {
            return None;
        }
        let places: Vec<Position> = places
            .chunks_exact(PLACE as usize)
            .map(|place| Position::unpack(segment, u64_at(place, 0)))
            .collect();
        if places
            .iter()
            .any(|at| at.offset() < SEGMENT_DATA || at.offset() + u64::from(at.len) > end)
        {
            return None;
        }
        out.push(Sealed {
            group,
            first,
            runs,
            places,
        });
        index = rest;
    }
    Some(out)
}

/// Moves the groups over a sealed segment: to what the next checkpoint says, with the places of the footer. False, and
/// nothing has changed, when the two do not fit together.
pub(super) fn adopt(
    groups: &mut Groups,
    sealed: Vec<Sealed>,
    next: Vec<(GroupId, super::format::GroupCheckpoint)>,
) -> bool {
    let mut listed = sealed.iter().peekable();
    for (id, state) in &next {
        let mine = listed.next_if(|sealed| sealed.group == *id);
        let held = groups
            .map
            .get(id)
            .filter(|held| continues(held, &state.base));
        let reaches =
            |index: Index| index <= state.base.index || held.is_some_and(|g| g.last() >= index);
        let fits = match mine {
            Some(sealed) => {
                let before = match sealed.first.prev() {
                    index if index == state.base.index => Some(state.base.term),
                    index => held.and_then(|held| held.term_at(index)),
                };
                sealed.first > state.base.index
                    && before.is_none_or(|term| term <= sealed.runs[0].1)
                    && reaches(sealed.first.prev())
                    && sealed.last() == state.last_index
            }
            None => reaches(state.last_index) && state.last_index >= state.base.index,
        };
        if !fits {
            return false;
        }
    }
    if listed.next().is_some() {
        return false;
    }
    let mut gone: Vec<GroupId> = groups.map.keys().copied().collect();
    gone.retain(|id| {
        let state = next.binary_search_by_key(id, |(listed, _)| *listed);
        !state.is_ok_and(|at| continues(&groups.map[id], &next[at].1.base))
    });
    for id in gone {
        groups.forget(id);
    }
    let mut sealed = sealed.into_iter().peekable();
    for (id, state) in next {
        let mine = sealed.next_if(|sealed| sealed.group == id);
        groups.resume(id, state, mine);
    }
    true
}

/// False when the group was destroyed and made again since.
fn continues(held: &Group, base: &crate::Base) -> bool {
    held.base.creation == base.creation && held.base.index <= base.index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer {
            salt: 77,
            first_seq: 3,
            last_seq: 9,
            end: 5000,
            chain: 0xabcd,
        }
    }

    #[test]
    fn footer_with_any_bit_flipped_does_not_verify() {
        let bytes = footer().encode(Vec::new());
        assert_eq!(Footer::decode(&bytes, 77), Some((footer(), 0, 0)));
        assert_eq!(Footer::decode(&bytes, 78), None);
        for bit in 0..FOOTER * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Footer::decode(&flipped, 77), None, "bit {bit}");
        }
    }

    #[test]
    fn index_that_points_outside_the_batches_is_not_taken() {
        let mut index = Vec::new();
        for word in [
            5,
            1,
            1 | (1 << 32),
            1,
            4,
            ((SEGMENT_DATA + 64) / 8) | (50 << 32),
        ] {
            index.extend_from_slice(&word.to_le_bytes());
        }
        let sealed = parse(&index, 2, 5000).unwrap();
        assert_eq!(sealed[0].runs, [(Index(1), Term(4))]);
        assert_eq!(sealed[0].places, [Position::new(2, SEGMENT_DATA + 64, 50)]);
        assert!(parse(&index, 2, SEGMENT_DATA + 100).is_none());
        assert!(parse(&index[..40], 2, 5000).is_none());
    }
}
