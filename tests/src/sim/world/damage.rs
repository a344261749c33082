//! What is damaged of what members have on disk, and when nothing more may be: enough good copies stay.
//!
//! The plan of faults names a minority whose disks go bad. But a member that a disk error made begin its log anew is no good
//! copy either before its peers have given back what it lost, and only the run knows when that is.

use std::path::Path;

use raft_log::vfs::Vfs;
use raft_log::vfs::sim::Fault as DiskFault;

use super::{Member, World};
use crate::sim::node::{GROUP, LOG_DIR};

/// Reads of a start that fail until it takes the log for damaged.
const FAILED_READS: usize = 2;

impl Member {
    /// Whether its log begins anew and waits for its peers.
    pub(super) fn is_guarded(&self) -> bool {
        if !self.node.is_up() {
            return self.guarded;
        }
        let info = self.node.up().log.group(GROUP);
        info.is_some_and(|info| info.incarnation.guarded)
    }

    /// Reads of its disk that have failed or will.
    fn failing_reads(&self) -> usize {
        let struck = self
            .struck
            .iter()
            .filter(|fault| **fault == DiskFault::Read);
        struck.count() + self.node.fs.planned(DiskFault::Read)
    }

    /// Whether it may have lost, or be about to lose, what it acknowledged.
    fn is_bad(&self) -> bool {
        self.lost
            || self.is_guarded()
            || self.rotten.iter().any(|path| path.starts_with(LOG_DIR))
            || self.failing_reads() >= FAILED_READS
    }
}

impl World {
    /// Whether the log of a member may go bad: those that are bad already and this one are a minority of the voters.
    pub(super) fn may_damage(&self, node: usize) -> bool {
        let others = (0..self.members.len()).filter(|at| *at != node);
        let bad = others.filter(|at| !self.members[*at].gone && self.members[*at].is_bad());
        bad.count() < (self.fewest_voters() - 1) / 2
    }

    /// Whether one more read of a member may fail: a single one damages nothing.
    pub(super) fn may_fail_to_read(&self, node: usize) -> bool {
        self.members[node].failing_reads() + 1 < FAILED_READS || self.may_damage(node)
    }

    /// The length of the shortest list of voters that a member goes by which runs.
    fn fewest_voters(&self) -> usize {
        let up = self.members.iter().filter(|member| member.node.is_up());
        let lists = up.flat_map(|member| {
            let membership = member.node.membership();
            [membership.voters.len(), membership.voters_outgoing.len()]
        });
        let fewest = lists.filter(|voters| *voters > 0).min();
        fewest.unwrap_or(self.plan.nodes)
    }

    /// Removes the newest segment of a member that is down, or changes a byte at the end of what is in it.
    pub(super) fn lose_log(&mut self, node: usize, place: u64) {
        let member = &mut self.members[node];
        let segments = member.node.files();
        let segments = segments.iter().filter(|path| path.ends_with(".seg"));
        let Some(path) = segments.max().cloned() else {
            return;
        };
        let fs = &member.node.fs;
        let manifest = format!("{LOG_DIR}/MANIFEST");
        // Nothing else tells of the newest segment.
        if place & 16 == 0 && !member.rotten.contains(&manifest) {
            fs.remove(Path::new(&path)).expect("it was listed");
            self.trace.say(self.now, &format!("{path} is lost"));
        } else {
            let content = fs.read_file(&path).expect("it was listed");
            if content.is_empty() {
                // A power loss has left nothing of it.
                return;
            }
            let batches = &content[..content.len().saturating_sub(2048)];
            let end = batches.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            let at = end.saturating_sub((place >> 32) as usize % 400);
            fs.corrupt(&path, at as u64, 4).expect("it is in the file");
            self.trace.say(self.now, &format!("{path} rots at {at}"));
        }
        let votes = format!("{LOG_DIR}/votes");
        member.rotten.extend([path, manifest, votes]);
    }

    /// Changes a byte in one of the files of a member.
    pub(super) fn rot(&mut self, node: usize, place: u64, mask: u8) {
        let member = &mut self.members[node];
        let files = member.node.files();
        if files.is_empty() {
            return;
        }
        let path = &files[(place % files.len() as u64) as usize];
        let len = member.node.fs.file_len(path).unwrap_or(0);
        if len == 0 {
            return;
        }
        let offset = (place >> 16) % len;
        if member.node.fs.corrupt(path, offset, mask).is_ok() {
            self.trace
                .say(self.now, &format!("{path} rots at {offset}"));
            member.rotten.push(path.clone());
        }
    }
}
