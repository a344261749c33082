//! Watchers of all keys of a load, one that begins at each member, and what they were sent.
//!
//! A watch that fails, or is silent for too long, is resumed at the next member behind the last event. What must hold in the
//! end is etcd's: the events are ordered by revision, each comes once, none is left out, those of one revision come
//! together; and they are the history that the keyspace has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kv_server::pb::etcdserverpb as pb;

use super::Client;
use super::client::text;
use crate::process::PATIENCE;

/// How long one stream is kept: resuming is part of what is tested.
const STREAM: Duration = Duration::from_millis(1_500);
/// The pause after a watch that failed at once.
const PAUSE: Duration = Duration::from_millis(20);

/// Key and value by revision: a load writes one key at each.
pub(super) type Events = BTreeMap<i64, (String, String)>;

/// Watchers that run.
pub(super) struct Watchers {
    /// The revision up to which they watch, once that is known.
    until: Arc<AtomicI64>,
    threads: Vec<JoinHandle<Result<Events, String>>>,
}

impl Watchers {
    /// Starts a watcher at each of the members.
    pub(super) fn start(urls: &[String], prefix: &'static str) -> Self {
        let until = Arc::new(AtomicI64::new(i64::MAX));
        let watcher = |first: usize| {
            let (until, urls) = (Arc::clone(&until), urls.to_vec());
            thread::Builder::new()
                .name(format!("watcher-{first}"))
                .spawn(move || collect(&urls, first, prefix, &until))
                .expect("a thread can be started")
        };
        let threads = (0..urls.len()).map(watcher).collect();
        Self { until, threads }
    }

    /// Lets them watch up to a revision; what each of them was sent.
    ///
    /// # Panics
    /// When one of them was not sent what it must be, or not in time.
    pub(super) fn finish(self, until: i64) -> Vec<Events> {
        self.until.store(until, Ordering::SeqCst);
        let joined = self.threads.into_iter().enumerate().map(|(at, thread)| {
            let events = thread.join().expect("a watcher does not panic");
            events.unwrap_or_else(|error| panic!("the watcher that began at member {at}: {error}"))
        });
        joined.collect()
    }
}

/// Everything from the first revision to `until`, in one piece, from a member's history.
pub(super) fn history(url: &str, prefix: &'static str, until: i64) -> Events {
    let events = collect(&[url.to_owned()], 0, prefix, &AtomicI64::new(until));
    events.unwrap_or_else(|error| panic!("the history at {url}: {error}"))
}

fn collect(
    urls: &[String],
    first: usize,
    prefix: &str,
    until: &AtomicI64,
) -> Result<Events, String> {
    let (mut events, mut wrong, mut last) = (Events::new(), None, 0);
    let mut ends = None;
    for at in first.. {
        let until = until.load(Ordering::SeqCst);
        if last >= until {
            // A write whose outcome nobody was told may come later than that.
            drop(events.split_off(&(until + 1)));
            break;
        }
        if until < i64::MAX {
            let ends = *ends.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() > ends {
                return Err(format!("{last} was sent last, {until} is missing"));
            }
        }
        let client = Client::new(&urls[at % urls.len()], STREAM);
        let ended = client.watch(prefix, last + 1, |answer| {
            let taken = take(&mut events, &mut last, answer);
            wrong = taken.err();
            wrong.is_none() && last < until
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        if ended.is_err() {
            thread::park_timeout(PAUSE);
        }
    }
    Ok(events)
}

/// Adds what one message brought.
fn take(events: &mut Events, last: &mut i64, answer: pb::WatchResponse) -> Result<(), String> {
    if answer.compact_revision != 0 {
        return Err(format!("compacted at {}", answer.compact_revision));
    }
    let before = *last;
    for event in answer.events {
        let kv = event.kv.unwrap_or_default();
        let revision = kv.mod_revision;
        if revision <= before || revision < *last {
            return Err(format!("revision {revision} is sent behind {last}"));
        }
        *last = revision;
        let event = (text(&kv.key), text(&kv.value));
        if let Some(other) = events.insert(revision, event.clone()) {
            return Err(format!("revision {revision} is {other:?} and {event:?}"));
        }
    }
    Ok(())
}
