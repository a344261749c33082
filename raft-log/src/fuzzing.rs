//! What holds for every decoder of this crate, whatever bytes it is given: it does not panic, it makes no room for more
//! than a bound, and what it decodes encodes to the same bytes again.
//!
//! One function for each decoder, for the tests of this crate and for the package `fuzz`; never in a build for use. Each
//! looks at the bytes as they are, and at the same bytes with their checksums repaired, or nothing would get behind
//! those. True when something was decoded.

use std::io;
use std::ops::Range;

use crate::vfs::VfsFile;

pub use crate::log::fuzzing as log;
pub use crate::snapshot::fuzzing as snapshot;

/// A decoder.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it decodes, which is also the name of the fuzz target.
    pub name: &'static str,
    /// Decodes bytes, and panics where it does what it must not.
    pub run: fn(&[u8]) -> bool,
    /// Bytes that it may take at most, besides some hundred times the input, which a
    /// compressed chunk can stand for.
    pub memory_max: u64,
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    target("segment_header", log::segment_header, 64 << 10),
    target("batch", log::batch, 64 << 10),
    target("footer", log::footer, 64 << 10),
    target("manifest", log::manifest, 64 << 10),
    target("votes", log::votes, 64 << 10),
    // A membership, and its copy.
    target("snapshot_header", snapshot::header, 4 << 20),
    target("snapshot_chunk", snapshot::chunk, 8 << 20),
    target("snapshot_file", snapshot::file, 4 << 20),
    target("snapshot_numbers", snapshot::numbers, 64 << 10),
    // A chunk may be announced that is as long as one can be.
    target("snapshot_receive", snapshot::receive, 20 << 20),
];

const fn target(name: &'static str, run: fn(&[u8]) -> bool, memory_max: u64) -> Target {
    Target {
        name,
        run,
        memory_max,
    }
}

/// A file that holds these bytes, behind so many zeros.
#[derive(Debug)]
pub(crate) struct Bytes {
    pub(crate) zeros: u64,
    pub(crate) data: Vec<u8>,
}

impl VfsFile for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let whole = self.len()?;
        let n = whole.saturating_sub(offset).min(buf.len() as u64) as usize;
        for (byte, at) in buf[..n].iter_mut().zip(offset..) {
            let data = at.checked_sub(self.zeros);
            *byte = data.map_or(0, |at| self.data[at as usize]);
        }
        Ok(n)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.zeros + self.data.len() as u64)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts the checksum of `range` at `at`, if the bytes reach that far.
pub(crate) fn repair(data: &mut [u8], range: Range<usize>, at: usize) {
    if let Some(covered) = data.get(range) {
        put_crc(data, at, crc32fast::hash(covered));
    }
}

/// Puts a checksum at `at`, if the bytes reach that far.
pub(crate) fn put_crc(data: &mut [u8], at: usize, crc: u32) {
    if let Some(place) = data.get_mut(at..at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// Panics if two encodings differ elsewhere than in what readers ignore.
#[track_caller]
pub(crate) fn assert_same(encoded: &[u8], found: &[u8], ignored: &[Range<usize>]) {
    assert_eq!(encoded.len(), found.len(), "it encodes to another length");
    for (at, pair) in encoded.iter().zip(found).enumerate() {
        let free = ignored.iter().any(|range| range.contains(&at));
        assert!(
            free || pair.0 == pair.1,
            "byte {at} was {:#04x} and is encoded as {:#04x}",
            pair.1,
            pair.0
        );
    }
}
