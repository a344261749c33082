//! Makes a data directory from a backup: the first member, or one of several, of a new cluster.
//!
//! Everything is written under a temporary name beside the directory, synced, and renamed; so a crash leaves no data
//! directory, or a whole one. The log begins after the index of the backup and refers to a snapshot of it, from which
//! the first start takes its state, as one does that lost its engine.
//!
//! The cluster's id depends on the content of the backup, so that no member of the cluster that made it is taken for one
//! of the new one, whatever the token and the URLs are.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use raft_log::snapshot::{SnapshotMeta, SnapshotStore};
use raft_log::vfs::SharedVfs;
use raft_log::{Base, HardState, IoMode, Log, LogOptions, NodeId, Record, StoreId, WriteBatch};
use raft_node::core::Membership;

use super::initial::InitialCluster;
use super::{DATA_GROUP, Identity, NodeError, PeerBook, has_files, random_u64};
use crate::api::restored_cluster_id;
use crate::mvcc::{BackupInfo, BackupReader, RestoreChange};

/// What the temporary name ends in.
const SUFFIX: &str = ".restoring";

/// What a backup becomes.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The directory to make; missing or empty.
    pub data_dir: PathBuf,
    /// The name of the member.
    pub name: String,
    /// All members of the new cluster.
    pub initial: InitialCluster,
    /// Tells clusters apart that have the same URLs.
    pub initial_token: String,
    /// The peer URLs of this member.
    pub peer_urls: Vec<String>,
    /// Whether the checksum at the end of the backup must be there, and match. Default true.
    pub check_hash: bool,
    /// Revisions to skip; default 0.
    pub bump_revision: i64,
    /// Mark all that was as compacted; default false.
    pub mark_compacted: bool,
}

/// Opens the backup at its beginning; called once for each time that it is read.
pub type OpenBackup<'a> = &'a dyn Fn() -> io::Result<Box<dyn Read + Send>>;

/// Makes the directory. Who it is, and what the backup was.
///
/// # Errors
/// [`NodeError::Initial`] for options that do not fit, [`NodeError::Backup`] for a backup that is damaged or none, and
/// those of writing; then there is no data directory.
pub fn restore_backup(
    vfs: &SharedVfs,
    open: OpenBackup<'_>,
    options: &RestoreOptions,
) -> Result<(Identity, BackupInfo), NodeError> {
    let dir = &options.data_dir;
    if has_files(vfs, dir)? {
        let text = format!(
            "data-dir {:?} not empty or could not be read",
            dir.display()
        );
        return Err(NodeError::Initial(text));
    }
    let first = options
        .initial
        .first(&options.name, &options.peer_urls, &options.initial_token)
        .map_err(NodeError::Initial)?;
    let info = reader(open)?
        .inspect(options.check_hash)
        .map_err(NodeError::Backup)?;
    let identity = Identity {
        store: StoreId(random_u64()?),
        cluster: restored_cluster_id(first.cluster, &info.hash),
        member: first.me,
        name: options.name.clone(),
        boot: 0,
    };
    let (parent, temporary) = beside(dir)?;
    if has_files(vfs, &temporary)? {
        let text = format!(
            "{}: left by a restore that was cut short; remove it",
            temporary.display()
        );
        return Err(NodeError::Initial(text));
    }
    vfs.create_dir_all(&temporary)
        .map_err(|error| NodeError::io("cannot create", &temporary, error))?;
    PeerBook::create(vfs, &temporary, &first.members)?;
    let voters = first.members.iter().map(|member| member.id);
    write_state(vfs, open, options, &temporary, &identity, voters, &info)?;
    identity.write(vfs.as_ref(), &temporary)?;
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| NodeError::io(what, &path, error)
    };
    vfs.sync_dir(&temporary)
        .map_err(io("cannot sync", &temporary))?;
    vfs.rename(&temporary, dir)
        .map_err(io("cannot rename the restored directory to", dir))?;
    vfs.sync_dir(&parent).map_err(io("cannot sync", &parent))?;
    Ok((identity, info))
}

fn reader(open: OpenBackup<'_>) -> Result<BackupReader, NodeError> {
    open()
        .and_then(BackupReader::open)
        .map_err(NodeError::Backup)
}

/// The directory's parent, and the temporary name in it.
fn beside(dir: &Path) -> Result<(PathBuf, PathBuf), NodeError> {
    let Some(name) = dir.file_name().and_then(|name| name.to_str()) else {
        let text = format!("{:?} is no name for a data directory", dir.display());
        return Err(NodeError::Initial(text));
    };
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let temporary = parent.join(format!("{name}{SUFFIX}"));
    Ok((parent, temporary))
}

/// Writes log and snapshot: the file first, then the record that refers to it.
fn write_state(
    vfs: &SharedVfs,
    open: OpenBackup<'_>,
    options: &RestoreOptions,
    dir: &Path,
    identity: &Identity,
    voters: impl Iterator<Item = NodeId>,
    info: &BackupInfo,
) -> Result<(), NodeError> {
    let membership = Membership::of_voters(voters);
    let mut log_options = LogOptions::new(dir.join("log"), identity.store);
    log_options.io = IoMode::Inline;
    let (log, _) = Log::open(SharedVfs::clone(vfs), log_options)?;
    let snapshots = SnapshotStore::open(SharedVfs::clone(vfs), dir.join("snap"), identity.store)?;
    snapshots.recover(&log)?;
    let mut writer = snapshots.create(SnapshotMeta {
        group: DATA_GROUP,
        creation: identity.cluster,
        index: info.index,
        term: info.term,
        membership: membership.encode(),
    })?;
    let change = RestoreChange {
        membership: membership.clone(),
        bump_revision: options.bump_revision,
        mark_compacted: options.mark_compacted,
    };
    reader(open)?
        .write_restored(&change, &mut writer)
        .map_err(NodeError::Backup)?;
    let pending = writer.finish()?;
    let mut batch = WriteBatch::new();
    let base = Base {
        index: info.index,
        term: info.term,
        creation: identity.cluster,
        membership: membership.encode(),
    };
    batch.push(DATA_GROUP, Record::Compact(base));
    let hard_state = HardState {
        term: info.term,
        vote: None,
        commit: info.index,
    };
    batch.push(DATA_GROUP, Record::HardState(hard_state));
    log.write(batch)?;
    // Nothing is older than it, so nothing is to be removed.
    snapshots.install(&log, pending)?.retention?;
    log.close()?;
    Ok(())
}
