//! Reading entries back: what is cached comes from memory, what lies before it from the segments.
//!
//! Which entries to take is planned under the lock; the disk is read outside it, from files that the plan keeps open,
//! so that a purge in between cannot take them away. Called by whoever sends or applies entries; never writes.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{self, DiskRecord};
use super::index::Position;
use super::{Core, Log, Shared, segment};
use crate::vfs::VfsFile;
use crate::{Entry, ErrorKind, GroupId, Index, LogError};

/// How much is read at once where entries lie close together.
const SPAN_BYTES_MAX: u64 = 256 << 10;
/// The distance between two entries up to which one read for both is cheaper than two.
const GAP_BYTES_MAX: u64 = 4 << 10;

/// An entry that must come from disk.
struct Cold {
    index: Index,
    position: Position,
    file: Arc<dyn VfsFile>,
}

impl Cold {
    fn end(&self) -> u64 {
        self.position.offset() + u64::from(self.position.len)
    }
}

/// How many of these entries, at least one, are read at once.
fn span_len(cold: &[Cold]) -> usize {
    let together = cold.windows(2).take_while(|pair| {
        let (one, next) = (&pair[0], &pair[1]);
        let gap = next.position.offset().checked_sub(one.end());
        one.position.segment() == next.position.segment()
            && gap.is_some_and(|gap| gap <= GAP_BYTES_MAX)
            && next.end() - cold[0].position.offset() <= SPAN_BYTES_MAX
    });
    together.count() + 1
}

impl Log {
    /// Entries from memory or from disk: as many as fit in `bytes_max`, at least one.
    ///
    /// # Errors
    /// [`ErrorKind::Compacted`], [`ErrorKind::OutOfRange`], [`ErrorKind::UnknownGroup`], and damage found on disk.
    pub fn entries(
        &self,
        id: GroupId,
        range: Range<Index>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let (cold, warm) = self.0.core().plan(id, range, bytes_max)?;
        if cold.is_empty() {
            return Ok(warm);
        }
        let mut read = Vec::with_capacity(cold.len() + warm.len());
        let mut bytes = 0;
        let mut rest = &cold[..];
        while !rest.is_empty() {
            let mut len = span_len(rest);
            let mut found = self.0.read_span(&rest[..len]);
            if found.is_err() && len > 1 {
                // What lies between them or behind may be to blame: each is worth an attempt of its own.
                len = 1;
                found = self.0.read_span(&rest[..1]);
            }
            let (found, (span, behind)) = (found?, rest.split_at(len));
            for at in span {
                let entry = self.0.decode(id, at, span, &found)?;
                bytes += entry.cost();
                if bytes > bytes_max && !read.is_empty() {
                    return Ok(read);
                }
                read.push(entry);
            }
            rest = behind;
        }
        for entry in warm {
            bytes += entry.cost();
            if bytes > bytes_max {
                break;
            }
            read.push(entry);
        }
        Ok(read)
    }
}

impl Core {
    /// Which entries must come from disk, and those behind them that are in memory.
    fn plan(
        &self,
        id: GroupId,
        range: Range<Index>,
        bytes_max: usize,
    ) -> Result<(Vec<Cold>, Vec<Entry>), LogError> {
        let unknown = || {
            LogError::new(
                ErrorKind::UnknownGroup,
                format!("group {id} does not exist"),
            )
        };
        let group = self.groups.map.get(&id).ok_or_else(unknown)?;
        let (base, last) = (group.base.index, group.last());
        if range.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        if range.start <= base {
            return Err(LogError::new(
                ErrorKind::Compacted,
                format!(
                    "group {id}: entry {} is gone, the log begins after {base}",
                    range.start
                ),
            ));
        }
        if range.end > last.next() {
            return Err(LogError::new(
                ErrorKind::OutOfRange,
                format!(
                    "group {id}: entries up to {} asked for, the last is {last}",
                    range.end.prev()
                ),
            ));
        }
        let cached_from = group
            .cache
            .front()
            .map_or(range.end, |entry| entry.index)
            .min(range.end);
        let (mut cold, mut bytes) = (Vec::new(), 0);
        for index in range.start.0..cached_from.0 {
            let position = group.position(Index(index)).expect("between base and last");
            bytes += position.len as usize;
            if bytes > bytes_max && !cold.is_empty() {
                return Ok((cold, Vec::new()));
            }
            let file = self
                .files
                .get(&position.segment())
                .expect("what is not cached is written");
            cold.push(Cold {
                index: Index(index),
                position,
                file: Arc::clone(file),
            });
        }
        let from = range.start.max(cached_from);
        let skip = group
            .cache
            .front()
            .map_or(0, |entry| from.0.saturating_sub(entry.index.0)) as usize;
        let wanted = group.cache.range(skip..);
        let wanted = wanted.take_while(|entry| entry.index < range.end);
        let fit = wanted.enumerate().take_while(|(at, entry)| {
            bytes += entry.cost();
            bytes <= bytes_max || (cold.is_empty() && *at == 0)
        });
        let count = fit.count();
        // Its length is known, so the list grows once.
        let warm = group.cache.range(skip..skip + count).cloned().collect();
        Ok((cold, warm))
    }
}

impl Shared {
    /// The bytes from the first entry of a span to the end of its last.
    fn read_span(&self, span: &[Cold]) -> Result<Vec<u8>, LogError> {
        let (Some(first), Some(last)) = (span.first(), span.last()) else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; (last.end() - first.position.offset()) as usize];
        first
            .file
            .read_exact_at(&mut bytes, first.position.offset())
            .map_err(|error| LogError::io("cannot read entries", &self.path(first), error))?;
        Ok(bytes)
    }

    fn decode(
        &self,
        id: GroupId,
        at: &Cold,
        span: &[Cold],
        found: &[u8],
    ) -> Result<Entry, LogError> {
        let start = (at.position.offset() - span[0].position.offset()) as usize;
        let bytes = &found[start..start + at.position.len as usize];
        entry_in(bytes, id, at.index).ok_or_else(|| {
            LogError::differs(
                ErrorKind::Corruption,
                &self.path(at),
                at.position.offset(),
                format!("entry {} of group {id}", at.index),
                "bytes that do not verify",
                "rebuild this member",
            )
        })
    }

    fn path(&self, at: &Cold) -> PathBuf {
        segment::segment_path(&self.options.dir, at.position.segment())
    }
}

/// The entry whose record these bytes are, if they verify and are that one.
pub(super) fn entry_in(bytes: &[u8], id: GroupId, index: Index) -> Option<Entry> {
    let raw = format::raw_record(bytes, 0).filter(|raw| raw.group == id)?;
    match format::decode_record(bytes, raw) {
        Some(DiskRecord::Entry(entry)) if entry.index == index => Some(entry),
        _ => None,
    }
}
