//! What a member remembers of the others: the file `PEERS`.
//!
//! Their names and peer URLs, so that a restart finds the others before it has applied anything: those of the first
//! configuration, and later those of applied state, written before anybody is linked to them. The disk behind each member,
//! from the first handshake on, and the newest of the logs that it had there: a member that comes with another disk, or an
//! older log, has lost what it voted and acknowledged, and is refused until it is removed and added again. And of a member
//! that joined, with what its group begins; and with what the groups of the keyspaces beside the default one do, since a log
//! that is lost takes that along.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use multiraft::transport::{ListedMember, StoreGate};
use raft_log::vfs::SharedVfs;
use raft_log::{GroupId, Index, NodeId, StoreId};
use raft_node::core::Membership;

use super::IdentityError;
use super::initial::InitialMember;
use super::join::Joining;
use super::keyspace::Beginning;
use super::roster::Roster;
use super::text;

const FILE_NAME: &str = "PEERS";
const KIND: &str = "flotilla-peers";
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is known of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) peer_urls: Vec<String>,
    /// Its disk, once it was met.
    pub(super) store: Option<StoreId>,
    /// The newest incarnation of its log that was seen.
    pub(super) incarnation: u64,
}

type Peers = BTreeMap<NodeId, Peer>;

/// With what the group of a member begins that did not begin it together with its cluster: it joined one, or was recovered
/// from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    /// The creation of the group.
    pub(super) creation: u64,
    /// Who decides until the log says otherwise: the voters without a member that joined, and a recovered one alone.
    pub(super) voters: Vec<NodeId>,
}

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    joined: Option<Joined>,
    /// What applied state says as of an index below this one may be older than what is here.
    index: Index,
    peers: Peers,
    /// The groups of keyspaces beside the default one that were begun here.
    groups: BTreeMap<GroupId, Beginning>,
}

/// The file and its content.
pub struct PeerBook {
    vfs: SharedVfs,
    dir: PathBuf,
    content: Mutex<Content>,
}

