//! One client's stream of watches: requests in, messages out, cursors into the log between them.
//!
//! All watchers that are up to date share one cursor. Those created in the past catch up together under a second one,
//! and join the first where it stands; the rest wait for the next round. Nothing moves while a message waits to be
//! taken, and everything that a client gets leaves through [`Feed::step`]: a progress answer cannot overtake an event.
//!
//! No IO and no clock: the driver reads history and previous values when asked, and says when the time for progress
//! reports has come.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::batch::{Batch, Cut, Spot, at};
use super::hub::{Logged, Tail, WatchHub};
use super::index::Token;
use super::watcher::{Cohort, Place, Watcher};
use crate::error::ApiError;
use crate::mvcc::History;
use crate::pb::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use crate::pb::mvccpb::KeyValue;
use crate::testing::{Bug, bug};

/// Names no watcher: failures, and progress of the whole stream.
const NO_WATCH: i64 = -1;
/// The revision of the first change; a new store is at the one before.
const REVISION_FIRST: i64 = 2;
/// Answers that wait while further requests are still read.
const CONTROL_MAX: usize = 16;

/// Bounds of one stream.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// A message is cut between revisions above this many bytes, and for a watcher that allows fragments also within
    /// one. Default 2 MiB: etcd's request limit with its overhead.
    pub message_bytes_max: usize,
    /// Bytes of the log that one stream holds on to at most, if a revision is not larger. Default 256 KiB.
    pub chunk_bytes_max: usize,
    /// Revisions looked at, and put into one message, at a time. Default 1,000 as in etcd.
    pub chunk_revisions_max: usize,
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self {
            message_bytes_max: 2 << 20,
            chunk_bytes_max: 256 << 10,
            chunk_revisions_max: 1_000,
        }
    }
}

/// Where the store stands when a request arrives; it may be ahead of the hub.
#[derive(Clone, Copy, Debug)]
pub struct StoreState {
    /// The newest revision.
    pub revision: i64,
    /// The compaction floor.
    pub compact: i64,
}

/// A key whose value before a change is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The key.
    pub key: bytes::Bytes,
    /// The revision of the change.
    pub mod_revision: i64,
}

/// What the driver does next.
#[derive(Debug)]
pub enum Step {
    /// Send this; cluster, member and term are to be filled in.
    Send(WatchResponse),
    /// Read history from this revision on, and pass it to [`Feed::history`]. Other steps go on meanwhile.
    Read(i64),
    /// Look these up and pass what was found, in this order, to [`Feed::found`].
    Lookup(Vec<Lookup>),
    /// Wait for a request, for the hub, or for what was asked for.
    Idle,
    /// End the stream with this.
    Fail(ApiError),
}

/// What an attempt to move a cursor gave.
enum Move {
    Batch,
    Read(i64),
    Stuck,
}

/// The state of one stream.
pub struct Feed {
    hub: Arc<WatchHub>,
    options: FeedOptions,
    watchers: HashMap<Token, Watcher>,
    ids: BTreeMap<i64, Token>,
    next_token: Token,
    next_id: i64,
    main: Cohort,
    catching: Option<(Cohort, Vec<Token>)>,
    waiting: Vec<Token>,
    /// Whose turn it is to move, when both could.
    catching_first: bool,
    control: VecDeque<WatchResponse>,
    batch: Option<Batch>,
    batches: u64,
    lookup: Option<Vec<Spot>>,
    /// The read under way: for whom, and from where.
    reading: Option<(Place, i64)>,
    /// What was read and not yet looked at.
    fetched: Option<(Place, Vec<Arc<Logged>>)>,
    /// Progress of the whole stream is asked for: the revisions of the store at the first and at the last request that
    /// has no answer yet.
    progress: Option<(i64, i64)>,
    /// Watchers that are due to be told of progress.
    due: VecDeque<Token>,
    /// Who must not hear of progress yet, by the revision from which they may. Those reached are dropped when somebody
    /// asks.
    ahead: BTreeSet<(i64, Token)>,
    failed: Option<ApiError>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("watchers", &self.ids.len())
            .field("cursor", &self.main.cursor)
            .finish_non_exhaustive()
    }
}

