//! Three hosts on simulated disks, in one thread, and a transport that carries snapshots chunk by chunk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use multiraft::{
    Cut, HostCore, HostError, HostHandle, HostOptions, Outbox, SnapshotSetup, SnapshotState,
    SnapshotTransfer, Tasks, begin_receive, restore,
};
use raft_log::snapshot::{SnapshotOptions, SnapshotReceiver, SnapshotSender, SnapshotStore};
use raft_log::vfs::SimFs;
use raft_log::vfs::sim::CrashKind;
use raft_log::{GroupId, IoMode, Log, LogOptions, NodeId, SnapshotRef, StoreId, Term};
use raft_node::core::{Body, Config, Membership, Message, Role};
use raft_node::driver::{Group, GroupConfig, bootstrap};
use raft_node::{Applied, ApplyError, Entry, Index, StateMachine, TickContext};

pub(crate) const GROUP: GroupId = GroupId(1);
pub(crate) const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
/// Entries that stay in a log for members that lag.
pub(crate) const CATCH_UP: u64 = 3;

/// A list of what was applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) applied: Applied,
    pub(crate) list: Vec<Bytes>,
}

/// What a crash leaves of a state machine: what it made durable, at least.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) durable: State,
    pub(crate) newest: State,
}

struct Installing {
    snapshot: SnapshotRef,
    content: Box<dyn io::Read + Send>,
    read: Vec<u8>,
}

pub(crate) struct List {
    pub(crate) now: State,
    kept: Arc<Mutex<Kept>>,
    installing: Option<Installing>,
    /// Steps of installs that were not the last one.
    pub(crate) steps: usize,
}

impl List {
    fn set(&mut self, state: State) {
        self.kept.lock().unwrap().newest = state.clone();
        self.now = state;
    }
}

impl StateMachine for List {
    type Output = usize;

    fn applied(&self) -> Applied {
        self.now.applied.clone()
    }

    fn durable_index(&self) -> Index {
        self.kept.lock().unwrap().durable.applied.index
    }

    fn request_persist(&mut self) {
        self.kept.lock().unwrap().durable = self.now.clone();
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<usize>,
    ) -> Result<(), ApplyError> {
        assert!(self.installing.is_none(), "nothing is applied meanwhile");
        let mut state = self.now.clone();
        for entry in entries {
            assert_eq!(entry.index, state.applied.index.next(), "out of order");
            (state.applied.index, state.applied.term) = (entry.index, entry.term);
            if !entry.payload.is_empty() {
                state.list.push(entry.payload.clone());
            }
            outputs.push(state.list.len());
        }
        if let Some(membership) = membership {
            state.applied.membership = Some((state.applied.index, membership.clone()));
        }
        self.set(state);
        Ok(())
    }

    fn tick(&mut self, _: TickContext, _: &mut Vec<Bytes>) {}

    fn next_deadline(&self) -> Option<u64> {
        None
    }
}

struct ListCut(State);

impl Cut for ListCut {
    fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self.0.applied.index.0.to_le_bytes())?;
        out.write_all(&self.0.applied.term.0.to_le_bytes())?;
        for item in &self.0.list {
            out.write_all(&u32::try_from(item.len()).unwrap().to_le_bytes())?;
            out.write_all(item)?;
        }
        Ok(())
    }
}

fn decode(snapshot: &SnapshotRef, content: &[u8]) -> State {
    let (head, mut rest) = content.split_at(16);
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    let (index, term) = (Index(number(0)), Term(number(8)));
    let mut list = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let (item, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
        list.push(Bytes::copy_from_slice(item));
        rest = tail;
    }
    let membership = Membership::decode(&snapshot.membership).unwrap();
    let membership = Some((index, membership));
    let applied = Applied {
        index,
        term,
        membership,
    };
    State { applied, list }
}

impl SnapshotState for List {
    fn cut(&self) -> Box<dyn Cut> {
        Box::new(ListCut(self.now.clone()))
    }

    fn begin_install(
        &mut self,
        snapshot: &SnapshotRef,
        content: Box<dyn io::Read + Send>,
    ) -> Result<(), ApplyError> {
        assert!(
            snapshot.index > self.now.applied.index,
            "the state is ahead"
        );
        self.installing = Some(Installing {
            snapshot: snapshot.clone(),
            content,
            read: Vec::new(),
        });
        Ok(())
    }

