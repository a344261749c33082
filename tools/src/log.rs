//! `flotilla log`: what is in a data directory's log, also beside a running server and on a damaged log.
//!
//! `show` prints records, `ls` sums them up per segment and group, `stat` by kind, `timeline` leaves the commands out,
//! `diff` compares two members, `verify` judges as a start does and reads everything. None of these takes a lock or
//! writes a byte; bytes that do not verify are named with file and offset, and make the exit code 3. `salvage` copies what
//! can be trusted to a new directory, and keeps the old one from being used meanwhile.

mod diff;
mod ls;
mod salvage;
mod show;
mod stat;
pub(crate) mod table;
mod timeline;
mod verify;
pub(crate) mod walk;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use raft_log::log::inspect::{self, SegmentInfo, Tail};
use raft_log::vfs::RealFs;
use raft_log::{ErrorKind, LogError};

use crate::failure::Failure;

/// Why these writes do not fail.
pub(crate) const INTO_STRING: &str = "writing to a string does not fail";

/// Flags of `flotilla log`.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Sum up the segments and groups of a log
    Ls(ls::LsArgs),
    /// Print the records of a log, one per line
    Show(show::ShowArgs),
    /// Sum up bytes by group and kind of record
    Stat(stat::StatArgs),
    /// Print terms, votes, cuts, compactions and segments, without commands
    Timeline(timeline::TimelineArgs),
    /// Say where the logs of two members part
    Diff(diff::DiffArgs),
    /// Say whether everything is there and verifies: exit code 0, or 3 with what and where
    Verify(verify::VerifyArgs),
    /// Copy what can be trusted of a damaged data directory to a new one
    Salvage(salvage::SalvageArgs),
}

/// Which directory.
#[derive(Args, Clone, Debug)]
pub(crate) struct Dir {
    /// The data directory
    #[arg(default_value = "flotilla.data")]
    pub(crate) data_dir: PathBuf,
}

impl Dir {
    fn log(&self) -> PathBuf {
        self.data_dir.join("log")
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: &LogArgs) -> Result<(), Failure> {
    match &args.what {
        What::Ls(args) => ls::run(args),
        What::Show(args) => show::run(args),
        What::Stat(args) => stat::run(args),
        What::Timeline(args) => timeline::run(args),
        What::Diff(args) => diff::run(args),
        What::Verify(args) => verify::run(args),
        What::Salvage(args) => salvage::run(args),
    }
}

/// The segments of a data directory, ascending.
fn segments(dir: &Dir) -> Result<Vec<u64>, Failure> {
    let log = dir.log();
    let ids = inspect::segment_ids(&RealFs::new(), &log).map_err(|error| {
        Failure::Failed(format!(
            "{error}; is {} a data directory?",
            dir.data_dir.display()
        ))
    })?;
    if ids.is_empty() {
        return Err(Failure::Failed(format!(
            "{}: there is no segment",
            log.display()
        )));
    }
    Ok(ids)
}

/// Reads one segment; one that a running server removed meanwhile is none.
fn segment(
    log: &Path,
    id: u64,
    visit: &mut dyn FnMut(inspect::BatchInfo),
) -> Result<Option<SegmentInfo>, LogError> {
    match inspect::segment(&RealFs::new(), log, id, visit) {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn failure_of(error: &LogError) -> Failure {
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::SuspectTail | ErrorKind::ForeignStore => {
            Failure::Damaged(error.to_string())
        }
        _ => Failure::Failed(error.to_string()),
    }
}

/// What is wrong behind the last batch of a segment, if anything is. What a later segment supersedes is not.
fn damage(info: &SegmentInfo, next_first_seq: Option<u64>) -> Option<String> {
    let covered = next_first_seq.is_some_and(|next| info.last_seq + 1 >= next);
    let what = match info.tail {
        Tail::WrongLength => {
            let (path, len) = (info.path.display(), info.len);
            return Some(format!(
                "{path} at offset {len}: the file ends here, which is not where its header says"
            ));
        }
        Tail::Clean if next_first_seq.is_none() || covered => return None,
        _ if covered => return None,
        Tail::Clean => "nothing",
        Tail::Unverified => "bytes that do not verify",
        Tail::Unreadable => "bytes that cannot be read",
    };
    Some(format!(
        "{} at offset {}: expected batch {}, found {what}",
        info.path.display(),
        info.end,
        info.last_seq + 1
    ))
}
