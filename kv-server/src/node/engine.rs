//! Opens the engine, or rebuilds one that cannot be opened.
#![expect(
    clippy::disallowed_methods,
    reason = "the engine directory is the engine's own and is moved aside as a whole"
)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use raft_log::snapshot::{RestorePoint, SnapshotStore};
use raft_log::{Index, Log};
use tracing::warn;

use super::{NodeConfig, NodeError};
use crate::engine::lsm::{FlushObserver, LsmEngine, LsmOptions};
use crate::engine::{Engine, EngineError};
use crate::mvcc::Survey;

/// Damaged engine directories that are kept for inspection.
const ASIDE_MAX: u32 = 8;

/// Opens the engine. One that does not open is moved aside, and the empty one that takes its place is filled from the
/// log, when the log begins with the first entry or follows a snapshot; else nothing is touched.
pub(super) fn open(
    config: &NodeConfig,
    log: &Log,
    snapshots: &SnapshotStore,
    observe_flush: FlushObserver,
) -> Result<Arc<dyn Engine>, NodeError> {
    let dir = config.data_dir.join("engine");
    let options = LsmOptions {
        observe_flush,
        ..LsmOptions::default()
    };
    let error = match LsmEngine::open(&dir, options.clone()) {
        Ok(engine) => return Ok(Arc::new(engine)),
        Err(error) => error,
    };
    let mut restorable = true;
    for group in log.groups() {
        let info = log.group(group);
        let complete = info.is_none_or(|info| info.base.index == Index::ZERO);
        restorable &= complete
            || matches!(
                snapshots.restore(log, group)?,
                RestorePoint::Snapshot { .. }
            );
    }
    let error = rebuildable(error, &dir, restorable)?;
    let aside = move_aside(&config.data_dir, &dir)?;
    warn!(%error, moved_to = %aside, "the engine cannot be opened and is rebuilt from the log, or from a snapshot and the log");
    Ok(Arc::new(LsmEngine::open(&dir, options)?))
}

/// What an engine's directory holds. Opening an engine cleans up in its directory, so this is for a copy, or for a start.
///
/// # Errors
/// The engine cannot be opened or read.
pub fn survey(dir: &Path) -> Result<Survey, EngineError> {
    let engine: Arc<dyn Engine> = Arc::new(LsmEngine::open(dir, LsmOptions::default())?);
    let survey = Survey::of(engine.as_ref())?;
    engine.close()?;
    Ok(survey)
}

/// What the engine holds before anything else of a start has looked at it; nothing when it cannot be opened, for then it is
/// rebuilt.
///
/// # Errors
/// A state of the machine that will pass, such as a full disk.
pub(super) fn survey_at_start(dir: &Path) -> Result<Survey, String> {
    match survey(dir) {
        Ok(survey) => Ok(survey),
        Err(error) if is_passing(&error) => Err(error.to_string()),
        Err(_) => Ok(Survey::default()),
    }
}

/// Gives the error back when a new engine, filled from the log, is the answer to it; else why the start ends here.
fn rebuildable(error: EngineError, dir: &Path, complete: bool) -> Result<EngineError, NodeError> {
    if is_passing(&error) {
        Err(NodeError::Engine(error))
    } else if complete {
        Ok(error)
    } else {
        let dir = dir.to_owned();
        Err(NodeError::EngineLost { dir, cause: error })
    }
}

/// Not damage, but a state of the machine that a new engine would meet as well.
fn is_passing(error: &EngineError) -> bool {
    use std::io::ErrorKind;
    let io = error
        .source
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    matches!(
        io,
        Some(
            ErrorKind::StorageFull
                | ErrorKind::PermissionDenied
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::OutOfMemory
        )
    )
}

fn move_aside(data_dir: &Path, dir: &Path) -> Result<String, NodeError> {
    for number in 1..=ASIDE_MAX {
        let aside = data_dir.join(format!("engine.damaged-{number}"));
        if aside.exists() {
            continue;
        }
        fs::rename(dir, &aside).map_err(|error| NodeError::io("cannot move aside", dir, error))?;
        fs::File::open(data_dir)
            .and_then(|parent| parent.sync_all())
            .map_err(|error| NodeError::io("cannot sync", data_dir, error))?;
        return Ok(aside.display().to_string());
    }
    Err(NodeError::io(
        "there are already eight engine.damaged directories; remove them from",
        data_dir,
        std::io::ErrorKind::AlreadyExists.into(),
    ))
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    fn failed(kind: ErrorKind) -> EngineError {
        EngineError {
            context: "open it".to_owned(),
            source: Box::new(Error::from(kind)),
        }
    }

    /// An engine that could not be read for want of permission was called lost, with the advice to restore a backup.
    #[test]
    fn engine_that_cannot_be_read_now_is_neither_lost_nor_rebuilt() {
        let dir = Path::new("engine");
        for complete in [false, true] {
            let passing = rebuildable(failed(ErrorKind::PermissionDenied), dir, complete);
            let error = passing.expect_err("it may be whole");
            assert!(matches!(error, NodeError::Engine(_)), "{error}");
            assert!(!error.is_damage());
        }
        let lost = rebuildable(failed(ErrorKind::InvalidData), dir, false);
        assert!(matches!(lost, Err(NodeError::EngineLost { .. })));
        assert!(rebuildable(failed(ErrorKind::InvalidData), dir, true).is_ok());
    }
}