    fn install_step(&mut self) -> Result<bool, ApplyError> {
        let installing = self.installing.as_mut().unwrap();
        let mut some = [0; 200];
        let len = installing.content.read(&mut some);
        let len = len.map_err(|error| ApplyError(Box::new(error)))?;
        if len > 0 {
            installing.read.extend_from_slice(&some[..len]);
            self.steps += 1;
            return Ok(false);
        }
        let installing = self.installing.take().unwrap();
        self.set(decode(&installing.snapshot, &installing.read));
        Ok(true)
    }
}

/// What the hosts have sent.
#[derive(Default)]
pub(crate) struct Sent {
    messages: Vec<(NodeId, NodeId, Message)>,
    transfers: Vec<(NodeId, SnapshotTransfer)>,
}

struct Wire {
    me: NodeId,
    sent: Arc<Mutex<Sent>>,
}

impl Outbox for Wire {
    fn send(&mut self, _: GroupId, to: NodeId, message: Message) {
        let mut sent = self.sent.lock().unwrap();
        sent.messages.push((self.me, to, message));
    }

    fn send_snapshot(&mut self, transfer: SnapshotTransfer) {
        let mut sent = self.sent.lock().unwrap();
        sent.transfers.push((self.me, transfer));
    }
}

pub(crate) struct Node {
    pub(crate) log: Log,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) core: HostCore<List>,
    pub(crate) handle: HostHandle<List>,
}

/// A member, also while it is down.
pub(crate) struct Member {
    pub(crate) fs: SimFs,
    pub(crate) kept: Arc<Mutex<Kept>>,
    pub(crate) node: Option<Node>,
    /// The highest index that it has acknowledged to anybody.
    pub(crate) acknowledged: Index,
}

/// A transfer under way.
pub(crate) struct Carrier {
    pub(crate) from: NodeId,
    pub(crate) transfer: SnapshotTransfer,
    ends: Option<(SnapshotSender, SnapshotReceiver)>,
    answer: Arc<Mutex<Option<Result<(), HostError>>>>,
}

pub(crate) struct World {
    pub(crate) members: BTreeMap<NodeId, Member>,
    sent: Arc<Mutex<Sent>>,
    pub(crate) carriers: Vec<Carrier>,
    pub(crate) now: u64,
    pub(crate) away: Option<NodeId>,
    /// Nothing of a transfer moves.
    pub(crate) stuck: bool,
    pub(crate) began: usize,
    tasks: Arc<dyn Tasks>,
}

impl World {
    pub(crate) fn new(seed: u64, tasks: Arc<dyn Tasks>) -> Self {
        let members = MEMBERS.into_iter().map(|id| {
            let member = Member {
                fs: SimFs::new(seed * 31 + id.0),
                kept: Arc::default(),
                node: None,
                acknowledged: Index::ZERO,
            };
            (id, member)
        });
        let mut world = Self {
            members: members.collect(),
            sent: Arc::default(),
            carriers: Vec::new(),
            now: 0,
            away: None,
            stuck: false,
            began: 0,
            tasks,
        };
        for id in MEMBERS {
            world.open(id).unwrap();
        }
        world
    }

    /// The same disks and states, opened anew.
    pub(crate) fn fork(&self, seed: u64) -> Self {
        let members = self.members.iter().map(|(id, member)| {
            let kept = member.kept.lock().unwrap();
            let (durable, newest) = (kept.durable.clone(), kept.newest.clone());
            let fs = member.fs.fork(seed * 31 + id.0);
            fs.crash(CrashKind::Process);
            let member = Member {
                fs,
                kept: Arc::new(Mutex::new(Kept { durable, newest })),
                node: None,
                acknowledged: Index::ZERO,
            };
            (*id, member)
        });
        let mut world = Self {
            members: members.collect(),
            sent: Arc::default(),
            carriers: Vec::new(),
            now: 0,
            away: None,
            stuck: false,
            began: 0,
            tasks: Arc::clone(&self.tasks),
        };
        for id in MEMBERS {
            world.open(id).unwrap();
        }
        world
    }

