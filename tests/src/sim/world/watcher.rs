//! A client that watches the whole key space, from whichever member runs, and resumes where it was cut off.

use kv_server::mvcc::{Event, EventKind, Store};
use kv_server::pb::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};
use kv_server::pb::mvccpb::event::EventType;
use kv_server::watch::{Feed, FeedOptions, Step, StoreState};

use super::super::checkers::{Verdict, WatchGuarantees};
use super::super::model::Model;
use super::super::node::Node;

/// Steps of a feed in one look at most.
const STEPS_MAX: usize = 10_000;

/// See the module.
pub struct Watcher {
    guarantees: WatchGuarantees,
    /// The member, and the stream.
    stream: Option<(usize, Feed)>,
    /// It takes nothing.
    slow: bool,
    /// Something may wait for it.
    behind: bool,
}

impl Watcher {
    /// A watcher from the first revision on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            guarantees: WatchGuarantees::from(2),
            stream: None,
            slow: false,
            behind: false,
        }
    }

    /// The member that it is connected to.
    #[must_use]
    pub fn member(&self) -> Option<usize> {
        self.stream.as_ref().map(|(member, _)| *member)
    }

    /// The first revision that it has not received.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.guarantees.next()
    }

    /// From now on it takes nothing, or all there is.
    pub fn set_slow(&mut self, slow: bool) {
        self.behind |= self.slow && !slow;
        self.slow = slow;
    }

    /// True while it takes nothing.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.slow
    }

    /// True once after a time in which it took nothing.
    pub fn was_behind(&mut self) -> bool {
        std::mem::take(&mut self.behind)
    }

    /// The member is gone.
    pub fn cut_off(&mut self) {
        self.stream = None;
    }

    /// Goes on at a member that runs.
    pub fn connect(&mut self, member: usize, node: &Node) {
        let mut feed = Feed::new(node.watch_hub().clone(), FeedOptions::default());
        let request = WatchCreateRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            start_revision: self.guarantees.next(),
            ..WatchCreateRequest::default()
        };
        request_of(
            &mut feed,
            RequestUnion::CreateRequest(request),
            &node.up().store,
        );
        self.stream = Some((member, feed));
    }

    /// Asks how far the stream is.
    pub fn ask_progress(&mut self, node: &Node) {
        if let Some((_, feed)) = &mut self.stream {
            let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
            request_of(feed, request, &node.up().store);
        }
    }

    /// Takes what there is.
    ///
    /// # Errors
    /// When it breaks a guarantee.
    pub fn take(&mut self, node: &Node, model: &Model) -> Verdict {
        for _ in 0..STEPS_MAX {
            let Some((_, feed)) = &mut self.stream else {
                return Ok(());
            };
            let store = &node.up().store;
            match feed.step() {
                Step::Send(response) => self.receive(&response, model)?,
                Step::Read(from) => {
                    let read = store.history(from, 64 << 10);
                    feed.history(read, store.compact_revision());
                }
                Step::Lookup(lookups) => {
                    let found = lookups
                        .iter()
                        .map(|at| store.kv_before(&at.key, at.mod_revision).unwrap_or(None));
                    feed.found(found.collect());
                }
                Step::Idle => return Ok(()),
                Step::Fail(error) => return Err(format!("a watch stream fails: {error}")),
            }
        }
        Err("a watch stream does not come to rest".to_owned())
    }

    fn receive(&mut self, response: &WatchResponse, model: &Model) -> Verdict {
        if response.canceled {
            self.stream = None;
            return self
                .guarantees
                .compacted(response.compact_revision, model.floor());
        }
        if response.created {
            return Ok(());
        }
        if response.events.is_empty() {
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            return self.guarantees.bookmark(revision);
        }
        let events: Vec<(i64, Event)> = response.events.iter().map(event).collect();
        self.guarantees.events(&events, |revision| {
            model.events(revision).map(<[Event]>::to_vec)
        })
    }
}

impl Default for Watcher {
    fn default() -> Self {
        Self::new()
    }
}

fn event(event: &kv_server::pb::mvccpb::Event) -> (i64, Event) {
    let kv = event.kv.clone().unwrap_or_default();
    let kind = if event.r#type == EventType::Delete as i32 {
        EventKind::Delete
    } else {
        EventKind::Put
    };
    (kv.mod_revision, Event { kind, kv })
}

fn request_of(feed: &mut Feed, request: RequestUnion, store: &Store) {
    let state = StoreState {
        revision: store.revision(),
        compact: store.compact_revision(),
    };
    let request = WatchRequest {
        request_union: Some(request),
    };
    feed.request(request, state);
}
