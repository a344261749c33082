//! Makes the one member that is left of a lost majority the only member of a new cluster: `flotilla recover`.
//!
//! Everything that the member's log holds is kept, also what it does not know to be committed. Of a write that was
//! acknowledged by this member and one that is lost, it may be just that which the member never heard: cutting the tail
//! would lose it, keeping it can only let writes take effect of which nobody was told what became of them. etcd's
//! `--force-new-cluster` cuts the tail. What the lost members had acknowledged without this one is gone.
//!
//! Behind the tail comes one entry, of a term of its own, that makes the member the sole voter. The cluster gets an id
//! that was drawn at random, so the handshake refuses whoever belongs to the old one, and another survivor that was
//! recovered by mistake. Member id and store id stay: they are what the log and the applied state know the member by.
//!
//! The decision is one file, `RECOVERY`. Until its name is durable the directory is the old member; from then on each start
//! of a server, and each call of [`recover`], finishes what is not done yet before anything else.
//!
//! | step | what a crash after it leaves |
//! |---|---|
//! | write `RECOVERY`: temporary file, sync, rename, sync of the directory | a decision that the next start carries out |
//! | one batch of the log: the entry, the term, a vote for itself, everything committed, the end of a guard | the same; the batch is found by index and term |
//! | write `PEERS` with the member alone, in the same way | the same |
//! | write `IDENTITY` with the new cluster, in the same way | the new member, and a decision that is carried out |
//! | rename `RECOVERY` to `RECOVERED-<new cluster>`, sync the directory | the new member; the file is the evidence |

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{RealFs, SharedVfs};
use raft_log::{
    Entry, EntryKind, GroupId, HardState, Incarnation, Index, IoMode, Log, LogOptions, NodeId,
    Record, Term, WriteBatch,
};
use raft_node::core::Membership;
use raft_node::driver::newest_membership;

use super::identity::IdentityError;
use super::initial::InitialMember;
use super::peers::{self, PeerBook};
use super::{DATA_GROUP, Identity, NodeError, random_u64, text};

const FILE_NAME: &str = "RECOVERY";
const KIND: &str = "flotilla-recovery";
const FILE_BYTES_MAX: u64 = 4 << 20;
const SEGMENT_BYTES: u64 = 16 << 10;

/// What a recovery decided, and what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The member that is left.
    pub member: NodeId,
    /// The cluster to which it belonged.
    pub from: u64,
    /// The cluster of which it is the only member now.
    pub to: u64,
    /// Where each group of its log stood.
    pub groups: Vec<RecoveredGroup>,
    /// The members of the old cluster, as `PEERS` had them.
    pub peers: Vec<String>,
}

/// Where a group stood, and what comes behind that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The group.
    pub group: GroupId,
    /// The last index of its log. The entry behind it makes the member the sole voter.
    pub last: Index,
    /// The term of the entry at `last`.
    pub last_term: Term,
    /// The commit index that the member knew.
    pub commit: Index,
    /// The term of the entry behind `last`: above every term that the member has seen.
    pub term: Term,
    /// Who voted and who learned.
    pub membership: Membership,
    /// The log was damaged and begun anew, and may lack what the member had acknowledged. Nobody is left to give that back.
    pub guarded: bool,
}

/// Makes the member in a data directory, whose server is stopped, the only member of a new cluster; or finishes a recovery
/// that was cut short. The module says what is kept.
///
/// # Errors
/// The directory is in use, holds no member, or one that decides alone; its log is damaged; failures of the file system.
/// Nothing was decided then, unless a recovery was begun before.
pub fn recover(dir: &Path) -> Result<Recovery, NodeError> {
    let vfs: SharedVfs = Arc::new(RealFs::new());
    if Identity::read(vfs.as_ref(), dir)?.is_none() {
        return Err(refused(
            dir,
            "holds no member: there is no IDENTITY file in it",
        ));
    }
    let lock = vfs.lock(&dir.join("LOCK"));
    let _lock = lock.map_err(|error| NodeError::lock(dir, error))?;
    recover_as(&vfs, dir, random_u64()?)
}

/// The recovery that was begun in a directory and is not finished, if there is one.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn pending(dir: &Path) -> Result<Option<Recovery>, NodeError> {
    Ok(Recovery::read(
        &(Arc::new(RealFs::new()) as SharedVfs),
        dir,
    )?)
}

