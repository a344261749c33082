//! Messages as JSON and back, by their descriptors: the encoding of proto3 with the names of the .proto files, 64-bit
//! numbers as text, bytes in base64, and without fields that have their default value.
//!
//! What is read may also have the names in lowerCamelCase, and numbers and enums in either form. A field that is not known
//! is skipped.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::Serialize;
use tonic::{Code, Status};

use crate::codec::HEAD_BYTES;

const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
const WRITE: SerializeOptions = SerializeOptions::new()
    .use_proto_field_name(true)
    .stringify_64_bit_integers(true)
    .skip_default_fields(true);

/// The first value of a text as one gRPC frame. An empty text is a message of defaults.
pub(super) fn to_frame(input: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Status> {
    let message = if json.trim_ascii().is_empty() {
        DynamicMessage::new(input.clone())
    } else {
        let mut reader = serde_json::Deserializer::from_slice(json);
        DynamicMessage::deserialize_with_options(input.clone(), &mut reader, &READ)
            .map_err(|error| Status::invalid_argument(error.to_string()))?
    };
    let length = message.encoded_len();
    let too_long = |_| Status::resource_exhausted("grpc: the message is longer than 4 GiB");
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).map_err(too_long)?);
    message
        .encode(&mut frame)
        .expect("the buffer was sized for the message");
    Ok(frame.freeze())
}

/// A message as JSON, between two texts.
pub(super) fn from_message(
    output: &MessageDescriptor,
    message: Bytes,
    [before, after]: [&str; 2],
) -> Result<Bytes, Status> {
    // Base64 takes a third more.
    let mut json = Vec::with_capacity(message.len() * 3 / 2 + 256);
    json.extend_from_slice(before.as_bytes());
    let message = DynamicMessage::decode(output.clone(), message)
        .map_err(|error| Status::internal(format!("flotilla: an answer is malformed: {error}")))?;
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &WRITE)
        .map_err(|error| Status::internal(format!("flotilla: an answer is no JSON: {error}")))?;
    json.extend_from_slice(after.as_bytes());
    Ok(json.into())
}

/// A refused call: `error` for those who know etcd 3.5, the rest as later ones have it.
#[derive(Serialize)]
struct Refusal<'a> {
    error: &'a str,
    code: i32,
    message: &'a str,
}

pub(super) fn from_status(status: &Status) -> String {
    let refusal = Refusal {
        error: status.message(),
        code: status.code() as i32,
        message: status.message(),
    };
    serde_json::to_string(&refusal).expect("texts and numbers are JSON")
}

#[derive(Serialize)]
struct Broken {
    code: i32,
    message: String,
}

#[derive(Serialize)]
struct LastLine {
    error: Broken,
}

/// The last line of a stream that failed.
pub(super) fn line_of_status(status: &Status) -> Bytes {
    let line = LastLine {
        error: Broken {
            code: status.code() as i32,
            message: status.message().to_owned(),
        },
    };
    let mut line = serde_json::to_string(&line).expect("texts and numbers are JSON");
    line.push('\n');
    line.into()
}

/// The HTTP status of a gRPC code.
pub(super) fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}
