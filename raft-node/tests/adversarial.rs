//! Clusters of cores under loss, reordering, duplication, partitions and restarts, from one seed each.
//!
//! Checked after each step: one leader per term; what is committed at an index never differs and never goes away; logs
//! that agree on an index and term agree up to it. After the faults: everybody converges.

mod rng;

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_node::core::{
    Body, Config, Core, Effects, Initial, Input, Membership, Message, PersistId, Role,
};
use raft_node::{Entry, EntryKind, GroupId, HardState, Index, NodeId, Term};
use rng::Rng;

/// One member: what is on its disk, what is on the way there, and the core.
struct Member {
    core: Core,
    hard: HardState,
    disk: Vec<Entry>,
    writes: Vec<raft_node::core::PersistBatch>,
    after: Vec<(PersistId, NodeId, Message)>,
    commit: Index,
    /// Entries as the core's log has them: on disk or on the way.
    view: Vec<Entry>,
}

struct Cluster {
    rng: Rng,
    seed: u64,
    members: BTreeMap<NodeId, Member>,
    network: Vec<(NodeId, NodeId, Message)>,
    cut: Option<NodeId>,
    leaders: BTreeMap<Term, NodeId>,
    committed: BTreeMap<Index, Entry>,
    restarts: u64,
}

fn runs(disk: &[Entry]) -> Vec<(Index, Term)> {
    let mut runs: Vec<(Index, Term)> = Vec::new();
    for entry in disk {
        if runs.last().is_none_or(|run| run.1 != entry.term) {
            runs.push((entry.index, entry.term));
        }
    }
    runs
}

fn overwrite(log: &mut Vec<Entry>, cut: Option<Index>, entries: &[Entry]) {
    if let Some(from) = cut {
        log.truncate(from.0 as usize - 1);
    }
    log.extend_from_slice(entries);
}

impl Cluster {
    fn new(seed: u64, nodes: u64) -> Self {
        let mut cluster = Self {
            rng: Rng::new(seed),
            seed,
            members: BTreeMap::new(),
            network: Vec::new(),
            cut: None,
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            restarts: 0,
        };
        for id in 1..=nodes {
            let core = cluster.open(NodeId(id), HardState::default(), &[], nodes);
            cluster.members.insert(
                NodeId(id),
                Member {
                    core,
                    hard: HardState::default(),
                    disk: vec![],
                    writes: vec![],
                    after: vec![],
                    commit: Index(0),
                    view: vec![],
                },
            );
        }
        cluster
    }

    fn open(&self, id: NodeId, hard_state: HardState, disk: &[Entry], nodes: u64) -> Core {
        let mut config = Config {
            id,
            group: GroupId(1),
            seed: self.seed + self.restarts,
            ..Config::default()
        };
        config.window_bytes_max = 100;
        config.election_ticks = 10;
        config.heartbeat_ticks = 2;
        config.inflight_messages_max = 4;
        let last_index = Index(disk.len() as u64);
        let commit = hard_state.commit.min(last_index);
        Core::new(
            config.validate().expect("valid"),
            Initial {
                hard_state: HardState {
                    commit,
                    ..hard_state
                },
                base_index: Index(0),
                base_term: Term(0),
                last_index,
                terms: runs(disk),
                applied: Index(0),
                membership: Membership::of_voters((1..=nodes).map(NodeId)),
                changes: Vec::new(),
            },
        )
    }

    /// Steps a member and carries out what follows, up to what waits for its disk.
    fn step(&mut self, id: NodeId, input: Input) {
        let member = self.members.get_mut(&id).expect("exists");
        let mut out = Effects::default();
        member.core.step(input, &mut out);
        member.core.ready(&mut out);
        if let Some(batch) = out.persist.take() {
            overwrite(&mut member.view, batch.truncate_from, &batch.entries);
            member.writes.push(batch);
        }
        member.after.append(&mut out.send_after);
        self.network.extend(
            out.send_now
                .drain(..)
                .map(|(to, message)| (id, to, message)),
        );
        let view = &member.view;
        let fetched: Vec<Input> = out
            .fetch
            .drain(..)
            .map(|fetch| {
                let range = fetch.from.0 as usize - 1..fetch.end.0 as usize - 1;
                Input::EntriesFetched {
                    to: fetch.to,
                    entries: view[range].to_vec(),
                }
            })
            .collect();
        self.observe(id, out.commit);
        for input in fetched {
            self.step(id, input);
        }
    }

