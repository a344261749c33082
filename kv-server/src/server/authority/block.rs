//! The fields of a header block (HPACK, RFC 7541), read as far as it takes to find and replace an authority.
//!
//! Only the bytes of the value change, and its decoded length does not, so that the entry which the client's encoder
//! adds to its dynamic table has the same size and the same place in our decoder's.

use std::borrow::Cow;

use http::uri::Authority;

use super::huffman;

/// The row of the static table with that name.
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY_NAME: &[u8] = b":authority";
/// Set in the first byte of a string that is Huffman encoded.
const HUFFMAN: u8 = 0x80;
/// Bytes of an integer after its prefix; h2 takes as many.
const INTEGER_BYTES_MAX: u32 = 4;

/// The block with each invalid authority replaced; `None` if there is none, or the block is malformed.
pub(super) fn repair(block: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader { rest: block };
    let mut out = Vec::new();
    let mut copied = 0;
    while let Some(&first) = reader.rest.first() {
        let prefix = match first {
            0x80.. => 7,      // a field of a table
            0x40..=0x7f => 6, // a literal that becomes an entry of the dynamic table
            0x20..=0x3f => 5, // the size of the dynamic table
            0x00..=0x1f => 4, // a literal that becomes no entry
        };
        let index = reader.integer(prefix)?;
        if matches!(first, 0x80.. | 0x20..=0x3f) {
            continue;
        }
        let is_authority = match index {
            0 => *reader.string()?.decode()? == *AUTHORITY_NAME,
            _ => index == AUTHORITY_INDEX,
        };
        let value_at = block.len() - reader.rest.len();
        let value = reader.string()?;
        if !is_authority {
            continue;
        }
        if let Some(repaired) = repair_value(&value.decode()?) {
            out.extend_from_slice(&block[copied..value_at]);
            write_string(&repaired, &mut out);
            copied = block.len() - reader.rest.len();
        }
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(&block[copied..]);
    Some(out)
}

/// An authority of the same length; `None` if the value is one, or is empty. A port at the end stays readable.
fn repair_value(value: &[u8]) -> Option<Vec<u8>> {
    if value.is_empty() || Authority::try_from(value).is_ok() {
        return None;
    }
    let port_at = value
        .iter()
        .rposition(|byte| !byte.is_ascii_digit())
        .filter(|&at| value[at] == b':');
    let keep = |at, byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') || Some(at) == port_at
    };
    let repaired = value.iter().enumerate();
    Some(
        repaired
            .map(|(at, &byte)| if keep(at, byte) { byte } else { b'-' })
            .collect(),
    )
}

/// Writes a string without Huffman encoding.
pub(super) fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    let mut length = bytes.len();
    if length < 0x7f {
        out.push(length as u8);
    } else {
        out.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
    }
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// An integer whose first `prefix` bits are in the first byte (RFC 7541, section 5.1).
    fn integer(&mut self, prefix: u32) -> Option<usize> {
        let mask = (1 << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Some(value);
        }
        for n in 0..INTEGER_BYTES_MAX {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << (7 * n);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A string (RFC 7541, section 5.2).
    fn string(&mut self) -> Option<Encoded<'a>> {
        let huffman = self.rest.first()? & HUFFMAN != 0;
        let length = self.integer(7)?;
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(Encoded { huffman, bytes })
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }
}

/// A string as it came.
struct Encoded<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl<'a> Encoded<'a> {
    fn decode(&self) -> Option<Cow<'a, [u8]>> {
        if self.huffman {
            huffman::decode(self.bytes).map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(self.bytes))
        }
    }
}
