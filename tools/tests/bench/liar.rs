//! A server that acknowledges all writes and drops some.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::mvccpb::KeyValue;
use pb::kv_server::{Kv, KvServer};
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;

/// Keeps all writes but each hundredth, in memory.
#[derive(Clone, Default)]
struct Liar(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    revision: i64,
    kept: std::collections::BTreeMap<bytes::Bytes, KeyValue>,
}

impl Told {
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            revision: self.revision,
            ..Default::default()
        })
    }
}

#[tonic::async_trait]
impl Kv for Liar {
    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        let put = request.into_inner();
        let mut told = self.0.lock().unwrap();
        told.revision += 1;
        let revision = told.revision;
        if revision % 100 != 0 {
            let kv = KeyValue {
                key: put.key.clone(),
                value: put.value,
                mod_revision: revision,
                ..Default::default()
            };
            told.kept.insert(put.key, kv);
        }
        Ok(Response::new(pb::PutResponse {
            header: told.header(),
            prev_kv: None,
        }))
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        let told = self.0.lock().unwrap();
        let responses = request.into_inner().success.into_iter().map(|op| {
            let Some(pb::request_op::Request::RequestRange(range)) = op.request else {
                panic!("it only reads in transactions");
            };
            let range = pb::RangeResponse {
                kvs: told.kept.get(&range.key).cloned().into_iter().collect(),
                ..Default::default()
            };
            pb::ResponseOp {
                response: Some(pb::response_op::Response::ResponseRange(range)),
            }
        });
        Ok(Response::new(pb::TxnResponse {
            header: told.header(),
            succeeded: true,
            responses: responses.collect(),
        }))
    }

    async fn range(
        &self,
        _: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn range_stream(
        &self,
        _: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }

    async fn compact(
        &self,
        _: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        Err(Status::unimplemented("nobody asks for it"))
    }
}

#[test]
fn writes_that_a_server_acknowledged_and_dropped_are_lost_and_named() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address: SocketAddr = ([127, 0, 0, 1], 0).into();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(address))
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tonic::transport::Server::builder()
        .add_service(KvServer::new(Liar::default()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    // It serves until the test's process ends.
    std::thread::spawn(move || runtime.block_on(serving));
    let output = bench(&[
        "put",
        "--endpoint",
        &url,
        "--total",
        "250",
        "--distribution",
        "sequential",
        "--key-space",
        "1000",
        "--clients",
        "1",
        "--conns",
        "1",
    ]);
    let told = text(&output.stdout);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}{error}");
    assert!(
        told.contains("read back 250 keys after 250 acknowledged writes: 2 lost"),
        "{told}"
    );
    // Keys are numbered from 0, revisions from 1.
    for (key, revision) in [("bench/0000000099", 100), ("bench/0000000199", 200)] {
        let line = format!("{key}, written at revision {revision}, is not there");
        assert!(error.contains(&line), "{error}");
    }
}