    /// Opens a member in the order of a start.
    pub(crate) fn open(&mut self, id: NodeId) -> Result<(), String> {
        fn text(error: impl ToString) -> String {
            error.to_string()
        }
        let member = self.members.get_mut(&id).unwrap();
        let (store, vfs) = (StoreId(id.0 + 100), member.fs.shared());
        let mut options = LogOptions::new("/log", store);
        options.io = IoMode::Inline;
        options.segment_bytes_min = 16 << 10;
        options.segment_bytes_max = 16 << 10;
        let (log, _) = Log::open(vfs.clone(), options).map_err(text)?;
        let mut options = SnapshotOptions::new("/snap", store);
        options.io = IoMode::Inline;
        options.chunk_bytes = 512;
        let snapshots = SnapshotStore::open_with(vfs, options).map_err(text)?;
        snapshots.recover(&log).map_err(text)?;
        bootstrap(&log, GROUP, 9, &Membership::of_voters(MEMBERS)).map_err(text)?;
        let core = Config {
            id,
            group: GROUP,
            election_ticks: 10,
            heartbeat_ticks: 2,
            // What a member lags behind is read from the log.
            window_bytes_max: 100,
            // Member 1 is the first to campaign.
            seed: id.0,
            ..Config::default()
        };
        let config = GroupConfig {
            core: core.validate().unwrap(),
            catch_up_entries: CATCH_UP,
        };
        let mut machine = List {
            now: member.kept.lock().unwrap().durable.clone(),
            kept: Arc::clone(&member.kept),
            installing: None,
            steps: 0,
        };
        restore(&mut machine, &log, &snapshots, GROUP).map_err(text)?;
        let group = Group::open(GROUP, config, log.clone(), machine).map_err(text)?;
        let wire = Wire {
            me: id,
            sent: Arc::clone(&self.sent),
        };
        let options = HostOptions {
            snapshot_entries: 4,
            ..HostOptions::default()
        };
        let (outbox, wake) = (Box::new(wire), Box::new(|| {}));
        let (mut core, handle) = HostCore::new(log.clone(), vec![group], options, outbox, wake);
        core.keep_snapshots(SnapshotSetup {
            store: snapshots.clone(),
            tasks: Arc::clone(&self.tasks),
            pace: None,
        });
        member.node = Some(Node {
            log,
            snapshots,
            core,
            handle,
        });
        Ok(())
    }

    /// A member stops as it is; of its state machine the newest batches survive or do not.
    pub(crate) fn crash(&mut self, id: NodeId, kind: CrashKind, newest: bool) {
        let member = self.members.get_mut(&id).unwrap();
        if let Some(mut node) = member.node.take() {
            node.core.fail();
        }
        member.fs.crash(kind);
        let mut kept = member.kept.lock().unwrap();
        if newest {
            kept.durable = kept.newest.clone();
        }
        kept.newest = kept.durable.clone();
        drop(kept);
        let to = |carrier: &Carrier| carrier.from == id || carrier.transfer.to() == id;
        self.carriers.retain(|carrier| !to(carrier));
        let mut sent = self.sent.lock().unwrap();
        sent.messages
            .retain(|(from, to, _)| *from != id && *to != id);
        let gone = sent.transfers.extract_if(.., |(from, _)| *from == id);
        drop(gone.collect::<Vec<_>>());
    }

    /// Changes what a member has applied first, durably, as no disk does it.
    pub(crate) fn spoil(&mut self, id: NodeId, item: &'static str) {
        self.crash(id, CrashKind::Process, true);
        let mut kept = self.members[&id].kept.lock().unwrap();
        kept.durable.list[0] = Bytes::from_static(item.as_bytes());
        kept.newest = kept.durable.clone();
        drop(kept);
        self.open(id).unwrap();
    }

    pub(crate) fn node(&mut self, id: NodeId) -> &mut Node {
        self.members.get_mut(&id).unwrap().node.as_mut().unwrap()
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leads = |member: &Member| {
            let status = member.node.as_ref()?.core.core_status(GROUP)?;
            (status.role == Role::Leader && status.committed_in_term).then_some(status.term)
        };
        let leaders = self
            .members
            .iter()
            .filter_map(|(id, m)| Some((leads(m)?, *id)));
        leaders.max().map(|(_, id)| id)
    }

    pub(crate) fn state(&self, id: NodeId) -> State {
        let node = self.members[&id].node.as_ref().unwrap();
        node.core.machine(GROUP).unwrap().now.clone()
    }

