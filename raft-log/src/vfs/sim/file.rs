//! One simulated file: what its readers see, what the disk holds, and the changes between the two.
//!
//! A change keeps the sectors that it touched as they were after it. The kernel writes a dirty
//! sector back as it stands at that moment, so after a power loss a sector holds the content after
//! one of its changes, chosen for each sector alone: writeback is reordered freely, and a write is
//! torn between sectors, never within one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::rng::Rng;

/// The unit that a disk writes whole.
pub(super) const SECTOR: usize = 512;
/// The unit in which space is given back.
const BLOCK: usize = 4096;

#[derive(Clone, Debug, Default)]
pub(super) struct FileImage {
    /// What readers see.
    volatile: Vec<u8>,
    /// What is on the disk for certain.
    durable: Vec<u8>,
    /// What was done since, oldest first.
    pending: Vec<Change>,
    /// Blocks of zeros whose space was given back.
    holes: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
struct Change {
    /// The first sector in `data`.
    first: usize,
    /// Whole sectors, as they were after the change.
    data: Vec<u8>,
    /// The file's length after the change.
    len: usize,
    /// Everything from here on was cut off, before `len` took effect.
    cut: Option<usize>,
}

impl FileImage {
    /// A file whose content is on the disk.
    pub(super) fn durable(content: &[u8]) -> Self {
        Self {
            volatile: content.to_vec(),
            durable: content.to_vec(),
            pending: Vec::new(),
            holes: BTreeSet::new(),
        }
    }

    /// Bytes that the file takes on the disk.
    pub(super) fn space(&self) -> usize {
        self.volatile.len() - self.holes.len() * BLOCK
    }

    /// Bytes that a write would take in addition.
    pub(super) fn growth(&self, offset: usize, len: usize) -> usize {
        let end = offset + len;
        let holes = self.holes.range(offset / BLOCK..end.div_ceil(BLOCK));
        end.saturating_sub(self.volatile.len()) + holes.count() * BLOCK
    }

    pub(super) fn discard_zeros(&mut self, from: usize, to: usize) {
        let to = to.min(self.volatile.len());
        let whole = from.div_ceil(BLOCK)..to / BLOCK;
        self.holes.extend(whole);
        self.keep_holes_of_zeros();
    }

    fn keep_holes_of_zeros(&mut self) {
        let content = &self.volatile;
        self.holes.retain(|block| {
            let block = content.get(block * BLOCK..(block + 1) * BLOCK);
            block.is_some_and(|block| block.iter().all(|byte| *byte == 0))
        });
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.volatile
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.volatile.len());
        let n = buf.len().min(self.volatile.len() - start);
        buf[..n].copy_from_slice(&self.volatile[start..start + n]);
        n
    }

    pub(super) fn write(&mut self, buf: &[u8], offset: usize) {
        if buf.is_empty() {
            return;
        }
        let end = offset + buf.len();
        if end > self.volatile.len() {
            self.volatile.resize(end, 0);
        }
        self.volatile[offset..end].copy_from_slice(buf);
        let touched: Vec<usize> = self
            .holes
            .range(offset / BLOCK..end.div_ceil(BLOCK))
            .copied()
            .collect();
        for block in touched {
            self.holes.remove(&block);
        }
        let first = offset / SECTOR;
        let whole = end.next_multiple_of(SECTOR);
        let mut data = self.volatile[first * SECTOR..whole.min(self.volatile.len())].to_vec();
        data.resize(whole - first * SECTOR, 0);
        self.pending.push(Change {
            first,
            data,
            len: self.volatile.len(),
            cut: None,
        });
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let cut = (len < self.volatile.len()).then_some(len);
        self.volatile.resize(len, 0);
        self.keep_holes_of_zeros();
        self.pending.push(Change {
            first: 0,
            data: Vec::new(),
            len,
            cut,
        });
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            if let Some(cut) = change.cut {
                self.durable.truncate(cut);
            }
            self.durable.resize(change.len, 0);
            let start = change.first * SECTOR;
            let end = (start + change.data.len()).min(change.len);
            if start < end {
                self.durable[start..end].copy_from_slice(&change.data[..end - start]);
            }
        }
    }

    /// What a failed sync does: the kernel calls the pages clean, and the disk has none of them.
    pub(super) fn fail_sync(&mut self) {
        self.pending.clear();
    }

    /// Leaves what a power loss leaves: each un-synced sector at any of its states, the length at
    /// any of its own.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        let keep = Keep::draw(rng);
        let lengths = keep.prefix(self.pending.len(), rng);
        let len = match lengths {
            0 => self.durable.len(),
            n => self.pending[n - 1].len,
        };
        let mut versions: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, change) in self.pending.iter().enumerate() {
            for sector in 0..change.data.len() / SECTOR {
                versions.entry(change.first + sector).or_default().push(at);
            }
        }
        let cuts: Vec<(usize, usize)> = self
            .pending
            .iter()
            .enumerate()
            .filter_map(|(at, c)| Some((at, c.cut?)))
            .collect();
        let (kept_cuts, lost_cuts) = cuts.split_at(cuts.partition_point(|(at, _)| *at < lengths));
        let mut image = std::mem::take(&mut self.durable);
        if let Some(cut) = kept_cuts.iter().map(|(_, cut)| *cut).min() {
            image.truncate(cut);
        }
        image.resize(len, 0);
        for (sector, mut changes) in versions {
            let start = sector * SECTOR;
            if start >= len {
                continue;
            }
            // What came after a cut lives in newly allocated space: it cannot be there while the
            // cut is not.
            let lost_cut = lost_cuts.iter().find(|(_, cut)| *cut <= start);
            changes.retain(|at| lost_cut.is_none_or(|(cut_at, _)| at < cut_at));
            let kept = keep.prefix(changes.len(), rng);
            if kept == 0 {
                continue;
            }
            let at = changes[kept - 1];
            let change = &self.pending[at];
            let from = (sector - change.first) * SECTOR;
            let mut content = change.data[from..from + SECTOR].to_vec();
            for (_, cut) in kept_cuts.iter().filter(|(cut_at, _)| *cut_at > at) {
                content[(*cut).clamp(start, start + SECTOR) - start..].fill(0);
            }
            let end = (start + SECTOR).min(len);
            image[start..end].copy_from_slice(&content[..end - start]);
        }
        self.pending.clear();
        self.durable.clone_from(&image);
        self.volatile = image;
        self.keep_holes_of_zeros();
    }

    /// Flips bits of one byte, on the disk and wherever it is cached.
    pub(super) fn corrupt(&mut self, offset: u64, mask: u8) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let byte = self
            .volatile
            .get_mut(at)
            .ok_or(io::ErrorKind::InvalidInput)?;
        *byte ^= mask;
        if let Some(byte) = self.durable.get_mut(at) {
            *byte ^= mask;
        }
        for change in &mut self.pending {
            if let Some(byte) = at
                .checked_sub(change.first * SECTOR)
                .and_then(|at| change.data.get_mut(at))
            {
                *byte ^= mask;
            }
        }
        Ok(())
    }
}

/// How much of what was not synced survives. The extremes are drawn often, since that is where
/// recovery goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    Nothing,
    Everything,
    Some,
}

impl Keep {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self::Nothing,
            1 => Self::Everything,
            _ => Self::Some,
        }
    }

    /// How many of `n` changes in a row survive.
    pub(super) fn prefix(self, n: usize, rng: &mut Rng) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Everything => n,
            Self::Some => rng.below(n as u64 + 1) as usize,
        }
    }
}
