//! `flotilla snapshot save|status|restore`: backups of a whole keyspace, and data directories made from them.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kv_server::mvcc::{BackupInfo, BackupReader};
use kv_server::node::{InitialCluster, RestoreOptions, restore_backup};
use kv_server::pb::etcdserverpb::SnapshotRequest;
use kv_server::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use multiraft::tls::{self, ClientTls};
use raft_log::vfs::{RealFs, SharedVfs};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

use crate::failure::{Failure, chain, print};
use crate::log::table::columns;
use crate::server::failure_of;
use crate::tls::TlsArgs;
use crate::user::{User, UserArgs, log_in};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may take for the next part: it reads all of its data before the first.
const NEXT_PART: Duration = Duration::from_secs(600);

#[derive(Args, Debug)]
pub(super) struct SaveArgs {
    /// The file to write; one that is there is replaced once the new one is complete
    file: PathBuf,
    /// The member to ask
    #[arg(long, default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    user: UserArgs,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The backup
    file: PathBuf,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The data directory to make: missing or empty
    #[arg(long, default_value = "flotilla.data")]
    data_dir: PathBuf,
    /// Name of the member
    #[arg(long, default_value = "default")]
    name: String,
    /// Members of the new cluster, as name=url [default: this one]
    #[arg(long)]
    initial_cluster: Option<String>,
    /// Tells clusters apart; choose a new one
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Peer URLs of the member, separated by commas
    #[arg(long, default_value = "http://127.0.0.1:2380")]
    initial_advertise_peer_urls: String,
    /// Take a backup whose checksum at the end is missing or wrong
    #[arg(long)]
    skip_hash_check: bool,
    /// Revisions to skip; needs --mark-compacted
    #[arg(long, default_value_t = 0, requires = "mark_compacted", value_parser = clap::value_parser!(i64).range(0..=1 << 48))]
    bump_revision: i64,
    /// Mark all revisions up to the newest as compacted, so that watchers begin anew; needs --bump-revision
    #[arg(long, requires = "bump_revision")]
    mark_compacted: bool,
}

/// Gets a backup from a server.
pub(super) fn save(args: &SaveArgs) -> Result<(), Failure> {
    let name = args.file.file_name().unwrap_or_default().to_owned();
    if name.is_empty() {
        let text = format!("{:?} is no name for a file", args.file.display());
        return Err(Failure::Usage(text));
    }
    let tls = args.tls.open([&args.endpoint])?;
    let user = args.user.user()?;
    let mut part = name;
    part.push(".part");
    let part = args.file.with_file_name(part);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting the runtime", error))?;
    let saved = runtime
        .block_on(receive(&args.endpoint, tls.as_ref(), user.as_ref(), &part))
        .and_then(|()| read(&part, true))
        .and_then(|info| publish(&part, &args.file).map(|()| info));
    if saved.is_err() {
        // Where it stays it is in nobody's way: the next save writes it anew.
        let _ = std::fs::remove_file(&part);
    }
    let info = saved?;
    print(&format!(
        "saved revision {} with {} keys, {} bytes, to {}\n",
        info.revision,
        info.keys,
        info.file_len,
        args.file.display()
    ))
}

async fn receive(
    endpoint: &str,
    tls: Option<&ClientTls>,
    user: Option<&User>,
    part: &Path,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| {
        Failure::failed(format!("a backup from {endpoint}"), chain(error))
    };
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| Failure::Usage(format!("--endpoint {endpoint:?}: {}", chain(&error))))?
        .connect_timeout(CONNECT);
    let channel = tls::connect(&channel, tls).await;
    let channel = channel.map_err(|error| failed(&error))?;
    let token = log_in(&channel, user).await;
    let token = token
        .map_err(|status| Failure::failed(format!("logging in at {endpoint}"), status.message()))?;
    let mut client = MaintenanceClient::with_interceptor(channel, token);
    let answer = client.snapshot(SnapshotRequest {}).await;
    let mut parts = answer
        .map_err(|status| Failure::failed(format!("a backup from {endpoint}"), status.message()))?
        .into_inner();
    let written = |error: io::Error| Failure::failed(format!("writing {}", part.display()), error);
    let mut file = BufWriter::new(File::create(part).map_err(written)?);
    loop {
        let next = tokio::time::timeout(NEXT_PART, parts.message()).await;
        let next = next.map_err(|_| {
            Failure::Failed(format!(
                "a backup from {endpoint}: no part came for ten minutes"
            ))
        })?;
        match next {
            Ok(Some(next)) => file.write_all(&next.blob).map_err(written)?,
            Ok(None) => break,
            Err(status) => {
                let doing = format!("a backup from {endpoint}");
                return Err(Failure::failed(doing, status.message()));
            }
        }
    }
    let file = file
        .into_inner()
        .map_err(|error| written(error.into_error()))?;
    file.sync_all().map_err(written)
}

