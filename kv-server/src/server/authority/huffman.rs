//! HPACK's Huffman code (RFC 7541, section 5.2 and appendix B), for the one string that is read by us.
//!
//! The code is canonical: ordered by length and then by byte, the codes count up. So the bytes of each length are all
//! there is to know. It goes bit by bit: it runs for a few short strings per connection.

/// The bytes whose code has so many bits.
pub(super) const CODES: [(u32, &[u8]); 21] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, b"\\\xc3\xd0"),
    (20, b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2"),
    (21, b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6"),
    (22, b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9"),
    (23, b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef"),
    (24, b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed"),
    (25, b"\xc7\xcf\xea\xeb"),
    (26, b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff"),
    (27, b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe"),
    (28, b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f\xdc\xf9"),
    // The code after these is that of the end of a string, which must not be written.
    (30, b"\n\r\x16"),
];

/// What is filled up at the end with ones; a whole byte of them is an error.
const PADDING_BITS_MAX: usize = 7;

/// The decoded bytes; `None` if they are not an encoding that RFC 7541 allows.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let bits_total = bytes.len() * 8;
    let bit = |at: usize| u32::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
    let mut at = 0;
    while at < bits_total {
        match symbol((at..bits_total).map(bit)) {
            Some((bits, symbol)) => {
                out.push(symbol);
                at += bits;
            }
            None => {
                let is_padding = (at..bits_total).all(|at| bit(at) == 1);
                return (is_padding && bits_total - at <= PADDING_BITS_MAX).then_some(out);
            }
        }
    }
    Some(out)
}

/// The byte that these bits begin with, and how many bits its code has.
fn symbol(mut bits: impl Iterator<Item = u32>) -> Option<(usize, u8)> {
    let (mut read, mut code, mut first) = (0, 0, 0);
    for (length, symbols) in CODES {
        first <<= length - read;
        while read < length {
            code = code << 1 | bits.next()?;
            read += 1;
        }
        if let Some(&symbol) = symbols.get((code - first) as usize) {
            return Some((length as usize, symbol));
        }
        first += symbols.len() as u32;
    }
    None
}
