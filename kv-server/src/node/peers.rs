//! What a member remembers of the others: the file `PEERS`.
//!
//! The first configuration's names and peer URLs, so that a restart finds the others before it has applied anything; and
//! the disk behind each member, from the first handshake on. A member that comes with another one has lost what it voted
//! and acknowledged, and is refused until it is removed and added again.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use multiraft::transport::StoreGate;
use raft_log::vfs::SharedVfs;
use raft_log::{NodeId, StoreId};

use super::IdentityError;
use super::initial::InitialMember;
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
    store: Option<StoreId>,
}

type Peers = BTreeMap<NodeId, Peer>;

/// The file and its content.
pub struct PeerBook {
    vfs: SharedVfs,
    dir: PathBuf,
    peers: Mutex<Peers>,
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
                store: None,
            };
            (member.id, peer)
        };
        Self::begin(vfs, dir, members.iter().map(peer).collect())
    }

    /// Opens the book of a data directory, and writes it again: what was merely readable may not be on disk. None when
    /// there is none.
    pub(super) fn open(vfs: &SharedVfs, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE_NAME);
        let Some(content) = text::read(vfs.as_ref(), &path, FILE_BYTES_MAX)? else {
            return Ok(None);
        };
        let peers = decode(&content, &path)?;
        Self::begin(vfs, dir, peers).map(Some)
    }

    fn begin(vfs: &SharedVfs, dir: &Path, peers: Peers) -> Result<Self, IdentityError> {
        text::write(vfs.as_ref(), dir, FILE_NAME, &encode(&peers))?;
        Ok(Self {
            vfs: SharedVfs::clone(vfs),
            dir: dir.to_owned(),
            peers: Mutex::new(peers),
        })
    }

    /// Everybody in the book.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    /// What is known of a member.
    pub(super) fn get(&self, id: NodeId) -> Option<Peer> {
        self.lock().get(&id).cloned()
    }

    /// A change is written first and kept then, so what a panicked thread left can be used.
    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreGate for PeerBook {
    fn admit(&self, member: NodeId, store: StoreId) -> Result<(), String> {
        let mut peers = self.lock();
        match peers.get(&member).and_then(|peer| peer.store) {
            Some(known) if known == store => return Ok(()),
            Some(known) => {
                return Err(format!(
                    "member {:x} comes with the data directory {store}, but had {known}: it lost what it voted and \
                     acknowledged; remove the member and add it again",
                    member.0
                ));
            }
            None => {}
        }
        let mut changed = peers.clone();
        changed.entry(member).or_default().store = Some(store);
        text::write(self.vfs.as_ref(), &self.dir, FILE_NAME, &encode(&changed))
            .map_err(|error| format!("the disk of member {:x} is not noted: {error}", member.0))?;
        *peers = changed;
        Ok(())
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

fn encode(peers: &Peers) -> String {
    let mut lines = String::new();
    for (id, peer) in peers {
        let store = peer
            .store
            .map_or_else(|| "-".to_owned(), |store| format!("{:016x}", store.0));
        writeln!(
            lines,
            "member {:016x} store {store} urls {} name {}",
            id.0,
            peer.peer_urls.join(",").escape_default(),
            peer.name.escape_default()
        )
        .expect("writing to a string does not fail");
    }
    text::seal(KIND, &lines)
}

fn decode(content: &[u8], path: &Path) -> Result<Peers, IdentityError> {
    let lines = text::unseal(content, KIND, path)?;
    let members = lines.lines().filter(|line| line.starts_with("member "));
    members
        .map(|line| {
            decode_member(line)
                .ok_or_else(|| text::damaged(path, format!("the line `{line}` is not a member's")))
        })
        .collect()
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
    };
    Some((id, peer))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft_log::vfs::RealFs;

    use super::*;

    fn member(id: u64, name: &str, urls: &[&str]) -> InitialMember {
        InitialMember {
            id: NodeId(id),
            name: name.to_owned(),
            peer_urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        }
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
        book.admit(NodeId(8), StoreId(80)).unwrap();
        book.admit(NodeId(8), StoreId(80)).unwrap();
        for book in [book, PeerBook::open(&vfs, dir.path()).unwrap().unwrap()] {
            let seven = book.get(NodeId(7)).unwrap();
            assert_eq!(seven.name, "a name");
            assert_eq!(seven.peer_urls, ["http://a:1", "http://b:1"]);
            assert_eq!(book.get(NodeId(8)).unwrap().peer_urls, ["http://c:1"]);
            let refused = book.admit(NodeId(8), StoreId(81)).unwrap_err();
            assert!(refused.contains("remove the member and add it again"));
            assert!(book.admit(NodeId(8), StoreId(80)).is_ok());
        }
    }

    #[test]
    fn damaged_book_is_refused() {
        let members = [member(7, "one", &["http://a:1"])];
        let dir = tempfile::tempdir().unwrap();
        let vfs: SharedVfs = Arc::new(RealFs::default());
        PeerBook::create(&vfs, dir.path(), &members).unwrap();
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
