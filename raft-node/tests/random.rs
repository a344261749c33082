//! Random runs of a few members under message loss, reordering, crashes and slow disks, while leadership is handed over, and
//! either members come and go or a disk loses a part of its log, from printed seeds. What is checked: one leader per term, no committed entry is ever lost or
//! changed, and what was applied agrees. `SEED=n` runs one seed, `SEEDS=n` the first n.

#![expect(clippy::print_stdout, reason = "a failing run must name its seed")]

mod cluster;
mod rng;

use std::collections::BTreeMap;

use cluster::{Cluster, Shot};
use raft_node::core::{
    Change, ChangeStep, Config, Input, Membership, Role, SnapshotReport, SnapshotVerdict,
};
use raft_node::{Entry, EntryKind, Index, NodeId, Term};
use rng::Rng;

#[derive(Default)]
struct Checker {
    leaders: BTreeMap<Term, NodeId>,
    committed: Vec<Entry>,
    /// What was applied anywhere when a read began.
    reads: BTreeMap<u64, Index>,
    reads_ended: usize,
    /// Snapshots that a log began anew with.
    restarts: usize,
}

/// Snapshots on their way: sender, receiver, the sender's term.
type Shots = Vec<(NodeId, NodeId, Term, Shot)>;

impl Checker {
    fn read(&mut self, token: u64) {
        self.reads.insert(token, Index(self.committed.len() as u64));
    }

    fn check(&mut self, cluster: &mut Cluster) {
        for (id, member) in &mut cluster.members {
            for (token, index) in member.reads_ready.drain(..) {
                let applied = self.reads.remove(&token).expect("a read ends once");
                assert!(index >= applied, "{id}: a read at {index} misses {applied}");
                self.reads_ended += 1;
            }
            let status = member.core.status();
            if status.role == Role::Leader {
                let leader = *self.leaders.entry(status.term).or_insert(*id);
                assert_eq!(leader, *id, "two leaders in term {}", status.term);
            }
            for entry in &member.applied {
                let at = entry.index.0 as usize - 1;
                match self.committed.get(at) {
                    Some(known) => assert_eq!(known, entry, "{id} applied something else"),
                    None => self.committed.push(entry.clone()),
                }
            }
        }
    }
}

/// Sends the snapshots that leaders ask for.
fn send_snapshots(cluster: &mut Cluster, shots: &mut Shots) {
    for id in cluster.ids() {
        let member = cluster.members.get_mut(&id).expect("exists");
        for (to, term) in std::mem::take(&mut member.needs_snapshot) {
            // What is applied reaches at least to the base of its log.
            let shot = cluster
                .shot(id)
                .expect("a log that begins later has a state");
            shots.push((id, to, term, shot));
        }
    }
}

/// A snapshot arrives, and who sent it may hear of it; or it is lost, and who sent it may hear of that.
fn deliver_snapshot(cluster: &mut Cluster, shots: &mut Shots, rng: &mut Rng, lossy: bool) -> bool {
    if shots.is_empty() {
        return false;
    }
    let at = rng.below(shots.len() as u64) as usize;
    let (from, to, term, shot) = shots.swap_remove(at);
    if lossy && rng.below(6) == 0 {
        shots.push((from, to, term, shot.clone()));
    }
    let (mut report, mut taken) = (SnapshotReport::Failed, false);
    if !lossy || rng.below(3) > 0 {
        let verdict = cluster.receive(from, to, term, &shot);
        taken = verdict == SnapshotVerdict::Restart;
        if verdict != SnapshotVerdict::Refused {
            report = SnapshotReport::Taken(shot.meta.index);
        }
    }
    if !lossy || rng.below(2) > 0 {
        cluster.step(from, Input::SnapshotReport { to, report });
    }
    taken
}

/// Up to three steps; many of them make no sense at the time.
fn change(rng: &mut Rng, ids: &[NodeId]) -> Change {
    let steps = (0..=rng.below(3)).map(|_| {
        let id = ids[rng.below(ids.len() as u64) as usize];
        match rng.below(5) {
            0 => ChangeStep::AddVoter(id),
            1 => ChangeStep::AddLearner(id),
            2 => ChangeStep::Promote(id),
            _ => ChangeStep::Remove(id),
        }
    });
    Change {
        steps: steps.collect(),
        ..Change::default()
    }
}

/// What the runs of a test came to.
#[derive(Default)]
struct Outcome {
    committed: usize,
    reads: usize,
    changes: usize,
    /// How often a log began anew.
    restarts: usize,
}

