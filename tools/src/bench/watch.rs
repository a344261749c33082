//! Watchers of the prefix, and what they see: each event's age, and whether each watcher saw every acknowledged write.
//! Nothing is decoded but where an event ends and the time that its value begins with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_server::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::args::{LoadArgs, STAMP_BYTES};
use super::client::{Method, Stream, Target, framed};
use super::keys::KeyText;
use super::recorded::{RoundClock, Shelf, nanos};
use super::wire::{Field, Frames, bytes_of, fields};
use crate::failure::Failure;

/// How often to look whether all events have come.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Fields of etcd's messages.
const CREATED: u64 = 3;
const CANCELED: u64 = 4;
const EVENTS: u64 = 11;
const EVENT_KV: u64 = 2;
const KV_VALUE: u64 = 5;

struct Watcher {
    stream: Stream,
    frames: Frames,
}

impl Watcher {
    async fn open(stream: Stream) -> Result<Self, Status> {
        let frames = Frames::default();
        let mut watcher = Self { stream, frames };
        loop {
            let Some(data) = watcher.stream.data().await? else {
                return Err(Status::unavailable("the watch ended before it began"));
            };
            watcher.frames.push(data);
            while let Some(message) = watcher.frames.next() {
                check(&message)?;
                if fields(&message).any(|one| one == (CREATED, Field::Number(1))) {
                    return Ok(watcher);
                }
            }
        }
    }

    /// Takes events until the stream ends.
    async fn run(mut self, clock: &RoundClock, shelf: &Shelf, count: &AtomicU64) -> Status {
        loop {
            let data = match self.stream.data().await {
                Ok(Some(data)) => data,
                Ok(None) => return Status::unavailable("the watch ended"),
                Err(status) => return status,
            };
            let now = Instant::now();
            let bytes = data.len();
            self.frames.push(data);
            while let Some(message) = self.frames.next() {
                if let Err(status) = check(&message) {
                    return status;
                }
                let events = take_events(&message, clock, shelf, now);
                count.fetch_add(events, Ordering::Relaxed);
            }
            clock.event(now);
            shelf.events(std::iter::empty(), bytes);
        }
    }
}

fn check(message: &[u8]) -> Result<(), Status> {
    if fields(message).any(|one| one == (CANCELED, Field::Number(1))) {
        return Err(Status::cancelled("the server cancelled the watch"));
    }
    Ok(())
}

/// Counts a message's events, and records the age of those that count.
fn take_events(message: &[u8], clock: &RoundClock, shelf: &Shelf, now: Instant) -> u64 {
    let warm_up = nanos(clock.measured_from - clock.start);
    let now = nanos(now - clock.start);
    let mut events = 0;
    let ages = fields(message).filter_map(|(number, field)| {
        let (EVENTS, Field::Bytes(event)) = (number, field) else {
            return None;
        };
        events += 1;
        let value = bytes_of(event, EVENT_KV).and_then(|kv| bytes_of(kv, KV_VALUE))?;
        let stamp = u64::from_le_bytes(*value.first_chunk::<STAMP_BYTES>()?);
        (stamp >= warm_up).then(|| now.saturating_sub(stamp))
    });
    shelf.events(ages, 0);
    events
}

/// One thread's watchers.
#[derive(Default)]
pub(super) struct Watchers(Vec<Watcher>);

impl Watchers {
    /// Opens them, and waits until the server says that all are there.
    pub(super) async fn open(
        args: &LoadArgs,
        target: &Target,
        count: usize,
        conns: usize,
    ) -> Result<Self, Failure> {
        let text = KeyText::new(args);
        let create = WatchCreateRequest {
            key: text.begin(),
            range_end: text.end(),
            ..WatchCreateRequest::default()
        };
        let request = framed(&WatchRequest {
            request_union: Some(watch_request::RequestUnion::CreateRequest(create)),
        });
        let conns = target.connect(conns.clamp(1, count.max(1))).await?;
        let mut watchers = Vec::with_capacity(count);
        for connection in conns.iter().cycle().take(count) {
            let opening = async {
                let stream = connection.stream(Method::Watch, request.clone()).await?;
                Watcher::open(stream).await
            };
            let late = |_| {
                Err(Status::deadline_exceeded(
                    "the server did not begin it in time",
                ))
            };
            let opened = timeout(args.timeout, opening).await.unwrap_or_else(late);
            let opened = opened.map_err(|status| {
                let doing = format!("watching at {}", target.name);
                Failure::failed(doing, status.message())
            })?;
            watchers.push(opened);
        }
        Ok(Self(watchers))
    }

    /// Lets them take events, each in a task of its own.
    pub(super) fn run(self, clock: &Arc<RoundClock>, shelf: &Shelf) -> Running {
        let mut tasks = JoinSet::new();
        let mut counts = Vec::with_capacity(self.0.len());
        for watcher in self.0 {
            let count = Arc::new(AtomicU64::new(0));
            counts.push(count.clone());
            let (clock, shelf) = (clock.clone(), shelf.clone());
            tasks.spawn(async move {
                let status = watcher.run(&clock, &shelf, &count).await;
                shelf.failed(&status);
            });
        }
        Running { tasks, counts }
    }
}

/// Watchers that take events.
pub(super) struct Running {
    tasks: JoinSet<()>,
    counts: Vec<Arc<AtomicU64>>,
}

impl Running {
    /// Waits until each has seen as many events as were acknowledged, or none comes for as long as a request may take.
    /// Returns how many are missing.
    pub(super) async fn drain(mut self, acknowledged: u64, patience: Duration) -> u64 {
        let seen = |counts: &[Arc<AtomicU64>]| -> (u64, u64) {
            counts.iter().fold((0, 0), |(sum, missing), count| {
                let count = count.load(Ordering::Relaxed);
                (sum + count, missing + acknowledged.saturating_sub(count))
            })
        };
        let mut before = (seen(&self.counts).0, Instant::now());
        loop {
            let (sum, missing) = seen(&self.counts);
            if sum > before.0 {
                before = (sum, Instant::now());
            }
            let is_late = before.1.elapsed() > patience || self.tasks.is_empty();
            if missing == 0 || is_late {
                return missing;
            }
            while self.tasks.try_join_next().is_some() {}
            sleep(LOOK_EVERY).await;
        }
    }
}