fn recover_as(vfs: &SharedVfs, dir: &Path, cluster: u64) -> Result<Recovery, NodeError> {
    if let Some(finished) = finish(vfs, dir)? {
        return Ok(finished);
    }
    let recovery = plan(vfs, dir, cluster)?;
    carry_out(vfs, dir, &recovery)?;
    Ok(recovery)
}

/// Carries a decision out that was made before, if there is one. The directory is locked.
pub(super) fn finish(vfs: &SharedVfs, dir: &Path) -> Result<Option<Recovery>, NodeError> {
    let recovery = Recovery::read(vfs, dir)?;
    if let Some(recovery) = &recovery {
        carry_out(vfs, dir, recovery)?;
    }
    Ok(recovery)
}

/// Looks whether there is something to recover, and where the member stands.
fn plan(vfs: &SharedVfs, dir: &Path, cluster: u64) -> Result<Recovery, NodeError> {
    let identity = identity_of(vfs, dir)?;
    let log = open_log(vfs, dir, &identity)?;
    let mut groups = Vec::new();
    for group in log.groups() {
        let info = log.group(group).expect("the log names its groups");
        let membership = newest_membership(&log, group)?;
        groups.push(RecoveredGroup {
            group,
            last: info.last_index,
            last_term: info.last_term,
            commit: info.hard_state.commit,
            term: Term(info.hard_state.term.max(info.last_term).0 + 1),
            membership,
            guarded: info.incarnation.guarded,
        });
    }
    // What was found is durable, and stays as it is from here on.
    log.close()?;
    if groups.iter().all(|group| group.last == Index::ZERO) {
        return Err(refused(
            dir,
            "holds nothing of its cluster yet: begin a new one in an empty directory instead",
        ));
    }
    let alone = |group: &RecoveredGroup| group.membership.is_sole_voter(identity.member);
    if groups.iter().all(alone) {
        return Err(refused(
            dir,
            "holds a member that decides alone: there is no majority to recover from; start the server",
        ));
    }
    let knows = |group: &RecoveredGroup| group.membership.contains(identity.member);
    if !groups.iter().any(knows) {
        return Err(refused(
            dir,
            "holds a member that was removed, or not let in yet: its cluster went on without it",
        ));
    }
    Ok(Recovery {
        member: identity.member,
        from: identity.cluster,
        to: cluster,
        groups,
        peers: peers::lines(vfs, dir)?,
    })
}

/// Each step does nothing where it was done before.
fn carry_out(vfs: &SharedVfs, dir: &Path, recovery: &Recovery) -> Result<(), NodeError> {
    // Also when it was read: what was merely readable may not be on disk, and what follows depends on it.
    text::write(vfs.as_ref(), dir, FILE_NAME, &recovery.encode())?;
    let mut identity = identity_of(vfs, dir)?;
    if identity.cluster == recovery.from {
        enter(vfs, dir, &identity, recovery)?;
        let book = PeerBook::open(vfs, dir)?;
        let creation = book.as_ref().and_then(PeerBook::creation);
        let creation = creation.unwrap_or(recovery.from);
        let known = book.and_then(|book| book.get(identity.member));
        let alone = InitialMember {
            id: identity.member,
            name: identity.name.clone(),
            peer_urls: known.unwrap_or_default().peer_urls,
        };
        // The log that is replayed names the others, which are not to be called any more.
        let data = recovery
            .groups
            .iter()
            .find(|group| group.group == DATA_GROUP);
        let index = data.map_or(Index::ZERO, |group| group.last.next());
        PeerBook::keep_alone(vfs, dir, &alone, (creation, index))?;
        identity.cluster = recovery.to;
    } else if identity.cluster != recovery.to {
        let detail = format!(
            "it is about the clusters {:x} and {:x}, but IDENTITY says {:x}",
            recovery.from, recovery.to, identity.cluster
        );
        return Err(text::damaged(&dir.join(FILE_NAME), detail).into());
    }
    identity.write(vfs.as_ref(), dir)?;
    let (path, evidence) = (dir.join(FILE_NAME), recovery.evidence(dir));
    vfs.rename(&path, &evidence)
        .map_err(|error| NodeError::io("cannot rename", &path, error))?;
    vfs.sync_dir(dir)
        .map_err(|error| NodeError::io("cannot sync", dir, error))
}

