//! `flotilla snapshot`: the snapshot files of a data directory, also beside a running server and when they are damaged.
//!
//! `ls` says what headers and footers say, `verify` reads everything and holds it against the log, `show` prints one
//! file chunk by chunk. None takes a lock or writes a byte. Backups, which leave and become data directories, are in
//! `backup`.

mod backup;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::sync::Arc;

use clap::{Args, Subcommand};
use kv_server::node::Identity;
use raft_log::snapshot::{Catalog, ChunkInfo, SnapshotDetails, SnapshotError, SnapshotFile};
use raft_log::vfs::{RealFs, SharedVfs};
use raft_log::{GroupId, SnapshotRef, StoreId};
use serde_json::{Value, json};

use crate::failure::{Failure, print};
use crate::log::table::columns;
use crate::log::walk::{Groups, Walk};
use crate::log::{Dir, INTO_STRING};

/// Flags of `flotilla snapshot`.
#[derive(Args, Debug)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// List the snapshots, as their headers and footers describe them
    Ls(LookArgs),
    /// Read every snapshot to the end, and say what does not verify: exit code 0 or 3
    Verify(LookArgs),
    /// Print header, footer and chunks of a snapshot
    Show(ShowArgs),
    /// Get a backup of all keys, with history and leases, from a server
    Save(backup::SaveArgs),
    /// Read a backup to the end, and say what it is
    Status(backup::StatusArgs),
    /// Make the data directory of a new cluster's member from a backup
    Restore(backup::RestoreArgs),
}

#[derive(Args, Debug)]
struct LookArgs {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    look: LookArgs,
    /// Only the snapshot with this number, as `snapshot ls` lists it
    #[arg(long)]
    number: Option<u64>,
}

/// Runs the subcommand.
pub(crate) fn run(args: &SnapshotArgs) -> Result<(), Failure> {
    match &args.what {
        What::Ls(args) => ls(args),
        What::Verify(args) => verify(args),
        What::Show(args) => show(args),
        What::Save(args) => backup::save(args),
        What::Status(args) => backup::status(args),
        What::Restore(args) => backup::restore(args),
    }
}

/// The snapshots of a data directory.
struct Snapshots {
    catalog: Catalog,
    store: StoreId,
    files: Vec<SnapshotFile>,
}

impl Snapshots {
    fn of(dir: &Dir) -> Result<Self, Failure> {
        let vfs: SharedVfs = Arc::new(RealFs::new());
        let data_dir = &dir.data_dir;
        let identity =
            Identity::read(&*vfs, data_dir).map_err(|error| Failure::Damaged(error.to_string()))?;
        let Some(identity) = identity else {
            return Err(Failure::Failed(format!(
                "{}: there is no IDENTITY; is it a data directory?",
                data_dir.display()
            )));
        };
        let catalog = Catalog::new(vfs, data_dir.join("snap"), Some(identity.store));
        let files = none_if_missing(catalog.list())?;
        Ok(Self {
            catalog,
            store: identity.store,
            files,
        })
    }

    fn unfinished(&self) -> Result<Vec<String>, Failure> {
        let paths = none_if_missing(self.catalog.unfinished())?;
        Ok(paths
            .iter()
            .map(|path| path.display().to_string())
            .collect())
    }
}

/// A store that never had a snapshot has no directory for them.
fn none_if_missing<T>(listed: Result<Vec<T>, SnapshotError>) -> Result<Vec<T>, Failure> {
    match listed {
        Err(error) if error.is_missing() => Ok(Vec::new()),
        other => other.map_err(|error| failure_of(&error)),
    }
}

fn failure_of(error: &SnapshotError) -> Failure {
    match error {
        SnapshotError::Io { source, .. } if source.kind() != io::ErrorKind::NotFound => {
            Failure::Failed(error.to_string())
        }
        SnapshotError::NewerVersion { .. } => Failure::Failed(error.to_string()),
        _ => Failure::Damaged(error.to_string()),
    }
}

/// The first of several failures, damage before what only could not be looked at.
fn first(failures: Vec<Failure>) -> Result<(), Failure> {
    let (damage, others): (Vec<_>, Vec<_>) = failures
        .into_iter()
        .partition(|failure| matches!(failure, Failure::Damaged(_)));
    damage.into_iter().chain(others).next().map_or(Ok(()), Err)
}

const COLUMNS: [&str; 8] = [
    "GROUP", "INDEX", "TERM", "NUMBER", "BYTES", "CONTENT", "CRC", "STATE",
];

