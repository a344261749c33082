//! The two streams of a call: JSON values of the client cut from its body and framed for gRPC, and frames of the service
//! taken apart.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame};
use prost_reflect::MessageDescriptor;
use tonic::body::Body;
use tonic::{Code, Status};

use super::json;
use crate::codec::HEAD_BYTES;

/// Cuts JSON objects from a body that comes in pieces. Whether one is well-formed is for its reader to say.
///
/// Invariant: `seen` bytes of `text` have been looked at, and are all part of one object that has begun.
struct Objects {
    text: BytesMut,
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    bytes_max: usize,
}

impl Objects {
    fn new(bytes_max: usize) -> Self {
        Self {
            text: BytesMut::new(),
            seen: 0,
            depth: 0,
            in_string: false,
            escaped: false,
            bytes_max,
        }
    }

    /// The next object, if all of it is there.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if self.seen == 0 {
            let blanks = self
                .text
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace());
            let blanks = blanks.count();
            self.text.advance(blanks);
            if self.text.first().is_some_and(|first| *first != b'{') {
                let text = "expected an object, such as {\"create_request\": {...}}";
                return Err(Status::invalid_argument(text));
            }
        }
        while let Some(byte) = self.text.get(self.seen).copied() {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' if !self.in_string => self.depth += 1,
                b'}' if !self.in_string => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let object = self.text.split_to(self.seen).freeze();
                        self.seen = 0;
                        return Ok(Some(object));
                    }
                }
                _ => {}
            }
        }
        if self.text.len() > self.bytes_max {
            return Err(too_long(self.bytes_max));
        }
        Ok(None)
    }
}

pub(super) fn too_long(bytes_max: usize) -> Status {
    let text = format!("grpc: the request is longer than {bytes_max} bytes of JSON");
    Status::resource_exhausted(text)
}

/// The requests of a stream, read from the client as the service takes them.
pub(super) struct Requests {
    incoming: Body,
    objects: Objects,
    input: MessageDescriptor,
    ended: bool,
}

impl Requests {
    pub(super) fn new(incoming: Body, input: MessageDescriptor, bytes_max: usize) -> Self {
        Self {
            incoming,
            objects: Objects::new(bytes_max),
            input,
            ended: false,
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some(object) = self.objects.next()? {
                return Poll::Ready(json::to_frame(&self.input, &object).map(Some));
            }
            let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.objects.text.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    return Poll::Ready(Err(Status::cancelled(error.to_string())));
                }
                None if self.objects.text.is_empty() => return Poll::Ready(Ok(None)),
                None => {
                    let text = "the request ends within an object";
                    return Poll::Ready(Err(Status::invalid_argument(text)));
                }
            }
        }
    }
}

impl HttpBody for Requests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll_next(context)).transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }
}

/// What a service answers, message by message.
pub(super) struct Answers {
    body: Body,
    /// What came and was not taken.
    held: BytesMut,
    /// Of the head, when nothing follows it.
    refused: Option<Status>,
}

impl Answers {
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        Self {
            body,
            held: BytesMut::new(),
            refused: failure(headers),
        }
    }

    /// A message that is all there.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(head) = self.held.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [compressed, a, b, c, d] = *head;
        if compressed != 0 {
            return Err(Status::internal("flotilla: an answer is compressed"));
        }
        let end = HEAD_BYTES + u32::from_be_bytes([a, b, c, d]) as usize;
        if self.held.len() < end {
            self.held.reserve(end - self.held.len());
            return Ok(None);
        }
        let mut message = self.held.split_to(end).freeze();
        message.advance(HEAD_BYTES);
        Ok(Some(message))
    }

    /// The next message; none after the last.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Status>> {
        if let Some(status) = self.refused.take() {
            return Poll::Ready(Err(status));
        }
        loop {
            if let Some(message) = self.take()? {
                return Poll::Ready(Ok(Some(message)));
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
                return Poll::Ready(Ok(None));
            };
            match frame?.into_data() {
                Ok(data) => self.held.extend_from_slice(&data),
                Err(frame) => {
                    if let Some(status) = frame.trailers_ref().and_then(failure) {
                        return Poll::Ready(Err(status));
                    }
                }
            }
        }
    }
}

/// What a head or its trailers say of a call that failed.
fn failure(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&str]) -> Result<Vec<String>, Status> {
        let mut objects = Objects::new(64);
        let mut found = Vec::new();
        for piece in pieces {
            objects.text.extend_from_slice(piece.as_bytes());
            while let Some(object) = objects.next()? {
                found.push(String::from_utf8(object.to_vec()).unwrap());
            }
        }
        Ok(found)
    }

    #[test]
    fn objects_are_cut_wherever_the_pieces_end() {
        let text = " {\"a\":{\"b\":\"}\\\"{\"}}\n{}\t{\"c\":1} ";
        let expected = ["{\"a\":{\"b\":\"}\\\"{\"}}", "{}", "{\"c\":1}"];
        assert_eq!(cut(&[text]).unwrap(), expected);
        let bytes: Vec<&str> = text.split_inclusive(|_: char| true).collect();
        assert_eq!(cut(&bytes).unwrap(), expected);
        assert_eq!(cut(&["{\"a\":"]).unwrap(), [""; 0]);
    }

    #[test]
    fn objects_that_are_none_or_too_long_are_refused() {
        assert_eq!(cut(&["[{}]"]).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(cut(&["{}", "}"]).unwrap_err().code(), Code::InvalidArgument);
        let long = ["{\"a\":\"", &"x".repeat(64)];
        assert_eq!(cut(&long).unwrap_err().code(), Code::ResourceExhausted);
    }
}
