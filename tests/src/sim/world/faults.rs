//! How faults begin and end.
//!
//! Several may be there at a time, also of one kind and on one member. What a member or the network is like is worked out
//! from all that last, whenever one begins or ends: the end of one leaves the others as they are.

use kv_server::pb::command::command::Op;
use kv_server::pb::etcdserverpb::CompactionRequest;

use super::fault::{CutOff, DiskError, Net};
use super::snapshots::Armed;
use super::{Event, Fault, NodeId, World};
use crate::sim::node::GROUP;

/// Ticks between a transfer and the moment at which the old leader is cut off.
const ORDER_TICKS: u64 = 2;

/// A fault that lasts, and what it met when it began.
pub(super) struct Lasting {
    fault: Fault,
    /// The member that led, and the directions that were cut.
    cut: Vec<(usize, usize)>,
    leader: Option<usize>,
    /// Those who are not cut off by [`Fault::LoseLog`], first the one whose log is lost.
    majority: Vec<usize>,
    /// Bytes that the disk may hold.
    capacity: u64,
}

impl World {
    /// A fault of the plan begins.
    pub(super) fn begin(&mut self, which: usize) {
        let scheduled = self.plan.faults[which].clone();
        let (number, fault) = (scheduled.number, scheduled.fault);
        let now = self.now;
        if fault.members().iter().any(|at| *at >= self.members.len()) {
            // That member has not come yet, and may never.
            return;
        }
        self.trace
            .event(now, &fault, || format!("fault {number}: {fault:?}"));
        let lasting = Lasting {
            cut: Vec::new(),
            leader: None,
            majority: Vec::new(),
            capacity: 0,
            fault: fault.clone(),
        };
        let (kind, lasting) = self.apply_fault(&fault, lasting);
        self.count(kind);
        if let (Some(ticks), Some(lasting)) = (fault.lasts(), lasting) {
            self.lasting.insert(which, lasting);
            match fault {
                // The order to take over arrives before.
                Fault::Depose { to: Some(_), .. } => {
                    self.at(now + ORDER_TICKS, Event::Cut(which));
                }
                Fault::OldMail { late, .. } => {
                    self.at(now + late, Event::Strike(which));
                    self.at(now + late + ORDER_TICKS, Event::Cut(which));
                }
                Fault::Flap { times, every, .. } => {
                    for time in 1..=times {
                        self.at(now + time * every, Event::Strike(which));
                    }
                }
                _ => self.cut(which),
            }
            self.at(now + ticks, Event::End(which));
            self.settle_faults();
        }
    }

