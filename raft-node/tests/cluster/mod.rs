//! Members of one group in memory: cores, disks that lose what was not synced, and a network in the test's hands.

#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_node::core::{
    Config, Core, Effects, Incarnation, Initial, Input, Membership, Message, PersistBatch,
    PersistId, Snapshot, SnapshotVerdict,
};
use raft_node::{Entry, EntryKind, HardState, Index, NodeId, Term};

/// What a member has on disk.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// What the log begins after; its state is durable as well.
    pub(crate) base: Option<Shot>,
    pub(crate) incarnation: Incarnation,
    pub(crate) entries: Vec<Entry>,
}

/// A snapshot with its content: all that was applied up to its index.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) meta: Snapshot,
    pub(crate) state: Vec<Entry>,
}

impl Disk {
    pub(crate) fn base_index(&self) -> Index {
        self.base
            .as_ref()
            .map_or(Index::ZERO, |base| base.meta.index)
    }

    /// `received` is the snapshot whose content is there already.
    fn write(&mut self, batch: &PersistBatch, received: Option<&Shot>) {
        if let Some(restart) = &batch.restart {
            let shot = received.filter(|shot| shot.meta == *restart);
            self.base = Some(shot.expect("its content is here").clone());
            self.entries.clear();
        }
        if let Some(from) = batch.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        if let Some(first) = batch.entries.first() {
            assert_eq!(
                first.index.0,
                self.base_index().0 + self.entries.len() as u64 + 1,
                "a batch continues the log"
            );
        }
        self.entries.extend(batch.entries.iter().cloned());
        if let Some(hard_state) = batch.hard_state {
            assert!(
                hard_state.term >= self.hard_state.term,
                "the durable term went back"
            );
            self.hard_state = hard_state;
        }
    }

    fn terms(&self) -> Vec<(Index, Term)> {
        let mut runs: Vec<(Index, Term)> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|(_, term)| *term != entry.term) {
                runs.push((entry.index, entry.term));
            }
        }
        runs
    }
}

impl Disk {
    fn changes(&self) -> Vec<(Index, Membership)> {
        let configs = self.entries.iter().filter(|e| e.kind == EntryKind::Config);
        configs
            .map(|e| (e.index, Membership::decode(&e.payload).unwrap()))
            .collect()
    }
}

/// A member: its core, its disk, and what waits for the disk.
pub(crate) struct Member {
    pub(crate) core: Core,
    pub(crate) disk: Disk,
    pub(crate) effects: Effects,
    pub(crate) writing: Vec<PersistBatch>,
    pub(crate) waiting: Vec<(PersistId, NodeId, Message)>,
    pub(crate) commit: Index,
    pub(crate) applied: Vec<Entry>,
    /// The snapshot that the log begins anew with, until the state machine has taken it up.
    pub(crate) received: Option<Shot>,
    /// Who needs a snapshot of this member, and the term in which it leads.
    pub(crate) needs_snapshot: Vec<(NodeId, Term)>,
    pub(crate) reads_ready: Vec<(u64, Index)>,
    pub(crate) dropped: Vec<(u64, raft_node::core::DropReason)>,
    pub(crate) proposed: Vec<(u64, Index, Term)>,
}

/// The group and the messages on their way.
pub(crate) struct Cluster {
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) network: Vec<(NodeId, NodeId, Message)>,
    pub(crate) membership: Membership,
    template: Config,
    boots: u64,
}

impl Cluster {
    pub(crate) fn new(membership: Membership, template: Config) -> Self {
        let mut cluster = Self {
            members: BTreeMap::new(),
            network: Vec::new(),
            membership,
            template,
            boots: 0,
        };
        for id in cluster.membership.members() {
            let member = cluster.boot(id, Disk::default());
            cluster.members.insert(id, member);
        }
        cluster
    }

    /// A member that knows the first membership and is not part of it.
    pub(crate) fn join(&mut self, id: NodeId) {
        let member = self.boot(id, Disk::default());
        self.members.insert(id, member);
    }

