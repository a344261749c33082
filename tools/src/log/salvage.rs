//! `flotilla log salvage`: what can be trusted of a damaged data directory, in a new one.
//!
//! The log is copied record by record by `raft_log::log::salvage`; snapshots that the log refers to and that verify are
//! copied as they are. The engine's files come along where the log does not make up the state by itself: because it was
//! compacted, or because what is damaged in it is in the engine's state already. `IDENTITY` comes last, so that a copy that was cut short is refused by every start.

use std::cell::RefCell;
use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use kv_server::mvcc::Survey;
use kv_server::node::survey;
use raft_log::log::salvage::{Covered, Report, Salvaged, salvage};
use raft_log::snapshot::Catalog;
use raft_log::vfs::{RealFs, SharedVfs, Vfs, VfsLock};
use raft_log::{GroupId, Index, LogOptions, SnapshotRef};
use serde_json::json;

use super::table::columns;
use super::verify::Owner;
use super::{Dir, INTO_STRING, failure_of, segments};
use crate::failure::{Failure, print};

/// Flags of `flotilla log salvage`.
#[derive(Args, Debug)]
pub(super) struct SalvageArgs {
    #[command(flatten)]
    dir: Dir,
    /// The new data directory; it must be empty or not there
    #[arg(long)]
    to: PathBuf,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &SalvageArgs) -> Result<(), Failure> {
    segments(&args.dir)?;
    refuse_used(&args.dir.data_dir, &args.to)?;
    let vfs: SharedVfs = Arc::new(RealFs::new());
    let _locks = lock(&*vfs, &args.dir.data_dir)?;
    copy(args, &vfs).map_err(|failure| {
        let partial = args.to.exists();
        failure.map(|text| match partial {
            true => format!("{text}; {} is incomplete, remove it", args.to.display()),
            false => text,
        })
    })
}

fn copy(args: &SalvageArgs, vfs: &SharedVfs) -> Result<(), Failure> {
    let (from, to) = (&args.dir.data_dir, &args.to);
    let owner = Owner::of(vfs, from, &args.dir.log())?;
    let catalog = Catalog::new(Arc::clone(vfs), from.join("snap"), Some(owner.store));
    let found = RefCell::new(Vec::new());
    let has_snapshot = |group: GroupId, snapshot: &SnapshotRef| {
        let good = catalog.verify(group, snapshot).is_ok();
        if good {
            found.borrow_mut().push(catalog.file_of(group, snapshot));
        }
        good
    };
    let engine = RefCell::new(Copied::default());
    let covered = |group: GroupId| engine.borrow_mut().covered(from, to, group);
    let options = LogOptions::new(args.dir.log(), owner.store);
    let report = salvage(vfs, &options, &to.join("log"), &has_snapshot, &covered)
        .map_err(|error| failure_of(&error))?;
    let mut copied = copy_snapshots(from, to, &found.into_inner())?;
    let compacted = |told: &Salvaged| told.base > Index::ZERO;
    copied.extend(
        engine
            .into_inner()
            .settle(from, to, report.groups.iter().any(compacted))?,
    );
    if from.join("PEERS").exists() {
        copied.push(copy_file(from, to, Path::new("PEERS"))?);
    }
    if owner.damage.is_none() {
        copied.push(copy_file(from, to, Path::new("IDENTITY"))?);
    }
    sync_dir(to)?;
    print(&if args.json {
        to_json(args, &report, &owner, &copied)
    } else {
        to_text(args, &report, &owner, &copied)
    })
}

/// The engine's directory, copied when something depends on it.
#[derive(Default)]
struct Copied {
    files: Option<Vec<PathBuf>>,
    survey: Survey,
}