fn row(file: &SnapshotFile, state: &str) -> Vec<String> {
    let known = file.state.as_ref().ok();
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        file.group.0.to_string(),
        file.index.to_string(),
        file.term.to_string(),
        file.number.to_string(),
        file.file_len.to_string(),
        or_dash(known.map(|snapshot| snapshot.content_len.to_string())),
        or_dash(known.map(|snapshot| format!("{:08x}", snapshot.content_crc))),
        state.to_owned(),
    ]
}

fn file_json(snapshots: &Snapshots, file: &SnapshotFile, error: Option<&SnapshotError>) -> Value {
    let known = file.state.as_ref().ok();
    json!({
        "file": snapshots.catalog.path_of(file).display().to_string(),
        "group": file.group.0,
        "index": file.index.0,
        "term": file.term.0,
        "number": file.number,
        "creation": file.creation,
        "bytes": file.file_len,
        "content_bytes": known.map(|snapshot| snapshot.content_len),
        "content_crc": known.map(|snapshot| snapshot.content_crc),
        "error": error.map(ToString::to_string),
    })
}

fn ls(args: &LookArgs) -> Result<(), Failure> {
    let snapshots = Snapshots::of(&args.dir)?;
    let unfinished = snapshots.unfinished()?;
    let errors = snapshots.files.iter().map(|file| file.state.as_ref().err());
    let errors: Vec<_> = errors.collect();
    let listed = || snapshots.files.iter().zip(&errors);
    let text = if args.json {
        let files = listed().map(|(file, error)| file_json(&snapshots, file, *error));
        let value = json!({
            "snapshots": files.collect::<Vec<_>>(),
            "unfinished": unfinished,
        });
        format!("{value}\n")
    } else {
        let mut out = String::new();
        let rows = listed().map(|(file, error)| {
            row(
                file,
                if error.is_some() {
                    "damaged"
                } else {
                    "complete"
                },
            )
        });
        columns(&mut out, &COLUMNS, rows.collect());
        for path in &unfinished {
            writeln!(out, "unfinished: {path}").expect(INTO_STRING);
        }
        out
    };
    print(&text)?;
    first(errors.into_iter().flatten().map(failure_of).collect())
}

fn verify(args: &LookArgs) -> Result<(), Failure> {
    // The log first: what it refers to at any later moment is there as well.
    let referred = references(&args.dir)?;
    let snapshots = Snapshots::of(&args.dir)?;
    let unfinished = snapshots.unfinished()?;
    let mut results = Vec::new();
    for file in &snapshots.files {
        match snapshots.catalog.show(file, &mut |_, _| ()) {
            // A server that runs has removed it meanwhile, as it removes all that are old.
            Err(error) if error.is_missing() => {}
            Err(error) => results.push((file, Some(error))),
            Ok(()) => results.push((file, None)),
        }
    }
    let mut wrong: Vec<Failure> = missing(&referred, &snapshots.files);
    if !snapshots.files.is_empty()
        && let Err(error) = snapshots.catalog.verify_counter(snapshots.store)
    {
        wrong.push(failure_of(&error));
    }
    let others: Vec<String> = wrong.iter().map(text_of).collect();
    let text = if args.json {
        let files = results
            .iter()
            .map(|(file, error)| file_json(&snapshots, file, error.as_ref()));
        let value = json!({
            "snapshots": files.collect::<Vec<_>>(),
            "unfinished": unfinished,
            "damage": others,
        });
        format!("{value}\n")
    } else {
        let mut out = String::new();
        let rows = results
            .iter()
            .map(|(file, error)| row(file, if error.is_some() { "damaged" } else { "ok" }));
        columns(&mut out, &COLUMNS, rows.collect());
        let errors = results.iter().filter_map(|(_, error)| error.as_ref());
        for text in errors.map(ToString::to_string).chain(others) {
            writeln!(out, "damage: {text}").expect(INTO_STRING);
        }
        out
    };
    print(&text)?;
    let errors = results.iter().filter_map(|(_, error)| error.as_ref());
    wrong.extend(errors.map(failure_of));
    first(wrong)
}

fn text_of(failure: &Failure) -> String {
    let (Failure::Failed(text) | Failure::Usage(text) | Failure::Damaged(text)) = failure;
    text.clone()
}

/// The newest snapshot that the log refers to, of each group.
fn references(dir: &Dir) -> Result<BTreeMap<GroupId, SnapshotRef>, Failure> {
    let mut groups = Groups::default();
    Walk::all(dir, &mut |_, batch| {
        for (group, record) in &batch.records {
            groups.see(*group, record);
        }
    })?;
    let newest = groups.0.into_iter();
    Ok(newest
        .filter_map(|(id, group)| Some((id, group.snapshot?)))
        .collect())
}

