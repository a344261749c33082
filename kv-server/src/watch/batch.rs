//! Revisions on their way to the watchers of one stream: who gets which events, cut into messages.
//!
//! A match is a few numbers, whatever the size of the event; the message is built when the client takes it. So a batch
//! holds its piece of the log once, however many watchers want it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::hub::Logged;
use super::index::{Index, Token};
use super::watcher::Watcher;
use crate::mvcc::{Event, EventKind};
use crate::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::pb::mvccpb::{self, KeyValue};

/// Runs of matches after which a batch takes no further revision: 12 bytes each.
const RUNS_MAX: usize = 65_536;
/// Events of one message whose previous values are asked for, where it may be cut.
const PREVIOUS_MAX: usize = 256;
/// What an event costs in a message beside keys and values.
const EVENT_FRAME_BYTES: usize = 64;

/// Neighbouring events of one revision.
#[derive(Clone, Copy, Debug)]
struct Run {
    logged: u32,
    first: u32,
    end: u32,
}

#[derive(Debug)]
struct Matched {
    token: Token,
    /// Never empty; events that were sent are gone from the front.
    runs: VecDeque<Run>,
}

/// An event of the log, by its place.
pub(super) type Spot = (Arc<Logged>, usize);

#[derive(Debug)]
pub(super) struct Batch {
    chunk: Vec<Arc<Logged>>,
    queue: VecDeque<Matched>,
    /// Previous values for the watcher in front, by revision and event.
    previous: BTreeMap<(i64, usize), Option<KeyValue>>,
}

/// What comes of a look at a batch.
#[derive(Debug)]
pub(super) enum Cut {
    /// Send it.
    Message(WatchResponse),
    /// First find out what these keys were before.
    Lookup(Vec<Spot>),
    /// All was sent.
    Done,
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).expect("a revision has fewer than 2^32 events")
}

fn wide(n: u32) -> usize {
    usize::try_from(n).expect("32 bits fit")
}

impl Batch {
    /// Finds out who wants the events of a stretch of the log. Stops at the end of a revision when there are very many
    /// matches, and leaves the rest in `chunk`. `number` names the batch; none before may have had it.
    pub(super) fn gather(
        chunk: &mut Vec<Arc<Logged>>,
        index: &Index,
        watchers: &mut HashMap<Token, Watcher>,
        number: u64,
    ) -> Self {
        let mut queue: VecDeque<Matched> = VecDeque::new();
        let (mut runs_total, mut taken) = (0, 0);
        for (at, logged) in chunk.iter().enumerate() {
            for (nth, event) in logged.events().iter().enumerate() {
                index.matches(&event.kv.key, &mut |token| {
                    let watcher = watchers.get_mut(&token).expect("the index holds live ones");
                    if !watcher.wants(logged.revision(), event.kind) {
                        return;
                    }
                    if watcher.matches.0 != number {
                        watcher.matches = (number, queue.len());
                        let runs = VecDeque::new();
                        queue.push_back(Matched { token, runs });
                    }
                    let runs = &mut queue[watcher.matches.1].runs;
                    let (logged, nth) = (narrow(at), narrow(nth));
                    match runs.back_mut() {
                        Some(run) if run.logged == logged && run.end == nth => run.end += 1,
                        _ => {
                            runs_total += 1;
                            runs.push_back(Run {
                                logged,
                                first: nth,
                                end: nth + 1,
                            });
                        }
                    }
                });
            }
            taken = at + 1;
            if runs_total >= RUNS_MAX {
                break;
            }
        }
        let rest = chunk.split_off(taken);
        Self {
            chunk: std::mem::replace(chunk, rest),
            queue,
            previous: BTreeMap::new(),
        }
    }

    /// True when nobody wants anything of it.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The last revision of it.
    pub(super) fn revision(&self) -> i64 {
        self.chunk.last().expect("a batch has revisions").revision()
    }

    /// Takes what was asked for.
    pub(super) fn found(&mut self, spots: &[Spot], found: Vec<Option<KeyValue>>) {
        for ((logged, nth), previous) in spots.iter().zip(found) {
            self.previous.insert((logged.revision(), *nth), previous);
        }
    }