impl Copied {
    /// What the engine holds of a group. It is opened where it was copied to, as opening it writes.
    fn covered(&mut self, from: &Path, to: &Path, group: GroupId) -> Option<Covered> {
        if self.files.is_none() {
            let copied = copy_all(from, to, Path::new("engine")).ok()?;
            if copied.is_empty() {
                return None;
            }
            self.files = Some(copied);
            // One that cannot be opened covers nothing, and does not keep the log from being copied.
            self.survey = survey(&to.join("engine")).unwrap_or_default();
        }
        let applied = self.survey.applied.get(&group)?;
        let applied = Some(applied).filter(|applied| applied.index > Index::ZERO)?;
        let membership = applied.membership.as_ref();
        Some(Covered {
            index: applied.index,
            term: applied.term,
            membership: membership.map(|(_, members)| members.encode()),
        })
    }

    /// Leaves the engine's files where the log begins behind its first entry, and else none: then the engine is rebuilt
    /// from the log.
    fn settle(self, from: &Path, to: &Path, needed: bool) -> Result<Vec<PathBuf>, Failure> {
        let name = Path::new("engine");
        match (self.files, needed) {
            (Some(files), true) => Ok(files),
            (None, true) => copy_all(from, to, name),
            (None, false) => Ok(Vec::new()),
            (Some(_), false) => {
                let path = to.join(name);
                fs::remove_dir_all(&path).map_err(|error| {
                    Failure::failed(format!("cannot remove {}", path.display()), error)
                })?;
                Ok(Vec::new())
            }
        }
    }
}

/// Never in place, and never over something.
fn refuse_used(from: &Path, to: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::Failed(format!("{}: {why}", to.display())));
    match fs::read_dir(to).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return refuse("the new directory must be empty or not there"),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return refuse(&error.to_string()),
    }
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| Failure::failed(path.display(), error))
    };
    let (from, to) = (absolute(from)?, absolute(to)?);
    // What is there already is compared by where it really is.
    let real = |path: &Path| {
        let there = path
            .ancestors()
            .find_map(|part| fs::canonicalize(part).ok());
        there.unwrap_or_else(|| path.to_owned())
    };
    if to.starts_with(&from) || real(&to).starts_with(real(&from)) {
        return refuse("the new directory must not lie in the old one");
    }
    Ok(())
}

/// Keeps a server from starting on the directory meanwhile, and fails when one runs on it. What was never locked has no
/// file for it, and gets none.
fn lock(vfs: &dyn Vfs, data_dir: &Path) -> Result<Vec<Box<dyn VfsLock>>, Failure> {
    let paths = [data_dir.join("LOCK"), data_dir.join("log/LOCK")];
    let locked = paths.iter().filter(|path| path.exists()).map(|path| {
        vfs.lock(path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Failure::Failed(format!(
                "{} is in use by another process; stop it first",
                data_dir.display()
            )),
            _ => Failure::failed(format!("cannot lock {}", path.display()), error),
        })
    });
    locked.collect()
}

/// The snapshots, and the counter without which they are refused.
fn copy_snapshots(from: &Path, to: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut names: Vec<&Path> = files
        .iter()
        .filter_map(|path| path.strip_prefix(from).ok())
        .collect();
    let counter = Path::new("snap/NUMBERS");
    if from.join(counter).exists() {
        names.push(counter);
    }
    names.iter().map(|name| copy_file(from, to, name)).collect()
}

/// A directory with all that is in it.
fn copy_all(from: &Path, to: &Path, name: &Path) -> Result<Vec<PathBuf>, Failure> {
    let path = from.join(name);
    let failed = |error| Failure::failed(format!("cannot list {}", path.display()), error);
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut copied = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = name.join(entry.file_name());
        if entry.file_type().map_err(failed)?.is_dir() {
            copied.extend(copy_all(from, to, &name)?);
        } else {
            copied.push(copy_file(from, to, &name)?);
        }
    }
    Ok(copied)
}

/// One file, durably; its name below the data directory.
fn copy_file(from: &Path, to: &Path, name: &Path) -> Result<PathBuf, Failure> {
    let target = to.join(name);
    let dir = target.parent().unwrap_or(to);
    let done = fs::create_dir_all(dir)
        .and_then(|()| fs::copy(from.join(name), &target))
        .and_then(|_| File::open(&target)?.sync_all());
    done.map_err(|error| Failure::failed(format!("cannot copy {}", name.display()), error))?;
    // Up to the data directory, as parents may be new too.
    for dir in dir.ancestors().take_while(|dir| dir.starts_with(to)) {
        sync_dir(dir)?;
    }
    Ok(name.to_owned())
}

