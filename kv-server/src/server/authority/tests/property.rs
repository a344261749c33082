//! Any bytes, and any block that a client could write.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// How a field is written.
#[derive(Clone, Debug)]
enum Field {
    Indexed(u8),
    /// First byte, name if it is written out, value; each with Huffman encoding or not.
    Literal(u8, Option<(Vec<u8>, bool)>, Vec<u8>, bool),
}

impl Field {
    fn write(&self) -> Vec<u8> {
        let string = |bytes: &[u8], encoded| match encoded {
            true => huffman(bytes),
            false => plain(bytes),
        };
        match self {
            Self::Indexed(row) => vec![0x80 | row],
            Self::Literal(first, name, value, encoded) => {
                let name = name.as_ref().map(|(name, encoded)| string(name, *encoded));
                [
                    &[*first],
                    &name.unwrap_or_default()[..],
                    &string(value, *encoded),
                ]
                .concat()
            }
        }
    }
}

fn other_field() -> impl Strategy<Value = Field> {
    let literal = (
        prop::sample::select(vec![0x40_u8, 0x00, 0x10]),
        prop_oneof![
            (2..15_u8).prop_map(Err),
            ("[a-z][a-z-]{0,20}", any::<bool>()).prop_map(Ok)
        ],
        vec(any::<u8>(), 0..60),
        any::<bool>(),
    );
    prop_oneof![
        (1..62_u8).prop_map(Field::Indexed),
        literal.prop_map(|(kind, name, value, encoded)| match name {
            Ok((name, name_encoded)) => {
                Field::Literal(
                    kind,
                    Some((name.into_bytes(), name_encoded)),
                    value,
                    encoded,
                )
            }
            Err(row) => Field::Literal(kind | row, None, value, encoded),
        }),
    ]
}

fn write(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(Field::write).collect()
}

/// The value with whatever is not plain replaced, but for the colon of a port.
fn repaired(value: &[u8]) -> Vec<u8> {
    let text: String = value.iter().map(|&byte| char::from(byte)).collect();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, Some(port)),
        _ => (&text[..], None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut out: String = host
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    if let Some(port) = port {
        out = format!("{out}:{port}");
    }
    out.into_bytes()
}

fn chunks<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = (*sizes.next()?).min(rest.len());
        let piece;
        (piece, rest) = rest.split_at(size);
        (size > 0).then_some(piece)
    })
}

proptest! {
    #[test]
    fn any_bytes_pass_or_are_repaired_once(
        bytes in vec(any::<u8>(), 0..300),
        before in 0..4_usize,
        sizes in vec(1..40_usize, 1..5),
    ) {
        let head = match before {
            0 => Vec::new(),
            1 => PREFACE.to_vec(),
            2 => handshake(),
            _ => [handshake(), frame(HEADERS, bytes.first().copied().unwrap_or(0), 1, &bytes)].concat(),
        };
        let sent = [head, bytes].concat();
        let out = pass([&sent[..]]);
        prop_assert_eq!(&pass(chunks(&sent, &sizes)), &out);
        prop_assert_eq!(pass([&out[..]]), out);
    }

    #[test]
    fn any_block_has_its_authority_replaced_only_if_it_is_none(
        mut fields in vec(other_field(), 0..8),
        at in any::<prop::sample::Index>(),
        first in prop::sample::select(vec![0x41_u8, 0x01, 0x11]),
        value in prop_oneof![
            "[a-z0-9.]{1,40}(:[0-9]{1,5})?".prop_map(String::into_bytes),
            "(http|unix|#initially)[:/=\\[]{1,3}[a-z0-9.:/\\]]{0,40}".prop_map(String::into_bytes),
            vec(any::<u8>(), 1..60),
        ],
        encoded in any::<bool>(),
        sizes in vec(1..200_usize, 1..5),
    ) {
        let at = at.index(fields.len() + 1);
        fields.insert(at, Field::Literal(first, None, value.clone(), encoded));
        let sent = connection(&write(&fields));
        let is_valid = http::uri::Authority::try_from(&value[..]).is_ok();
        if !is_valid {
            let value = repaired(&value);
            prop_assert!(http::uri::Authority::try_from(&value[..]).is_ok());
            fields[at] = Field::Literal(first, None, value, false);
        }
        let expected = connection(&write(&fields));
        prop_assert_eq!(is_valid, expected == sent);
        prop_assert_eq!(pass(chunks(&sent, &sizes)), expected);
    }
}