    /// One tick. Names the member whose disk failed, if one did.
    pub(crate) fn step(&mut self) -> Option<NodeId> {
        self.now += 1;
        let mut down = None;
        for (id, member) in &mut self.members {
            let Some(node) = &mut member.node else {
                continue;
            };
            let turned = node.core.turn(self.now).is_ok();
            if !turned || node.log.drive().is_err() || member.fs.is_down() {
                down = Some(*id);
            }
        }
        let (messages, transfers) = {
            let mut sent = self.sent.lock().unwrap();
            let sent = std::mem::take(&mut *sent);
            (sent.messages, sent.transfers)
        };
        for (from, to, message) in messages {
            if let Body::AppendReply { matched } = message.body {
                let member = self.members.get_mut(&from).unwrap();
                member.acknowledged = member.acknowledged.max(matched);
            }
            let cut = self.away == Some(from) || self.away == Some(to);
            if let Some(node) = self.members[&to].node.as_ref().filter(|_| !cut) {
                node.handle.deliver(GROUP, from, message);
            }
        }
        for (from, transfer) in transfers {
            self.began += 1;
            self.carriers.push(Carrier {
                from,
                transfer,
                ends: None,
                answer: Arc::default(),
            });
        }
        self.carry();
        let failed = |member: &Member| member.node.is_some() && member.fs.is_down();
        let failed = self.members.iter().find(|(_, member)| failed(member));
        down.or(failed.map(|(id, _)| *id))
    }

    /// Each transfer moves by one chunk; one whose ends fail is dropped.
    fn carry(&mut self) {
        if self.stuck {
            return;
        }
        for mut carrier in std::mem::take(&mut self.carriers) {
            let to = carrier.transfer.to();
            let cut = [carrier.from, to].iter().any(|id| self.away == Some(*id));
            let Some(node) = self.members[&to].node.as_ref().filter(|_| !cut) else {
                continue;
            };
            let answer = carrier.answer.lock().unwrap().take();
            match answer {
                Some(Ok(())) => carrier.transfer.taken(),
                Some(Err(_)) => {}
                None => {
                    if carry_one(&mut carrier, node).is_some() {
                        self.carriers.push(carrier);
                    }
                }
            }
        }
    }

    /// Steps until `done`.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if done(self) {
                return;
            }
            assert_eq!(self.step(), None, "{what}: a disk failed");
        }
        panic!("{what}: it does not come to that");
    }

    pub(crate) fn propose(&mut self, count: usize, tag: &str) {
        for at in 0..count {
            self.until("a leader", |world| world.leader().is_some());
            let leader = self.leader().unwrap();
            let payload = Bytes::from(format!("{tag}-{at}-{}", "x".repeat(40)));
            let node = self.node(leader);
            node.handle.propose(GROUP, payload, Box::new(drop));
            assert_eq!(self.step(), None);
        }
    }

    /// True when all three have applied the same, and as many as were proposed.
    pub(crate) fn agree(&self) -> bool {
        let states: Vec<_> = self.members.keys().map(|id| self.state(*id)).collect();
        states.iter().all(|state| state.list == states[0].list)
    }
}

/// None when one of the ends failed.
fn carry_one(carrier: &mut Carrier, node: &Node) -> Option<()> {
    if carrier.ends.is_none() {
        if carrier.answer_is_awaited() {
            return Some(());
        }
        let mut sender = carrier.transfer.open().ok()?;
        let manifest = sender.manifest();
        let status = node.handle.status(GROUP).unwrap();
        let wanted_above = status.wants_state_above;
        let receiver = begin_receive(&node.log, &node.snapshots, manifest, wanted_above).ok()?;
        let Some(receiver) = receiver else {
            *carrier.answer.lock().unwrap() = Some(Ok(()));
            return Some(());
        };
        sender.seek(receiver.next()).ok()?;
        carrier.ends = Some((sender, receiver));
    }
    let (sender, receiver) = carrier.ends.as_mut().unwrap();
    if let Some((number, chunk)) = sender.next_chunk().ok()? {
        receiver.push(number, &chunk).ok()?;
        carrier.transfer.moving();
        return Some(());
    }
    let (_, receiver) = carrier.ends.take().unwrap();
    let pending = receiver.finish().ok()?;
    let answer = Arc::clone(&carrier.answer);
    let reply = Box::new(move |result| *answer.lock().unwrap() = Some(result));
    let (from, sent_in) = (carrier.from, carrier.transfer.sent_in());
    node.handle.deliver_snapshot(from, sent_in, pending, reply);
    Some(())
}

impl Carrier {
    /// The host that received it holds the other end of the answer.
    fn answer_is_awaited(&self) -> bool {
        Arc::strong_count(&self.answer) > 1
    }
}
