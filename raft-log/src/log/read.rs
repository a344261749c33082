//! Reading entries back: what is cached comes from memory, what lies before it from the segments.
//!
//! Which entries to take is planned under the lock; the disk is read outside it, from files that the plan keeps open,
//! so that a purge in between cannot take them away. Called by whoever sends or applies entries; never writes.

use std::ops::Range;
use std::sync::Arc;

use super::format::{self, DiskRecord};
use super::index::Position;
use super::{Core, Log, Shared, segment};
use crate::vfs::VfsFile;
use crate::{Entry, ErrorKind, GroupId, Index, LogError};

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
        let (cold, mut out) = self.0.core().plan(id, range, bytes_max)?;
        let mut read = Vec::with_capacity(cold.len() + out.len());
        let mut bytes = 0;
        for (index, position, file) in &cold {
            let entry = self.0.read(id, *index, *position, &**file)?;
            bytes += entry.cost();
            if bytes > bytes_max && !read.is_empty() {
                return Ok(read);
            }
            read.push(entry);
        }
        for entry in out.drain(..) {
            bytes += entry.cost();
            if bytes > bytes_max && !read.is_empty() {
                break;
            }
            read.push(entry);
        }
        Ok(read)
    }
}

impl Core {
    /// Which entries must come from disk, and those behind them that are in memory.
    #[expect(clippy::type_complexity, reason = "a private pair of lists")]
    fn plan(
        &self,
        id: GroupId,
        range: Range<Index>,
        bytes_max: usize,
    ) -> Result<(Vec<(Index, Position, Arc<dyn VfsFile>)>, Vec<Entry>), LogError> {
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
            cold.push((Index(index), position, Arc::clone(file)));
        }
        let from = range.start.max(cached_from);
        let skip = group
            .cache
            .front()
            .map_or(0, |entry| from.0.saturating_sub(entry.index.0)) as usize;
        let mut warm = Vec::new();
        for entry in group
            .cache
            .iter()
            .skip(skip)
            .take_while(|entry| entry.index < range.end)
        {
            bytes += entry.cost();
            if bytes > bytes_max && !(cold.is_empty() && warm.is_empty()) {
                break;
            }
            warm.push(entry.clone());
        }
        Ok((cold, warm))
    }
}

impl Shared {
    fn read(
        &self,
        id: GroupId,
        index: Index,
        at: Position,
        file: &dyn VfsFile,
    ) -> Result<Entry, LogError> {
        let path = segment::segment_path(&self.options.dir, at.segment());
        let mut bytes = vec![0; at.len as usize];
        file.read_exact_at(&mut bytes, at.offset())
            .map_err(|error| LogError::io("cannot read an entry", &path, error))?;
        let record = format::raw_record(&bytes, 0)
            .filter(|raw| raw.group == id)
            .and_then(|raw| format::decode_record(&bytes, raw));
        match record {
            Some(DiskRecord::Entry(entry)) if entry.index == index => Ok(entry),
            _ => Err(LogError::at(
                ErrorKind::Corruption,
                &path,
                at.offset(),
                format!(
                    "expected entry {index} of group {id}, found bytes that do not verify; rebuild this member"
                ),
            )),
        }
    }
}