/// Gives a file that is complete and synced its name.
fn publish(part: &Path, file: &Path) -> Result<(), Failure> {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::rename(part, file)
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(|error| Failure::failed(format!("naming {}", file.display()), error))
}

fn open(file: &Path) -> io::Result<Box<dyn Read + Send>> {
    let file = File::open(file)?;
    Ok(Box::new(BufReader::with_capacity(256 << 10, file)))
}

fn read(file: &Path, check_hash: bool) -> Result<BackupInfo, Failure> {
    let info = open(file)
        .and_then(BackupReader::open)
        .and_then(|reader| reader.inspect(check_hash));
    info.map_err(|error| {
        let text = format!("{}: {error}", file.display());
        match error.kind() {
            io::ErrorKind::InvalidData => Failure::Damaged(text),
            _ => Failure::Failed(text),
        }
    })
}

/// Says what a backup is, after reading all of it.
pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let info = read(&args.file, true)?;
    let text = if args.json {
        format!("{}\n", json_of(&info))
    } else {
        let mut out = String::new();
        let row = vec![
            hex(&info.hash[..4]),
            info.revision.to_string(),
            info.keys.to_string(),
            info.versions.to_string(),
            info.leases.to_string(),
            info.file_len.to_string(),
        ];
        let header = ["HASH", "REVISION", "KEYS", "VERSIONS", "LEASES", "BYTES"];
        columns(&mut out, &header, vec![row]);
        out
    };
    print(&text)
}

fn json_of(info: &BackupInfo) -> Value {
    json!({
        "sha256": hex(&info.hash),
        "revision": info.revision,
        "compact_revision": info.compact_revision,
        "keys": info.keys,
        "versions": info.versions,
        "leases": info.leases,
        "bytes": info.file_len,
        "index": info.index.0,
        "term": info.term.0,
        "cluster": format!("{:x}", info.source.cluster),
        "member": format!("{:x}", info.source.member),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a data directory from a backup.
pub(super) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let urls = args.initial_advertise_peer_urls.split(',').map(str::trim);
    let peer_urls: Vec<String> = urls.map(str::to_owned).collect();
    let initial = match &args.initial_cluster {
        None => InitialCluster::of_one(&args.name, &peer_urls),
        Some(value) => InitialCluster::parse(value)
            .map_err(|error| Failure::Usage(format!("--initial-cluster: {error}")))?,
    };
    for url in initial.urls().chain(&peer_urls) {
        check_url(url)?;
    }
    let options = RestoreOptions {
        data_dir: args.data_dir.clone(),
        name: args.name.clone(),
        initial,
        initial_token: args.initial_cluster_token.clone(),
        peer_urls,
        check_hash: !args.skip_hash_check,
        bump_revision: args.bump_revision,
        mark_compacted: args.mark_compacted,
    };
    let vfs: SharedVfs = Arc::new(RealFs::new());
    let restored = restore_backup(&vfs, &|| open(&args.file), &options);
    let (identity, info) = restored.map_err(|error| {
        failure_of(error).map(|text| format!("{}: {text}", args.file.display()))
    })?;
    print(&format!(
        "restored revision {} with {} keys to {}: member {:x} of cluster {:x}\n",
        info.revision + args.bump_revision,
        info.keys,
        args.data_dir.display(),
        identity.member.0,
        identity.cluster
    ))
}

/// As `flotilla server` judges its own.
fn check_url(url: &str) -> Result<(), Failure> {
    let rest = url
        .strip_prefix("http://")
        .and_then(|rest| rest.rsplit_once(':'));
    match rest {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(Failure::Usage(format!(
            "{url:?}: expected a URL such as http://127.0.0.1:2380"
        ))),
    }
}
