//! The host's part in snapshots: made for members that lag or whose state is wrong, and taken up by such a member.

use bytes::Bytes;
use raft_log::{GroupId, Index, NodeId, SnapshotRef, Term};
use raft_node::core::{Role, SnapshotReport, SnapshotVerdict};
use raft_node::driver::GroupError;
use raft_node::{ApplyError, StateMachine};
use tracing::info;

use super::HostCore;
use crate::inbox::Request;
use crate::snapshots::{Keeper, SnapshotSetup, SnapshotState, Taking};
use crate::transfer::{Arrived, TransferNews};
use crate::{HostError, Reply};

fn refused(error: impl ToString) -> HostError {
    HostError::Snapshot(error.to_string())
}

impl<S: StateMachine> HostCore<S> {
    /// Between two applies.
    pub(super) fn make_snapshot(&mut self, group: GroupId, reply: Reply<SnapshotRef>) {
        let Some(keeper) = &mut self.keeper else {
            return reply(Err(refused("this host keeps no snapshots")));
        };
        let slot = self.slots.wake(group);
        if slot.group.is_restoring() {
            return reply(Err(refused("the state is being replaced by another's")));
        }
        let machine = slot.group.machine();
        keeper.make(&self.log, &self.inbox, group, machine, reply);
    }