fn run(seed: u64, voters: u64, lease: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let config = Config {
        heartbeat_ticks: 2,
        election_ticks: 10,
        inflight_messages_max: 3,
        window_bytes_max: 200,
        snapshot_ticks_max: 15,
        sleep_ticks: 4,
        lease_ticks: if lease { 9 } else { 0 },
        seed,
        ..Config::default()
    };
    let mut cluster = Cluster::new(Membership::of_voters((1..=voters).map(NodeId)), config);
    for id in voters + 1..=voters + 2 {
        cluster.join(NodeId(id));
    }
    let mut checker = Checker::default();
    let mut shots = Shots::new();
    let ids = cluster.ids();
    let pick = |rng: &mut Rng| ids[rng.below(ids.len() as u64) as usize];
    let mut token = 0;
    let mut cut: Option<NodeId> = None;
    // Ticks that a paused member has not seen.
    let mut owed: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut paused: Option<NodeId> = None;
    for turn in 0..1_500_u64 {
        let id = pick(&mut rng);
        match rng.below(100) {
            0 if lease && rng.below(2) == 0 => cluster.step(id, Input::Campaign),
            0 => {
                owed.remove(&id);
                cluster.restart(id);
            }
            1 => cut = Some(id),
            2..=3 => cut = None,
            4..=15 => {
                token += 1;
                cluster.propose(id, token, &format!("{turn}"));
            }
            19..=20 => {
                token += 1;
                checker.read(token);
                cluster.step(id, Input::ReadAnywhere { token });
            }
            16..=18 => {
                token += 1;
                checker.read(token);
                cluster.step(id, Input::Read { token });
            }
            21 => {
                let to = pick(&mut rng);
                cluster.step(id, Input::Transfer { to });
            }
            // Of two voters one may be gone for good when the other one has lost something.
            28 if seed % 2 == 1 && voters > 1 => {
                let others = cluster.members.iter().filter(|(other, _)| **other != id);
                let guarded = others.filter(|(_, m)| m.disk.incarnation.guarded).count();
                let held = cluster.members[&id].disk.entries.len() as u64;
                if guarded == 0 && rng.below(3) == 0 {
                    cluster.lose(id, rng.below(held + 1) as usize);
                }
            }
            22..=24 => {
                let applied = cluster.members[&id].applied.len() as u64;
                let base = cluster.members[&id].disk.base_index();
                // A state machine that is about to be replaced gives nothing up.
                if applied > base.0 {
                    cluster.compact(id, Index(base.0 + 1 + rng.below(applied - base.0)));
                }
            }
            25 => {
                let taken = deliver_snapshot(&mut cluster, &mut shots, &mut rng, true);
                checker.restarts += usize::from(taken);
            }
            26..=27 => drop(cluster.install(id)),
            28 => {
                token += 1;
                let change = change(&mut rng, &ids);
                let leads = |id: &&NodeId| cluster.members[id].core.status().committed_in_term;
                let leader = *ids.iter().rfind(leads).unwrap_or(&id);
                cluster.step(leader, Input::Change { token, change });
            }
            29 => {
                let member = cluster.members.get_mut(&id).expect("exists");
                member.core.allow_sleep(rng.below(3) > 0);
            }
            30..=40 if lease => {
                // Leases trust clocks: all go on together, but a paused member does not look at its own.
                for id in &ids {
                    let ticks = owed.remove(id).unwrap_or(0) + 1;
                    if paused == Some(*id) {
                        owed.insert(*id, ticks);
                    } else {
                        cluster.step(*id, Input::Tick { ticks });
                        cluster.ready(*id);
                    }
                }
                paused = paused.filter(|_| rng.below(25) > 0);
                if rng.below(50) == 0 {
                    paused = Some(id);
                }
            }
            30..=40 => cluster.step(id, Input::Tick { ticks: 1 }),
            41..=60 => {
                cluster.persist(id);
            }
            _ => {
                if !cluster.network.is_empty() {
                    let at = rng.below(cluster.network.len() as u64) as usize;
                    let (from, to, message) = cluster.network.swap_remove(at);
                    let lost = cut == Some(from) || cut == Some(to) || rng.below(20) == 0;
                    if rng.below(30) == 0 {
                        cluster.network.push((from, to, message.clone()));
                    }
                    if !lost {
                        cluster.step(to, Input::Message { from, message });
                    }
                }
            }
        }
        if rng.below(3) > 0 {
            cluster.ready(id);
        }
        cluster.apply(id);
        send_snapshots(&mut cluster, &mut shots);
        checker.check(&mut cluster);
    }
    // Who was paused sees how late it is.
    for (id, ticks) in owed {
        cluster.step(id, Input::Tick { ticks });
    }
    settle(&mut cluster, &mut checker, &mut rng, token);
    let changes = checker.committed.iter();
    Outcome {
        committed: checker.committed.len(),
        reads: checker.reads_ended,
        changes: changes.filter(|e| e.kind == EntryKind::Config).count(),
        restarts: checker.restarts,
    }
}

