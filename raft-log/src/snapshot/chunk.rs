//! One chunk of a snapshot: its head, its checksum and its compression.
//!
//! The same bytes lie in the file and travel to a peer. A chunk's checksum covers its number, its
//! length and its bytes as they are stored, so that a chunk in a wrong place is found at once and
//! nothing is decompressed that was not verified. What the content of a chunk adds to the checksum
//! of the whole is returned beside it.

use crc32fast::Hasher;

use super::format::u32_at;
use crate::lz4::LZ4_RATIO_MAX;

/// What precedes the bytes of a chunk: their length and their checksum.
pub(super) const CHUNK_HEAD_LEN: usize = 8;
/// Content bytes in every chunk but the last, by default.
pub(super) const CHUNK_SIZE: u32 = 256 * 1024;
/// The largest chunk that a reader makes room for.
pub(super) const CHUNK_SIZE_MAX: u32 = 16 * 1024 * 1024;

/// Whether chunks are compressed. Readers read both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Chunks are stored as they are.
    #[default]
    None,
    /// Each chunk is stored as one LZ4 block, if that is smaller than the chunk itself.
    Lz4,
}

/// Why a chunk does not verify: where in it, what should be there and what is.
#[derive(Debug)]
pub(super) struct ChunkFault {
    pub(super) offset: u64,
    pub(super) what: &'static str,
    pub(super) expected: String,
    pub(super) found: String,
}

impl ChunkFault {
    fn new(offset: u64, what: &'static str, expected: String, found: impl ToString) -> Self {
        let found = found.to_string();
        Self {
            offset,
            what,
            expected,
            found,
        }
    }
}

/// The head of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkHead {
    /// Bytes that follow the head.
    pub(super) stored: u32,
    crc: u32,
}

impl ChunkHead {
    /// Reads the head of a chunk that holds `content_len` bytes; `stored` is within bounds.
    pub(super) fn decode(
        bytes: &[u8; CHUNK_HEAD_LEN],
        content_len: u32,
    ) -> Result<Self, ChunkFault> {
        let head = Self {
            stored: u32_at(bytes, 0),
            crc: u32_at(bytes, 4),
        };
        if head.stored == 0 || head.stored > content_len {
            let expected = format!("1 to {content_len}");
            return Err(ChunkFault::new(0, "chunk length", expected, head.stored));
        }
        Ok(head)
    }

    /// Checks the bytes that follow the head of chunk `number`, without decompressing them.
    pub(super) fn verify(&self, number: u64, stored: &[u8]) -> Result<(), ChunkFault> {
        let mut bytes = Hasher::new();
        bytes.update(stored);
        self.compare(place(number, self.stored), &bytes)
    }

    /// Checks the bytes that follow the head, and returns the checksum of the content. The content
    /// is put into `out`, except where it is stored as it is: then `out` is left empty.
    pub(super) fn open(
        &self,
        number: u64,
        stored: &[u8],
        content_len: u32,
        out: &mut Vec<u8>,
    ) -> Result<Hasher, ChunkFault> {
        let mut bytes = Hasher::new();
        bytes.update(stored);
        self.compare(place(number, self.stored), &bytes)?;
        out.clear();
        if self.stored == content_len {
            return Ok(bytes);
        }
        let expected = || format!("an LZ4 block of {content_len} bytes");
        let at = CHUNK_HEAD_LEN as u64;
        // Before room is made for what it cannot hold.
        if content_len as usize > stored.len().saturating_mul(LZ4_RATIO_MAX) {
            let found = format!("{} bytes", stored.len());
            return Err(ChunkFault::new(at, "chunk", expected(), found));
        }
        out.resize(content_len as usize, 0);
        match lz4_flex::block::decompress_into(stored, out) {
            Ok(len) if len == content_len as usize => {}
            Ok(len) => return Err(ChunkFault::new(at, "chunk", expected(), len)),
            Err(error) => return Err(ChunkFault::new(at, "chunk", expected(), error)),
        }
        let mut content = Hasher::new();
        content.update(out);
        Ok(content)
    }

    fn compare(&self, mut place: Hasher, bytes: &Hasher) -> Result<(), ChunkFault> {
        place.combine(bytes);
        let expected = place.finalize();
        if expected == self.crc {
            return Ok(());
        }
        let expected = expected.to_string();
        Err(ChunkFault::new(4, "chunk checksum", expected, self.crc))
    }
}

