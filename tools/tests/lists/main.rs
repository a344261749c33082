//! Long lists of a real server: streamed and in one answer, what each costs in memory, and what a reader sees while others
//! write and compact.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

mod memory;
mod stream;

use flotilla_tests::process::{Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::request_op::Request as Op;
use tonic::transport::{Channel, Endpoint};

const KEYS_PER_TXN: usize = 128;

fn with_server(run: impl AsyncFnOnce(&Server)) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.path().join("data"));
    let mut server = setup.start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&server));
    drop(runtime);
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}

/// A client with a connection of its own, which takes answers of any length.
async fn client(server: &Server) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
    let client = KvClient::new(endpoint.connect().await.unwrap());
    client.max_decoding_message_size(usize::MAX)
}

fn key(n: usize) -> String {
    format!("k/{n:08}")
}

/// Bytes that do not repeat, so that nothing makes them shorter.
fn value(n: usize, bytes: usize) -> Vec<u8> {
    let mut state = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut value: Vec<u8> = std::iter::repeat_with(next)
        .take(bytes.div_ceil(8))
        .flatten()
        .collect();
    value.truncate(bytes);
    value
}

/// Writes `keys` keys with values of that many bytes; returns the revision.
async fn fill(kv: &mut KvClient<Channel>, keys: usize, bytes: impl Fn(usize) -> usize) -> i64 {
    let mut revision = 0;
    let all: Vec<usize> = (0..keys).collect();
    for some in all.chunks(KEYS_PER_TXN) {
        let put = |n: &usize| pb::RequestOp {
            request: Some(Op::RequestPut(pb::PutRequest {
                key: key(*n).into(),
                value: value(*n, bytes(*n)).into(),
                ..Default::default()
            })),
        };
        let txn = pb::TxnRequest {
            success: some.iter().map(put).collect(),
            ..Default::default()
        };
        let answer = kv.txn(txn).await.unwrap().into_inner();
        revision = answer.header.unwrap().revision;
    }
    revision
}

/// All keys.
fn all() -> pb::RangeRequest {
    pb::RangeRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        ..Default::default()
    }
}
