//! HTTP/1.1 by hand: what a client of the gateway sends and sees, byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use flotilla_tests::process::{PATIENCE, Server};
use serde_json::Value;

/// A request whose answer is still being read.
pub(crate) struct Exchange {
    socket: BufReader<TcpStream>,
    /// Of the answer, once its head was read.
    pub(crate) status: u16,
    headers: Vec<String>,
}

impl Exchange {
    /// Sends a head, without a body.
    pub(crate) fn begin(server: &Server, method: &str, path: &str, headers: &[&str]) -> Self {
        let address = server.url().strip_prefix("http://").unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
        for header in headers {
            head.push_str(&format!("{header}\r\n"));
        }
        socket.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        Self {
            socket: BufReader::new(socket),
            status: 0,
            headers: Vec::new(),
        }
    }

    /// Sends a part of a chunked body.
    pub(crate) fn send(&mut self, part: &str) {
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        self.socket.get_mut().write_all(chunk.as_bytes()).unwrap();
    }

    /// Sends a part of a body with a length.
    pub(crate) fn raw(&mut self, part: &str) {
        self.socket.get_mut().write_all(part.as_bytes()).unwrap();
    }

    fn text_line(&mut self) -> String {
        let mut line = String::new();
        self.socket.read_line(&mut line).unwrap();
        line.trim_end_matches("\r\n").to_owned()
    }

    /// Reads the head of the answer.
    pub(crate) fn head(&mut self) {
        let first = self.text_line();
        self.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        loop {
            match self.text_line() {
                line if line.is_empty() => return,
                line => self.headers.push(line.to_ascii_lowercase()),
            }
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ String| -> Option<usize> {
            let (found, _) = line.split_once(": ")?;
            (found == name).then_some(name.len() + 2)
        };
        self.headers
            .iter()
            .find_map(|line| Some(&line[value(line)?..]))
    }

    /// The next part of a chunked answer; none after the last.
    pub(crate) fn chunk(&mut self) -> Option<String> {
        let length = usize::from_str_radix(&self.text_line(), 16).unwrap();
        let mut bytes = vec![0; length + 2];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes.truncate(length);
        (length > 0).then(|| String::from_utf8(bytes).unwrap())
    }

    /// The next line of a stream, which must be a whole one.
    pub(crate) fn line(&mut self) -> Option<Value> {
        let chunk = self.chunk()?;
        let line = chunk.strip_suffix('\n').expect("a line ends");
        assert!(!line.contains('\n'), "{line}");
        Some(serde_json::from_str(line).unwrap())
    }

    /// The rest of an answer with a length.
    fn body(&mut self) -> String {
        let length = self.header("content-length").expect("a length");
        let mut bytes = vec![0; length.parse().unwrap()];
        self.socket.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

/// Asks, and waits for the whole answer, which has one status and one text.
pub(crate) fn ask(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = format!("Content-Length: {}", body.len());
    let mut exchange = Exchange::begin(server, method, path, &[&length]);
    // A server that has read enough may be gone already.
    let _ = exchange.socket.get_mut().write_all(body.as_bytes());
    exchange.head();
    if exchange.header("transfer-encoding") == Some("chunked") {
        let chunks = std::iter::from_fn(|| exchange.chunk()).collect();
        return (exchange.status, chunks);
    }
    (exchange.status, exchange.body())
}

/// Posts JSON, and reads JSON.
pub(crate) fn post(server: &Server, path: &str, body: &str) -> (u16, Value) {
    let (status, text) = ask(server, "POST", path, body);
    let json =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
    (status, json)
}
