//! What is checked and synced in the engine's directory before the tree may open it, and afterwards.
//!
//! The tree deletes at open what its version file does not name. That is safe only once the version file itself
//! is sure to survive: a crash right after the rename of `current` may leave the rename in the page cache only. So
//! this comes first. It also checks the version file against the checksum that `current` holds, which the tree
//! writes but does not read.
#![expect(
    clippy::disallowed_methods,
    reason = "the tree does its own file access, so its files are not behind the log's vfs"
)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lsm_tree::checksum::ChecksummedWriter;
use lsm_tree::{AbstractTree, Tree};

use super::view::Tables;
use crate::engine::EngineError;

const CURRENT: &str = "current";
const TABLES: &str = "tables";
/// Id of the version (u64 LE), its checksum (u128 LE), the kind of checksum.
const CURRENT_BYTES: usize = 25;

fn at(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

fn sync(path: &Path) -> Result<(), EngineError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| EngineError::new(at("sync", path), error))
}

fn damaged(path: &Path, what: String) -> EngineError {
    EngineError::new(at("check", path), what)
}

/// What `current` says.
struct Current {
    version: u64,
    checksum: u128,
}

impl Current {
    fn read(dir: &Path) -> Result<Option<Self>, EngineError> {
        let path = dir.join(CURRENT);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(EngineError::new(at("read", &path), error)),
        };
        if bytes.len() != CURRENT_BYTES || bytes[CURRENT_BYTES - 1] != 0 {
            let found = bytes.len();
            return Err(damaged(
                &path,
                format!("expected {CURRENT_BYTES} bytes that end in 0, found {found} bytes"),
            ));
        }
        let (version, rest) = bytes.split_at(8);
        Ok(Some(Self {
            version: u64::from_le_bytes(version.try_into().expect("split at 8")),
            checksum: u128::from_le_bytes(rest[..16].try_into().expect("16 of 17 bytes")),
        }))
    }
}

fn names(dir: &Path) -> Result<Vec<(String, PathBuf)>, EngineError> {
    let failed = |error| EngineError::new(at("list", dir), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    names.sort();
    Ok(names)
}

/// Makes `dir` ready to be opened by the tree; creates it where it is missing.
pub(super) fn prepare(dir: &Path) -> Result<(), EngineError> {
    let tables = dir.join(TABLES);
    fs::create_dir_all(&tables).map_err(|error| EngineError::new(at("create", &tables), error))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync(parent)?;
    }
    match Current::read(dir)? {
        Some(current) => {
            let path = dir.join(format!("v{}", current.version));
            let bytes =
                fs::read(&path).map_err(|error| EngineError::new(at("read", &path), error))?;
            let mut hasher = ChecksummedWriter::new(io::sink());
            hasher
                .write_all(&bytes)
                .map_err(|error| EngineError::new(at("check", &path), error))?;
            let found = hasher.checksum().into_u128();
            if found != current.checksum {
                let expected = current.checksum;
                let text = format!("expected checksum {expected:032x}, found {found:032x}");
                return Err(damaged(&path, text));
            }
            sync(&path)?;
            sync(&dir.join(CURRENT))?;
        }
        None => {
            // A crash while the first version was written leaves `v0` at most. Anything else had a `current`.
            let stray = names(&tables)?
                .into_iter()
                .chain(
                    names(dir)?
                        .into_iter()
                        .filter(|(name, _)| name.starts_with('v') && name != "v0"),
                )
                .next();
            if let Some((_, stray)) = stray {
                let missing = dir.join(CURRENT);
                return Err(damaged(
                    &missing,
                    format!("the file is missing, but there is {}", stray.display()),
                ));
            }
        }
    }
    sync(&tables)?;
    sync(dir)?;
    for (name, path) in names(dir)? {
        if name.starts_with(".tmp") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Syncs the tables that a freshly opened tree names, so that what was found counts as durable.
pub(super) fn sync_tables(tables: &Tables) -> Result<(), EngineError> {
    tables.iter().try_for_each(|table| sync(&table.path))
}

fn remove(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(EngineError::new(at("remove", path), error))
        }
        _ => Ok(()),
    }
}

/// Removes the files of failed attempts to write tables: those with ids from `first` up that the tree does not name.
///
/// Nothing is removed when `current` names another version than the tree holds: then an attempt got as far as its
/// rename, and a crash may find that version. Says whether it was so.
pub(super) fn remove_leftovers(dir: &Path, tree: &Tree, first: u64) -> Result<bool, EngineError> {
    let held = tree.current_version();
    let named = Current::read(dir)?.map(|current| current.version);
    if named != Some(held.id()) {
        return Ok(false);
    }
    for id in first..tree.next_table_id() {
        if held.iter_tables().all(|table| table.id() != id) {
            remove(&dir.join(TABLES).join(id.to_string()))?;
        }
    }
    Ok(true)
}