fn sync_dir(dir: &Path) -> Result<(), Failure> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Failure::failed(format!("cannot sync {}", dir.display()), error))
}

/// What is worth a word besides the groups.
fn notes(args: &SalvageArgs, report: &Report, owner: &Owner, copied: &[PathBuf]) -> Vec<String> {
    let mut notes = Vec::new();
    for told in &report.groups {
        if let Some(reason) = &told.reason {
            let first = told.last.next();
            let gone = format!("entries {first} to {} are lost", told.known);
            notes.push(format!("{}: {gone}: {reason}", told.group));
        }
        if let Some(snapshot) = &told.dropped_snapshot {
            notes.push(format!(
                "{}: the snapshot at index {} is missing or does not verify, and is not referred to any more",
                told.group, snapshot.index
            ));
        }
    }
    let engine = copied.iter().filter(|name| name.starts_with("engine"));
    match engine.count() {
        0 => {}
        count => notes.push(format!(
            "the log does not begin at its first entry, so {count} files of the engine were copied: what came before is \
             in them"
        )),
    }
    if let Some(damage) = &owner.damage {
        notes.push(format!(
            "{damage}; the copy has none, and no server starts on it without"
        ));
    }
    if !report.damage.is_empty() {
        notes.push(
            "a loss is counted as far as what can be read tells of it: damage may have hidden more, and nothing behind a \
             batch that does not verify is kept"
                .to_owned(),
        );
    }
    if report.is_loss() {
        notes.push(
            "what is lost may be more than is known here, and may have been acknowledged: a member of a cluster must \
             not go on with this copy, remove it and add it again"
                .to_owned(),
        );
    }
    notes.push(format!(
        "{} opens and verifies; {} was not changed",
        args.to.display(),
        args.dir.data_dir.display()
    ));
    notes
}

fn to_text(args: &SalvageArgs, report: &Report, owner: &Owner, copied: &[PathBuf]) -> String {
    let mut out = String::new();
    // Behind damage there may have been more than is known.
    let or_more = if report.damage.is_empty() { "" } else { "+" };
    let rows = report.groups.iter().map(|told| {
        vec![
            told.group.0.to_string(),
            told.base.to_string(),
            told.last.to_string(),
            format!("{}{or_more}", told.known),
            (told.last.0 - told.base.0).to_string(),
            format!("{}{or_more}", told.known.0 - told.last.0),
        ]
    });
    let header = ["GROUP", "BASE", "LAST", "WAS", "KEPT", "LOST"];
    columns(&mut out, &header, rows.collect());
    out.push('\n');
    for damage in &report.damage {
        writeln!(out, "damage: {damage}").expect(INTO_STRING);
    }
    for note in notes(args, report, owner, copied) {
        writeln!(out, "note: {note}").expect(INTO_STRING);
    }
    out
}

fn to_json(args: &SalvageArgs, report: &Report, owner: &Owner, copied: &[PathBuf]) -> String {
    let groups = report.groups.iter().map(|told| {
        json!({
            "group": told.group.0,
            "base_index": told.base.0,
            "last_index": told.last.0,
            "known_index": told.known.0,
            "lost": told.known.0 - told.last.0,
            "reason": told.reason,
            "dropped_snapshot": told.dropped_snapshot.as_ref().map(|snapshot| snapshot.index.0),
        })
    });
    let damage = report.damage.iter().map(ToString::to_string);
    let value = json!({
        "loss": report.is_loss(),
        "groups": groups.collect::<Vec<_>>(),
        "damage": damage.collect::<Vec<_>>(),
        "copied": copied,
        "notes": notes(args, report, owner, copied),
    });
    format!("{value}\n")
}
