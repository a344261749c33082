//! Clients that do not keep to the rules: broken messages, streams that are never read or never ended, connections by the
//! thousand, calls that are cancelled as soon as they are made. The server's memory stays bounded, others are served all the
//! while, and who broke the rules is told.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

mod crowd;
mod frames;
mod malformed;
mod resets;
mod unread;

use std::fs;

use flotilla_tests::process::{PATIENCE, Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// What the server may hold at its peak, in MiB: the bounds of ARCHITECTURE.md, all of them reached at once, come to
/// less.
const RESIDENT_MAX_MIB: u64 = 300;

/// A server, and a client that keeps to the rules.
struct World {
    server: Server,
    kv: KvClient<Channel>,
    _dir: TempDir,
}

fn run(test: impl AsyncFnOnce(&mut World)) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.path().join("data"));
    let server = setup.start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let kv = KvClient::new(channel(&server).await);
        let mut world = World {
            server,
            kv,
            _dir: dir,
        };
        test(&mut world).await;
        world.serves().await;
    });
}

async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
    endpoint.connect_timeout(PATIENCE).connect().await.unwrap()
}

fn put_request(key: &str, value: Vec<u8>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.into(),
        ..Default::default()
    }
}

/// The whole store.
fn everything() -> pb::RangeRequest {
    pb::RangeRequest {
        key: b"\0"[..].into(),
        range_end: b"\0"[..].into(),
        ..Default::default()
    }
}

impl World {
    /// A write and a read by who keeps to the rules.
    async fn serves(&mut self) {
        let both = async {
            self.kv
                .put(put_request("rules", b"kept".to_vec()))
                .await
                .unwrap();
            let get = pb::RangeRequest {
                key: "rules".into(),
                ..Default::default()
            };
            assert_eq!(self.kv.range(get).await.unwrap().into_inner().count, 1);
        };
        timeout(PATIENCE, both).await.expect("others are served");
    }

    /// Writes so many values of so many bytes, over a few keys, or each under a key of its own.
    async fn fill(&mut self, count: usize, bytes: usize, keys: usize) {
        for n in 0..count {
            let key = format!("fill {:06}", n % keys);
            let put = self.kv.put(put_request(&key, vec![b'x'; bytes]));
            timeout(PATIENCE, put)
                .await
                .expect("others are served")
                .unwrap();
        }
    }

    /// The most that was ever resident, in MiB.
    fn peak_mib(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kilobytes / 1_024
    }

    fn stayed_small(&self) {
        let peak = self.peak_mib();
        assert!(
            peak < RESIDENT_MAX_MIB,
            "{peak} MiB were resident, at most {RESIDENT_MAX_MIB} are allowed"
        );
    }
}