    /// What a fault does at once, its name, and what lasts of it.
    fn apply_fault(
        &mut self,
        fault: &Fault,
        mut lasting: Lasting,
    ) -> (&'static str, Option<Lasting>) {
        let now = self.now;
        let kind = match *fault {
            Fault::Crash {
                node,
                power,
                ops,
                keep,
                down,
            } => {
                self.plan_crash(node, (power, keep, down), ops);
                "crashes planned"
            }
            Fault::PowerLossOfAll { keep, down } => {
                for at in 0..self.members.len() {
                    self.crash(at, true, keep, down + at as u64);
                }
                "power losses of all"
            }
            Fault::SlowDisk { .. } => "slow disks",
            Fault::DiskError {
                node,
                kind: DiskError::Read,
                ..
            } if !self.may_fail_to_read(node) => "disk errors left out",
            Fault::DiskError { node, kind, pass } => {
                let member = &mut self.members[node];
                member.node.fs.fail_nth(kind.on_disk(), pass);
                "disk errors"
            }
            Fault::DiskFull { node, room, .. } => {
                let node = &self.members[node].node;
                if node.fs.is_down() {
                    return ("full disks", None);
                }
                lasting.capacity = node.disk_bytes() + room;
                "full disks"
            }
            Fault::BitRot { node, .. } if !self.may_damage(node) => "rotten bits left out",
            Fault::BitRot { node, place, mask } => {
                self.rot(node, place, mask);
                "rotten bits"
            }
            Fault::LoseLog { node, .. } => {
                let leader = self.leader();
                let majority = leader.and_then(|leader| self.majority_with(node, leader));
                let Some(majority) = majority.filter(|_| self.may_damage(node)) else {
                    return ("logs lost in vain", None);
                };
                lasting.cut = links(self.members.len(), |at| majority.contains(&at));
                lasting.majority = majority;
                "logs lost"
            }
            Fault::ClockRate { .. } => "clock rates",
            // Leases of a leader trust clocks not to.
            Fault::ClockJump { .. } if self.settings.read_lease_ticks > 0 => "clock jumps left out",
            Fault::ClockJump { node, ticks } => {
                let member = &mut self.members[node];
                member.jump_clock(now, ticks);
                member.due = member.due.min(now);
                self.witness.leases.clock_jumped();
                "clock jumps"
            }
            Fault::Pause { node, ticks } => {
                let member = &mut self.members[node];
                member.paused_until = member.paused_until.max(now + ticks);
                // Half of the pauses come between a look at the clock and what is done then.
                if ticks % 2 == 0 && member.node.is_up() && member.looked.is_none() {
                    member.looked = Some(member.local(now));
                }
                "pauses"
            }
            Fault::SlowApply { .. } => "slow appliers",
            Fault::Partition { ref cut, .. } => {
                lasting.cut.clone_from(cut);
                "partitions"
            }
            Fault::Network { .. } => "bad networks",
            Fault::Persist { node } => {
                let engine = &self.members[node].node.engine;
                kv_server::engine::Engine::persist(engine).expect("an engine in memory persists");
                "engines persisted"
            }
            Fault::Transfer { to } => {
                if let Some(leader) = self.leader() {
                    self.transfer(leader, to);
                }
                "transfers"
            }
            Fault::Depose { to, how, .. } => {
                let Some(leader) = self.leader() else {
                    return ("leaders cut off in vain", None);
                };
                if let Some(to) = to {
                    self.transfer(leader, to);
                }
                lasting.cut = how.links(leader, self.members.len());
                lasting.leader = Some(leader);
                "leaders cut off"
            }
            Fault::Compact { node, back, crash } => {
                let revision = self.oracle.get().model().revision();
                let op = Op::Compact(CompactionRequest {
                    revision: revision.saturating_sub_unsigned(back),
                    physical: false,
                });
                self.ask(node, super::client::ClientOp::Command(op));
                if let Some(ops) = crash {
                    self.plan_crash(node, (true, 8, ops + 1), ops);
                }
                "compactions"
            }
            Fault::SlowWatcher { .. } => "slow watchers",
            Fault::OldMail { to, .. } => {
                let Some(leader) = self.leader() else {
                    return ("leaders cut off in vain", None);
                };
                lasting.cut = CutOff::MuteAndDeafTo(to).links(leader, self.members.len());
                lasting.leader = Some(leader);
                "leaders with old mail"
            }
            Fault::Flap { .. } => "members that flap",
            Fault::Change { kind, pick, .. } => {
                let (leader, first_new) = (self.leader(), self.members.len());
                let what = self.change(kind, pick);
                if let Some(leader) = leader {
                    // With those that come it may be a majority of those that are to vote.
                    let with_new = pick >> 32 & 1 == 1;
                    lasting.cut = links(self.members.len(), |at| {
                        at == leader || (with_new && at >= first_new)
                    });
                }
                what
            }
            Fault::Lag { node, .. } => {
                lasting.cut = CutOff::Alone.links(node, self.members.len());
                "members that lag"
            }
            Fault::Snapshot { node } => {
                let member = &mut self.members[node];
                if member.node.is_up() {
                    let handle = &member.node.up().handle;
                    handle.make_snapshot(GROUP, Box::new(drop));
                    member.due = member.due.min(now);
                }
                "snapshots asked for"
            }
            Fault::SnapshotCrash {
                moment,
                sender,
                power,
                ops,
                keep,
                down,
            } => {
                self.snapshots.armed.push(Armed {
                    moment,
                    sender,
                    crash: (power, keep, down),
                    ops,
                });
                "crashes armed"
            }
        };
        (kind, Some(lasting))
    }

    pub(super) fn plan_crash(&mut self, node: usize, crash: (bool, u64, u64), ops: u64) {
        let member = &mut self.members[node];
        if member.node.is_up() && !member.node.fs.is_down() {
            member.next_crash = crash;
            member.node.fs.fail_after(ops);
        }
    }

    /// The member that leads in the newest term.
    pub(super) fn leader(&self) -> Option<usize> {
        let up = (0..self.members.len()).filter(|at| self.members[*at].node.is_up());
        let leads = up.filter_map(|at| {
            let status = self.members[at].node.core_status();
            (status.leader == Some(status.id)).then_some((status.term, at))
        });
        leads.max().map(|(_, at)| at)
    }

    /// A voter, the leader, and as few others as they need for a majority of each list of voters that the leader goes by;
    /// none when it is no voter.
    fn majority_with(&self, node: usize, leader: usize) -> Option<Vec<usize>> {
        let membership = self.members[leader].node.membership();
        let lists = [&membership.voters, &membership.voters_outgoing];
        let id = |at: usize| self.members[at].node.id;
        if !lists.iter().any(|list| list.contains(&id(node))) {
            return None;
        }
        let mut majority = vec![node];
        if leader != node {
            majority.push(leader);
        }
        for list in lists {
            let here = majority
                .iter()
                .filter(|at| list.contains(&id(**at)))
                .count();
            let missing = (list.len() / 2 + 1).saturating_sub(here);
            let places = list.iter().map(|id| id.0 as usize - 1);
            let others: Vec<usize> = places.filter(|at| !majority.contains(at)).collect();
            let after = others.partition_point(|at| *at < leader);
            let others = others[after..].iter().chain(&others[..after]);
            majority.extend(others.take(missing));
        }
        Some(majority)
    }

    fn transfer(&mut self, leader: usize, to: usize) {
        let member = &mut self.members[leader];
        member
            .node
            .up()
            .handle
            .transfer(GROUP, NodeId(to as u64 + 1));
        member.due = member.due.min(self.now);
    }

