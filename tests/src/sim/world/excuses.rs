//! Why a member may stop by itself, or not start: for what a fault of the plan did to it, and for nothing else.
//!
//! - Its disk was cut off in the middle of an operation: the crash comes next.
//! - An operation of its disk has failed. One failure excuses one stop, of the process that met it.
//! - A byte of its log or snapshots has changed, and the error names that file. A log that it reads while it runs is begun
//!   anew by the next start; a member that does not start stays down: it takes an operator to replace it.
//! - Its disk is full, it was starting, and the error says so. A member that runs goes on.
//!
//! The reverse holds as well: a member whose sync failed must not write
//! anything more.

use raft_log::vfs::sim::Fault as DiskFault;

use super::{Member, World};
use crate::sim::node::Stopped;

/// How an error of the disk reads, at the end of whatever it broke.
const EIO: &str = "os error 5";
/// How errors of a full disk read.
const NO_SPACE: [&str; 3] = ["os error 28", "no storage space", "the disk is full"];
/// How everything fails on a disk that was cut off.
const CUT_OFF: &str = "simulated crash";

/// What excuses a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    /// The disk was cut off.
    CutOff,
    /// An operation of the disk failed.
    DiskError,
    /// The log is damaged.
    Damage,
    /// The disk is full.
    NoSpace,
}

impl Member {
    /// Notes which planned errors its disk has returned, to its log or to others.
    pub(super) fn note_strikes(&mut self, log: bool) {
        let mut struck = self.node.fs.take_struck();
        self.log_failed |= log && struck.contains(&DiskFault::Sync);
        self.struck.append(&mut struck);
    }

    /// Why it may stop with an error; none when it may not.
    fn excuse(&self, error: &str) -> Option<Excuse> {
        if self.node.fs.is_down() {
            return error.contains(CUT_OFF).then_some(Excuse::CutOff);
        }
        if error.contains(EIO) {
            return (!self.struck.is_empty()).then_some(Excuse::DiskError);
        }
        if self.rotten.iter().any(|path| error.contains(path)) {
            return Some(Excuse::Damage);
        }
        let says_so = NO_SPACE.iter().any(|text| error.contains(text));
        (self.full && says_so && !self.node.is_up()).then_some(Excuse::NoSpace)
    }
}

impl World {
    /// A member stops with an error.
    ///
    /// # Panics
    /// When no fault excuses it.
    pub(super) fn excuse(&mut self, at: usize, error: &Stopped) -> Excuse {
        let member = &mut self.members[at];
        member.note_strikes(true);
        let Some(excuse) = member.excuse(&error.0) else {
            panic!(
                "member {} stops without a fault that excuses it: {} (disk errors {:?}, rotten {:?}, full {})",
                at + 1,
                error.0,
                member.struck,
                member.rotten,
                member.full
            );
        };
        excuse
    }

    /// A member has written and synced something.
    ///
    /// # Panics
    /// When a sync of its had failed before.
    pub(super) fn wrote(&mut self, at: usize) {
        let member = &mut self.members[at];
        assert!(
            !member.log_failed,
            "member {} goes on after a failed sync",
            at + 1
        );
        member.note_strikes(true);
    }
}