    /// A snapshot is made, or was not: answers who asked, and begins the transfers that wait for it.
    pub(super) fn snapshot_made(
        &mut self,
        now: u64,
        group: GroupId,
        result: &Result<SnapshotRef, HostError>,
    ) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        keeper.made(now, group, result);
        for (to, sent_in) in keeper.transfers.take_waiting(group) {
            self.begin_transfer(now, group, to, sent_in);
        }
    }

    /// Serves the members that the leaders here have found to need a snapshot.
    pub(super) fn serve_lagging(&mut self, now: u64) {
        let mut needed = Vec::new();
        for n in 0..self.slots.awake_len() {
            let slot = self.slots.awake(n);
            let group = slot.group.id();
            let of_group = slot.group.take_snapshots_needed();
            needed.extend(of_group.map(|(to, sent_in)| (group, to, sent_in)));
        }
        for (group, to, sent_in) in needed {
            let Some(keeper) = &mut self.keeper else {
                tracing::error!(
                    %group,
                    member = %to,
                    "a member lacks entries that this one has compacted, and snapshots are not sent to members in this \
                     version: it stays behind"
                );
                let slot = self.slot(group);
                slot.group.snapshot_report(to, SnapshotReport::Failed);
                continue;
            };
            if keeper.transfers.existing(&self.log, group).is_some() {
                self.begin_transfer(now, group, to, sent_in);
                continue;
            }
            let slot = &mut self.slots.wake(group).group;
            if slot.is_restoring() {
                // It was elected while its state is being replaced.
                slot.snapshot_report(to, SnapshotReport::Failed);
                continue;
            }
            keeper.transfers.wait(group, to, sent_in);
            keeper.make(
                &self.log,
                &self.inbox,
                group,
                slot.machine(),
                Box::new(drop),
            );
        }
    }

    /// Hands the newest snapshot to the outbox, if this member still leads.
    fn begin_transfer(&mut self, now: u64, group: GroupId, to: NodeId, sent_in: Term) {
        let status = self.slot(group).group.status();
        if status.role != Role::Leader || status.term != sent_in {
            return;
        }
        let keeper = self.keeper.as_mut().expect("it was asked just now");
        let Some(snapshot) = keeper.transfers.existing(&self.log, group) else {
            let slot = self.slot(group);
            slot.group.snapshot_report(to, SnapshotReport::Failed);
            return;
        };
        // The base is at or below the snapshot now, and stays there for a while; once per snapshot and member, or one
        // that never succeeds would hold the log for ever.
        if keeper.transfers.is_first(group, to, snapshot.number) {
            keeper.hold(now, group);
        }
        let inbox = std::sync::Arc::clone(&self.inbox);
        let tell = Box::new(move |news| {
            // A stopped host leads nothing.
            drop(inbox.push(Request::Transfer { group, news }));
        });
        let store = &keeper.setup.store;
        let transfer = keeper
            .transfers
            .begin(store, group, (to, sent_in), snapshot, tell);
        self.outbox.send_snapshot(transfer);
    }

    pub(super) fn transfer_news(&mut self, now: u64, group: GroupId, news: TransferNews) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        if let Some(report) = keeper.transfers.news(group, news) {
            if report == SnapshotReport::Moving {
                keeper.hold(now, group);
            }
            self.slot(group).group.snapshot_report(news.to, report);
        }
    }

    /// Tells leaders that the snapshots which their members wait for are still in the making.
    pub(super) fn report_making(&mut self) {
        let Some(keeper) = &self.keeper else {
            return;
        };
        let waiting: Vec<_> = keeper.transfers.waiting().collect();
        for (group, to) in waiting {
            let slot = self.slot(group);
            slot.group.snapshot_report(to, SnapshotReport::Moving);
        }
    }

    /// A snapshot has arrived. While one is in the making here it waits: of two references the later must name the later
    /// state.
    pub(super) fn snapshot_arrived(&mut self, group: GroupId, arrived: Arrived) {
        let Some(keeper) = &mut self.keeper else {
            return (arrived.reply)(Err(refused("this host keeps no snapshots")));
        };
        if keeper.is_making(group) {
            if let Some(former) = keeper.arrived.insert(group, arrived) {
                (former.reply)(Err(HostError::Busy));
            }
            return;
        }
        self.take_up(group, arrived);
    }

    /// Those that waited for one that was in the making.
    pub(super) fn take_arrived(&mut self) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        for (group, arrived) in keeper.take_arrived() {
            self.take_up(group, arrived);
        }
    }

    fn take_up(&mut self, group: GroupId, arrived: Arrived) {
        let Arrived {
            from,
            sent_in,
            pending,
            reply,
        } = arrived;
        let slot = self.slots.wake(group);
        let keeper = self.keeper.as_mut().expect("it was asked just now");
        let (store, snapshot) = (&keeper.setup.store, pending.reference().clone());
        // What lies below the commit index is no news; the core says so to its leader.
        if slot.group.commit() < snapshot.index
            && let Err(error) = store.check_install(&self.log, &pending)
        {
            return reply(Err(refused(error)));
        }
        match slot.group.receive_snapshot(from, sent_in, &snapshot) {
            Ok(SnapshotVerdict::Restart) => {
                let taking = Taking::with_log(store.begin_install(pending), reply);
                keeper.taking.insert(group, taking);
            }
            Ok(SnapshotVerdict::Covered) if slot.group.is_held() => {
                match slot.group.replace_state(&snapshot) {
                    Ok(true) => {
                        let taking = Taking::of_state(pending, reply);
                        keeper.taking.insert(group, taking);
                    }
                    // Of no use any more, or not yet: who waits for one asks again.
                    Ok(false) => reply(Ok(())),
                    Err(error) => reply(Err(refused(error))),
                }
            }
            Ok(SnapshotVerdict::Covered) => reply(Ok(())),
            Ok(SnapshotVerdict::Refused) => reply(Err(HostError::Busy)),
            Err(error) => reply(Err(refused(error))),
        }
    }

    /// Applies nothing until a snapshot replaces the state.
    pub(super) fn replace_state(&mut self, group: GroupId, reply: Reply<()>) {
        if self.keeper.is_none() {
            return reply(Err(refused("this host keeps no snapshots")));
        }
        let slot = self.slots.wake(group);
        slot.group.hold(true);
        if let Some(former) = slot.replaced.replace(reply) {
            former(Err(HostError::Stopped));
        }
    }

    /// Calls that off, unless a snapshot is being taken up.
    pub(super) fn keep_state(&mut self, group: GroupId) {
        let slot = self.slots.wake(group);
        if slot.group.is_restoring() {
            return;
        }
        slot.group.hold(false);
        if let Some(reply) = slot.replaced.take() {
            reply(Err(HostError::Stopped));
        }
    }

    /// Sends a member that waits for another state a snapshot from above what it has applied.
    pub(super) fn send_state(
        &mut self,
        now: u64,
        group: GroupId,
        to: NodeId,
        above: Index,
        reply: Reply<bool>,
    ) {
        let Some(keeper) = &mut self.keeper else {
            return reply(Err(refused("this host keeps no snapshots")));
        };
        let slot = self.slots.wake(group);
        let status = slot.group.status();
        if status.role != Role::Leader || slot.group.is_restoring() {
            return reply(Err(HostError::NotLeader(status.leader)));
        }
        if !slot.group.membership().contains(to) {
            return reply(Err(refused("who waits for it is no member")));
        }
        if keeper.transfers.is_under_way(group, to) {
            return reply(Ok(false));
        }
        let existing = keeper.transfers.existing(&self.log, group);
        if existing.is_some_and(|snapshot| snapshot.index > above) {
            self.begin_transfer(now, group, to, status.term);
            return reply(Ok(true));
        }
        if slot.group.applied() <= above {
            // Without an entry there is no snapshot from above. Nobody waits for this one, which says nothing.
            let token = self.next_token;
            self.next_token += 1;
            slot.group.propose(token, Bytes::new());
            return reply(Ok(false));
        }
        keeper.transfers.wait(group, to, status.term);
        let machine = slot.group.machine();
        keeper.make(&self.log, &self.inbox, group, machine, Box::new(drop));
        reply(Ok(true));
    }

    /// Goes on with the states that snapshots replace; each takes a bounded time. True when more is to do.
    pub(super) fn restore_step(&mut self) -> Result<bool, GroupError> {
        let Some(keeper) = &mut self.keeper else {
            return Ok(false);
        };
        let mut busy = false;
        let groups: Vec<_> = keeper.taking.keys().copied().collect();
        for group in groups {
            let slot = self.slots.wake(group);
            let Some(snapshot) = slot.group.restoring().cloned() else {
                continue;
            };
            let machine = slot.group.machine_mut();
            if keeper.acknowledge(group) {
                let reader = keeper.setup.store.open_snapshot(group, &snapshot);
                let reader = reader.map_err(|error| ApplyError(Box::new(error)));
                reader
                    .and_then(|reader| (keeper.begin)(machine, &snapshot, Box::new(reader)))
                    .map_err(GroupError::Apply)?;
            }
            if (keeper.step)(machine).map_err(GroupError::Apply)? {
                slot.group.restored();
                keeper.end_taking(group);
                if let Some(reply) = slot.replaced.take() {
                    info!(%group, index = %snapshot.index, "the state was replaced by another member's");
                    reply(Ok(()));
                }
            } else {
                busy |= !(keeper.waits)(slot.group.machine());
            }
        }
        Ok(busy)
    }
}

impl<S: SnapshotState> HostCore<S> {
    /// Lets snapshots be made, sent and taken up. Until this is called they are refused.
    pub fn keep_snapshots(&mut self, setup: SnapshotSetup) {
        self.keeper = Some(Keeper::new(setup, self.options.hold_ticks));
    }
}