    fn boot(&mut self, id: NodeId, disk: Disk) -> Member {
        self.boots += 1;
        let seed = self.template.seed.wrapping_add(self.boots * 7919);
        let config = Config {
            id,
            seed,
            boot: self.boots,
            ..self.template.clone()
        };
        let base = disk.base_index();
        let last_index = Index(base.0 + disk.entries.len() as u64);
        let mut hard_state = disk.hard_state;
        hard_state.commit = hard_state.commit.min(last_index).max(base);
        let meta = disk.base.as_ref().map(|base| &base.meta);
        let initial = Initial {
            hard_state,
            base_index: base,
            base_term: meta.map_or(Term::ZERO, |meta| meta.term),
            last_index,
            terms: disk.terms(),
            applied: base,
            membership: meta
                .map_or(&self.membership, |meta| &meta.membership)
                .clone(),
            changes: disk.changes(),
            incarnation: disk.incarnation,
        };
        let commit = hard_state.commit;
        Member {
            core: Core::new(config.validate().unwrap(), initial),
            applied: disk
                .base
                .as_ref()
                .map_or(Vec::new(), |base| base.state.clone()),
            received: None,
            needs_snapshot: Vec::new(),
            disk,
            effects: Effects::default(),
            writing: Vec::new(),
            waiting: Vec::new(),
            commit,
            reads_ready: Vec::new(),
            dropped: Vec::new(),
            proposed: Vec::new(),
        }
    }

    /// The member crashes: what was not synced is gone, and it starts again.
    pub(crate) fn restart(&mut self, id: NodeId) {
        let disk = self.members[&id].disk.clone();
        let member = self.boot(id, disk);
        self.members.insert(id, member);
    }

    /// As [`Cluster::restart`], and the newest `count` entries on the disk turn out to be damaged.
    pub(crate) fn lose(&mut self, id: NodeId, count: usize) {
        let mut disk = self.members[&id].disk.clone();
        disk.entries.truncate(disk.entries.len() - count);
        disk.incarnation.number += 1;
        disk.incarnation.guarded = true;
        let member = self.boot(id, disk);
        self.members.insert(id, member);
    }

    pub(crate) fn step(&mut self, id: NodeId, input: Input) {
        let member = self.members.get_mut(&id).unwrap();
        member.core.step(input, &mut member.effects);
    }

    pub(crate) fn propose(&mut self, id: NodeId, token: u64, payload: &str) {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.step(
            id,
            Input::Propose {
                token: Some(token),
                kind: EntryKind::Normal,
                payload,
            },
        );
    }

    /// Ends a batch of steps of one member: messages leave, the disk gets its batch.
    pub(crate) fn ready(&mut self, id: NodeId) {
        let member = self.members.get_mut(&id).unwrap();
        member.core.ready(&mut member.effects);
        let effects = &mut member.effects;
        self.network.extend(
            effects
                .send_now
                .drain(..)
                .map(|(to, message)| (id, to, message)),
        );
        member.waiting.append(&mut effects.send_after);
        member.writing.extend(effects.persist.take());
        if let Some(number) = effects.repaired.take() {
            assert_eq!(
                number, member.disk.incarnation.number,
                "of the log that it has"
            );
            member.disk.incarnation.guarded = false;
        }
        if let Some(commit) = effects.commit.take() {
            assert!(commit >= member.commit, "commit went back");
            member.commit = commit;
        }
        member.reads_ready.append(&mut effects.reads_ready);
        member.dropped.append(&mut effects.dropped);
        let term = member.core.status().term;
        let needed = effects.needs_snapshot.drain(..).map(|to| (to, term));
        member.needs_snapshot.extend(needed);
        member.proposed.append(&mut effects.proposed);
        for fetch in std::mem::take(&mut effects.fetch) {
            let mut entries = member.log();
            entries.retain(|entry| entry.index >= fetch.from);
            let input = Input::EntriesFetched {
                to: fetch.to,
                entries,
            };
            member.core.step(input, &mut member.effects);
        }
    }