impl fmt::Debug for PeerBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerBook")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl PeerBook {
    /// Begins the book of a new data directory, durably.
    pub(super) fn create(
        vfs: &SharedVfs,
        dir: &Path,
        members: &[InitialMember],
    ) -> Result<Self, IdentityError> {
        let peer = |member: &InitialMember| {
            let peer = Peer {
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
                ..Peer::default()
            };
            (member.id, peer)
        };
        let content = Content {
            peers: members.iter().map(peer).collect(),
            ..Content::default()
        };
        Self::begin(vfs, dir, content)
    }

    /// Makes a member the only one in the book, durably. What applied state says as of an index below this one is older; its
    /// group keeps its creation, under whatever cluster.
    pub(super) fn keep_alone(
        vfs: &SharedVfs,
        dir: &Path,
        member: &InitialMember,
        (creation, index): (u64, Index),
    ) -> Result<(), IdentityError> {
        let peer = Peer {
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            ..Peer::default()
        };
        let voters = vec![member.id];
        let content = Content {
            joined: Some(Joined { creation, voters }),
            index,
            peers: Peers::from([(member.id, peer)]),
            ..Content::default()
        };
        Self::begin(vfs, dir, content).map(drop)
    }

    /// Begins the book of a new member of the cluster that it was told of, durably.
    pub(super) fn join(
        vfs: &SharedVfs,
        dir: &Path,
        joining: &Joining,
    ) -> Result<Self, IdentityError> {
        let view = &joining.view;
        let voters = view.members.iter().filter(|member| member.votes);
        let voters = voters.map(|member| member.id);
        let joined = Joined {
            creation: view.creation,
            voters: voters.filter(|id| *id != joining.me).collect(),
        };
        let peer = |member: &ListedMember| {
            let peer = Peer {
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
                store: member.store,
                incarnation: member.log_incarnation,
            };
            (member.id, peer)
        };
        let content = Content {
            joined: Some(joined),
            index: view.index,
            peers: view.members.iter().map(peer).collect(),
            ..Content::default()
        };
        Self::begin(vfs, dir, content)
    }

    /// Opens the book of a data directory, and writes it again: what was merely readable may not be on disk. None when
    /// there is none.
    pub(super) fn open(vfs: &SharedVfs, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE_NAME);
        let Some(content) = text::read(vfs.as_ref(), &path, FILE_BYTES_MAX)? else {
            return Ok(None);
        };
        Self::begin(vfs, dir, decode(&content, &path)?).map(Some)
    }

    fn begin(vfs: &SharedVfs, dir: &Path, content: Content) -> Result<Self, IdentityError> {
        text::write(vfs.as_ref(), dir, FILE_NAME, &encode(&content))?;
        Ok(Self {
            vfs: SharedVfs::clone(vfs),
            dir: dir.to_owned(),
            content: Mutex::new(content),
        })
    }

    /// Everybody in the book.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.lock().peers.keys().copied().collect()
    }

    /// The configuration under which this member's group begins.
    pub(super) fn first(&self) -> Membership {
        let content = self.lock();
        match &content.joined {
            Some(joined) => Membership::of_voters(joined.voters.iter().copied()),
            None => Membership::of_voters(content.peers.keys().copied()),
        }
    }

    /// The creation of the group of a member that joined or was recovered; none for one that began with its cluster.
    pub(super) fn creation(&self) -> Option<u64> {
        self.lock().joined.as_ref().map(|joined| joined.creation)
    }

    /// True while applied state as of an index may be older than the book: a log that is replayed, or comes from a leader,
    /// names members that are gone, where they were. Who follows it then loses those that are there.
    pub(super) fn is_ahead_of(&self, index: Index) -> bool {
        self.lock().index > index
    }

    /// Where everybody in the book is.
    pub(super) fn urls(&self) -> BTreeMap<NodeId, Vec<String>> {
        let content = self.lock();
        let peers = content.peers.iter();
        peers
            .map(|(id, peer)| (*id, peer.peer_urls.clone()))
            .collect()
    }

    /// Makes the book follow the members, durably; a disk and a log that were met stay.
    ///
    /// # Panics
    /// When the members are as of an index that the book is ahead of.
    pub(super) fn keep(&self, roster: &Roster) -> Result<(), IdentityError> {
        let mut content = self.lock();
        let index = roster.table.index;
        assert!(content.index <= index, "what is known does not go back");
        let mut peers = Peers::new();
        for member in &roster.members {
            let met = content.peers.get(&member.id).cloned().unwrap_or_default();
            let peer = Peer {
                name: member.name.clone(),
                peer_urls: member.peer_urls.clone(),
                store: met.store.or(member.store),
                incarnation: met.incarnation,
            };
            peers.insert(member.id, peer);
        }
        for id in &roster.leaving {
            if let Some(peer) = content.peers.get(id) {
                peers.insert(*id, peer.clone());
            }
        }
        if peers != content.peers {
            let changed = Content {
                index,
                peers,
                ..content.clone()
            };
            self.change(&mut content, changed)?;
        }
        Ok(())
    }

    /// Notes with what the group of a keyspace begins, durably, before its log does.
    pub(super) fn begin_group(
        &self,
        group: GroupId,
        beginning: &Beginning,
    ) -> Result<(), IdentityError> {
        let mut content = self.lock();
        if content.groups.get(&group) == Some(beginning) {
            return Ok(());
        }
        let mut changed = content.clone();
        changed.groups.insert(group, beginning.clone());
        self.change(&mut content, changed)
    }

    /// With what the group of a keyspace began here, if it did.
    pub(super) fn beginning(&self, group: GroupId) -> Option<Beginning> {
        self.lock().groups.get(&group).cloned()
    }

    fn change(&self, content: &mut Content, changed: Content) -> Result<(), IdentityError> {
        text::write(self.vfs.as_ref(), &self.dir, FILE_NAME, &encode(&changed))?;
        *content = changed;
        Ok(())
    }

    /// What is known of a member.
    pub(super) fn get(&self, id: NodeId) -> Option<Peer> {
        self.lock().peers.get(&id).cloned()
    }

    /// A change is written first and kept then, so what a panicked thread left can be used.
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreGate for PeerBook {
    fn admit(
        &self,
        member: NodeId,
        store: StoreId,
        incarnation: Option<u64>,
    ) -> Result<(), String> {
        let mut content = self.lock();
        let known = content.peers.get(&member).cloned().unwrap_or_default();
        if let Some(known) = known.store.filter(|known| *known != store) {
            return Err(other_disk(member, store, known));
        }
        if let Some(number) = incarnation.filter(|number| *number < known.incarnation) {
            return Err(older_log(member, number, known.incarnation));
        }
        let met = Peer {
            store: Some(store),
            incarnation: incarnation.unwrap_or(known.incarnation),
            ..known.clone()
        };
        if met == known {
            return Ok(());
        }
        let mut changed = content.clone();
        changed.peers.insert(member, met);
        self.change(&mut content, changed)
            .map_err(|error| format!("the disk of member {:x} is not noted: {error}", member.0))
    }
}