    fn observe(&mut self, id: NodeId, commit: Option<Index>) {
        let seed = self.seed;
        let member = self.members.get_mut(&id).expect("exists");
        let status = member.core.status();
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(
                leader, id,
                "seed {seed}: two leaders in term {}",
                status.term
            );
        }
        let Some(commit) = commit else { return };
        for index in member.commit.0 + 1..=commit.0 {
            let entry = &member.view[index as usize - 1];
            let known = self
                .committed
                .entry(Index(index))
                .or_insert_with(|| entry.clone());
            assert_eq!(
                known, entry,
                "seed {seed}: {id} committed another entry at {index}"
            );
        }
        member.commit = commit;
    }

    /// The oldest write of a member reaches its disk.
    fn sync(&mut self, id: NodeId) {
        let member = self.members.get_mut(&id).expect("exists");
        if member.writes.is_empty() {
            return;
        }
        let batch = member.writes.remove(0);
        overwrite(&mut member.disk, batch.truncate_from, &batch.entries);
        member.hard = batch.hard_state.unwrap_or(member.hard);
        let (leave, stay) = member
            .after
            .drain(..)
            .partition(|(at, _, _)| *at <= batch.id);
        member.after = stay;
        let leave: Vec<(PersistId, NodeId, Message)> = leave;
        self.network
            .extend(leave.into_iter().map(|(_, to, message)| (id, to, message)));
        self.step(id, Input::Persisted(batch.id));
    }

    /// Power loss: what was on the way to the disk is gone.
    fn restart(&mut self, id: NodeId) {
        self.restarts += 1;
        let nodes = self.members.len() as u64;
        let (hard, disk) = (self.members[&id].hard, self.members[&id].disk.clone());
        let core = self.open(id, hard, &disk, nodes);
        let commit = core.status().commit;
        let view = disk.clone();
        self.members.insert(
            id,
            Member {
                core,
                hard,
                disk,
                writes: vec![],
                after: vec![],
                commit,
                view,
            },
        );
    }

    fn deliver(&mut self, at: usize, keep: bool) {
        let (from, to, message) = if keep {
            self.network[at].clone()
        } else {
            self.network.swap_remove(at)
        };
        if self.cut.is_none_or(|cut| from != cut && to != cut) {
            self.step(to, Input::Message { from, message });
        }
    }

    fn chaos(&mut self) {
        let id = NodeId(1 + self.rng.below(self.members.len() as u64));
        let at = self.rng.below(self.network.len().max(1) as u64) as usize;
        match self.rng.below(100) {
            0..20 => self.step(id, Input::Tick { ticks: 1 }),
            20..60 if !self.network.is_empty() => {
                let keep = self.rng.below(20) == 0;
                self.deliver(at, keep);
            }
            60..64 if !self.network.is_empty() => drop(self.network.swap_remove(at)),
            64..84 => self.sync(id),
            84..96 => {
                let payload = Bytes::from(self.rng.below(1 << 40).to_string());
                self.step(
                    id,
                    Input::Propose {
                        token: None,
                        kind: EntryKind::Normal,
                        payload,
                    },
                );
            }
            96 => {
                let to = NodeId(1 + self.rng.below(self.members.len() as u64));
                self.step(id, Input::Transfer { to });
            }
            97 if self.rng.below(3) == 0 => self.restart(id),
            98 if self.rng.below(10) == 0 => self.cut = Some(id),
            99 if self.rng.below(4) == 0 => self.cut = None,
            _ => {}
        }
    }

    /// Every member's log agrees with what was committed, as far as it knows of it; logs match.
    fn check_logs(&self) {
        for a in self.members.values() {
            for b in self.members.values() {
                let agree = a
                    .view
                    .iter()
                    .zip(&b.view)
                    .rposition(|(x, y)| x.term == y.term);
                if let Some(at) = agree {
                    assert_eq!(
                        a.view[..=at],
                        b.view[..=at],
                        "seed {}: log matching",
                        self.seed
                    );
                }
            }
        }
        for (index, entry) in &self.committed {
            let holders = self.members.values().filter(|member| {
                member
                    .disk
                    .get(index.0 as usize - 1)
                    .is_some_and(|held| held == entry)
            });
            let majority = holders.count() * 2 > self.members.len();
            assert!(
                majority,
                "seed {}: committed index {index} is not on a majority",
                self.seed
            );
        }
    }

    fn run(&mut self, steps: u64) {
        for step in 0..steps {
            self.chaos();
            if step % 64 == 0 {
                self.check_logs();
            }
        }
        self.cut = None;
        for _ in 0..20_000 {
            for id in self.members.keys().copied().collect::<Vec<_>>() {
                self.step(id, Input::Tick { ticks: 1 });
                while !self.members[&id].writes.is_empty() {
                    self.sync(id);
                }
            }
            for _ in 0..self.network.len() {
                self.deliver(0, false);
            }
            let first = &self.members[&NodeId(1)];
            let same = self.members.values().all(|member| {
                member.disk == first.disk && member.commit.0 == member.disk.len() as u64
            });
            if same
                && self
                    .network
                    .iter()
                    .all(|(_, _, m)| !matches!(m.body, Body::Append { .. }))
            {
                self.check_logs();
                return;
            }
        }
        panic!(
            "seed {}: the members did not converge after the faults",
            self.seed
        );
    }
}

#[test]
fn clusters_under_faults_keep_what_was_committed_and_converge() {
    let mut committed = 0;
    for seed in 1..=200 {
        for nodes in [3, 5] {
            let mut cluster = Cluster::new(seed, nodes);
            cluster.run(3_000);
            committed += cluster.committed.len();
        }
    }
    assert!(
        committed > 1_000,
        "the runs committed only {committed} entries: they show little"
    );
}
