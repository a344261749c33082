//! Sees what members do after each of their turns, and asks the checkers.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use kv_server::pb::command::{Command, command::Op};
use prost::Message as _;
use raft_log::{Entry, GroupInfo, Index, NodeId};
use raft_node::core::{Body, Membership, Message, Role};

use super::super::checkers::Place;
use super::super::checkers::{
    CommitQuorum, ElectionQuorum, ElectionSafety, LeaderAppendOnly, LeaderCompleteness, LeaseLife,
    LogMatching, Monotonic, OneVote, Seen, SerializableReads, StateHash, StateMachineSafety,
    Verdict, Voters,
};
use super::super::node::{GROUP, Node, Stopped};
use super::super::oracle::{Oracle, Shared};
use super::fault::SECOND;

/// Applied entries between two hashes of a member's state.
const HASH_ENTRIES: u64 = 200;
/// Bytes of the log that one read returns at most, plus an entry.
const READ_BYTES_MAX: usize = 1 << 20;

/// What was seen of one member's log and state.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The terms of its entries, from index 1.
    terms: Vec<u64>,
    /// Those that it had on disk before it lost some of them: until it has caught up they count for what it had said.
    lost: Vec<u64>,
    durable: u64,
    applied: u64,
    role: Role,
    term: u64,
    /// The membership in force, and who votes by it.
    membership: Membership,
    voters: Voters,
}

impl Known {
    /// What it may have acknowledged.
    fn had(&self) -> Vec<u64> {
        let durable = self.terms.len().min(self.durable as usize);
        let mut had = self.lost.clone();
        had.resize(had.len().max(durable), 0);
        had[..durable].copy_from_slice(&self.terms[..durable]);
        had
    }
}

/// All checkers that look at members.
pub struct Witness {
    members: Vec<Known>,
    oracle: Shared<Oracle>,
    election: ElectionSafety,
    elected: ElectionQuorum,
    append_only: LeaderAppendOnly,
    matching: LogMatching,
    completeness: LeaderCompleteness,
    machine: StateMachineSafety,
    quorum: CommitQuorum,
    monotonic: Monotonic,
    votes: OneVote,
    /// Reads of a member's own state.
    pub reads: SerializableReads,
    /// When leases end.
    pub leases: LeaseLife,
    hashes: StateHash,
    terms_led: u64,
}

/// Why a member could not be looked at, or what a checker refuses.
#[derive(Debug)]
pub enum Refusal {
    /// The member's log cannot be read.
    Stopped(Stopped),
    /// A property does not hold.
    Violated(String),
}

impl From<Stopped> for Refusal {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Violated(text)
    }
}

impl Witness {
    /// Watches so many members, with an oracle that knows what was applied.
    #[must_use]
    pub fn new(members: usize, oracle: Shared<Oracle>) -> Self {
        Self {
            members: vec![Known::default(); members],
            oracle,
            election: ElectionSafety::default(),
            elected: ElectionQuorum::default(),
            append_only: LeaderAppendOnly::default(),
            matching: LogMatching::default(),
            completeness: LeaderCompleteness::default(),
            machine: StateMachineSafety::default(),
            quorum: CommitQuorum::default(),
            monotonic: Monotonic::default(),
            votes: OneVote::default(),
            reads: SerializableReads::default(),
            leases: LeaseLife::default(),
            hashes: StateHash::default(),
            terms_led: 0,
        }
    }

    /// One more member is watched.
    pub fn joined(&mut self) {
        self.members.push(Known::default());
    }

    /// Terms in which somebody led.
    #[must_use]
    pub fn terms_led(&self) -> u64 {
        self.terms_led
    }

    /// Hashes that were compared.
    #[must_use]
    pub fn hashes_compared(&self) -> u64 {
        self.hashes.compared()
    }

    /// A member starts.
    ///
    /// # Errors
    /// When it has forgotten what it had promised, or its log cannot be read.
    pub fn started(&mut self, at: usize, node: &Node) -> Result<(), Refusal> {
        let info = log_of(node);
        let (term, vote) = (info.hard_state.term.0, info.hard_state.vote.map(|v| v.0));
        self.votes.started(node.id.0, term, vote)?;
        let known = Known {
            applied: node.applied().0,
            ..Known::default()
        };
        let before = std::mem::replace(&mut self.members[at], known);
        if node.core_status().guarded {
            self.members[at].lost = before.had();
        }
        let outcome = self.turned(at, node, 0);
        if matches!(outcome, Err(Refusal::Stopped(_))) {
            // It acknowledged what it had; that it cannot be read any more does not undo that.
            self.members[at] = before;
        }
        outcome
    }

