//! Members of one group in memory: cores, disks that lose what was not synced, and a network in the test's hands.

#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_node::core::{
    Config, Core, Effects, Initial, Input, Membership, Message, PersistBatch, PersistId,
};
use raft_node::{Entry, EntryKind, HardState, Index, NodeId, Term};

/// What a member has on disk.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
}

impl Disk {
    fn write(&mut self, batch: &PersistBatch) {
        if let Some(from) = batch.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        if let Some(first) = batch.entries.first() {
            assert_eq!(
                first.index.0,
                self.entries.len() as u64 + 1,
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

/// A member: its core, its disk, and what waits for the disk.
pub(crate) struct Member {
    pub(crate) core: Core,
    pub(crate) disk: Disk,
    pub(crate) effects: Effects,
    pub(crate) writing: Vec<PersistBatch>,
    pub(crate) waiting: Vec<(PersistId, NodeId, Message)>,
    pub(crate) commit: Index,
    pub(crate) applied: Vec<Entry>,
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

    fn boot(&mut self, id: NodeId, disk: Disk) -> Member {
        self.boots += 1;
        let seed = self.template.seed.wrapping_add(self.boots * 7919);
        let config = Config {
            id,
            seed,
            boot: self.boots,
            ..self.template.clone()
        };
        let last_index = Index(disk.entries.len() as u64);
        let mut hard_state = disk.hard_state;
        hard_state.commit = hard_state.commit.min(last_index);
        let initial = Initial {
            hard_state,
            base_index: Index::ZERO,
            base_term: Term::ZERO,
            last_index,
            terms: disk.terms(),
            applied: Index::ZERO,
            membership: self.membership.clone(),
        };
        let commit = hard_state.commit;
        Member {
            core: Core::new(config.validate().unwrap(), initial),
            disk,
            effects: Effects::default(),
            writing: Vec::new(),
            waiting: Vec::new(),
            commit,
            applied: Vec::new(),
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
        if let Some(commit) = effects.commit.take() {
            assert!(commit >= member.commit, "commit went back");
            member.commit = commit;
        }
        member.reads_ready.append(&mut effects.reads_ready);
        member.dropped.append(&mut effects.dropped);
        member.proposed.append(&mut effects.proposed);
        for fetch in std::mem::take(&mut effects.fetch) {
            let first = fetch.from.0 as usize - 1;
            let entries = member.log()[first..].to_vec();
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
        member.disk.write(&batch);
        member
            .core
            .step(Input::Persisted(batch.id), &mut member.effects);
        let (leave, stay) = member
            .waiting
            .drain(..)
            .partition(|(after, _, _)| *after <= batch.id);
        member.waiting = stay;
        let leave: Vec<_> = leave;
        self.network
            .extend(leave.into_iter().map(|(_, to, message)| (id, to, message)));
        true
    }

    /// Applies what is committed and durable.
    pub(crate) fn apply(&mut self, id: NodeId) {
        let member = self.members.get_mut(&id).unwrap();
        let limit = member.commit.min(member.core.status().persisted);
        let done = member.applied.len();
        if limit.0 as usize > done {
            let entries = member.log()[done..limit.0 as usize].to_vec();
            member.applied.extend(entries);
            member.core.step(Input::Applied(limit), &mut member.effects);
        }
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
            disk.write(batch);
        }
        disk.entries
    }
}
