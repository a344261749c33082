//! Golden scripts: each `testdata/*.txt` is a list of blocks, a command, `----`, and what it did, up to an empty line.
//! `UPDATE=1 cargo test -p raft-node --test golden` rewrites the outputs; review the difference.
//!
//! Commands: `nodes N [learner=ID..] [out=ID..] [KEY=VALUE..]`, `tick ID N`, `campaign ID`, `propose ID TEXT`, `read ID`, `ask ID` (a read that may go through the leader), `transfer ID TO`,
//! `ready ID`, `persist ID`, `deliver [FROM->TO]`, `drop [FROM->TO]`, `repeat FROM->TO` (delivers and keeps),
//! `drop1 FROM->TO` and `delay FROM->TO` (the oldest message is lost, or comes last), `stabilize`,
//! `compact ID TO`, `snapshot FROM->TO` (of what FROM has applied arrives at TO), `install ID` (the state machine takes it up),
//! `late FROM->TO` (the last snapshot that arrived does so again), `report ID TO moving|failed|INDEX` (of a transfer),
//! `isolate ID`, `heal`, `restart ID`, `lose ID N` (a restart that finds the last N entries damaged), `apply ID`, `log ID`,
//! `state ID`, `unreachable ID TO`, `allow ID sleep|no`, `asleep`, `status`, `join ID` (a member that nobody knows yet),
//! `lead ID` (campaigns and stabilizes, without an output), `change ID STEP..` (`+4` adds a voter, `~4` a learner, `^4` promotes, `-4` removes), `members`. Lines that begin with `#` are comments.

mod cluster;

use std::fmt::Write as _;
use std::path::Path;

use cluster::{Cluster, Shot};
use raft_node::core::{
    Body, Change, ChangeStep, Config, Input, Membership, Message, SnapshotReport,
};
use raft_node::{EntryKind, Index, NodeId, Term};

struct Runner {
    cluster: Cluster,
    isolated: Vec<NodeId>,
    /// The last snapshot that arrived, and the term in which it was sent.
    shot: Option<(Term, Shot)>,
    /// Whether `stabilize` applies what is committed.
    applies: bool,
    token: u64,
    out: String,
}

fn number(word: &str) -> u64 {
    word.parse()
        .unwrap_or_else(|_| panic!("{word} is not a number"))
}

fn show(message: &Message) -> String {
    let body = match &message.body {
        Body::Append {
            prev_index,
            prev_term,
            entries,
            commit,
        } => {
            let terms: Vec<String> = entries
                .iter()
                .map(|entry| {
                    let config = entry.kind == EntryKind::Config;
                    let mark = if config { "c" } else { "" };
                    format!("{}/{}{mark}", entry.index, entry.term)
                })
                .collect();
            format!(
                "append after {prev_index}/{prev_term} [{}] commit {commit}",
                terms.join(" ")
            )
        }
        other => format!("{other:?}"),
    };
    match message.incarnation {
        0 => format!("t{} {body}", message.term),
        other => format!("t{} i{other} {body}", message.term),
    }
}

fn step(word: &str) -> ChangeStep {
    let id = NodeId(number(&word[1..]));
    match &word[..1] {
        "+" => ChangeStep::AddVoter(id),
        "~" => ChangeStep::AddLearner(id),
        "^" => ChangeStep::Promote(id),
        "-" => ChangeStep::Remove(id),
        _ => panic!("{word} is no step"),
    }
}

/// The membership in short, as in `1 2 3 out 1 2 learn 4`.
fn members(membership: &Membership) -> String {
    let list = |ids: &[NodeId]| ids.iter().map(|id| format!(" {id}")).collect::<String>();
    let mut out = list(&membership.voters);
    for (name, ids) in [
        (" out", &membership.voters_outgoing),
        (" learn", &membership.learners),
    ] {
        if !ids.is_empty() {
            out += name;
            out += &list(ids);
        }
    }
    out
}

