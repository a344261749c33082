//! What a figure was measured on: without it, figures of two days or two machines must not be compared.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Instant;

use kv_server::pb::etcdserverpb::StatusRequest;
use kv_server::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use serde::Serialize;

use super::client::Target;
use super::collect::quantile_ms;
use super::load::runtime;
use super::recorded::{histogram, nanos};
use crate::failure::Failure;

const SYNCS: usize = 200;
const SYNC_BYTES: usize = 512;

/// The machine that this runs on, and the versions of what it talks to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    load_average: String,
    client: String,
    /// By endpoint.
    servers: Vec<(String, String)>,
    /// What a write of 512 bytes and its fdatasync took, if it was measured.
    sync_ms: Option<SyncMs>,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct SyncMs {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Machine {
    /// Looks around. Nothing of it is worth a failure; what cannot be known says so.
    pub(super) fn look(targets: &[Target]) -> Result<Self, Failure> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map(|(_, value)| value.trim().to_owned())
        };
        let unknown = || "unknown".to_owned();
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let runtime = runtime()?;
        let servers = targets.iter().map(|target| {
            let version = runtime.block_on(version(target)).unwrap_or_else(unknown);
            (target.name.clone(), version)
        });
        Ok(Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or("")
                .to_owned(),
            client: format!("flotilla {}", crate::VERSION),
            servers: servers.collect(),
            sync_ms: None,
        })
    }

    /// Measures what the disk of a directory takes to sync a small write.
    pub(super) fn measure_syncs(&mut self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(format!(".flotilla-bench-sync-{}", std::process::id()));
        let wrong = |error| Failure::failed(format!("syncing {}", path.display()), error);
        let mut file = File::create(&path).map_err(wrong)?;
        // The name has no use once the file is open.
        fs::remove_file(&path).map_err(wrong)?;
        let mut took = histogram();
        for _ in 0..SYNCS {
            let begun = Instant::now();
            file.write_all(&[7; SYNC_BYTES]).map_err(wrong)?;
            file.sync_data().map_err(wrong)?;
            took.saturating_record(nanos(begun.elapsed()));
        }
        self.sync_ms = Some(SyncMs {
            p50: quantile_ms(&took, 0.5),
            p99: quantile_ms(&took, 0.99),
            max: quantile_ms(&took, 1.0),
        });
        Ok(())
    }
}

async fn version(target: &Target) -> Option<String> {
    let (channel, token) = target.channel().await.ok()?;
    let mut client = MaintenanceClient::with_interceptor(channel, token);
    let answer = client.status(StatusRequest {}).await.ok()?;
    Some(answer.into_inner().version)
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, {} MiB, Linux {}, load average {} before; {} against",
            self.cpu, self.cores, self.memory_mib, self.kernel, self.load_average, self.client
        )?;
        for (number, (name, version)) in self.servers.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma} {name} (API version {version})")?;
        }
        if let Some(sync) = self.sync_ms {
            write!(
                f,
                "; a sync of {SYNC_BYTES} bytes: p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
                sync.p50, sync.p99, sync.max
            )?;
        }
        Ok(())
    }
}