    /// The next message, of at most about `bytes_max` bytes. A revision is cut only for a watcher that allows it.
    pub(super) fn next(&mut self, watchers: &mut HashMap<Token, Watcher>, bytes_max: usize) -> Cut {
        let (matched, watcher) = loop {
            let Some(matched) = self.queue.front_mut() else {
                return Cut::Done;
            };
            if let Some(watcher) = watchers.get_mut(&matched.token) {
                break (matched, watcher);
            }
            // It was cancelled in the meantime.
            self.previous.clear();
            self.queue.pop_front();
        };
        let mut message = Message::new(watcher, bytes_max);
        let mut sent = None;
        'runs: for (nth_run, run) in matched.runs.iter().enumerate() {
            let logged = &self.chunk[wide(run.logged)];
            for nth in wide(run.first)..wide(run.end) {
                if !message.add(logged, nth, &self.previous) {
                    sent = Some((nth_run, narrow(nth)));
                    break 'runs;
                }
            }
        }
        if !message.missing.is_empty() {
            return Cut::Lookup(message.missing);
        }
        watcher.quiet = false;
        let Some((run, next)) = sent else {
            let response = message.finish(watcher.id, self.revision(), false);
            self.previous.clear();
            self.queue.pop_front();
            return Cut::Message(response);
        };
        let (last, fragment) = (message.revision, message.fragment);
        let response = message.finish(watcher.id, last, fragment);
        matched.runs.drain(..run);
        matched.runs[0].first = next;
        Cut::Message(response)
    }
}

/// A message in the making.
struct Message {
    prev_kv: bool,
    may_cut: bool,
    bytes_max: usize,
    bytes: usize,
    events: Vec<mvccpb::Event>,
    missing: Vec<Spot>,
    count: usize,
    /// That of the last event.
    revision: i64,
    /// The message ends within a revision.
    fragment: bool,
}

impl Message {
    fn new(watcher: &Watcher, bytes_max: usize) -> Self {
        Self {
            prev_kv: watcher.prev_kv,
            may_cut: watcher.fragment,
            bytes_max,
            bytes: 0,
            events: Vec::new(),
            missing: Vec::new(),
            count: 0,
            revision: 0,
            fragment: false,
        }
    }

    /// Adds an event; false when the message ends before it. After a previous value was found missing, events only
    /// count, so that all missing ones are asked for at once.
    fn add(
        &mut self,
        logged: &Arc<Logged>,
        nth: usize,
        previous: &BTreeMap<(i64, usize), Option<KeyValue>>,
    ) -> bool {
        let (event, revision) = (&logged.events()[nth], logged.revision());
        let known = if self.prev_kv && !is_create(event) {
            let known = logged.previous(nth);
            known.or_else(|| previous.get(&(revision, nth)))
        } else {
            Some(&None)
        };
        let size = size(&event.kv) + known.and_then(Option::as_ref).map_or(0, size);
        let full =
            self.bytes + size > self.bytes_max || (self.prev_kv && self.count >= PREVIOUS_MAX);
        if self.count > 0 && full {
            let within = revision == self.revision;
            if !within || self.may_cut {
                self.fragment = within;
                return false;
            }
        }
        self.count += 1;
        self.bytes += size;
        self.revision = revision;
        match known {
            None => self.missing.push((Arc::clone(logged), nth)),
            Some(previous) if self.missing.is_empty() => {
                self.events.push(wire(event, previous.clone()));
            }
            Some(_) => {}
        }
        true
    }

    fn finish(self, id: i64, revision: i64, fragment: bool) -> WatchResponse {
        WatchResponse {
            watch_id: id,
            events: self.events,
            fragment,
            ..at(revision)
        }
    }
}

/// An empty response; the front end completes the header.
pub(super) fn at(revision: i64) -> WatchResponse {
    WatchResponse {
        header: Some(ResponseHeader {
            revision,
            ..ResponseHeader::default()
        }),
        ..WatchResponse::default()
    }
}

fn is_create(event: &Event) -> bool {
    event.kind == EventKind::Put && event.kv.create_revision == event.kv.mod_revision
}

fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + EVENT_FRAME_BYTES
}

fn wire(event: &Event, prev_kv: Option<KeyValue>) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(event.kv.clone()),
        prev_kv,
    }
}