impl Feed {
    /// A stream without watchers.
    #[must_use]
    pub fn new(hub: Arc<WatchHub>, options: FeedOptions) -> Self {
        let main = Cohort::at(hub.newest() + 1);
        Self {
            hub,
            options,
            watchers: HashMap::new(),
            ids: BTreeMap::new(),
            next_token: 0,
            next_id: 0,
            main,
            catching: None,
            waiting: Vec::new(),
            catching_first: false,
            control: VecDeque::new(),
            batch: None,
            batches: 0,
            lookup: None,
            reading: None,
            fetched: None,
            progress: None,
            due: VecDeque::new(),
            ahead: BTreeSet::new(),
            failed: None,
        }
    }

    /// The number of watchers.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.ids.len()
    }

    /// False while answers pile up because the client does not take them: then no request is to be read.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.control.len() < CONTROL_MAX
    }

    /// A request of the client, who may be nobody.
    pub fn request(&mut self, request: WatchRequest, store: StoreState) {
        self.request_of(None, request, store);
    }

    /// A request of a user; who may watch what is the driver's to judge.
    pub fn request_of(&mut self, user: Option<Arc<str>>, request: WatchRequest, store: StoreState) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(user, create, store),
            Some(RequestUnion::CancelRequest(cancel)) => {
                if let Some(token) = self.ids.get(&cancel.watch_id) {
                    self.remove(*token);
                    self.control.push_back(WatchResponse {
                        watch_id: cancel.watch_id,
                        canceled: true,
                        ..at(self.hub.newest())
                    });
                }
            }
            // Without watchers there is nothing that could have progressed.
            Some(RequestUnion::ProgressRequest(_)) if !self.ids.is_empty() => {
                let first = self.progress.map_or(store.revision, |(first, _)| first);
                self.progress = Some((first, store.revision));
            }
            Some(RequestUnion::ProgressRequest(_)) => {}
            None => {}
        }
    }

    /// The interval of progress reports has passed.
    pub fn tick(&mut self) {
        self.due.clear();
        for token in self.ids.values() {
            let watcher = self.watchers.get_mut(token).expect("ids name live ones");
            if watcher.notify && watcher.quiet {
                self.due.push_back(*token);
            }
            watcher.quiet = true;
        }
    }

    /// What [`Step::Read`] asked for gave. `floor` is the store's compaction floor after the read.
    pub fn history(&mut self, read: Result<History, ApiError>, floor: i64) {
        let Some((place, from)) = self.reading.take() else {
            return;
        };
        match read {
            Ok(history) => {
                let newest = self.hub.newest();
                let revisions = history.revisions.into_iter();
                let chunk: Vec<_> = revisions
                    .take_while(|events| events.revision <= newest)
                    .map(|events| Arc::new(Logged::new(events)))
                    .collect();
                if chunk.first().is_none_or(|first| first.revision() != from) {
                    let text = format!("flotilla: the history has no revision {from}");
                    self.failed = Some(ApiError::Other(tonic::Code::Internal, text));
                    return;
                }
                self.fetched = Some((place, chunk));
            }
            Err(ApiError::Compacted) => self.lose(place, floor),
            Err(error) => self.failed = Some(error),
        }
    }

    /// What [`Step::Lookup`] asked for gave.
    pub fn found(&mut self, found: Vec<Option<KeyValue>>) {
        let spots = self.lookup.take().expect("it was asked for");
        assert_eq!(spots.len(), found.len(), "each look-up has its answer");
        let pairs = spots.iter().zip(&found);
        self.hub
            .remember(pairs.map(|((logged, nth), previous)| (logged, *nth, previous)));
        if let Some(batch) = &mut self.batch {
            batch.found(&spots, found);
        }
    }

    /// What is to be done now.
    pub fn step(&mut self) -> Step {
        loop {
            if let Some(error) = self.failed.take() {
                return Step::Fail(error);
            }
            if let Some(response) = self.control.pop_front() {
                return Step::Send(response);
            }
            if self.lookup.is_some() {
                return Step::Idle;
            }
            if let Some(step) = self.message() {
                return step;
            }
            match self.advance() {
                Move::Batch => {}
                Move::Read(from) => return Step::Read(from),
                Move::Stuck => break,
            }
        }
        match self.report() {
            Some(response) => Step::Send(response),
            None => Step::Idle,
        }
    }

    /// Answers a request for a watcher that is not created.
    pub fn refuse(&mut self, cancel_reason: String) {
        self.control.push_back(WatchResponse {
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason,
            ..at(self.hub.newest())
        });
    }

    /// Ends the watchers whose user, key and end of the range are not allowed any more, with the reason given.
    pub fn end_unless(
        &mut self,
        allowed: impl Fn(Option<&Arc<str>>, &[u8], &[u8]) -> Result<(), String>,
    ) {
        let judged = self.ids.iter().filter_map(|(id, token)| {
            let watcher = &self.watchers[token];
            let (key, range_end) = watcher.range.named();
            let reason = allowed(watcher.user.as_ref(), key, range_end).err()?;
            Some((*id, *token, reason))
        });
        let ended: Vec<_> = judged.collect();
        for (watch_id, token, cancel_reason) in ended {
            self.remove(token);
            self.control.push_back(WatchResponse {
                watch_id,
                canceled: true,
                cancel_reason,
                ..at(self.hub.newest())
            });
        }
    }

    fn create(&mut self, user: Option<Arc<str>>, request: WatchCreateRequest, store: StoreState) {
        let newest = self.hub.newest();
        let mut watcher = match self.admit(request) {
            Ok(watcher) => watcher,
            Err(reason) => return self.refuse(reason),
        };
        watcher.user = user;
        self.control.push_back(WatchResponse {
            watch_id: watcher.id,
            created: true,
            ..at(newest)
        });
        if watcher.from == 0 {
            watcher.from = newest + 1;
            watcher.report_from = newest;
        } else if watcher.from < store.compact {
            self.control.push_back(compacted(watcher.id, store.compact));
            return;
        }
        watcher.from = watcher.from.max(REVISION_FIRST);
        let token = self.next_token;
        self.next_token += 1;
        self.ahead.insert((watcher.report_from, token));
        self.place(&mut watcher, token, newest);
        self.ids.insert(watcher.id, token);
        self.watchers.insert(token, watcher);
    }

    /// Gives a watcher its id.
    fn admit(&mut self, request: WatchCreateRequest) -> Result<Watcher, String> {
        let mut watcher = Watcher::of(request)?;
        if watcher.id == 0 {
            while self.ids.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            watcher.id = self.next_id;
            self.next_id += 1;
        } else if self.ids.contains_key(&watcher.id) {
            return Err("mvcc: duplicate watch ID provided on the WatchStream".to_owned());
        }
        Ok(watcher)
    }

    /// Lets a new watcher follow the cursor that suits it.
    fn place(&mut self, watcher: &mut Watcher, token: Token, newest: i64) {
        if self.main.index.is_empty() {
            self.main.cursor = newest + 1;
        }
        if watcher.from >= self.main.cursor {
            watcher.place = Place::Main;
            return self.main.insert(watcher, token);
        }
        match &mut self.catching {
            Some((cohort, tokens)) if watcher.from >= cohort.cursor => {
                watcher.place = Place::Catching;
                cohort.insert(watcher, token);
                tokens.push(token);
            }
            _ => {
                watcher.place = Place::Waiting;
                self.waiting.push(token);
            }
        }
    }

    fn remove(&mut self, token: Token) {
        let watcher = self.watchers.remove(&token).expect("ids name live ones");
        self.ids.remove(&watcher.id);
        self.ahead.remove(&(watcher.report_from, token));
        match watcher.place {
            Place::Main => self.main.index.remove(&watcher.range, token),
            Place::Catching => {
                let (cohort, tokens) = self.catching.as_mut().expect("somebody catches up");
                cohort.index.remove(&watcher.range, token);
                tokens.retain(|other| *other != token);
            }
            Place::Waiting => self.waiting.retain(|other| *other != token),
        }
    }

    /// The next message of the batch.
    fn message(&mut self) -> Option<Step> {
        let batch = self.batch.as_mut()?;
        match batch.next(&mut self.watchers, self.options.message_bytes_max) {
            Cut::Message(response) => Some(Step::Send(response)),
            Cut::Lookup(spots) => {
                let lookup = |(logged, nth): &Spot| Lookup {
                    key: logged.events()[*nth].kv.key.clone(),
                    mod_revision: logged.revision(),
                };
                let lookups = spots.iter().map(lookup).collect();
                self.lookup = Some(spots);
                Some(Step::Lookup(lookups))
            }
            Cut::Done => {
                self.batch = None;
                None
            }
        }
    }

    /// Moves a cursor, the two in turn, and makes a batch of what lies between.
    fn advance(&mut self) -> Move {
        self.join();
        self.discard();
        let order = match self.catching_first {
            true => [Place::Catching, Place::Main],
            false => [Place::Main, Place::Catching],
        };
        for place in order {
            match self.advance_one(place) {
                Move::Stuck => {}
                moved => {
                    self.catching_first = place == Place::Main;
                    return moved;
                }
            }
        }
        Move::Stuck
    }

    /// Lets those who caught up join the rest, and starts the next round for those who wait.
    fn join(&mut self) {
        let done = |(cohort, _): &mut (Cohort, Vec<Token>)| {
            cohort.index.is_empty() || cohort.cursor >= self.main.cursor
        };
        if let Some((cohort, tokens)) = self.catching.take_if(done) {
            for token in tokens {
                let watcher = self
                    .watchers
                    .get_mut(&token)
                    .expect("those removed are not listed");
                watcher.place = Place::Main;
                if watcher.from < cohort.cursor {
                    self.ahead.remove(&(watcher.report_from, token));
                    watcher.from = cohort.cursor;
                    watcher.report_from = cohort.cursor - 1;
                    self.ahead.insert((watcher.report_from, token));
                }
                self.main.insert(watcher, token);
            }
        }
        if self.catching.is_some() || self.waiting.is_empty() {
            return;
        }
        let tokens = std::mem::take(&mut self.waiting);
        let from = |token: &Token| self.watchers[token].from;
        let first = tokens.iter().map(from).min().expect("not empty");
        let mut cohort = Cohort::at(first);
        for token in &tokens {
            let watcher = self
                .watchers
                .get_mut(token)
                .expect("those removed are not listed");
            watcher.place = Place::Catching;
            cohort.insert(watcher, *token);
        }
        self.catching = Some((cohort, tokens));
    }

    /// Forgets what was read for watchers that are gone, or before their cursor moved on.
    fn discard(&mut self) {
        let (main, catching) = (&self.main, &self.catching);
        self.fetched.take_if(|(place, chunk)| {
            let cohort = match place {
                Place::Main => Some(main),
                _ => catching.as_ref().map(|(cohort, _)| cohort),
            };
            let wanted =
                |cohort: &Cohort| !cohort.index.is_empty() && cohort.cursor == chunk[0].revision();
            !cohort.is_some_and(wanted)
        });
    }

    fn advance_one(&mut self, place: Place) -> Move {
        let newest = self.hub.newest();
        let cohort = match (place, &mut self.catching) {
            (Place::Main, _) => Some(&mut self.main),
            (_, Some((cohort, _))) => Some(cohort),
            (_, None) => None,
        };
        let Some(cohort) = cohort else {
            return Move::Stuck;
        };
        if cohort.index.is_empty() {
            cohort.cursor = newest + 1;
            return Move::Stuck;
        }
        let fetched = self.fetched.take_if(|(whose, _)| *whose == place);
        let was_read = fetched.is_some();
        let bounds = self.options;
        let (bytes_max, revisions_max) = (bounds.chunk_bytes_max, bounds.chunk_revisions_max);
        let mut chunk = match fetched {
            Some((_, chunk)) => chunk,
            None => match self.hub.read(cohort.cursor, bytes_max, revisions_max) {
                Tail::Ring(chunk) => chunk,
                Tail::Nothing => return Move::Stuck,
                // One read at a time, and none before the last one is used up.
                Tail::History if self.reading.is_some() || self.fetched.is_some() => {
                    return Move::Stuck;
                }
                Tail::History => {
                    self.reading = Some((place, cohort.cursor));
                    return Move::Read(cohort.cursor);
                }
            },
        };
        self.batches += 1;
        let batch = Batch::gather(&mut chunk, &cohort.index, &mut self.watchers, self.batches);
        cohort.cursor = batch.revision() + 1;
        if was_read && !chunk.is_empty() {
            self.fetched = Some((place, chunk));
        }
        if !batch.is_empty() {
            self.batch = Some(batch);
        }
        Move::Batch
    }

    /// Compaction took what a cursor pointed at: its watchers cannot go on, unless they start at the floor or later.
    fn lose(&mut self, place: Place, floor: i64) {
        let cohort = match (place, &mut self.catching) {
            (Place::Main, _) => &mut self.main,
            (_, Some((cohort, _))) => cohort,
            (_, None) => return,
        };
        if cohort.cursor >= floor {
            return;
        }
        cohort.cursor = floor;
        let lost = |token: &&Token| {
            let watcher = &self.watchers[*token];
            watcher.place == place && watcher.from < floor
        };
        let lost: Vec<Token> = self.ids.values().filter(lost).copied().collect();
        for token in lost {
            if bug(Bug::SkipCompacted) {
                continue;
            }
            let id = self.watchers[&token].id;
            self.remove(token);
            self.control.push_back(compacted(id, floor));
        }
    }

    /// Tells how far the stream is, if somebody asked and all before was sent.
    fn report(&mut self) -> Option<WatchResponse> {
        let revision = self.main.cursor - 1;
        if self.batch.is_some() {
            return None;
        }
        while let Some(token) = self.due.pop_front() {
            let Some(watcher) = self.watchers.get(&token) else {
                continue;
            };
            if watcher.quiet && watcher.place == Place::Main && watcher.report_from <= revision {
                return Some(WatchResponse {
                    watch_id: watcher.id,
                    ..at(revision)
                });
            }
        }
        if self.ids.is_empty() {
            self.progress = None;
        }
        let (first, last) = self.progress?;
        let behind = self.catching.is_some() || !self.waiting.is_empty();
        if behind || revision < first || !self.reached(revision) {
            return None;
        }
        // A request that came later, when the store was further, waits for its own answer.
        self.progress = (revision < last).then_some((last, last));
        Some(WatchResponse {
            watch_id: NO_WATCH,
            ..at(revision)
        })
    }

    /// True when every watcher may hear of `revision`.
    fn reached(&mut self, revision: i64) -> bool {
        while let Some(first) = self.ahead.first() {
            if first.0 > revision {
                return false;
            }
            self.ahead.pop_first();
        }
        true
    }
}

fn compacted(id: i64, floor: i64) -> WatchResponse {
    WatchResponse {
        watch_id: id,
        canceled: true,
        compact_revision: floor,
        ..at(0)
    }
}
