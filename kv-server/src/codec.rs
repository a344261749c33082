//! How messages become the frames of gRPC: as prost does it, in a buffer that has the right size from the start.
//!
//! The generated services use this. A long list has a way of its own: whoever reads it from the store writes its keys out
//! part by part ([`WrittenKeys`]), and the answer's body puts them behind the rest ([`with_written_keys`]). So it is in
//! memory once, as what is sent.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::pb::mvccpb::KeyValue;

/// The number of the field `kvs` of a `RangeResponse`.
const KVS: u32 = 2;
/// What precedes a message in gRPC: whether it is compressed, and its length.
pub const HEAD_BYTES: usize = 5;

/// Encodes `T` and decodes `U`; see the module.
#[derive(Clone, Debug)]
pub struct SizedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SizedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SizedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SizedEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SizedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::default().decoder()
    }
}

/// The encoder of [`SizedCodec`].
#[derive(Clone, Debug)]
pub struct SizedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for SizedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode_raw(buf);
        Ok(())
    }
}

/// A message as it is sent: one frame of gRPC.
///
/// # Errors
/// `ResourceExhausted` when the message is longer than gRPC can say.
pub fn frame<T: Message>(message: &T) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(length_in_head(length)?);
    message.encode_raw(&mut frame);
    Ok(frame.freeze())
}

/// The length of a message as its head has it.
fn length_in_head(length: usize) -> Result<u32, Status> {
    u32::try_from(length).map_err(|_| {
        let text =
            format!("flotilla: the answer has {length} bytes, and gRPC ends at 4 GiB; set a limit");
        Status::resource_exhausted(text)
    })
}

/// The keys of a list as they are sent: its field `kvs`, in parts.
#[derive(Clone, Debug, Default)]
pub struct WrittenKeys(Vec<Bytes>);

impl WrittenKeys {
    /// Writes keys out behind those that are there.
    pub fn push(&mut self, kvs: Vec<KeyValue>) {
        let bytes = |kv: &KeyValue| {
            let length = kv.encoded_len();
            key_len(KVS) + encoded_len_varint(length as u64) + length
        };
        let mut part = BytesMut::with_capacity(kvs.iter().map(bytes).sum());
        for kv in kvs {
            encode_key(KVS, WireType::LengthDelimited, &mut part);
            encode_varint(kv.encoded_len() as u64, &mut part);
            kv.encode_raw(&mut part);
        }
        self.0.push(part.freeze());
    }

    /// Puts others behind those that are there.
    pub fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// True when nothing was written out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }
}

/// An answer as it is sent: with the keys that its extensions have, if there are any.
#[must_use]
pub fn with_written_keys(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<WrittenKeys>() {
        Some(keys) => response.map(|rest| {
            Body::new(ListBody {
                keys: Some(keys),
                parts: Vec::new().into_iter(),
                rest,
            })
        }),
        None => response,
    }
}

/// One message in several pieces: what the service answered, then the keys. Fields may be in any order.
struct ListBody {
    /// Until the rest of the message was sent, whose head must say how long all is.
    keys: Option<WrittenKeys>,
    parts: std::vec::IntoIter<Bytes>,
    rest: Body,
}

impl ListBody {
    fn begin(&mut self, message: &[u8], keys: WrittenKeys) -> Result<Bytes, Status> {
        let message = message.get(HEAD_BYTES..);
        let message = message.ok_or_else(|| Status::internal("flotilla: a list has no head"))?;
        let length = message.len() + keys.bytes();
        let length = length_in_head(length)?;
        let mut first = BytesMut::with_capacity(HEAD_BYTES + message.len());
        first.put_u8(0);
        first.put_u32(length);
        first.put_slice(message);
        self.parts = keys.0.into_iter();
        Ok(first.freeze())
    }
}

impl HttpBody for ListBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(part) = self.parts.next() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        let frame = ready!(Pin::new(&mut self.rest).poll_frame(context));
        let Some(keys) = self.keys.take() else {
            return Poll::Ready(frame);
        };
        Poll::Ready(frame.map(|frame| {
            let data = frame?.into_data();
            let data = data.map_err(|_| Status::internal("flotilla: a list has no message"))?;
            // A service sends a short message in one piece.
            self.begin(&data, keys).map(Frame::data)
        }))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::pb::etcdserverpb::{RangeResponse, ResponseHeader};

    fn kv(n: usize) -> KeyValue {
        KeyValue {
            key: vec![7; n].into(),
            value: vec![1; n * n].into(),
            version: i64::try_from(n).unwrap(),
            ..Default::default()
        }
    }

    #[test]
    fn frame_is_head_and_message() {
        let message = kv(20);
        let frame = frame(&message).unwrap();
        let (head, rest) = frame.split_at(HEAD_BYTES);
        let length = u32::try_from(rest.len()).unwrap().to_be_bytes();
        assert_eq!(head, [&[0], &length[..]].concat());
        assert_eq!(KeyValue::decode(rest).unwrap(), message);
        assert!(length_in_head(1 << 32).is_err());
    }

    #[tokio::test]
    async fn list_with_written_keys_reads_as_the_list_itself() {
        let header = Some(ResponseHeader {
            revision: 9,
            ..Default::default()
        });
        let list = RangeResponse {
            header,
            kvs: vec![kv(0), kv(1), kv(20), kv(300), kv(2)],
            more: true,
            count: 300,
        };
        let mut keys = WrittenKeys::default();
        assert!(keys.is_empty());
        keys.push(list.kvs[..2].to_vec());
        keys.push(Vec::new());
        keys.push(list.kvs[2..].to_vec());

        let rest = RangeResponse {
            kvs: Vec::new(),
            ..list.clone()
        };
        let mut message = vec![0; HEAD_BYTES];
        rest.encode(&mut message).unwrap();
        let mut response = http::Response::new(Body::new(Full::new(Bytes::from(message))));
        response.extensions_mut().insert(keys);
        let sent = with_written_keys(response).into_body();
        let sent = sent.collect().await.unwrap().to_bytes();
        let (head, message) = sent.split_at(HEAD_BYTES);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        assert_eq!(head, [&[0], &length[..]].concat());
        assert_eq!(RangeResponse::decode(message).unwrap(), list);
    }
}