fn setup(words: &[&str]) -> (Cluster, bool) {
    let mut applies = true;
    let mut config = Config {
        election_ticks: 10,
        heartbeat_ticks: 2,
        seed: 7,
        ..Config::default()
    };
    let mut membership = Membership::of_voters((1..=number(words[0])).map(NodeId));
    for word in &words[1..] {
        let (key, value) = word.split_once('=').expect("KEY=VALUE");
        let value = number(value);
        match key {
            "learner" => {
                membership.voters.retain(|id| id.0 != value);
                membership.learners.push(NodeId(value));
            }
            "out" => membership.voters_outgoing.push(NodeId(value)),
            "in" => membership.voters.retain(|id| id.0 <= value),
            "inflight" => config.inflight_messages_max = value as usize,
            "window" => config.window_bytes_max = value as usize,
            "apply" => applies = value > 0,
            "stall" => config.persist_ticks_max = value,
            "lease" => config.lease_ticks = value,
            "sleep" => config.sleep_ticks = value,
            "news" => config.snapshot_ticks_max = value,
            "uncommitted" => config.uncommitted_bytes_max = value as usize,
            _ => panic!("{key} is no setting"),
        }
    }
    (Cluster::new(membership, config), applies)
}

impl Runner {
    fn link(words: &[&str]) -> Option<(NodeId, NodeId)> {
        let (from, to) = words.first()?.split_once("->").expect("FROM->TO");
        Some((NodeId(number(from)), NodeId(number(to))))
    }

    /// Ends the steps of a member and writes down what came of it.
    fn ready(&mut self, id: NodeId) {
        let sent = self.cluster.network.len();
        let (waiting, writing, commit, guarded) = {
            let member = &self.cluster.members[&id];
            let guarded = member.disk.incarnation.guarded;
            (
                member.waiting.len(),
                member.writing.len(),
                member.commit,
                guarded,
            )
        };
        self.cluster.ready(id);
        let member = self
            .cluster
            .members
            .get_mut(&id)
            .expect("the script names a member");
        for batch in &member.writing[writing..] {
            let terms: Vec<String> = batch
                .entries
                .iter()
                .map(|e| format!("{}/{}", e.index, e.term))
                .collect();
            let _ = write!(
                self.out,
                "{id} persist {} [{}]",
                batch.id.0,
                terms.join(" ")
            );
            if let Some(base) = &batch.restart {
                let _ = write!(self.out, " restart after {}/{}", base.index, base.term);
            }
            if let Some(from) = batch.truncate_from {
                let _ = write!(self.out, " truncate from {from}");
            }
            if let Some(hard) = batch.hard_state {
                let vote = hard.vote.map_or("none".to_owned(), |vote| vote.to_string());
                let _ = write!(self.out, " term {} vote {vote}", hard.term);
            }
            self.out.push('\n');
        }
        for (from, to, message) in &self.cluster.network[sent..] {
            let _ = writeln!(self.out, "{from}->{to} {}", show(message));
        }
        for (after, to, message) in &member.waiting[waiting..] {
            let _ = writeln!(self.out, "{id}->{to} after {}: {}", after.0, show(message));
        }
        if member.commit > commit {
            let _ = writeln!(self.out, "{id} commit {}", member.commit);
        }
        if guarded && !member.disk.incarnation.guarded {
            let _ = writeln!(self.out, "{id} is whole again");
        }
        for (token, index, term) in member.proposed.drain(..) {
            let _ = writeln!(self.out, "{id} proposed {token} at {index}/{term}");
        }
        for (token, index) in member.reads_ready.drain(..) {
            let _ = writeln!(self.out, "{id} read {token} ready at {index}");
        }
        for (token, reason) in member.dropped.drain(..) {
            let _ = writeln!(self.out, "{id} dropped {token}: {reason:?}");
        }
        for (to, _) in member.needs_snapshot.drain(..) {
            let _ = writeln!(self.out, "{id} needs a snapshot for {to}");
        }
    }

    fn persist(&mut self, id: NodeId) -> bool {
        let sent = self.cluster.network.len();
        let done = self.cluster.persist(id);
        for (from, to, message) in &self.cluster.network[sent..] {
            let _ = writeln!(self.out, "{from}->{to} {}", show(message));
        }
        self.ready(id);
        done
    }