/// Adds the entries that make the member the sole voter of its groups, all in one batch, unless they are there.
fn enter(
    vfs: &SharedVfs,
    dir: &Path,
    identity: &Identity,
    recovery: &Recovery,
) -> Result<(), NodeError> {
    let log = open_log(vfs, dir, identity)?;
    let alone = Membership::of_voters([identity.member]).encode();
    let mut batch = WriteBatch::new();
    for group in &recovery.groups {
        let info = log.group(group.group);
        let incarnation = info.as_ref().map(|info| info.incarnation);
        let there = info.map(|info| (info.last_index, info.last_term));
        let index = group.last.next();
        if there == Some((index, group.term)) {
            continue;
        }
        if there != Some((group.last, group.last_term)) {
            let detail = format!(
                "group {}: expected a log that ends with entry {} of term {}, found {there:?}",
                group.group, group.last, group.last_term
            );
            return Err(text::damaged(&dir.join(FILE_NAME), detail).into());
        }
        let entry = Entry {
            index,
            term: group.term,
            kind: EntryKind::Config,
            payload: alone.clone(),
        };
        let state = HardState {
            term: group.term,
            vote: Some(identity.member),
            commit: index,
        };
        batch.push(group.group, Record::Entries(vec![entry]));
        batch.push(group.group, Record::HardState(state));
        if let Some(incarnation) = incarnation.filter(|incarnation| incarnation.guarded) {
            // Who is guarded neither votes nor campaigns.
            let guarded = false;
            let over = Incarnation {
                guarded,
                ..incarnation
            };
            batch.push(group.group, Record::Incarnation(over));
        }
    }
    if !batch.is_empty() {
        log.write(batch)?;
    }
    Ok(log.close()?)
}

fn identity_of(vfs: &SharedVfs, dir: &Path) -> Result<Identity, NodeError> {
    let dir = dir.to_owned();
    Identity::read(vfs.as_ref(), &dir)?.ok_or(NodeError::NoIdentity { dir })
}

fn open_log(vfs: &SharedVfs, dir: &Path, identity: &Identity) -> Result<Log, NodeError> {
    let mut options = LogOptions::new(dir.join("log"), identity.store);
    options.io = IoMode::Inline;
    // One entry is added: on a disk that is nearly full a short segment still finds room.
    options.segment_bytes_min = SEGMENT_BYTES;
    Ok(Log::open(SharedVfs::clone(vfs), options)?.0)
}

fn refused(dir: &Path, why: &str) -> NodeError {
    NodeError::NotRecoverable(format!("{} {why}", dir.display()))
}

impl Recovery {
    /// Where the decision lies once it is carried out.
    #[must_use]
    pub fn evidence(&self, dir: &Path) -> PathBuf {
        dir.join(format!("RECOVERED-{:016x}", self.to))
    }

    fn read(vfs: &SharedVfs, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE_NAME);
        let content = text::read(vfs.as_ref(), &path, FILE_BYTES_MAX)?;
        content
            .map(|content| {
                let lines = text::unseal(&content, KIND, &path)?;
                Self::decode(lines)
                    .map_err(|line| text::damaged(&path, format!("unexpected `{line}`")))
            })
            .transpose()
    }

    fn encode(&self) -> String {
        let mut lines = format!(
            "recovery {:016x} from {:016x} to {:016x}\n",
            self.member.0, self.from, self.to
        );
        for group in &self.groups {
            let RecoveredGroup { membership, .. } = group;
            writeln!(
                lines,
                "group {:016x} last {:x} term {:x} commit {:x} next {:x} voters {} outgoing {} learners {} \
                 guarded {}",
                group.group.0,
                group.last.0,
                group.last_term.0,
                group.commit.0,
                group.term.0,
                ids(&membership.voters),
                ids(&membership.voters_outgoing),
                ids(&membership.learners),
                u8::from(group.guarded)
            )
            .expect("writing to a string does not fail");
        }
        for peer in &self.peers {
            lines.push_str(peer);
            lines.push('\n');
        }
        text::seal(KIND, &lines)
    }

    /// Gives the line back that makes no sense.
    fn decode(lines: &str) -> Result<Self, String> {
        let mut lines = lines.lines();
        let first = lines.next().unwrap_or_default();
        let head = || {
            let words = &mut first.split(' ');
            let mut number = |name| hex(field(words, name)?);
            let (member, from, to) = (number("recovery")?, number("from")?, number("to")?);
            Some((NodeId(member), from, to))
        };
        let (member, from, to) = head().ok_or(first)?;
        let (mut groups, mut peers) = (Vec::new(), Vec::new());
        for line in lines {
            if line.starts_with("member ") {
                peers.push(line.to_owned());
            } else {
                groups.push(decode_group(line).ok_or(line)?);
            }
        }
        Ok(Self {
            member,
            from,
            to,
            groups,
            peers,
        })
    }
}