    /// A fault that lasts does something once more.
    pub(super) fn strike_again(&mut self, which: usize) {
        let Some(lasting) = self.lasting.get(&which) else {
            return;
        };
        match (&lasting.fault, lasting.leader) {
            (Fault::OldMail { to, .. }, Some(leader)) if self.members[leader].node.is_up() => {
                let to = *to;
                self.transfer(leader, to);
            }
            (Fault::Flap { node, .. }, _) if self.members[*node].node.is_up() => {
                let node = *node;
                self.crash(node, false, 16, 1);
            }
            _ => {}
        }
    }

    /// The directions that a fault cuts carry nothing from now on.
    pub(super) fn cut(&mut self, which: usize) {
        if let Some(lasting) = self.lasting.get(&which) {
            self.network.cut(&lasting.cut);
        }
    }

    /// A fault of the plan ends.
    pub(super) fn end(&mut self, which: usize) {
        let Some(lasting) = self.lasting.remove(&which) else {
            return;
        };
        let number = self.plan.faults[which].number;
        self.trace
            .event(self.now, &("end", which), || format!("fault {number} ends"));
        self.network.join(&lasting.cut);
        if let Fault::LoseLog {
            node, place, down, ..
        } = lasting.fault
        {
            for at in &lasting.majority {
                let down = if *at == node { 1 } else { down };
                self.crash(*at, place % 4 == 0, place >> 8 & 15, down);
            }
            // Another copy may have gone bad in the meantime.
            if self.may_damage(node) {
                self.lose_log(node, place);
            }
        }
        if let Fault::SlowWatcher {
            watcher,
            again: true,
            ..
        } = lasting.fault
        {
            self.watchers[watcher].cut_off();
        }
        self.settle_faults();
    }

    /// What members, watchers and network are like, from all faults that last.
    pub(super) fn settle_faults(&mut self) {
        let now = self.now;
        let mut net = Net::default();
        let mut sick = vec![Sick::default(); self.members.len()];
        let mut slow = vec![false; self.watchers.len()];
        for lasting in self.lasting.values() {
            match lasting.fault {
                Fault::SlowDisk {
                    node, sync_ticks, ..
                } => sick[node].slow_disk(sync_ticks),
                Fault::DiskFull { node, .. } => {
                    let capacity = sick[node].capacity.unwrap_or(u64::MAX);
                    sick[node].capacity = Some(capacity.min(lasting.capacity));
                }
                // The newest of several counts: their products would leave the bound that the checkers know.
                Fault::ClockRate { node, percent, .. } => sick[node].percent = Some(percent),
                Fault::SlowApply {
                    node, apply_ticks, ..
                } => sick[node].apply_ticks = sick[node].apply_ticks.max(apply_ticks),
                Fault::Network { net: other, .. } => net = net.worse(other),
                Fault::Depose {
                    sync_ticks, late, ..
                } => {
                    if let Some(leader) = lasting.leader {
                        sick[leader].slow_disk(sync_ticks);
                        sick[leader].late = sick[leader].late.max(late);
                    }
                }
                Fault::OldMail { late, .. } => {
                    if let Some(leader) = lasting.leader {
                        sick[leader].late = sick[leader].late.max(late);
                    }
                }
                Fault::Flap { node, late, .. } => sick[node].late = sick[node].late.max(late),
                Fault::SlowWatcher { watcher, .. } => slow[watcher] = true,
                _ => {}
            }
        }
        self.network.set(net);
        self.network
            .set_late(sick.iter().map(|sick| sick.late).collect());
        for (watcher, slow) in self.watchers.iter_mut().zip(slow) {
            watcher.set_slow(slow);
        }
        for (member, sick) in self.members.iter_mut().zip(sick) {
            (member.sync_ticks, member.apply_ticks) = (sick.sync_ticks, sick.apply_ticks);
            member.set_rate(now, sick.percent.unwrap_or(100));
            member.node.fs.set_capacity(sick.capacity);
            member.full = sick.capacity.is_some();
            member.due = member.due.min(now);
        }
    }

    /// Everything is well again, but for bits that have rotted and errors that have not struck.
    pub(super) fn heal(&mut self) {
        self.network.heal();
        self.lasting.clear();
        self.snapshots.armed.clear();
        self.settle_faults();
        for watcher in &mut self.watchers {
            watcher.set_slow(false);
        }
        for member in &mut self.members {
            member.paused_until = 0;
        }
        self.events.retain(|_, event| {
            !matches!(
                event,
                Event::Fault(_) | Event::Strike(_) | Event::Cut(_) | Event::End(_)
            )
        });
    }
}

/// The directions between those members that are inside and those that are not.
fn links(nodes: usize, inside: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
    let links = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
    links
        .filter(|(from, to)| inside(*from) != inside(*to))
        .collect()
}

/// What is wrong with a member.
#[derive(Clone, Debug, Default)]
struct Sick {
    sync_ticks: u64,
    late: u64,
    apply_ticks: u64,
    percent: Option<u64>,
    capacity: Option<u64>,
}

impl Sick {
    fn slow_disk(&mut self, sync_ticks: u64) {
        self.sync_ticks = self.sync_ticks.max(sync_ticks);
    }
}