/// Faults are over: within a bounded time there is one leader, and all members that are left apply the same.
fn settle(cluster: &mut Cluster, checker: &mut Checker, rng: &mut Rng, token: u64) {
    let mut shots = Shots::new();
    let may_sleep = rng.below(2) == 0;
    for member in cluster.members.values_mut() {
        // No store dies any more; what happened before is seen once.
        member.core.allow_sleep(false);
        member.core.allow_sleep(may_sleep);
    }
    let ids = cluster.ids();
    let mut proposed = false;
    for turn in 0..600 {
        for id in &ids {
            cluster.step(*id, Input::Tick { ticks: 1 });
            cluster.ready(*id);
            while cluster.persist(*id) {}
            cluster.install(*id);
            cluster.apply(*id);
        }
        send_snapshots(cluster, &mut shots);
        while !shots.is_empty() {
            deliver_snapshot(cluster, &mut shots, rng, false);
        }
        for (from, to, message) in std::mem::take(&mut cluster.network) {
            cluster.step(to, Input::Message { from, message });
            cluster.ready(to);
        }
        checker.check(cluster);
        let leader = ids
            .iter()
            .find(|id| cluster.members[id].core.status().committed_in_term)
            // A transfer under way refuses proposals, and so does a leader that leaves; both end soon.
            .filter(|id| {
                let core = &cluster.members[id].core;
                core.status().transferring.is_none() && core.membership().is_voter(**id)
            });
        if let Some(leader) = leader
            && !proposed
            // By then no order to campaign is on its way any more.
            && turn >= 100
        {
            proposed = true;
            cluster.propose(*leader, token + 1, "last");
        }
    }
    let applied = |id: &NodeId| cluster.members[id].applied.len();
    let lead = ids
        .iter()
        .find(|id| cluster.members[id].core.status().committed_in_term)
        .unwrap_or_else(|| panic!("no leader after the faults: {}", cluster.statuses()));
    let membership = cluster.members[lead].core.membership();
    assert!(!membership.is_joint(), "the last change did not end");
    for id in membership.members() {
        let reached = applied(&id);
        assert_eq!(reached, applied(lead), "{id} did not converge");
    }
    let asleep = |id: &NodeId| cluster.members[id].core.is_asleep();
    if may_sleep && membership.members().len() > 1 {
        assert!(
            membership.members().iter().all(asleep),
            "an idle group stays awake: {}",
            cluster.statuses()
        );
    }
    let last = cluster.members[lead].applied.iter().rev();
    assert!(
        last.take(3).any(|entry| entry.payload == "last"),
        "no progress after the faults"
    );
    assert_eq!(
        checker.committed.last().map(|entry| entry.index),
        Some(Index(applied(lead) as u64))
    );
}

fn runs(voters: u64, seeds: std::ops::Range<u64>, lease: bool) {
    let only = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut all = Outcome::default();
    let seeds = match std::env::var("SEEDS").map(|count| count.parse::<u64>()) {
        Ok(Ok(count)) => 0..count,
        _ => seeds,
    };
    for seed in only.map_or(seeds, |seed: u64| seed..seed + 1) {
        let leases = if lease { "leases" } else { "keep" };
        println!("SEED={seed} cargo test -p raft-node --test random voters_{voters}_{leases}");
        let outcome = run(seed, voters, lease);
        all.committed += outcome.committed;
        all.reads += outcome.reads;
        all.changes += outcome.changes;
        all.restarts += outcome.restarts;
    }
    assert!(all.committed > 0, "the runs committed nothing");
    assert!(all.reads > 0, "no read ended in any run");
    assert!(all.changes > 0, "no change was committed in any run");
    assert!(
        all.restarts > 0 || voters == 1 || only.is_some(),
        "no log began anew in any run"
    );
    println!(
        "{} entries committed, {} of them changes; {} reads ended, {} logs began anew",
        all.committed, all.changes, all.reads, all.restarts
    );
}

#[test]
fn voters_1_keep_what_is_committed() {
    runs(1, 0..40, false);
}

#[test]
fn voters_3_keep_what_is_committed() {
    runs(3, 0..200, false);
}

#[test]
fn voters_5_keep_what_is_committed() {
    runs(5, 0..100, false);
}

#[test]
fn voters_3_leases_read_nothing_stale() {
    runs(3, 0..300, true);
}

#[test]
fn voters_5_leases_read_nothing_stale() {
    runs(5, 0..100, true);
}
