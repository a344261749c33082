//! How faults begin and end.

use raft_log::vfs::Vfs;

use super::{Event, Fault, World};
use crate::sim::node::LOG_DIR;
use crate::sim::world::fault::DiskError;

impl World {
    /// A fault of the plan begins.
    pub(super) fn begin(&mut self, which: usize) {
        let fault = self.plan.faults[which].fault.clone();
        let now = self.now;
        self.trace
            .event(now, &fault, || format!("fault {which}: {fault:?}"));
        let kind = self.apply_fault(&fault);
        self.count(kind);
        let lasts = match fault {
            Fault::SlowDisk { ticks, .. }
            | Fault::DiskFull { ticks, .. }
            | Fault::SlowApply { ticks, .. }
            | Fault::Partition { ticks, .. }
            | Fault::Network { ticks, .. } => ticks,
            _ => return,
        };
        self.at(now + lasts, Event::End(which));
    }

    fn apply_fault(&mut self, fault: &Fault) -> &'static str {
        let now = self.now;
        match *fault {
            Fault::Crash {
                node,
                power,
                ops,
                keep,
                down,
            } => {
                let member = &mut self.members[node];
                if member.node.is_up() && !member.node.fs.is_down() {
                    member.next_crash = (power, keep, down);
                    member.node.fs.fail_after(ops);
                }
                "crashes planned"
            }
            Fault::PowerLossOfAll { keep, down } => {
                for at in 0..self.members.len() {
                    self.crash(at, true, keep, down + at as u64);
                }
                "power losses of all"
            }
            Fault::SlowDisk {
                node, sync_ticks, ..
            } => {
                self.members[node].sync_ticks = sync_ticks;
                "slow disks"
            }
            Fault::DiskError { node, kind, pass } => {
                let member = &mut self.members[node];
                member.node.fs.fail_nth(kind.on_disk(), pass);
                member.armed = true;
                member.dirs_failed |= kind == DiskError::SyncDir;
                "disk errors"
            }
            Fault::DiskFull { node, room, .. } => {
                let member = &mut self.members[node];
                if let Ok(used) = member.node.disk_bytes() {
                    member.node.fs.set_capacity(Some(used + room));
                    member.full = true;
                }
                "full disks"
            }
            Fault::BitRot { node, place, mask } => {
                self.rot(node, place, mask);
                "rotten bits"
            }
            Fault::ClockRate { node, percent } => {
                let member = &mut self.members[node];
                member.set_rate(now, percent);
                member.due = member.due.min(now);
                "clock rates"
            }
            Fault::Pause { node, ticks } => {
                self.members[node].paused_until = now + ticks;
                "pauses"
            }
            Fault::SlowApply {
                node, apply_ticks, ..
            } => {
                self.members[node].apply_ticks = apply_ticks;
                "slow appliers"
            }
            Fault::Partition { ref cut, .. } => {
                self.network.cut(cut);
                "partitions"
            }
            Fault::Network { net, .. } => {
                self.network.set(net);
                "bad networks"
            }
            Fault::Persist { node } => {
                let engine = &self.members[node].node.engine;
                kv_server::engine::Engine::persist(engine).expect("an engine in memory persists");
                "engines persisted"
            }
        }
    }

    /// A fault of the plan ends. Of two that overlap on one member, the end of the first ends both.
    pub(super) fn end(&mut self, which: usize) {
        let fault = self.plan.faults[which].fault.clone();
        self.trace
            .event(self.now, &("end", which), || format!("fault {which} ends"));
        match fault {
            Fault::SlowDisk { node, .. } => self.members[node].sync_ticks = 0,
            Fault::DiskFull { node, .. } => self.free(node),
            Fault::SlowApply { node, .. } => self.members[node].apply_ticks = 0,
            Fault::Partition { cut, .. } => self.network.join(&cut),
            Fault::Network { .. } => self.network.set(Default::default()),
            _ => {}
        }
    }

    fn free(&mut self, node: usize) {
        let member = &mut self.members[node];
        member.node.fs.set_capacity(None);
        member.full = false;
        member.due = member.due.min(self.now);
    }

    /// Everything is well again, but for bits that have rotted and errors that have not struck.
    pub(super) fn heal(&mut self) {
        self.network.heal();
        for at in 0..self.members.len() {
            self.free(at);
            let now = self.now;
            let member = &mut self.members[at];
            (member.sync_ticks, member.apply_ticks, member.paused_until) = (0, 0, 0);
            member.set_rate(now, 100);
            member.due = member.due.min(now);
        }
        self.events
            .retain(|_, event| !matches!(event, Event::Fault(_) | Event::End(_)));
    }

    /// Changes a byte in one of the files of a member's log.
    fn rot(&mut self, node: usize, place: u64, mask: u8) {
        let member = &mut self.members[node];
        let Ok(names) = member.node.fs.list(LOG_DIR.as_ref()) else {
            return;
        };
        if names.is_empty() {
            return;
        }
        let name = &names[(place % names.len() as u64) as usize];
        let path = format!("{LOG_DIR}/{name}");
        let Ok(len) = member.node.fs.file_len(&path) else {
            return;
        };
        if len > 0
            && member
                .node
                .fs
                .corrupt(&path, (place >> 16) % len, mask)
                .is_ok()
        {
            member.rotten = true;
        }
    }
}
