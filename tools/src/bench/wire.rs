//! As much of gRPC's frames and protobuf's fields as it takes to count events without decoding them.

use bytes::{Buf, Bytes, BytesMut};
use kv_server::codec::HEAD_BYTES;

/// Cuts a stream's data into messages.
#[derive(Default)]
pub(super) struct Frames {
    whole: Bytes,
    /// The beginning of a message whose end has not come.
    partial: BytesMut,
}

impl Frames {
    pub(super) fn push(&mut self, data: Bytes) {
        if self.partial.is_empty() {
            self.whole = data;
            return;
        }
        self.partial.extend_from_slice(&data);
        if frame_bytes(&self.partial).is_some_and(|frame| frame <= self.partial.len()) {
            self.whole = std::mem::take(&mut self.partial).freeze();
        }
    }

    /// The next message that is complete.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        match frame_bytes(&self.whole) {
            Some(frame) if frame <= self.whole.len() => {
                let mut message = self.whole.split_to(frame);
                message.advance(HEAD_BYTES);
                Some(message)
            }
            _ => {
                self.partial.extend_from_slice(&self.whole);
                self.whole.clear();
                None
            }
        }
    }
}

/// The length of the frame that begins here, with its head.
fn frame_bytes(data: &[u8]) -> Option<usize> {
    let length = data.get(1..HEAD_BYTES)?;
    let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
    Some(HEAD_BYTES + length as usize)
}

/// A field of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, up to the first that cannot be read.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut message)?;
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)?),
            1 => Field::Bytes(message.split_off(..8)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                Field::Bytes(message.split_off(..length)?)
            }
            5 => Field::Bytes(message.split_off(..4)?),
            _ => return None,
        };
        Some((tag >> 3, field))
    })
}

/// The first field of that number that has bytes.
pub(super) fn bytes_of(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).find_map(|(at, field)| match field {
        Field::Bytes(bytes) if at == number => Some(bytes),
        _ => None,
    })
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *from.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use kv_server::pb::etcdserverpb::WatchResponse;
    use kv_server::pb::mvccpb::{Event, KeyValue};
    use prost::Message;

    use super::*;
    use crate::bench::client::framed;

    fn response(events: usize) -> WatchResponse {
        let event = |n: usize| Event {
            kv: Some(KeyValue {
                key: "k".into(),
                value: vec![7; n * 50].into(),
                mod_revision: 1 << 40,
                ..KeyValue::default()
            }),
            ..Event::default()
        };
        WatchResponse {
            watch_id: 3,
            created: true,
            events: (0..events).map(event).collect(),
            ..WatchResponse::default()
        }
    }

    #[test]
    fn frames_cut_anywhere_come_out_whole() {
        let sent: Vec<WatchResponse> = [0, 1, 5, 0, 9].map(response).into();
        let bytes: Vec<u8> = sent.iter().flat_map(|one| framed(one).to_vec()).collect();
        for piece in [1, 2, 4, 5, 6, 7, 100, 333, bytes.len()] {
            let mut frames = Frames::default();
            let mut got = Vec::new();
            for part in bytes.chunks(piece) {
                frames.push(Bytes::copy_from_slice(part));
                while let Some(message) = frames.next() {
                    got.push(WatchResponse::decode(message).unwrap());
                }
            }
            assert_eq!(got, sent, "in pieces of {piece}");
        }
    }

    #[test]
    fn fields_are_those_that_were_encoded() {
        let message = response(3).encode_to_vec();
        let events: Vec<&[u8]> = fields(&message)
            .filter_map(|(number, field)| match field {
                Field::Bytes(bytes) if number == 11 => Some(bytes),
                _ => None,
            })
            .collect();
        assert_eq!(events.len(), 3);
        let value = bytes_of(events[2], 2).and_then(|kv| bytes_of(kv, 5));
        assert_eq!(value, Some([7; 100].as_slice()));
        let created = fields(&message).any(|one| one == (3, Field::Number(1)));
        assert!(created);
        // A message that ends too early has the fields before that.
        assert!(fields(&message[..message.len() - 1]).count() < fields(&message).count());
    }
}