/// The members in the book of a data directory, a line for each; none when there is no book.
pub(super) fn lines(vfs: &SharedVfs, dir: &Path) -> Result<Vec<String>, IdentityError> {
    let path = dir.join(FILE_NAME);
    let Some(content) = text::read(vfs.as_ref(), &path, FILE_BYTES_MAX)? else {
        return Ok(Vec::new());
    };
    let lines = text::unseal(&content, KIND, &path)?.lines();
    let members = lines.filter(|line| line.starts_with("member "));
    Ok(members.map(str::to_owned).collect())
}

/// How many members a data directory knows, itself among them; one without a book is of a member alone.
///
/// # Errors
/// The book cannot be read, or is damaged.
pub fn known_members(vfs: &SharedVfs, dir: &Path) -> Result<usize, IdentityError> {
    let path = dir.join(FILE_NAME);
    match text::read(vfs.as_ref(), &path, FILE_BYTES_MAX)? {
        Some(content) => Ok(decode(&content, &path)?.peers.len()),
        None => Ok(1),
    }
}

/// Why a member is refused that has another data directory than before.
pub(super) fn other_disk(member: NodeId, store: StoreId, known: StoreId) -> String {
    format!(
        "member {:x} comes with the data directory {store}, but had {known}: it lost what it voted and acknowledged; \
         remove the member and add it again",
        member.0
    )
}

/// Why a member is refused whose log is older than one that it had before.
fn older_log(member: NodeId, incarnation: u64, known: u64) -> String {
    format!(
        "member {:x} comes with incarnation {incarnation} of its log, but had {known}: an old copy of its data directory was \
         put back, which lacks what it voted and acknowledged since; put the newest one back, or remove the member and add it \
         again with an empty directory",
        member.0
    )
}

fn encode(content: &Content) -> String {
    let mut lines = String::new();
    if content.index > Index::ZERO {
        writeln!(lines, "index {:016x}", content.index.0)
            .expect("writing to a string does not fail");
    }
    if let Some(Joined { creation, voters }) = &content.joined {
        let voters: Vec<_> = voters.iter().map(|id| format!("{:016x}", id.0)).collect();
        writeln!(
            lines,
            "joined creation {creation:016x} voters {}",
            voters.join(",")
        )
        .expect("writing to a string does not fail");
    }
    for (id, peer) in &content.peers {
        let store = peer
            .store
            .map_or_else(|| "-".to_owned(), |store| format!("{:016x}", store.0));
        writeln!(
            lines,
            "member {:016x} store {store} urls {} name {}",
            id.0,
            text::in_line(&peer.peer_urls.join(",")),
            text::in_line(&peer.name)
        )
        .expect("writing to a string does not fail");
        if peer.incarnation > 0 {
            writeln!(
                lines,
                "log {:016x} incarnation {:016x}",
                id.0, peer.incarnation
            )
            .expect("writing to a string does not fail");
        }
    }
    for (group, Beginning { creation, first }) in &content.groups {
        let ids = |ids: &[NodeId]| {
            let ids: Vec<_> = ids.iter().map(|id| format!("{:016x}", id.0)).collect();
            if ids.is_empty() {
                "-".to_owned()
            } else {
                ids.join(",")
            }
        };
        writeln!(
            lines,
            "group {:016x} creation {creation:016x} voters {} learners {}",
            group.0,
            ids(&first.voters),
            ids(&first.learners)
        )
        .expect("writing to a string does not fail");
    }
    text::seal(KIND, &lines)
}

