//! Watches on both servers, compared event by event.
//!
//! One watcher of everything, the recorder, says which events there were. From them follows what each other watcher must
//! have got once a revision is reached, so that the comparison knows what to wait for. How events are put together in
//! messages is each server's own matter, but for what is promised: a revision is never split without being marked.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotilla_tests::process::PATIENCE;
use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::mvccpb::{Event, event::EventType};
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::calls::{Clients, mask};

const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What the test takes as the cause of a message for no watcher: failures, and progress of the stream.
const NO_WATCH: i64 = -1;

/// One stream on one server.
struct Stream {
    requests: mpsc::UnboundedSender<pb::WatchRequest>,
    responses: mpsc::UnboundedReceiver<Result<pb::WatchResponse, Status>>,
    /// Answers to requests, in order.
    control: VecDeque<pb::WatchResponse>,
    /// Watchers that a compaction cancelled.
    compacted: Vec<pb::WatchResponse>,
    /// Events of each watcher that were not compared yet.
    events: BTreeMap<i64, Vec<Event>>,
    /// The last revision of each watcher, and whether its last message was a part.
    last: BTreeMap<i64, (i64, bool)>,
}

impl Stream {
    /// It is opened behind its first request: etcd answers nothing before it has one. A task empties it, so that no server
    /// sees a slow reader.
    fn open(clients: &Clients) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let (sender, responses) = mpsc::unbounded_channel();
        let client = WatchClient::new(clients.channel.clone());
        let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        tokio::spawn(async move {
            let mut stream = match client.watch(UnboundedReceiverStream::new(receiver)).await {
                Ok(opened) => opened.into_inner(),
                Err(status) => return drop(sender.send(Err(status))),
            };
            loop {
                let next = match stream.message().await {
                    Ok(Some(response)) => Ok(response),
                    Ok(None) => Err(Status::unavailable("the stream ended")),
                    Err(status) => Err(status),
                };
                let ended = next.is_err();
                if sender.send(next).is_err() || ended {
                    return;
                }
            }
        });
        Self {
            requests,
            responses,
            control: VecDeque::new(),
            compacted: Vec::new(),
            events: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    fn send(&self, request: RequestUnion) {
        let request_union = Some(request);
        self.requests
            .send(pb::WatchRequest { request_union })
            .unwrap();
    }

    /// Takes the next response; false when none comes in time.
    async fn receive(&mut self) -> bool {
        let Ok(next) = timeout(PATIENCE, self.responses.recv()).await else {
            return false;
        };
        self.take(next.expect("the task says why it ends"));
        true
    }

    /// Takes what has come.
    fn drain(&mut self) {
        while let Ok(next) = self.responses.try_recv() {
            self.take(next);
        }
    }

    fn take(&mut self, response: Result<pb::WatchResponse, Status>) {
        let mut response =
            response.unwrap_or_else(|status| panic!("a watch stream broke: {status}"));
        response.header.iter_mut().for_each(mask);
        let id = response.watch_id;
        let progress = id == NO_WATCH && response.events.is_empty();
        if response.canceled && response.compact_revision != 0 {
            self.compacted.push(response);
            return;
        }
        if response.created || response.canceled || progress {
            self.control.push_back(response);
            return;
        }
        let revision = |event: &Event| event.kv.as_ref().expect("events have keys").mod_revision;
        let first = response.events.first().map_or(i64::MAX, revision);
        if let Some((last, part)) = self.last.get(&id) {
            assert!(
                first > *last || (*part && first == *last),
                "watcher {id} got revision {first} after {last}, which was said to be complete"
            );
        }
        let last = response.events.last().map_or(0, revision);
        self.last.insert(id, (last, response.fragment));
        self.events.entry(id).or_default().extend(response.events);
    }

    /// The next answer to a request, or none in time.
    async fn answer(&mut self) -> Option<pb::WatchResponse> {
        while self.control.is_empty() {
            if !self.receive().await {
                return None;
            }
        }
        self.control.pop_front()
    }

    fn was_compacted(&self, id: i64) -> bool {
        self.compacted.iter().any(|one| one.watch_id == id)
    }

    /// How a compaction cancelled a watcher, or none in time.
    async fn compaction(&mut self, id: i64) -> Option<pb::WatchResponse> {
        loop {
            let at = self.compacted.iter().position(|one| one.watch_id == id);
            if let Some(at) = at {
                return Some(self.compacted.remove(at));
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Waits until a watcher got so many events, those aside of which one cannot be sure.
    async fn wait(&mut self, id: i64, watcher: &Watcher, count: usize) {
        loop {
            let events = self.events.get(&id).into_iter().flatten();
            let enough = events.filter(|event| watcher.is_sure(event)).count() >= count;
            if enough || self.was_compacted(id) {
                return;
            }
            if !self.receive().await {
                return;
            }
        }
    }
}

/// What a watcher wants.
#[derive(Clone, Debug)]
struct Watcher {
    create: pb::WatchCreateRequest,
    /// The first revision that was not compared yet.
    next: i64,
    /// Deletions at this revision are not compared, nor what was before it, whenever they come: see [`super::known`].
    unsure: Option<i64>,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().expect("events have keys");
        let filter = match event.r#type() {
            EventType::Put => pb::watch_create_request::FilterType::Noput,
            EventType::Delete => pb::watch_create_request::FilterType::Nodelete,
        };
        let smallest = Bytes::from_static(b"\0");
        let key = if self.create.key.is_empty() {
            &smallest
        } else {
            &self.create.key
        };
        let inside = match self.create.range_end.as_ref() {
            [] => kv.key == *key,
            [0] => kv.key >= *key,
            end => kv.key >= *key && kv.key.as_ref() < end,
        };
        let filtered = self.create.filters.contains(&filter.into());
        kv.mod_revision >= self.next && inside && !filtered && self.is_sure(event)
    }

    fn is_sure(&self, event: &Event) -> bool {
        let revision = event.kv.as_ref().map(|kv| kv.mod_revision);
        event.r#type() == EventType::Put || revision != self.unsure
    }
}

/// The same stream on both servers: etcd's first.
pub(crate) struct Pair {
    sides: [Stream; 2],
    watchers: BTreeMap<i64, Watcher>,
    /// Ids whose watchers were cancelled by a compaction: etcd keeps those until the stream ends.
    pub(crate) gone: Vec<i64>,
    /// One of those was asked for by its number, which the servers reach on their own some time: ours takes it, etcd the next.
    pub(crate) chooses_apart: bool,
}

/// Both answers, where they differ.
pub(crate) type Compared = Result<(), (String, String)>;

fn same<T: PartialEq + std::fmt::Debug>(etcd: &T, ours: &T) -> Compared {
    if etcd == ours {
        Ok(())
    } else {
        Err((format!("{etcd:?}"), format!("{ours:?}")))
    }
}

impl Pair {
    pub(crate) fn open(servers: &[Clients; 2]) -> Self {
        Self {
            sides: [Stream::open(&servers[0]), Stream::open(&servers[1])],
            watchers: BTreeMap::new(),
            gone: Vec::new(),
            chooses_apart: false,
        }
    }

    pub(crate) fn watchers(&self) -> Vec<i64> {
        self.watchers.keys().copied().collect()
    }

    /// True when a watcher waits for a revision that does not exist yet.
    pub(crate) fn waits_for_the_future(&self, newest: i64) -> bool {
        let mut watchers = self.watchers.values();
        watchers.any(|one| one.create.start_revision > newest)
    }

    async fn answers(&mut self) -> [Option<pb::WatchResponse>; 2] {
        let [etcd, ours] = &mut self.sides;
        let (etcd, ours) = tokio::join!(etcd.answer(), ours.answer());
        [etcd, ours]
    }

    fn send(&self, request: &RequestUnion) {
        for side in &self.sides {
            side.send(request.clone());
        }
    }

    /// Creates a watcher on a store at `newest` whose compaction floor is `floor`.
    pub(crate) async fn create(
        &mut self,
        create: &pb::WatchCreateRequest,
        newest: i64,
        floor: i64,
    ) -> Compared {
        self.send(&RequestUnion::CreateRequest(create.clone()));
        let [etcd, ours] = self.answers().await;
        same(&etcd, &ours)?;
        let created = etcd.ok_or_else(|| ("no answer".to_owned(), "no answer".to_owned()))?;
        let start = create.start_revision;
        if created.canceled {
            return Ok(());
        }
        let id = created.watch_id;
        if start != 0 && start < floor {
            let [etcd, ours] = &mut self.sides;
            let (etcd, ours) = tokio::join!(etcd.compaction(id), ours.compaction(id));
            same(&etcd, &ours)?;
            self.gone.push(id);
            self.chooses_apart |= create.watch_id != 0;
            return Ok(());
        }
        let watcher = Watcher {
            create: create.clone(),
            next: if start == 0 { newest + 1 } else { start },
            unsure: (start == floor).then_some(floor),
        };
        for side in &mut self.sides {
            side.last.remove(&id);
        }
        self.watchers.insert(id, watcher);
        Ok(())
    }

    /// History below `floor` goes: of a watcher that begins there etcd may not have looked at anything yet.
    pub(crate) fn compacted(&mut self, floor: i64) {
        let begin = |watcher: &&mut Watcher| watcher.create.start_revision == floor;
        for watcher in self.watchers.values_mut().filter(begin) {
            watcher.unsure = (watcher.next <= floor).then_some(floor).or(watcher.unsure);
        }
    }

    /// Cancels a watcher that has got everything.
    pub(crate) async fn cancel(&mut self, watch_id: i64) -> Compared {
        let request = pb::WatchCancelRequest { watch_id };
        self.send(&RequestUnion::CancelRequest(request));
        if self.watchers.remove(&watch_id).is_none() {
            // Nothing is answered; what is asked next shows whether that holds.
            return Ok(());
        }
        let [etcd, ours] = self.answers().await;
        same(&etcd, &ours)
    }

    /// Asks how far the stream is, when all of its watchers have got everything.
    pub(crate) async fn progress(&mut self) -> Compared {
        self.send(&RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
        let [etcd, ours] = self.answers().await;
        same(&etcd, &ours)
    }

    /// Lets go of those that etcd cancelled although they had everything: it looks at a new watcher of the past every 100 ms
    /// only, and a compaction may come first. Gives their number.
    pub(crate) async fn let_go(&mut self) -> Result<u64, (String, String)> {
        let mut count = 0;
        self.sides[0].drain();
        let cancelled: Vec<i64> = self
            .watchers()
            .into_iter()
            .filter(|id| self.sides[0].was_compacted(*id))
            .collect();
        for watch_id in cancelled {
            let watcher = self.watchers.remove(&watch_id);
            self.gone.push(watch_id);
            self.chooses_apart |= watcher.is_some_and(|one| one.create.watch_id != 0);
            let request = pb::WatchCancelRequest { watch_id };
            self.sides[1].send(RequestUnion::CancelRequest(request));
            let answer = self.sides[1].answer().await;
            if !answer.is_some_and(|answer| answer.canceled && answer.watch_id == watch_id) {
                return Err((
                    format!("watcher {watch_id} was compacted"),
                    "no answer to its cancel".to_owned(),
                ));
            }
            for side in &mut self.sides {
                side.compacted.retain(|one| one.watch_id != watch_id);
                side.events.remove(&watch_id);
            }
            count += 1;
        }
        Ok(count)
    }

    /// Compares what each watcher got up to `revision`, given all events since the compaction floor.
    pub(crate) async fn compare(&mut self, all: &[Event], revision: i64) -> Compared {
        for (id, watcher) in &mut self.watchers {
            let expected = all.iter().filter(|event| watcher.wants(event)).count();
            let [etcd, ours] = &mut self.sides;
            tokio::join!(
                etcd.wait(*id, watcher, expected),
                ours.wait(*id, watcher, expected)
            );
            if self.sides[0].was_compacted(*id) {
                continue;
            }
            let mut taken = |side: usize| {
                let mut events = self.sides[side].events.remove(id).unwrap_or_default();
                events.retain(|event| watcher.is_sure(event));
                for event in &mut events {
                    let revision = event.kv.as_ref().map(|kv| kv.mod_revision);
                    if revision == watcher.unsure {
                        event.prev_kv = None;
                    }
                }
                events
            };
            let (etcd, ours) = (taken(0), taken(1));
            if etcd != ours || etcd.len() != expected || self.sides[1].was_compacted(*id) {
                let pairs = etcd.iter().zip(&ours);
                let same = pairs.take_while(|(etcd, ours)| etcd == ours).count();
                let about = |events: &[Event]| {
                    let (count, other) = (events.len(), events.get(same));
                    format!("{count} of {expected} events, event {same} is {other:?}")
                };
                return Err((format!("{watcher:?}: {}", about(&etcd)), about(&ours)));
            }
            watcher.next = watcher.next.max(revision + 1);
        }
        Ok(())
    }
}

/// The watcher of everything.
pub(crate) struct Recorder {
    pair: Pair,
    id: i64,
    /// All events that are not below the compaction floor.
    pub(crate) events: Vec<Event>,
}

impl Recorder {
    pub(crate) async fn open(servers: &[Clients; 2]) -> Self {
        let mut pair = Pair::open(servers);
        let everything = pb::WatchCreateRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: 1,
            prev_kv: true,
            ..Default::default()
        };
        pair.send(&RequestUnion::CreateRequest(everything));
        let [etcd, ours] = pair.answers().await;
        assert_eq!(etcd, ours, "the watcher of everything");
        let id = etcd.expect("it is created").watch_id;
        Self {
            pair,
            id,
            events: Vec::new(),
        }
    }

    /// Takes all events up to those of `revision`, of which there are some, and compares them.
    pub(crate) async fn record(&mut self, revision: i64) -> Compared {
        let mut both = Vec::new();
        for side in &mut self.pair.sides {
            let reached = |side: &Stream| {
                side.last
                    .values()
                    .any(|(last, part)| *last >= revision && !part)
            };
            while !reached(side) {
                if !side.receive().await {
                    break;
                }
            }
            both.push(side.events.remove(&self.id).unwrap_or_default());
        }
        for (etcd, ours) in both[0].iter().zip(&both[1]) {
            same(etcd, ours)?;
        }
        same(&both[0].len(), &both[1].len())?;
        self.events.append(&mut both[0]);
        Ok(())
    }

    /// Forgets what was compacted.
    pub(crate) fn forget(&mut self, floor: i64) {
        self.events
            .retain(|event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= floor));
    }
}