    /// The oldest batch of a member reaches its disk. Returns false when there is none.
    pub(crate) fn persist(&mut self, id: NodeId) -> bool {
        let member = self.members.get_mut(&id).unwrap();
        if member.writing.is_empty() {
            return false;
        }
        let batch = member.writing.remove(0);
        member.disk.write(&batch, member.received.as_ref());
        member
            .core
            .step(Input::Persisted(batch.id), &mut member.effects);
        let (leave, stay) = member
            .waiting
            .drain(..)
            .partition(|(after, _, _)| *after <= batch.id);
        member.waiting = stay;
        let leave: Vec<_> = leave;
        for (_, to, message) in &leave {
            member.core.assert_attested(*to, message);
        }
        self.network
            .extend(leave.into_iter().map(|(_, to, message)| (id, to, message)));
        true
    }

    /// Applies what is committed and durable.
    pub(crate) fn apply(&mut self, id: NodeId) {
        let member = self.members.get_mut(&id).unwrap();
        let limit = member.commit.min(member.core.status().persisted);
        let done = Index(member.applied.len() as u64);
        if limit > done && member.received.is_none() {
            let entries = member.log().into_iter();
            let entries = entries.filter(|entry| entry.index > done && entry.index <= limit);
            member.applied.extend(entries);
            assert_eq!(member.applied.len() as u64, limit.0, "nothing is left out");
            member.core.step(Input::Applied(limit), &mut member.effects);
        }
    }

    /// All that a member has applied, as a snapshot.
    pub(crate) fn shot(&self, id: NodeId) -> Option<Shot> {
        let state = self.members[&id].applied.clone();
        let last = state.last()?;
        let meta = Snapshot {
            index: last.index,
            term: last.term,
            membership: self.membership_after(&state),
        };
        Some(Shot { meta, state })
    }

    /// What is in force once these entries, all from the first on, are applied.
    fn membership_after(&self, entries: &[Entry]) -> Membership {
        let last = entries
            .iter()
            .rfind(|entry| entry.kind == EntryKind::Config);
        last.map_or_else(
            || self.membership.clone(),
            |entry| Membership::decode(&entry.payload).unwrap(),
        )
    }

    /// The log of a member loses what is applied, up to `to`.
    pub(crate) fn compact(&mut self, id: NodeId, to: Index) {
        let applied = self.members[&id].applied.iter();
        let state: Vec<_> = applied.filter(|e| e.index <= to).cloned().collect();
        let membership = self.membership_after(&state);
        let member = self.members.get_mut(&id).unwrap();
        let term = state.last().unwrap().term;
        let meta = Snapshot {
            index: to,
            term,
            membership,
        };
        member.disk.base = Some(Shot { meta, state });
        member.disk.entries.retain(|entry| entry.index > to);
        member.core.compacted(to);
    }

    /// A snapshot arrives.
    pub(crate) fn receive(
        &mut self,
        from: NodeId,
        to: NodeId,
        sent_in: Term,
        shot: &Shot,
    ) -> SnapshotVerdict {
        let snapshot = shot.meta.clone();
        self.step(
            to,
            Input::SnapshotReceived {
                from,
                sent_in,
                snapshot,
            },
        );
        let member = self.members.get_mut(&to).unwrap();
        let verdict = member.effects.snapshot.take().unwrap();
        if verdict == SnapshotVerdict::Restart {
            member.received = Some(shot.clone());
        }
        verdict
    }

    /// The state machine takes up the snapshot that the log begins after. False when there is none, or the log does not
    /// say so durably yet.
    pub(crate) fn install(&mut self, id: NodeId) -> bool {
        let member = self.members.get_mut(&id).unwrap();
        let base = member.disk.base_index();
        let Some(shot) = member.received.take_if(|shot| shot.meta.index == base) else {
            return false;
        };
        member.applied = shot.state;
        member.core.step(Input::Applied(base), &mut member.effects);
        true
    }

    /// What a failed test wants to know.
    pub(crate) fn statuses(&self) -> String {
        let line = |member: &Member| {
            let (status, membership) = (member.core.status(), member.core.membership());
            format!("{status:?} {membership:?}\n")
        };
        self.members.values().map(line).collect()
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }
}

impl Member {
    /// The log as the member sees it: the disk with the batches on their way to it.
    pub(crate) fn log(&self) -> Vec<Entry> {
        let mut disk = self.disk.clone();
        for batch in &self.writing {
            disk.write(batch, self.received.as_ref());
        }
        disk.entries
    }
}