    /// Takes the messages of a link (or all) off the network and, unless `drop`, gives them to their receivers.
    fn transfer(&mut self, link: Option<(NodeId, NodeId)>, drop: bool, keep: bool) -> bool {
        let network = std::mem::take(&mut self.cluster.network);
        let (taken, rest): (Vec<_>, Vec<_>) = network
            .into_iter()
            .partition(|(from, to, _)| link.is_none_or(|link| link == (*from, *to)));
        self.cluster.network = rest;
        let any = !taken.is_empty();
        for (from, to, message) in taken {
            if keep {
                self.cluster.network.push((from, to, message.clone()));
            }
            let known = self.cluster.members.contains_key(&to);
            if !known || drop || self.isolated.contains(&from) || self.isolated.contains(&to) {
                let _ = writeln!(self.out, "lost {from}->{to}");
                continue;
            }
            self.cluster.step(to, Input::Message { from, message });
            self.ready(to);
        }
        any
    }

    /// Takes the oldest message of a link, and puts it behind all others unless it is lost.
    fn oldest(&mut self, words: &[&str], lost: bool) {
        let link = Self::link(words).expect("FROM->TO");
        let network = &mut self.cluster.network;
        let at = network
            .iter()
            .position(|(from, to, _)| (*from, *to) == link);
        let message = network.remove(at.expect("there is one on its way"));
        if lost {
            let _ = writeln!(self.out, "lost {}->{} {}", link.0, link.1, show(&message.2));
        } else {
            network.push(message);
        }
    }

    fn stabilize(&mut self) {
        for _ in 0..100 {
            let mut moved = self.transfer(None, false, false);
            for id in self.cluster.ids() {
                self.ready(id);
                moved |= self.persist(id);
                if self.applies {
                    self.cluster.apply(id);
                }
            }
            if !moved && self.cluster.network.is_empty() {
                return;
            }
        }
        panic!(
            "the group does not come to rest:\n{}",
            self.cluster.statuses()
        );
    }

    fn run(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let id = NodeId(words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0));
        match words[0] {
            "tick" => self.cluster.step(
                id,
                Input::Tick {
                    ticks: number(words[2]),
                },
            ),
            "campaign" => self.cluster.step(id, Input::Campaign),
            "lead" => {
                self.cluster.step(id, Input::Campaign);
                self.ready(id);
                self.stabilize();
                self.out.clear();
            }
            "propose" => {
                self.token += 1;
                self.cluster.propose(id, self.token, words[2]);
            }
            "read" => {
                self.token += 1;
                self.cluster.step(id, Input::Read { token: self.token });
            }
            "ask" => {
                self.token += 1;
                self.cluster
                    .step(id, Input::ReadAnywhere { token: self.token });
            }
            "transfer" => {
                let to = NodeId(number(words[2]));
                self.cluster.step(id, Input::Transfer { to });
            }
            "compact" => self.cluster.compact(id, Index(number(words[2]))),
            "snapshot" | "late" => {
                let (from, to) = Self::link(&words[1..]).expect("FROM->TO");
                if words[0] == "snapshot" {
                    let shot = self.cluster.shot(from).expect("something is applied");
                    self.shot = Some((self.cluster.members[&from].core.status().term, shot));
                }
                let (term, shot) = self.shot.as_ref().expect("one has arrived");
                let verdict = self.cluster.receive(from, to, *term, shot);
                let meta = &shot.meta;
                let _ = writeln!(
                    self.out,
                    "{to} snapshot {}/{} of t{term}: {verdict:?}",
                    meta.index, meta.term
                );
                self.ready(to);
                return;
            }
            "install" => assert!(self.cluster.install(id), "{id} has nothing to install"),
            "report" => {
                let report = match words[3] {
                    "moving" => SnapshotReport::Moving,
                    "failed" => SnapshotReport::Failed,
                    index => SnapshotReport::Taken(Index(number(index))),
                };
                let to = NodeId(number(words[2]));
                self.cluster.step(id, Input::SnapshotReport { to, report });
            }
            "join" => self.cluster.join(id),
            "change" => {
                self.token += 1;
                let change = Change {
                    steps: words[2..].iter().map(|word| step(word)).collect(),
                    ..Change::default()
                };
                let token = self.token;
                self.cluster.step(id, Input::Change { token, change });
            }
            "members" => {
                for (id, member) in &self.cluster.members {
                    let text = members(member.core.membership());
                    let _ = writeln!(self.out, "{id} votes{text}");
                }
                return;
            }
            "persist" => assert!(
                self.persist(id),
                "{id} has nothing to persist; so far:\n{}",
                self.out
            ),
            "deliver" => drop(self.transfer(Self::link(&words[1..]), false, false)),
            "repeat" => drop(self.transfer(Self::link(&words[1..]), false, true)),
            "drop" => drop(self.transfer(Self::link(&words[1..]), true, false)),
            "drop1" => self.oldest(&words[1..], true),
            "delay" => self.oldest(&words[1..], false),
            "stabilize" => self.stabilize(),
            "isolate" => self.isolated.push(id),
            "heal" => self.isolated.clear(),
            "lose" => self.cluster.lose(id, number(words[2]) as usize),
            "restart" => self.cluster.restart(id),
            "apply" => self.cluster.apply(id),
            "ready" => {}
            "state" => {
                let member = &self.cluster.members[&id];
                let (applied, base) = (member.applied.len(), member.disk.base_index());
                let voters = &member.core.membership().voters;
                let _ = writeln!(
                    self.out,
                    "{id} applied {applied} log after {base} voters {voters:?}"
                );
                return;
            }
            "allow" => {
                let allowed = words[2] == "sleep";
                let member = self.cluster.members.get_mut(&id).expect("a member");
                if member.core.allow_sleep(allowed) {
                    let _ = writeln!(self.out, "{id} wakes");
                }
            }
            "asleep" => {
                let members = self.cluster.members.iter();
                let asleep = members.filter(|(_, member)| member.core.is_asleep());
                let asleep: Vec<_> = asleep.map(|(id, _)| id.to_string()).collect();
                let _ = writeln!(self.out, "asleep: [{}]", asleep.join(" "));
                return;
            }
            "unreachable" => {
                let to = NodeId(number(words[2]));
                self.cluster.step(id, Input::Unreachable { to });
            }
            "log" => {
                for entry in self.cluster.members[&id].log() {
                    let text = match entry.kind {
                        EntryKind::Normal => {
                            format!("{:?}", String::from_utf8_lossy(&entry.payload))
                        }
                        EntryKind::Config => {
                            let read = Membership::decode(&entry.payload);
                            format!("votes{}", members(&read.expect("a membership")))
                        }
                    };
                    let _ = writeln!(self.out, "{}/{} {text}", entry.index, entry.term);
                }
                return;
            }
            "status" => {
                for (id, member) in &self.cluster.members {
                    let status = member.core.status();
                    let _ = writeln!(
                        self.out,
                        "{id} {:?} term {} commit {} persisted {} last {}",
                        status.role,
                        status.term,
                        status.commit,
                        status.persisted,
                        status.last_index
                    );
                }
                return;
            }
            other => panic!("{other} is no command"),
        }
        if id != NodeId(0)
            && !matches!(
                words[0],
                "deliver" | "repeat" | "drop" | "drop1" | "delay" | "isolate"
            )
        {
            self.ready(id);
        }
    }
}