/// Makes a chunk of the content that was gathered in `out` from `start` on, behind room for the
/// chunk's head. Returns the checksum of the content. `scratch` is room that is kept between calls.
///
/// # Panics
/// If the content is empty or longer than the largest chunk.
pub(super) fn seal(
    number: u64,
    start: usize,
    compression: Compression,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Hasher {
    let body = start + CHUNK_HEAD_LEN;
    let content_len = out.len().saturating_sub(body);
    assert!(
        content_len > 0 && content_len <= CHUNK_SIZE_MAX as usize,
        "a chunk of {content_len} bytes"
    );
    // The checksum of the whole follows from those of its parts, so that a byte which is stored as
    // it is gets summed once.
    let mut whole = Hasher::new();
    whole.update(&out[body..]);
    let mut bytes = whole.clone();
    if compression == Compression::Lz4
        && let Some(packed) = pack(&out[body..], scratch)
    {
        bytes = Hasher::new();
        bytes.update(packed);
        out.truncate(body);
        out.extend_from_slice(packed);
    }
    let len = u32::try_from(out.len() - body).expect("a chunk is at most 16 MiB");
    let mut crc = place(number, len);
    crc.combine(&bytes);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    out[start + 4..body].copy_from_slice(&crc.finalize().to_le_bytes());
    whole
}

/// The content as an LZ4 block, if that is smaller.
fn pack<'a>(content: &[u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let room = lz4_flex::block::get_maximum_output_size(content.len());
    scratch.resize(room.max(scratch.len()), 0);
    let len =
        lz4_flex::block::compress_into(content, scratch).expect("there is room for any block");
    (len < content.len()).then(|| &scratch[..len])
}

/// The part of a chunk's checksum that ties it to its place.
fn place(number: u64, len: u32) -> Hasher {
    let mut crc = Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(&len.to_le_bytes());
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::sim::Rng;

    fn open(number: u64, chunk: &[u8], content_len: u32) -> Result<Vec<u8>, ChunkFault> {
        let head = chunk[..CHUNK_HEAD_LEN].try_into().expect("a whole head");
        let head = ChunkHead::decode(head, content_len)?;
        head.verify(number, &chunk[CHUNK_HEAD_LEN..])?;
        let mut out = vec![9; 3];
        let crc = head.open(number, &chunk[CHUNK_HEAD_LEN..], content_len, &mut out)?;
        if out.is_empty() {
            out.extend_from_slice(&chunk[CHUNK_HEAD_LEN..]);
        }
        assert_eq!(crc.finalize(), crc32fast::hash(&out));
        Ok(out)
    }

    fn encoded(number: u64, content: &[u8], compression: Compression) -> Vec<u8> {
        let mut out = vec![9; 3 + CHUNK_HEAD_LEN];
        out.extend_from_slice(content);
        let crc = seal(number, 3, compression, &mut Vec::new(), &mut out);
        assert_eq!(crc.finalize(), crc32fast::hash(content));
        out.split_off(3)
    }

    #[test]
    fn chunk_of_any_content_opens_only_under_its_number() {
        let mut random = vec![0; 5000];
        Rng::new(1).fill(&mut random);
        for content in [vec![7; 5000], random, vec![1]] {
            let len = content.len() as u32;
            for compression in [Compression::None, Compression::Lz4] {
                let chunk = encoded(3, &content, compression);
                assert_eq!(open(3, &chunk, len).unwrap(), content);
                assert_eq!(open(4, &chunk, len).unwrap_err().what, "chunk checksum");
            }
        }
    }

    #[test]
    fn compressed_chunk_is_stored_only_if_smaller() {
        let mut random = vec![0; 5000];
        Rng::new(1).fill(&mut random);
        assert!(encoded(0, &[7; 5000], Compression::Lz4).len() < 100);
        let chunk = encoded(0, &random, Compression::Lz4);
        assert_eq!(chunk, encoded(0, &random, Compression::None));
    }

    #[test]
    fn chunk_that_compresses_best_opens_and_one_that_claims_more_is_refused_first() {
        for len in [1 << 12, CHUNK_SIZE, CHUNK_SIZE_MAX] {
            let content = vec![0; len as usize];
            let chunk = encoded(0, &content, Compression::Lz4);
            assert!(chunk.len() - CHUNK_HEAD_LEN < len as usize / 100, "{len}");
            assert!(open(0, &chunk, len).unwrap() == content, "{len}");
        }
        let chunk = encoded(0, &[0; 5000], Compression::Lz4);
        let most = ((chunk.len() - CHUNK_HEAD_LEN) * LZ4_RATIO_MAX) as u32;
        for len in [most, most + 1, CHUNK_SIZE_MAX] {
            let fault = open(0, &chunk, len).unwrap_err();
            assert_eq!(fault.what, "chunk");
            assert_eq!(fault.found.ends_with(" bytes"), len > most, "{fault:?}");
        }
    }

    #[test]
    fn chunk_whose_block_holds_too_little_is_a_fault() {
        let block = lz4_flex::block::compress(&[7; 400]);
        let len = block.len() as u32;
        let mut crc = place(0, len);
        let mut bytes = Hasher::new();
        bytes.update(&block);
        crc.combine(&bytes);
        let mut chunk = len.to_le_bytes().to_vec();
        chunk.extend_from_slice(&crc.finalize().to_le_bytes());
        chunk.extend_from_slice(&block);
        assert_eq!(open(0, &chunk, 400).unwrap(), [7; 400]);
        assert_eq!(open(0, &chunk, 401).unwrap_err().what, "chunk");
        assert_eq!(open(0, &chunk, 399).unwrap_err().what, "chunk");
        assert_eq!(open(0, &chunk, len - 1).unwrap_err().what, "chunk length");
    }
}
