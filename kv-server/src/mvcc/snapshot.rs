//! The content of a snapshot: all applied state of a keyspace, as one stream.
//!
//! A header of eight bytes, the meta record (u32 LE length, then the record, its generation written as 0 and
//! without its size), then every
//! pair of every table in order: table u8, length of the key's rest u32 LE, length of the record u32 LE, both. A zero
//! byte and the number of pairs (u64 LE) end it. What the records hold is in `codec.rs`; keys come without group and
//! generation, so that whoever installs them gives them its own.
//!
//! The stream has no checksum of its own: the snapshot store verifies every chunk, and the whole.

use std::io::{self, Read as _};
use std::sync::Arc;

use bytes::Bytes;
use multiraft::Cut;

use super::codec::{
    ALARM, AUTH, DUPLICATE, KEYSPACE, Keys, LATEST, LEASE, LEASE_KEY, MEMBER, Meta, PREFIX,
    REMOVED, REVISION, ROLE, USER, VERSION, damaged,
};
use super::read::Read as _;
use crate::engine::{EngineError, Snapshot};

/// All tables but the one of the meta record, in the order in which a snapshot has them.
pub(super) const TABLES: [u8; 13] = [
    VERSION, REVISION, LATEST, LEASE_KEY, LEASE, DUPLICATE, MEMBER, ALARM, REMOVED, AUTH, USER,
    ROLE, KEYSPACE,
];

const HEADER: &[u8; 8] = b"FLOTKVS\x01";
/// A meta record is shorter than this, or it is none.
const META_BYTES_MAX: u32 = 1 << 20;

/// A generation of a keyspace's tables. Whoever reads them holds it, so that they are not dropped as a whole.
pub(super) type Generation = Arc<u32>;

/// A keyspace as of one applied index.
pub(super) struct KvCut {
    pub(super) snapshot: Arc<dyn Snapshot>,
    pub(super) keys: Keys,
    pub(super) meta: Meta,
    pub(super) _generation: Generation,
}

impl Cut for KvCut {
    fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut pairs = Pairs::begin(&self.meta, out)?;
        for table in TABLES {
            let (from, to) = (self.keys.first(table), self.keys.end(table));
            for pair in self.snapshot.scan(&from, &to) {
                let (key, record) = pair.map_err(io::Error::other)?;
                pairs.add(table, &key[PREFIX..], &record)?;
            }
        }
        pairs.end()
    }
}

/// Writes the stream.
pub(super) struct Pairs<'a> {
    out: &'a mut dyn io::Write,
    pairs: u64,
}

impl<'a> Pairs<'a> {
    /// Writes the header and the meta record.
    pub(super) fn begin(meta: &Meta, out: &'a mut dyn io::Write) -> io::Result<Self> {
        let meta = Meta {
            generation: 0,
            bytes: None,
            ..meta.clone()
        };
        let meta = meta.encode();
        out.write_all(HEADER)?;
        out.write_all(&length(meta.len())?)?;
        out.write_all(&meta)?;
        Ok(Self { out, pairs: 0 })
    }

    /// Writes a pair: the key without table, group and generation. In order of table and key.
    pub(super) fn add(&mut self, table: u8, key: &[u8], record: &[u8]) -> io::Result<()> {
        self.out.write_all(&[table])?;
        self.out.write_all(&length(key.len())?)?;
        self.out.write_all(&length(record.len())?)?;
        self.out.write_all(key)?;
        self.out.write_all(record)?;
        self.pairs += 1;
        Ok(())
    }

    /// Writes the end.
    pub(super) fn end(self) -> io::Result<()> {
        self.out.write_all(&[0])?;
        self.out.write_all(&self.pairs.to_le_bytes())
    }
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes).map_err(|_| io::Error::other("a record is over 4 GiB"))?;
    Ok(length.to_le_bytes())
}

/// A pair of a table: the table, the key without group and generation, the record.
pub(super) type TablePair = (u8, Bytes, Bytes);

/// Reads the stream.
pub(super) struct Content<R> {
    from: R,
    pairs: u64,
    is_over: bool,
}

impl<R: io::Read> Content<R> {
    /// Reads the header and the meta record.
    pub(super) fn open(from: R) -> Result<(Self, Meta), EngineError> {
        let mut content = Self {
            from,
            pairs: 0,
            is_over: false,
        };
        if content.array()? != *HEADER {
            return Err(damaged(
                "the content of a snapshot is of an unknown version",
            ));
        }
        let length = u32::from_le_bytes(content.array()?);
        if length > META_BYTES_MAX {
            return Err(damaged("the meta record of a snapshot is too long"));
        }
        let meta = Meta::decode(content.bytes(length)?)?;
        Ok((content, meta))
    }

    /// The next pair; none after the last one.
    pub(super) fn next(&mut self) -> Result<Option<TablePair>, EngineError> {
        if self.is_over {
            return Ok(None);
        }
        let [table] = self.array()?;
        if table == 0 {
            if u64::from_le_bytes(self.array()?) != self.pairs {
                return Err(damaged(
                    "a snapshot has another number of pairs than it says",
                ));
            }
            // So that the store verifies the checksum of the whole.
            if self.from.read(&mut [0]).map_err(failed)? != 0 {
                return Err(damaged("a snapshot goes on behind its end"));
            }
            self.is_over = true;
            return Ok(None);
        }
        if !TABLES.contains(&table) {
            return Err(damaged("a snapshot has a table that is not known"));
        }
        let (key, record) = (
            u32::from_le_bytes(self.array()?),
            u32::from_le_bytes(self.array()?),
        );
        self.pairs += 1;
        Ok(Some((table, self.bytes(key)?, self.bytes(record)?)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EngineError> {
        let mut array = [0; N];
        self.from.read_exact(&mut array).map_err(failed)?;
        Ok(array)
    }

    /// Memory grows with what is there, not with what a length says.
    fn bytes(&mut self, length: u32) -> Result<Bytes, EngineError> {
        let mut bytes = Vec::new();
        let mut limited = io::Read::take(&mut self.from, u64::from(length));
        limited.read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() != length as usize {
            return Err(damaged("a snapshot ends within a record"));
        }
        Ok(bytes.into())
    }
}

fn failed(error: io::Error) -> EngineError {
    EngineError {
        context: "read a snapshot".to_owned(),
        source: Box::new(error),
    }
}