    /// A member's process has ended.
    pub fn ended(&mut self, at: usize, node: u64) {
        let promised = self.votes.newest_term(node);
        self.monotonic.ended(node, promised);
        self.append_only.follows(node);
        self.reads.ended(node);
        self.members[at].role = Role::Follower;
    }

    /// A message leaves a member.
    ///
    /// # Errors
    /// When it is a second vote.
    pub fn sent(&mut self, from: u64, to: u64, message: &Message) -> Verdict {
        match message.body {
            Body::VoteReply { granted: true } => {
                self.elected.voted(from, message.term.0, to);
                self.votes.sent(from, message.term.0, to)
            }
            Body::Vote { .. } => {
                self.elected.voted(from, message.term.0, from);
                self.votes.sent(from, message.term.0, from)
            }
            _ => Ok(()),
        }
    }

    /// A member has had a turn, at this tick of the world.
    ///
    /// # Errors
    /// When a property does not hold, or its log cannot be read.
    pub fn turned(&mut self, at: usize, node: &Node, now: u64) -> Result<(), Refusal> {
        let status = node.core_status();
        let id = node.id.0;
        let (term, commit, last) = (status.term.0, status.commit.0, status.last_index.0);
        let info = log_of(node);
        let kept = self.read_log(at, node, &info, last)?;
        if !status.guarded {
            self.members[at].lost.clear();
        }
        let here = Place {
            term,
            commit,
            applied: status.applied.0,
            last,
        };
        self.monotonic.at(id, here)?;
        let before = (self.members[at].role, self.members[at].term);
        let known = &mut self.members[at];
        let mut was_in_force = None;
        if known.membership != *node.membership() {
            known.membership.clone_from(node.membership());
            let now = voters_of(&known.membership);
            was_in_force = Some(std::mem::replace(&mut known.voters, now));
        }
        if status.role == Role::Leader {
            self.election.leads(id, term)?;
            let length = self.members[at].terms.len() as u64;
            self.append_only.leads(id, term, kept, length)?;
            let known = &self.members[at];
            let was_in_force = was_in_force.as_ref().unwrap_or(&known.voters);
            let in_force = [was_in_force, &known.voters];
            let term_at = |index: u64| known.terms.get(index as usize - 1).copied();
            let new = before != (Role::Leader, term);
            if new {
                self.terms_led += 1;
                self.elected.leads(id, term, &in_force)?;
                self.completeness.leads(id, term, term_at)?;
            }
            let entry_term = (commit > 0).then(|| term_at(commit)).flatten();
            let holders = || holders(&self.members, commit, entry_term.unwrap_or(0));
            self.quorum
                .leads(term, commit, entry_term, holders, &in_force)?;
            self.completeness
                .committed(term, commit, entry_term.unwrap_or(0));
        } else {
            self.append_only.follows(id);
        }
        (self.members[at].role, self.members[at].term) = (status.role, term);
        self.look_at_applied(at, node, &info, status.applied.0, now)
    }

    /// Brings what is known of a log up to date. Returns how many of the known entries are still there.
    fn read_log(
        &mut self,
        at: usize,
        node: &Node,
        info: &GroupInfo,
        last: u64,
    ) -> Result<u64, Refusal> {
        let log = &node.up().log;
        let known = &mut self.members[at];
        let base = &info.base;
        let begin = base.index.0 as usize;
        let mut kept = known.terms.len().min(last as usize);
        while kept > begin
            && log.term_at(GROUP, Index(kept as u64)).map(|t| t.0) != Some(known.terms[kept - 1])
        {
            kept -= 1;
        }
        if begin > 0 && kept <= begin {
            // What a log does not hold any more is what was applied.
            let oracle = self.oracle.get();
            let applied = oracle.up_to(base.index);
            if applied.last().map(|entry| entry.term) != Some(base.term) {
                let text = format!(
                    "the log of member {} begins after index {begin} of term {}, which is not what was applied there",
                    node.id, base.term
                );
                return Err(Refusal::Violated(text));
            }
            while kept > 0 && known.terms[kept - 1] != applied[kept - 1].term.0 {
                kept -= 1;
            }
            known.terms.truncate(kept);
            let rest = applied[kept..].iter().map(|entry| entry.term.0);
            known.terms.extend(rest);
        } else {
            known.terms.truncate(kept);
        }
        let mut next = known.terms.len() as u64 + 1;
        while next <= last {
            // What the host has not collected yet is in the core only.
            let end = info.last_index.0;
            if next > end {
                break;
            }
            let part = log
                .entries(GROUP, Index(next)..Index(end + 1), READ_BYTES_MAX)
                .map_err(Stopped::from)?;
            for entry in part {
                let before = known.terms.last().copied().unwrap_or(0);
                self.matching.holds(node.id.0, seen(&entry), before)?;
                known.terms.push(entry.term.0);
                next = entry.index.0 + 1;
            }
        }
        known.durable = info.durable_index.0;
        Ok(kept as u64)
    }