/// What the log refers to, and no file is. One whose header does not verify is told of by itself.
fn missing(referred: &BTreeMap<GroupId, SnapshotRef>, files: &[SnapshotFile]) -> Vec<Failure> {
    let gone = referred.iter().filter_map(|(id, wanted)| {
        let file = files
            .iter()
            .find(|file| file.group == *id && file.number == wanted.number);
        let what = match file.map(|file| &file.state) {
            Some(Err(_)) => return None,
            Some(Ok(found)) if found == wanted => return None,
            Some(Ok(_)) => "one with other content",
            None => "no file",
        };
        Some(Failure::Damaged(format!(
            "{id}: expected snapshot {} at index {}, to which the log refers, found {what}; an older one is used \
             only where the log covers the gap",
            wanted.number, wanted.index
        )))
    });
    gone.collect()
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let snapshots = Snapshots::of(&args.look.dir)?;
    let wanted = |file: &&SnapshotFile| args.number.is_none_or(|number| number == file.number);
    let chosen: Vec<_> = snapshots.files.iter().filter(wanted).collect();
    if let Some(number) = args.number.filter(|_| chosen.is_empty()) {
        return Err(Failure::Failed(format!(
            "{}: there is no snapshot {number}",
            args.look.dir.data_dir.display()
        )));
    }
    let (mut wrong, mut values, mut out) = (Vec::new(), Vec::new(), String::new());
    for file in chosen {
        let path = snapshots.catalog.path_of(file).display().to_string();
        let mut head = None;
        let mut chunks = Vec::new();
        let shown = snapshots.catalog.show(file, &mut |details, chunk| {
            head.get_or_insert_with(|| details.clone());
            chunks.extend(chunk);
        });
        if args.look.json {
            values.push(json!({
                "file": path,
                "header": head.as_ref().map(details_json),
                "chunks": chunks.iter().map(chunk_json).collect::<Vec<_>>(),
                "error": shown.as_ref().err().map(ToString::to_string),
            }));
        } else {
            writeln!(out, "{path}").expect(INTO_STRING);
            if let Some(details) = &head {
                describe(&mut out, details, &chunks);
            }
            if let Err(error) = &shown {
                writeln!(out, "damage: {error}").expect(INTO_STRING);
            }
            out.push('\n');
        }
        wrong.extend(shown.err().as_ref().map(failure_of));
    }
    if args.look.json {
        out = format!("{}\n", json!({ "snapshots": values }));
    }
    print(&out)?;
    first(wrong)
}

fn describe(out: &mut String, details: &SnapshotDetails, chunks: &[ChunkInfo]) {
    let made = match details.origin {
        None => "made here".to_owned(),
        Some((store, number)) => {
            format!("received from store {:x}, number {number} there", store.0)
        }
    };
    writeln!(
        out,
        "group {} creation {} index {} term {} number {} of store {:x}, {made}\n\
         {} bytes of content, crc {:08x}, in {} chunks of at most {}, {} bytes stored; membership of {} bytes\n",
        details.group.0,
        details.creation,
        details.index,
        details.term,
        details.number,
        details.store.0,
        details.content_len,
        details.content_crc,
        details.chunks,
        details.chunk_size,
        details.stored_len,
        details.membership.len(),
    )
    .expect(INTO_STRING);
    let rows = chunks.iter().map(|chunk| {
        vec![
            chunk.number.to_string(),
            chunk.offset.to_string(),
            chunk.stored_len.to_string(),
            chunk.content_len.to_string(),
        ]
    });
    columns(
        out,
        &["CHUNK", "OFFSET", "STORED", "CONTENT"],
        rows.collect(),
    );
}

fn details_json(details: &SnapshotDetails) -> Value {
    json!({
        "store": format!("{:x}", details.store.0),
        "group": details.group.0,
        "creation": details.creation,
        "index": details.index.0,
        "term": details.term.0,
        "number": details.number,
        "origin": details.origin.map(|(store, number)| json!({"store": format!("{:x}", store.0), "number": number})),
        "membership_bytes": details.membership.len(),
        "chunk_size": details.chunk_size,
        "chunks": details.chunks,
        "content_bytes": details.content_len,
        "stored_bytes": details.stored_len,
        "content_crc": details.content_crc,
    })
}

fn chunk_json(chunk: &ChunkInfo) -> Value {
    json!({
        "number": chunk.number,
        "offset": chunk.offset,
        "stored_bytes": chunk.stored_len,
        "content_bytes": chunk.content_len,
    })
}
