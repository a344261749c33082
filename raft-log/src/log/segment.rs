//! Segment files: their names, and how one comes into being.
//!
//! A segment is filled with zeros under a temporary name, gets its header and its first batches, is synced, and only
//! then takes its real name. A file named `.seg` without a header that verifies is therefore damage, never a crash.

use std::path::{Path, PathBuf};

use crate::LogError;
use crate::vfs::{OpenMode, Vfs, VfsFile};

/// Bytes that are filled and synced at a time.
const FILL_STEP: u64 = 256 << 10;

/// A zero-filled, synced file that waits to become a segment.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn VfsFile>,
    pub(super) size: u64,
}

pub(super) fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.seg"))
}

/// The id in a segment's file name.
pub(super) fn segment_id(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".seg")?;
    let digits = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    (hex.len() == 16 && digits(hex))
        .then(|| u64::from_str_radix(hex, 16).ok())
        .flatten()
}

/// Makes a zero-filled file of `size` bytes under a temporary name, and syncs it.
pub(super) fn prepare(vfs: &dyn Vfs, path: &Path, size: u64) -> Result<Prepared, LogError> {
    match vfs.remove(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(LogError::io("cannot remove a left-over file", path, error)),
    }
    let file = vfs
        .open(path, OpenMode::CreateNew)
        .map_err(|error| LogError::io("cannot create a segment", path, error))?;
    if let Err(error) = fill(&*file, path, 0, size) {
        drop(file);
        // What was filled would keep space from others; the next attempt removes it if this fails.
        let _ = vfs.remove(path);
        return Err(error);
    }
    Ok(Prepared {
        path: path.to_owned(),
        file,
        size,
    })
}

/// Writes zeros and syncs: a later write then changes no metadata, which makes its sync a third cheaper. Each step is
/// synced by itself: a disk that is given a whole segment at once keeps the batches' syncs waiting behind it.
pub(super) fn fill(file: &dyn VfsFile, path: &Path, from: u64, to: u64) -> Result<(), LogError> {
    let zeros = vec![0; (to.saturating_sub(from)).min(FILL_STEP) as usize];
    let mut at = from;
    loop {
        let step = (to - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..step as usize], at)
            .map_err(|error| {
                LogError::io(&format!("cannot fill a segment of {to} bytes"), path, error)
            })?;
        file.sync_data()
            .map_err(|error| LogError::io("cannot sync a segment", path, error).latched())?;
        at += step;
        if at >= to {
            return Ok(());
        }
    }
}