fn decode_group(line: &str) -> Option<RecoveredGroup> {
    let words = &mut line.split(' ');
    let group = GroupId(hex(field(words, "group")?)?);
    let last = Index(hex(field(words, "last")?)?);
    let last_term = Term(hex(field(words, "term")?)?);
    let commit = Index(hex(field(words, "commit")?)?);
    let term = Term(hex(field(words, "next")?)?);
    let membership = Membership {
        voters: members(field(words, "voters")?)?,
        voters_outgoing: members(field(words, "outgoing")?)?,
        learners: members(field(words, "learners")?)?,
    };
    let guarded = field(words, "guarded")? == "1";
    Some(RecoveredGroup {
        group,
        last,
        last_term,
        commit,
        term,
        membership,
        guarded,
    })
}

/// The word behind the one that must be next.
fn field<'a>(words: &mut impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    (words.next() == Some(name)).then(|| words.next())?
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn ids(ids: &[NodeId]) -> String {
    if ids.is_empty() {
        return "-".to_owned();
    }
    let ids: Vec<_> = ids.iter().map(|id| format!("{:x}", id.0)).collect();
    ids.join(",")
}

fn members(text: &str) -> Option<Vec<NodeId>> {
    if text == "-" {
        return Some(Vec::new());
    }
    text.split(',').map(|id| hex(id).map(NodeId)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use raft_log::StoreId;
    use raft_log::vfs::SimFs;
    use raft_log::vfs::sim::CrashKind;
    use raft_node::driver::bootstrap;

    use super::*;

    const DIR: &str = "/data";
    const STORE: StoreId = StoreId(5);
    const ME: NodeId = NodeId(2);
    const OLD: u64 = 0xa;
    const NEW: u64 = 0xb;
    const GROUPS: [GroupId; 2] = [GroupId(1), GroupId(7)];

    fn dir() -> &'static Path {
        Path::new(DIR)
    }

    fn member(id: u64) -> InitialMember {
        InitialMember {
            id: NodeId(id),
            name: format!("m{id}"),
            peer_urls: vec![format!("http://m{id}:2380")],
        }
    }

    fn entries(from: u64, to: u64, term: u64) -> Record {
        let entry = |index| Entry {
            index: Index(index),
            term: Term(term),
            kind: EntryKind::Normal,
            payload: format!("entry {index}").into(),
        };
        Record::Entries((from..=to).map(entry).collect())
    }

    /// A member of three with ten entries, of which it knows seven to be committed; it voted for another one since.
    fn survivor(seed: u64) -> SimFs {
        let fs = SimFs::new(seed);
        let vfs = fs.shared();
        vfs.create_dir_all(dir()).unwrap();
        PeerBook::create(&vfs, dir(), &[member(1), member(2), member(3)]).unwrap();
        let identity = Identity {
            store: STORE,
            cluster: OLD,
            member: ME,
            name: "m2".to_owned(),
            boot: 4,
        };
        identity.write(vfs.as_ref(), dir()).unwrap();
        let log = open_log(&vfs, dir(), &identity).unwrap();
        let three = Membership::of_voters([1, 2, 3].map(NodeId));
        for group in GROUPS {
            bootstrap(&log, group, OLD, &three).unwrap();
            let mut batch = WriteBatch::new();
            batch.push(group, entries(1, 8, 2));
            batch.push(group, entries(9, 10, 3));
            let state = HardState {
                term: Term(6),
                vote: Some(NodeId(3)),
                commit: Index(7),
            };
            batch.push(group, Record::HardState(state));
            if group == GROUPS[1] {
                batch.push(group, Record::Incarnation(incarnation(true)));
            }
            log.write(batch).unwrap();
        }
        fs
    }

    fn incarnation(guarded: bool) -> Incarnation {
        Incarnation { number: 4, guarded }
    }

    /// What a start would be.
    #[derive(Debug, PartialEq, Eq)]
    struct Found {
        cluster: u64,
        book: BTreeSet<NodeId>,
        groups: Vec<(Index, Term, HardState, Membership)>,
        /// Of the second group.
        incarnation: Incarnation,
    }

    fn found(fs: &SimFs) -> Found {
        let vfs = fs.shared();
        finish(&vfs, dir()).unwrap();
        let identity = identity_of(&vfs, dir()).unwrap();
        assert_eq!((identity.store, identity.member), (STORE, ME));
        assert_eq!(identity.boot, 4);
        let book = PeerBook::open(&vfs, dir()).unwrap().unwrap();
        let is_new = identity.cluster == NEW;
        assert_eq!(book.is_ahead_of(Index(10)), is_new);
        // By which a damaged log, or the engine's state, is known to be this group's.
        assert_eq!(book.creation(), is_new.then_some(OLD));
        assert!(!book.is_ahead_of(Index(11)));
        let log = open_log(&vfs, dir(), &identity).unwrap();
        let group = |id| {
            let info = log.group(id).unwrap();
            let membership = newest_membership(&log, id).unwrap();
            let kept = log.entries(id, Index(1)..Index(11), usize::MAX).unwrap();
            let kept: Vec<_> = kept.iter().map(|entry| entry.payload.clone()).collect();
            let all: Vec<_> = (1..=10).map(|at| format!("entry {at}")).collect();
            assert_eq!(kept, all, "nothing is cut");
            (info.last_index, info.last_term, info.hard_state, membership)
        };
        let groups = GROUPS.map(group).to_vec();
        let incarnation = log.group(GROUPS[1]).unwrap().incarnation;
        log.close().unwrap();
        Found {
            cluster: identity.cluster,
            book: book.ids().into_iter().collect(),
            groups,
            incarnation,
        }
    }

    fn old() -> Found {
        let state = HardState {
            term: Term(6),
            vote: Some(NodeId(3)),
            commit: Index(7),
        };
        let three = Membership::of_voters([1, 2, 3].map(NodeId));
        let group = (Index(10), Term(3), state, three);
        Found {
            cluster: OLD,
            book: [1, 2, 3].map(NodeId).into(),
            groups: vec![group.clone(), group],
            incarnation: incarnation(true),
        }
    }

    fn new() -> Found {
        let state = HardState {
            term: Term(7),
            vote: Some(ME),
            commit: Index(11),
        };
        let group = (Index(11), Term(7), state, Membership::of_voters([ME]));
        Found {
            cluster: NEW,
            book: [ME].into(),
            groups: vec![group.clone(), group],
            incarnation: incarnation(false),
        }
    }

    #[test]
    fn recovered_member_decides_alone_keeps_all_entries_and_leaves_evidence() {
        let fs = survivor(1);
        assert_eq!(found(&fs), old());
        let recovery = recover_as(&fs.shared(), dir(), NEW).unwrap();
        assert_eq!((recovery.from, recovery.to), (OLD, NEW));
        assert_eq!(found(&fs), new());
        let evidence = fs.read_file(recovery.evidence(dir())).unwrap();
        let evidence = String::from_utf8(evidence).unwrap();
        for part in [
            "from 000000000000000a",
            "last a term 3 commit 7 next 7 voters 1,2,3",
            "urls http://m3:2380",
        ] {
            assert!(evidence.contains(part), "{evidence}");
        }
        let again = recover_as(&fs.shared(), dir(), 0xc).unwrap_err();
        assert!(again.to_string().contains("decides alone"), "{again}");
        assert_eq!(found(&fs), new());
    }

    /// Each crash, then another one while what the first left is finished, then a third.
    #[test]
    fn crash_at_any_operation_leaves_the_old_member_or_the_new_one() {
        for kind in [CrashKind::Power, CrashKind::Process] {
            let (mut olds, mut news) = (0, 0);
            for n in 0.. {
                let mut finished = false;
                for seed in 0..4 {
                    let place = format!("{kind:?}, operation {n}, seed {seed}");
                    let fs = survivor(seed);
                    fs.fail_after(n);
                    let result = recover_as(&fs.shared(), dir(), NEW);
                    finished = result.is_ok();
                    fs.crash(kind);
                    fs.fail_after((n * 7 + seed) % 41);
                    let begun = finish(&fs.shared(), dir());
                    fs.crash(CrashKind::Power);
                    let state = found(&fs);
                    if finished || matches!(begun, Ok(Some(_))) {
                        assert_eq!(state, new(), "{place}");
                    }
                    if state == old() {
                        olds += 1;
                        recover_as(&fs.shared(), dir(), NEW).unwrap();
                    } else {
                        news += 1;
                    }
                    assert_eq!(found(&fs), new(), "{place}");
                    fs.crash(CrashKind::Power);
                    assert_eq!(found(&fs), new(), "{place}");
                    assert!(fs.read_file(format!("{DIR}/{FILE_NAME}")).is_err());
                }
                if finished {
                    assert!(n > 40, "only {n} operations were cut short");
                    break;
                }
            }
            assert!(olds > 20 && news > 20, "{kind:?}: {olds} old, {news} new");
        }
    }

    #[test]
    fn member_without_anything_to_recover_is_refused_and_stays_as_it_is() {
        let fs = SimFs::new(1);
        let vfs = fs.shared();
        vfs.create_dir_all(dir()).unwrap();
        let none = recover_as(&vfs, dir(), NEW).unwrap_err();
        assert!(matches!(none, NodeError::NoIdentity { .. }), "{none}");
        let identity = Identity {
            store: STORE,
            cluster: OLD,
            member: ME,
            name: "m2".to_owned(),
            boot: 1,
        };
        identity.write(vfs.as_ref(), dir()).unwrap();
        let log = open_log(&vfs, dir(), &identity).unwrap();
        let three = Membership::of_voters([1, 2, 3].map(NodeId));
        bootstrap(&log, GROUPS[0], OLD, &three).unwrap();
        log.close().unwrap();
        let empty = recover_as(&vfs, dir(), NEW).unwrap_err();
        assert!(empty.to_string().contains("holds nothing"), "{empty}");
        let now = Identity::read(vfs.as_ref(), dir()).unwrap();
        assert_eq!(now, Some(identity));
    }

    #[test]
    fn member_that_was_removed_is_refused() {
        let fs = survivor(1);
        let vfs = fs.shared();
        let identity = identity_of(&vfs, dir()).unwrap();
        let log = open_log(&vfs, dir(), &identity).unwrap();
        for group in GROUPS {
            let entry = Entry {
                index: Index(11),
                term: Term(6),
                kind: EntryKind::Config,
                payload: Membership::of_voters([1, 3].map(NodeId)).encode(),
            };
            let mut batch = WriteBatch::new();
            batch.push(group, Record::Entries(vec![entry]));
            log.write(batch).unwrap();
        }
        log.close().unwrap();
        let removed = recover_as(&vfs, dir(), NEW).unwrap_err();
        assert!(removed.to_string().contains("was removed"), "{removed}");
        assert_eq!(identity_of(&vfs, dir()).unwrap(), identity);
    }

    #[test]
    fn damaged_decision_is_refused() {
        let fs = survivor(1);
        let vfs = fs.shared();
        let recovery = plan(&vfs, dir(), NEW).unwrap();
        text::write(vfs.as_ref(), dir(), FILE_NAME, &recovery.encode()).unwrap();
        assert_eq!(Recovery::read(&vfs, dir()).unwrap(), Some(recovery));
        let path = format!("{DIR}/{FILE_NAME}");
        let bytes = fs.read_file(&path).unwrap().len() as u64;
        for offset in 0..bytes {
            fs.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
            let error = finish(&vfs, dir()).unwrap_err();
            assert!(
                matches!(error, NodeError::Identity(_)),
                "offset {offset}: {error}"
            );
            fs.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
        }
        assert_eq!(found(&fs), new());
    }
}