    fn look_at_applied(
        &mut self,
        at: usize,
        node: &Node,
        info: &GroupInfo,
        applied: u64,
        now: u64,
    ) -> Result<(), Refusal> {
        let id = node.id.0;
        let base = info.base.index.0;
        // A snapshot brought what its log does not hold.
        let mut next = self.members[at].applied.max(base) + 1;
        // Somebody may have applied it in a turn that it did not survive.
        let unseen = self.machine.next()..next;
        for index in unseen {
            let entry = seen(&self.oracle.get().up_to(Index(index))[index as usize - 1]);
            self.machine.applied(id, entry)?;
        }
        while next <= applied {
            let part = node
                .up()
                .log
                .entries(GROUP, Index(next)..Index(applied + 1), READ_BYTES_MAX)
                .map_err(Stopped::from)?;
            for entry in part {
                next = entry.index.0 + 1;
                self.machine.applied(id, seen(&entry))?;
                self.follow_leases(&entry, now)?;
            }
        }
        let hashed = self.members[at].applied / HASH_ENTRIES != applied / HASH_ENTRIES;
        self.members[at].applied = applied;
        if hashed {
            let hash = node.up().store.state_hash().map_err(Stopped::from)?;
            self.hashes.at(id, applied, hash)?;
        }
        Ok(())
    }

    /// The first member to apply an entry decides when it took effect.
    fn follow_leases(&mut self, entry: &Entry, now: u64) -> Verdict {
        if entry.index.0 <= self.leases.newest() {
            return Ok(());
        }
        self.leases.reached(entry.index.0);
        let Ok(Command { op: Some(op) }) = Command::decode(entry.payload.clone()) else {
            return Ok(());
        };
        match op {
            Op::LeaseGrant(grant) => {
                let ttl = grant.ttl.unsigned_abs() * SECOND;
                self.leases.full(entry.index.0, now, ttl);
                Ok(())
            }
            Op::LeaseExpire(expire) => expire
                .items
                .iter()
                .try_for_each(|item| self.leases.expired(item.granted_index, now)),
            _ => Ok(()),
        }
    }

    /// The state of a member after the run.
    ///
    /// # Errors
    /// When it is not that of the others.
    pub fn final_hash(&mut self, node: &Node) -> Verdict {
        let hash = node.up().store.state_hash();
        let hash = hash.map_err(|error| error.to_string())?;
        self.hashes.at(node.id.0, node.applied().0, hash)?;
        let counted = node.up().store.count_bytes();
        let (counted, walked) = counted.map_err(|error| error.to_string())?;
        if counted != walked {
            let member = node.id;
            return Err(format!(
                "member {member} counts {counted} bytes of its data, and has {walked}"
            ));
        }
        Ok(())
    }
}

fn log_of(node: &Node) -> GroupInfo {
    let info = node.up().log.group(GROUP);
    info.expect("bootstrapped at the start")
}

/// On whose disks an entry is.
fn holders(members: &[Known], index: u64, term: u64) -> BTreeSet<u64> {
    let has = |known: &Known| {
        index == 0
            || (known.durable >= index && known.terms.get(index as usize - 1) == Some(&term))
            || known.lost.get(index as usize - 1) == Some(&term)
    };
    let holders = (1..).zip(members).filter(|(_, known)| has(known));
    holders.map(|(id, _)| id).collect()
}

fn voters_of(membership: &Membership) -> Voters {
    let ids = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect();
    Voters {
        incoming: ids(&membership.voters),
        outgoing: ids(&membership.voters_outgoing),
    }
}

fn seen(entry: &Entry) -> Seen {
    let mut hasher = DefaultHasher::new();
    (std::mem::discriminant(&entry.kind), &entry.payload).hash(&mut hasher);
    Seen {
        index: entry.index.0,
        term: entry.term.0,
        hash: hasher.finish(),
    }
}