fn play(script: &str) -> String {
    let mut runner = None;
    let mut result = String::new();
    for block in script
        .split("\n\n")
        .map(str::trim)
        .filter(|block| !block.is_empty())
    {
        let head = block
            .split("\n----")
            .next()
            .expect("a split has a first part")
            .trim();
        result.push_str(head);
        for line in head.lines().filter(|line| !line.starts_with('#')) {
            if let Some(words) = line.strip_prefix("nodes ") {
                let (cluster, applies) = setup(&words.split_whitespace().collect::<Vec<_>>());
                runner = Some(Runner {
                    cluster,
                    applies,
                    isolated: vec![],
                    shot: None,
                    token: 0,
                    out: String::new(),
                });
            } else {
                runner
                    .as_mut()
                    .expect("a script begins with nodes")
                    .run(line);
            }
        }
        result.push_str("\n----\n");
        if let Some(runner) = &mut runner {
            result.push_str(&std::mem::take(&mut runner.out));
        }
        result.push('\n');
    }
    result
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the scripts are files of the source tree"
)]
fn scripts_give_the_recorded_outputs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    assert!(
        !paths.is_empty(),
        "there are no scripts in {}",
        directory.display()
    );
    let update = std::env::var_os("UPDATE").is_some();
    for path in paths {
        let script = std::fs::read_to_string(&path).expect("readable");
        println!("{}", path.display());
        let result = play(&script);
        if update {
            std::fs::write(&path, &result).expect("writable");
        } else {
            assert_eq!(
                result,
                script,
                "{}: run with UPDATE=1 and review",
                path.display()
            );
        }
    }
}
