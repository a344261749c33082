//! The host's part in store liveness: it exchanges beats with the stores that it shares groups with, and lets groups sleep
//! whose other members' stores are all alive.
//!
//! A store that dies, comes to life or starts again wakes every group that has a member there, once.

use std::collections::BTreeMap;

use raft_log::NodeId;
use raft_node::StateMachine;
use raft_node::core::Membership;

use raft_node::core::Role;

use super::{HOUSEKEEPING_TICKS, HostCore};
use crate::liveness::{Beat, Health, Liveness};

/// What is known of the stores.
pub(super) struct Stores {
    liveness: Liveness,
    /// In how many groups a member is.
    shared_with: BTreeMap<NodeId, usize>,
    /// The liveness knows other peers.
    is_stale: bool,
    /// Whether a store was alive, and in which run, when the groups were told.
    told: BTreeMap<NodeId, (bool, u64)>,
}

impl Stores {
    fn are_alive(&self, members: &Membership, me: NodeId) -> bool {
        let alive = |id: &NodeId| self.told.get(id).is_some_and(|told| told.0);
        members.members().iter().all(|id| *id == me || alive(id))
    }

    /// The members of a group have changed.
    pub(super) fn replace(&mut self, before: &Membership, after: &Membership, me: NodeId) {
        for id in before.members().into_iter().filter(|id| *id != me) {
            let count = self.shared_with.get_mut(&id).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.shared_with.remove(&id);
            }
        }
        for id in after.members().into_iter().filter(|id| *id != me) {
            *self.shared_with.entry(id).or_default() += 1;
        }
        self.is_stale = true;
    }

    pub(super) fn receive(&mut self, now: u64, from: NodeId, beat: Beat) {
        self.liveness.receive(now, from, beat);
    }

    pub(super) fn health(&self, now: u64, id: NodeId) -> Health {
        self.liveness.health(now, id)
    }

    pub(super) fn set_full(&mut self, full: bool) {
        self.liveness.set_full(full);
    }

    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        self.liveness.next_deadline(now)
    }

    /// Looks at the stores. Those that are not what the groups were told; of these, those that groups cannot rely on.
    fn changes(&mut self, now: u64) -> Vec<NodeId> {
        if std::mem::take(&mut self.is_stale) {
            let peers = self.shared_with.keys().map(|id| (*id, None)).collect();
            self.liveness.set_peers(now, &peers);
            let known = &self.shared_with;
            self.told.retain(|id, _| known.contains_key(id));
        }
        let mut changed = Vec::new();
        for id in self.shared_with.keys() {
            let is = (
                self.liveness.is_alive(now, *id),
                self.liveness.epoch_of(*id),
            );
            if self.told.insert(*id, is) != Some(is) {
                changed.push(*id);
            }
        }
        changed
    }
}

impl<S: StateMachine> HostCore<S> {
    /// Exchanges beats with the stores of all members of all groups, from now on, and lets idle groups sleep. Beats leave by
    /// [`super::Outbox::beat`] and come in by [`crate::HostHandle::deliver_beat`].
    pub fn watch_stores(&mut self, liveness: Liveness) {
        let mut stores = Stores {
            liveness,
            shared_with: BTreeMap::new(),
            is_stale: true,
            told: BTreeMap::new(),
        };
        for slot in self.slots.all() {
            let me = slot.group.status().id;
            stores.replace(&Membership::default(), &slot.members, me);
        }
        self.stores = Some(stores);
    }

    /// How the store of a member is doing; none when stores are not watched.
    #[must_use]
    pub fn store_health(&self, now: u64, id: NodeId) -> Option<Health> {
        Some(self.stores.as_ref()?.health(now, id))
    }

    /// Sends what is due, and tells groups what has changed.
    pub(super) fn watch(&mut self, now: u64) {
        let Some(stores) = &mut self.stores else {
            return;
        };
        let changed = stores.changes(now);
        for (to, beat) in stores.liveness.take_due(now) {
            self.outbox.beat(to, beat);
        }
        if changed.is_empty() {
            return;
        }
        for at in 0..self.slots.len() {
            let slot = self.slots.at(at);
            let is_touched = changed.iter().any(|id| slot.members.contains(*id));
            if !is_touched {
                continue;
            }
            let allowed = stores.are_alive(&slot.members, slot.group.status().id);
            // A store that started again knows nothing of what its groups were told: they begin anew.
            if slot.group.is_asleep() {
                self.slots.wake_at(at).group.allow_sleep(false);
            }
            self.slots.at(at).group.allow_sleep(allowed);
        }
    }

    /// On a full disk: hands the groups that are led here to members whose disks are not, as far as one knows. With nobody
    /// to lead elsewhere this member goes on, and serves reads.
    pub(super) fn leave_full_disk(&mut self, now: u64) {
        let Some(stores) = &self.stores else {
            return;
        };
        for at in 0..self.slots.len() {
            let group = &self.slots.at(at).group;
            let status = group.status();
            if status.role != Role::Leader || status.transferring.is_some() {
                continue;
            }
            let voters = group.membership().voters.iter().copied();
            let others = voters.filter(|id| *id != status.id && stores.liveness.has_room(now, *id));
            let others: Vec<_> = others.collect();
            // One that lags does not take over in time; then it is another one's turn.
            let turn = usize::try_from(now / HOUSEKEEPING_TICKS).unwrap_or_default();
            if let Some(to) = others.get(turn % others.len().max(1)) {
                tracing::info!(group = %group.id(), %to, "handing leadership over: the disk is full");
                self.slots.wake_at(at).group.transfer(*to);
            }
        }
    }

    /// The members of a group that is awake, as they are now.
    pub(super) fn note_members(&mut self, n: usize) {
        let slot = self.slots.awake(n);
        if slot.members == *slot.group.membership() {
            return;
        }
        let after = slot.group.membership().clone();
        let before = std::mem::replace(&mut slot.members, after);
        let me = slot.group.status().id;
        let Some(stores) = &mut self.stores else {
            return;
        };
        stores.replace(&before, &slot.members, me);
        let allowed = stores.are_alive(&slot.members, me);
        slot.group.allow_sleep(allowed);
    }
}