fn decode(content: &[u8], path: &Path) -> Result<Content, IdentityError> {
    let mut found = Content::default();
    for line in text::unseal(content, KIND, path)?.lines() {
        let understood = match line.split(' ').next() {
            Some("index") => decode_index(line).map(|index| found.index = index),
            Some("joined") => decode_joined(line).map(|joined| found.joined = Some(joined)),
            Some("member") => decode_member(line).map(|(id, peer)| {
                found.peers.insert(id, peer);
            }),
            Some("log") => decode_log(line, &mut found.peers),
            Some("group") => decode_group(line).map(|(group, beginning)| {
                found.groups.insert(group, beginning);
            }),
            _ => Some(()),
        };
        understood
            .ok_or_else(|| text::damaged(path, format!("the line `{line}` cannot be read")))?;
    }
    Ok(found)
}

/// `index INDEX`.
fn decode_index(line: &str) -> Option<Index> {
    let number = line.strip_prefix("index ")?;
    u64::from_str_radix(number, 16).ok().map(Index)
}

/// `joined creation CREATION voters ID,ID`.
fn decode_joined(line: &str) -> Option<Joined> {
    let words: Vec<_> = line.split(' ').collect();
    let ["joined", "creation", creation, "voters", voters] = words[..] else {
        return None;
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let voters = voters.split(',').map(|id| hex(id).map(NodeId));
    Some(Joined {
        creation: hex(creation)?,
        voters: voters.collect::<Option<_>>()?,
    })
}

/// `member ID store STORE urls URL,URL name NAME`; neither ids nor URLs contain a blank.
fn decode_member(line: &str) -> Option<(NodeId, Peer)> {
    let mut words = line.splitn(8, ' ');
    let mut field = |name: &str| (words.next() == Some(name)).then(|| words.next())?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let id = NodeId(hex(field("member")?)?);
    let store = match field("store")? {
        "-" => None,
        store => Some(StoreId(hex(store)?)),
    };
    let urls = field("urls")?.split(',').filter(|url| !url.is_empty());
    let peer_urls = urls.map(str::to_owned).collect();
    let name = field("name")?.to_owned();
    let peer = Peer {
        name,
        peer_urls,
        store,
        incarnation: 0,
    };
    Some((id, peer))
}

/// `group GROUP creation CREATION voters ID,ID learners ID,ID`, with `-` for nobody.
fn decode_group(line: &str) -> Option<(GroupId, Beginning)> {
    let words: Vec<_> = line.split(' ').collect();
    let [
        "group",
        group,
        "creation",
        creation,
        "voters",
        voters,
        "learners",
        learners,
    ] = words[..]
    else {
        return None;
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let ids = |text: &str| {
        let ids = text.split(',').filter(|id| *id != "-");
        ids.map(|id| hex(id).map(NodeId))
            .collect::<Option<Vec<_>>>()
    };
    let first = Membership {
        learners: ids(learners)?,
        ..Membership::of_voters(ids(voters)?)
    };
    let creation = hex(creation)?;
    Some((GroupId(hex(group)?), Beginning { creation, first }))
}

/// `log ID incarnation NUMBER`, behind the line of that member.
fn decode_log(line: &str, peers: &mut Peers) -> Option<()> {
    let words: Vec<_> = line.split(' ').collect();
    let ["log", id, "incarnation", number] = words[..] else {
        return None;
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    peers.get_mut(&NodeId(hex(id)?))?.incarnation = hex(number)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use multiraft::transport::ClusterView;
    use raft_log::vfs::sim::CrashKind;
    use raft_log::vfs::{RealFs, SimFs};

    use super::super::roster::Member;
    use super::*;
    use crate::mvcc::MemberTable;

    fn member(id: u64, name: &str, urls: &[&str]) -> InitialMember {
        InitialMember {
            id: NodeId(id),
            name: name.to_owned(),
            peer_urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        }
    }

    #[test]
    fn book_remembers_with_what_groups_begin() {
        let dir = tempfile::tempdir().unwrap();
        let vfs: SharedVfs = Arc::new(RealFs::default());
        let book = PeerBook::create(&vfs, dir.path(), &[member(7, "a", &[])]).unwrap();
        let of = |ids: &[u64]| Membership::of_voters(ids.iter().copied().map(NodeId));
        let [one, other] = [of(&[7]), of(&[7, 8])].map(|first| Beginning { creation: 5, first });
        let other = Beginning {
            first: Membership {
                learners: vec![NodeId(9)],
                ..other.first
            },
            ..other
        };
        book.begin_group(GroupId(2), &one).unwrap();
        book.begin_group(GroupId(3), &other).unwrap();
        // What is kept later leaves them as they are.
        book.admit(NodeId(7), StoreId(80), Some(0)).unwrap();
        let again = PeerBook::open(&vfs, dir.path()).unwrap().unwrap();
        assert_eq!(again.beginning(GroupId(2)), Some(one));
        assert_eq!(again.beginning(GroupId(3)), Some(other));
        assert_eq!(again.beginning(GroupId(4)), None);
    }

    #[test]
    fn book_remembers_members_and_the_first_disk_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let vfs: SharedVfs = Arc::new(RealFs::default());
        assert!(PeerBook::open(&vfs, dir.path()).unwrap().is_none());
        let members = [
            member(7, "a name", &["http://a:1", "http://b:1"]),
            member(8, "", &["http://c:1"]),
        ];
        let book = PeerBook::create(&vfs, dir.path(), &members).unwrap();
        book.admit(NodeId(8), StoreId(80), Some(0)).unwrap();
        book.admit(NodeId(8), StoreId(80), None).unwrap();
        for book in [book, PeerBook::open(&vfs, dir.path()).unwrap().unwrap()] {
            let seven = book.get(NodeId(7)).unwrap();
            assert_eq!(seven.name, "a name");
            assert_eq!(seven.peer_urls, ["http://a:1", "http://b:1"]);
            assert_eq!(book.get(NodeId(8)).unwrap().peer_urls, ["http://c:1"]);
            let refused = book.admit(NodeId(8), StoreId(81), Some(9)).unwrap_err();
            assert!(refused.contains("remove the member and add it again"));
            assert!(book.admit(NodeId(8), StoreId(80), Some(0)).is_ok());
        }
    }

    #[test]
    fn book_remembers_the_newest_log_of_each_member_and_refuses_older_ones() {
        let dir = tempfile::tempdir().unwrap();
        let vfs: SharedVfs = Arc::new(RealFs::default());
        let members = [member(7, "", &["http://a:1"]), member(8, "", &[])];
        let book = PeerBook::create(&vfs, dir.path(), &members).unwrap();
        let open = || PeerBook::open(&vfs, dir.path()).unwrap().unwrap();
        let comes = |book: &PeerBook, number| book.admit(NodeId(7), StoreId(70), number);
        // Repaired twice, and started again in between.
        for number in [0, 1, 1, 3] {
            comes(&book, Some(number)).unwrap();
            comes(&open(), Some(number)).unwrap();
            comes(&open(), None).unwrap();
        }
        for book in [book, open()] {
            for older in [0, 1, 2] {
                let refused = comes(&book, Some(older)).unwrap_err();
                assert!(
                    refused.contains("an old copy") && refused.contains("add it again"),
                    "{refused}"
                );
            }
            // A version that does not tell is not judged, and nothing is forgotten for it.
            comes(&book, None).unwrap();
            assert!(comes(&book, Some(2)).is_err());
            let roster = Roster {
                members: vec![Member {
                    id: NodeId(7),
                    peer_urls: vec!["http://moved:1".to_owned()],
                    ..Member::default()
                }],
                ..Roster::default()
            };
            book.keep(&roster).unwrap();
            assert_eq!(open().get(NodeId(7)).unwrap().incarnation, 3);
        }
    }

    /// Nobody is admitted whose log is not noted, and a crash in the middle leaves what was known or what was seen.
    #[test]
    fn log_that_is_seen_is_noted_before_its_member_is_admitted() {
        let members = [member(7, "one", &["http://a:1"])];
        let dir = Path::new("data");
        let mut outcomes = [0, 0];
        for (at, kind) in (0..).flat_map(|at| [(at, CrashKind::Power), (at, CrashKind::Process)]) {
            let fs = SimFs::new(at);
            let vfs: SharedVfs = Arc::new(fs.clone());
            vfs.create_dir_all(dir).unwrap();
            let book = PeerBook::create(&vfs, dir, &members).unwrap();
            book.admit(NodeId(7), StoreId(70), Some(1)).unwrap();
            fs.fail_after(at);
            let admitted = book.admit(NodeId(7), StoreId(70), Some(2)).is_ok();
            fs.crash(kind);
            let book = PeerBook::open(&vfs, dir).unwrap().unwrap();
            let known = book.get(NodeId(7)).unwrap().incarnation;
            assert!(known == 2 || (known == 1 && !admitted), "{known} at {at}");
            outcomes[usize::from(known == 2)] += 1;
            assert_eq!(
                book.admit(NodeId(7), StoreId(70), Some(1)).is_ok(),
                known == 1
            );
            if admitted && kind == CrashKind::Process {
                break;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
    }

    #[test]
    fn book_of_a_member_that_joined_knows_with_what_its_group_begins_and_follows_the_members() {
        let dir = tempfile::tempdir().unwrap();
        let vfs: SharedVfs = Arc::new(RealFs::default());
        let listed = |id: u64, votes, store: Option<u64>| ListedMember {
            id: NodeId(id),
            name: format!("m{id}"),
            peer_urls: vec![format!("http://{id}:1")],
            votes,
            store: store.map(StoreId),
            log_incarnation: id - 7,
        };
        let joining = Joining {
            me: NodeId(9),
            view: ClusterView {
                cluster: 5,
                creation: 6,
                index: Index(40),
                members: vec![
                    listed(7, true, Some(70)),
                    listed(8, true, None),
                    listed(9, false, None),
                ],
            },
        };
        let book = PeerBook::join(&vfs, dir.path(), &joining).unwrap();
        book.admit(NodeId(8), StoreId(80), Some(1)).unwrap();
        assert!(book.admit(NodeId(8), StoreId(80), Some(0)).is_err());
        let first = Membership::of_voters([NodeId(7), NodeId(8)]);
        let as_of = |index| {
            Arc::new(MemberTable {
                index: Index(index),
                ..MemberTable::default()
            })
        };
        let member = |id: u64, url: &str| Member {
            id: NodeId(id),
            peer_urls: vec![url.to_owned()],
            ..Member::default()
        };
        for book in [book, PeerBook::open(&vfs, dir.path()).unwrap().unwrap()] {
            assert_eq!((book.first(), book.creation()), (first.clone(), Some(6)));
            assert!(book.admit(NodeId(7), StoreId(71), None).is_err());
            assert!(book.is_ahead_of(Index(39)) && !book.is_ahead_of(Index(40)));
            let roster = Roster {
                table: as_of(50),
                members: vec![member(8, "http://moved:1"), member(9, "http://9:1")],
                leaving: [NodeId(7)].into(),
            };
            book.keep(&roster).unwrap();
        }
        let book = PeerBook::open(&vfs, dir.path()).unwrap().unwrap();
        assert_eq!(book.ids(), [NodeId(7), NodeId(8), NodeId(9)]);
        assert_eq!(book.get(NodeId(8)).unwrap().peer_urls, ["http://moved:1"]);
        assert!(book.admit(NodeId(8), StoreId(81), None).is_err());
        assert!(
            book.admit(NodeId(7), StoreId(71), None).is_err(),
            "it may decide yet"
        );
        book.keep(&Roster {
            table: as_of(60),
            members: vec![member(9, "http://9:1")],
            ..Roster::default()
        })
        .unwrap();
        assert_eq!(book.ids(), [NodeId(9)]);
        assert_eq!(book.first(), first);
    }

    #[test]
    fn damaged_book_is_refused() {
        let members = [member(7, "one", &["http://a:1"])];
        let dir = tempfile::tempdir().unwrap();
        let vfs: SharedVfs = Arc::new(RealFs::default());
        let book = PeerBook::create(&vfs, dir.path(), &members).unwrap();
        book.admit(NodeId(7), StoreId(70), Some(1)).unwrap();
        let path = dir.path().join(FILE_NAME);
        let good = text::read(vfs.as_ref(), &path, FILE_BYTES_MAX)
            .unwrap()
            .unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, &path).is_err(), "bit {bit}");
        }
    }
}
