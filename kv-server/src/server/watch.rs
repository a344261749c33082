//! The Watch service: one feed per stream, driven by the task that sends the stream's answers.
//!
//! The client pulls: nothing is read from the log before the connection can take it. The applying thread wakes one relay
//! per RPC thread, which wakes the streams of that thread; so publishing costs the same with one stream and a thousand.
//! Walks through history run on the scan pool, a bounded number at a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use raft_log::NodeId;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Metrics;
use super::grpc::{caller_of, code_label};
use crate::ApiError;
use crate::api::{Replica, ScanPool};
use crate::auth::{Authenticator, Caller, Identity};
use crate::mvcc::{History, Store};
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::watch_server::Watch;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::pb::mvccpb::KeyValue;
use crate::watch::{Feed, FeedOptions, Lookup, Signal, Step, StoreState, WatchHub};

/// Looks for a leader in a row that find none before a stream that asked for one ends; one per election timeout.
const LEADERLESS_MAX: u32 = 3;
/// Requests taken from a stream before its answers get their turn.
const REQUESTS_PER_TURN: usize = 64;
/// Previous values looked up on the RPC thread; more are looked up on the scan pool.
const LOOKUPS_INLINE: usize = 8;
/// The pause after the scan pool was full: others use it as well.
const POOL_PAUSE: Duration = Duration::from_millis(10);
/// etcd's bound for the interval of progress reports.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// What does not change while the server runs.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// The cluster, for headers.
    pub cluster_id: u64,
    /// This member, for headers.
    pub member_id: u64,
    /// Time between reports to quiet watchers that asked for them; up to a tenth is added, which spreads them. Default
    /// 10 min, at least 100 ms.
    pub progress_interval: Duration,
    /// The election timeout; default 1 s.
    pub election: Duration,
    /// Bounds of each stream.
    pub feed: FeedOptions,
    /// Walks through history at a time, for all streams; at least 1, default 4. The scan pool must be able to queue as
    /// many.
    pub reads_max: usize,
}

impl WatchOptions {
    /// etcd's defaults.
    #[must_use]
    pub fn new(cluster_id: u64, member_id: u64) -> Self {
        Self {
            cluster_id,
            member_id,
            progress_interval: Duration::from_secs(600),
            election: Duration::from_secs(1),
            feed: FeedOptions::default(),
            reads_max: 4,
        }
    }
}

struct Shared {
    hub: Arc<WatchHub>,
    store: Arc<Store>,
    replica: Arc<dyn Replica>,
    scans: Arc<ScanPool>,
    reads: Arc<Semaphore>,
    options: WatchOptions,
    lanes: Mutex<Vec<(ThreadId, Weak<Lane>)>>,
    streams: AtomicU64,
    gauges: WatchGauges,
    handled: IntCounterVec,
    authenticator: Option<Arc<Authenticator>>,
}

/// The gRPC service; to be wrapped into a `WatchServer` and added to the services of the server.
pub struct WatchService(Arc<Shared>);

/// etcd's numbers about watches.
#[derive(Clone)]
pub(super) struct WatchGauges {
    pub(super) watchers: IntGauge,
    pub(super) streams: IntGauge,
    pub(super) events: IntCounter,
}

impl WatchService {
    /// Serves what `store` holds and `hub` is told. `scans` walks through history; `replica` knows term and leader.
    #[must_use]
    pub fn new(
        hub: Arc<WatchHub>,
        store: Arc<Store>,
        replica: Arc<dyn Replica>,
        scans: Arc<ScanPool>,
        metrics: &Metrics,
        options: WatchOptions,
    ) -> Self {
        assert!(options.reads_max > 0, "nobody could catch up");
        hub.start(store.revision());
        Self(Arc::new(Shared {
            hub,
            store,
            replica,
            scans,
            reads: Arc::new(Semaphore::new(options.reads_max)),
            options,
            lanes: Mutex::new(Vec::new()),
            streams: AtomicU64::new(0),
            gauges: metrics.watch.clone(),
            handled: metrics.handled.clone(),
            authenticator: None,
        }))
    }

    /// Says who knows users; without it everybody is nobody. To be called before it serves.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Arc<Authenticator>) -> Self {
        let shared = Arc::get_mut(&mut self.0).expect("nobody else has it yet");
        shared.authenticator = Some(authenticator);
        self
    }
}

impl Shared {
    fn is_learner(&self) -> bool {
        let me = NodeId(self.options.member_id);
        let joins = || self.store.member(me).is_some_and(|row| row.joins_as_voter);
        self.replica.learns() && !joins()
    }

    fn has_leader(&self) -> bool {
        self.replica.status().leader.is_some()
    }

    /// Whoever has wrong data tells nobody of it.
    fn is_corrupt(&self) -> bool {
        self.store.is_corrupt(self.options.member_id)
    }

    /// Waits until this member knows who calls, if anybody can.
    async fn catch_up(&self, caller: &Caller) {
        if !self.store.auth_enabled() {
            return;
        }
        if let Some(authenticator) = &self.authenticator {
            let applied = || self.replica.status().applied.0;
            let patience = self.options.election * 2;
            authenticator
                .catch_up(caller, &self.store.auth(), applied, patience)
                .await;
        }
    }

    /// Whose watcher that is to be; refuses who may not read all of its range.
    fn judge(
        &self,
        caller: &Caller,
        create: &WatchCreateRequest,
    ) -> Result<Option<Arc<str>>, ApiError> {
        if !self.store.auth_enabled() {
            return Ok(None);
        }
        let state = self.store.auth();
        let who = match &self.authenticator {
            Some(authenticator) => authenticator.identify_now(caller, &state)?,
            None => None,
        };
        // As the watcher will read them: no key is the smallest one.
        let key = match create.key.as_ref() {
            [] => b"\0",
            key => key,
        };
        state.check_read(who.as_ref(), key, &create.range_end)?;
        Ok(who.map(|who| who.user))
    }

    /// Ends the watchers that users and roles do not allow any more.
    fn judge_again(&self, feed: &mut Feed) {
        let state = self.store.auth();
        feed.end_unless(|user, key, range_end| {
            let who = user.map(|user| Identity {
                user: Arc::clone(user),
                revision: state.revision(),
            });
            let judged = state.check_read(who.as_ref(), key, range_end);
            judged.map_err(|error| in_full(&error))
        });
    }

    fn count(&self, code: Code) {
        let code = code_label(code);
        let labels = ["bidi_stream", "etcdserverpb.Watch", "Watch", &code];
        self.handled.with_label_values(&labels).inc();
    }

    /// The interval with a jitter of up to a tenth, drawn from the stream's number.
    fn progress_interval(&self, stream: u64) -> Duration {
        let interval = self.options.progress_interval.max(PROGRESS_INTERVAL_MIN);
        let mixed = (stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let jitter = (interval.as_nanos() / 10 * u128::from(mixed)) >> 32;
        interval + Duration::from_nanos(u64::try_from(jitter).unwrap_or(0))
    }

    /// The lane of this thread.
    fn lane(self: &Arc<Self>) -> Arc<Lane> {
        let thread = std::thread::current().id();
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|(_, lane)| lane.strong_count() > 0);
        let mine = lanes.iter().find(|(other, _)| *other == thread);
        if let Some(lane) = mine.and_then(|(_, lane)| lane.upgrade()) {
            return lane;
        }
        let lane = Arc::new(Lane::default());
        lanes.push((thread, Arc::downgrade(&lane)));
        // Subscribed here: what is published before the task first runs would else wake nobody.
        let signal = self.hub.subscribe();
        tokio::spawn(relay(Arc::clone(self), Arc::downgrade(&lane), signal));
        lane
    }
}

/// The streams of one RPC thread.
#[derive(Default)]
struct Lane {
    wakers: Mutex<BTreeMap<u64, Waker>>,
    leaderless: AtomicBool,
}

impl Lane {
    fn wakers(&self) -> MutexGuard<'_, BTreeMap<u64, Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.wakers());
        wakers.into_values().for_each(Waker::wake);
    }
}

/// Passes the hub's wake-up on to the streams of a thread, and looks for the leader on their behalf. Ends with the last
/// of them.
async fn relay(shared: Arc<Shared>, lane: Weak<Lane>, mut signal: watch::Receiver<Signal>) {
    let mut looks: Interval = interval(shared.options.election);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leaderless = 0;
    loop {
        let look = tokio::select! {
            changed = signal.changed() => {
                changed.expect("this task holds the hub");
                false
            }
            _ = looks.tick() => true,
        };
        let Some(lane) = lane.upgrade() else { return };
        if look {
            leaderless = if shared.has_leader() {
                0
            } else {
                leaderless + 1
            };
            lane.leaderless
                .store(leaderless >= LEADERLESS_MAX, Ordering::Release);
        }
        if !look || leaderless >= LEADERLESS_MAX {
            lane.wake_all();
        }
    }
}

type Job<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send>>;

/// The answers of one stream.
pub struct Answers {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    number: u64,
    feed: Feed,
    /// None once the client said that it asks no more; its watchers go on.
    requests: Option<Streaming<WatchRequest>>,
    caller: Caller,
    /// The users and roles by which the watchers were judged.
    judged: u64,
    needs_leader: bool,
    report: Pin<Box<Sleep>>,
    report_every: Duration,
    read: Option<Job<History>>,
    lookup: Option<Job<Vec<Option<KeyValue>>>>,
    /// Watchers as counted in the gauge.
    counted: i64,
    ended: bool,
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Answers;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let shared = Arc::clone(&self.0);
        let wanted = request.metadata().get("hasleader");
        let needs_leader = wanted.is_some_and(|value| value == "true");
        let refused = if shared.hub.is_closed() {
            Some(ApiError::Stopped)
        } else if shared.is_corrupt() {
            Some(ApiError::Corrupt)
        } else if shared.is_learner() {
            Some(ApiError::NotSupportedForLearner)
        } else if needs_leader && !shared.has_leader() {
            Some(ApiError::NoLeader)
        } else {
            None
        };
        if let Some(error) = refused {
            shared.count(error.code());
            return Err(error.into());
        }
        let caller = caller_of(&request);
        shared.catch_up(&caller).await;
        let number = shared.streams.fetch_add(1, Ordering::Relaxed);
        let report_every = shared.progress_interval(number);
        shared.gauges.streams.inc();
        Ok(Response::new(Answers {
            lane: shared.lane(),
            number,
            feed: Feed::new(Arc::clone(&shared.hub), shared.options.feed),
            requests: Some(request.into_inner()),
            caller,
            judged: shared.store.auth_changes(),
            needs_leader,
            report: Box::pin(sleep(report_every)),
            report_every,
            read: None,
            lookup: None,
            counted: 0,
            ended: false,
            shared,
        }))
    }
}

impl Answers {
    /// Takes requests as long as their answers find room. Returns false when there may be more of them.
    fn take_requests(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(requests) = self.requests.as_mut().filter(|_| self.feed.accepts()) else {
                return Ok(true);
            };
            match Pin::new(requests).poll_next(context) {
                Poll::Pending => return Ok(true),
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(Some(Ok(request))) => {
                    let store = StoreState {
                        revision: self.shared.store.revision(),
                        compact: self.shared.store.compact_revision(),
                    };
                    let judged = match &request.request_union {
                        Some(RequestUnion::CreateRequest(create)) => {
                            self.shared.judge(&self.caller, create)
                        }
                        _ => Ok(None),
                    };
                    match judged {
                        Ok(user) => self.feed.request_of(user, request, store),
                        Err(error) => self.feed.refuse(in_full(&error)),
                    }
                }
            }
        }
        Ok(false)
    }

    /// Lets time pass and takes the results of reads.
    fn take_results(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while self.report.as_mut().poll(context).is_ready() {
            let next = Instant::now() + self.report_every;
            self.report.as_mut().reset(next);
            self.feed.tick();
        }
        if let Some(read) = &mut self.read
            && let Poll::Ready(result) = read.as_mut().poll(context)
        {
            self.read = None;
            let floor = self.shared.store.compact_revision();
            self.feed.history(result, floor);
        }
        if let Some(lookup) = &mut self.lookup
            && let Poll::Ready(result) = lookup.as_mut().poll(context)
        {
            self.lookup = None;
            self.feed.found(result?);
        }
        Ok(())
    }

    fn start_read(&mut self, from: i64) {
        let shared = Arc::clone(&self.shared);
        self.read = Some(Box::pin(async move {
            let bytes_max = shared.options.feed.chunk_bytes_max;
            let store = Arc::clone(&shared.store);
            in_pool(&shared, move || store.history(from, bytes_max)).await
        }));
    }

    fn start_lookup(&mut self, lookups: Vec<Lookup>) -> Result<(), Status> {
        if lookups.len() <= LOOKUPS_INLINE {
            self.feed.found(look_up(&self.shared.store, &lookups)?);
            return Ok(());
        }
        let (shared, lookups) = (Arc::clone(&self.shared), Arc::new(lookups));
        self.lookup = Some(Box::pin(async move {
            let store = Arc::clone(&shared.store);
            in_pool(&shared, move || look_up(&store, &lookups)).await
        }));
        Ok(())
    }

    fn next(&mut self, context: &mut Context<'_>) -> Result<Poll<WatchResponse>, Status> {
        // Before the look at the hub, so that a publication after it is not missed.
        self.lane
            .wakers()
            .insert(self.number, context.waker().clone());
        loop {
            if self.shared.hub.is_closed() {
                return Err(ApiError::Stopped.into());
            }
            if self.needs_leader && self.lane.leaderless.load(Ordering::Acquire) {
                return Err(ApiError::NoLeader.into());
            }
            let drained = self.take_requests(context)?;
            self.take_results(context)?;
            // Looked at after the hub's last news: what was published before a change may still be sent after it, what
            // came behind it is not.
            let changes = self.shared.store.auth_changes();
            if self.judged != changes {
                self.judged = changes;
                self.shared.judge_again(&mut self.feed);
            }
            match self.feed.step() {
                Step::Send(response) => return Ok(Poll::Ready(response)),
                Step::Read(from) => self.start_read(from),
                Step::Lookup(lookups) => self.start_lookup(lookups)?,
                Step::Fail(error) => return Err(error.into()),
                Step::Idle => {
                    if !drained {
                        context.waker().wake_by_ref();
                    }
                    return Ok(Poll::Pending);
                }
            }
        }
    }

    fn complete(&self, mut response: WatchResponse) -> WatchResponse {
        let header = response.header.get_or_insert_default();
        header.cluster_id = self.shared.options.cluster_id;
        header.member_id = self.shared.options.member_id;
        header.raft_term = self.shared.replica.term();
        self.shared
            .gauges
            .events
            .inc_by(response.events.len() as u64);
        response
    }

    fn count_watchers(&mut self) {
        let watchers = i64::try_from(self.feed.watchers()).unwrap_or(i64::MAX);
        if watchers != self.counted {
            self.shared.gauges.watchers.add(watchers - self.counted);
            self.counted = watchers;
        }
    }
}

impl Stream for Answers {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = if self.shared.is_corrupt() {
            Err(ApiError::Corrupt.into())
        } else {
            self.next(context)
        };
        self.count_watchers();
        match next {
            Ok(poll) => poll.map(|response| Some(Ok(self.complete(response)))),
            Err(status) => {
                self.ended = true;
                self.shared.count(status.code());
                Poll::Ready(Some(Err(status)))
            }
        }
    }
}

impl Drop for Answers {
    /// The stream is over: its watchers go with it.
    fn drop(&mut self) {
        self.lane.wakers().remove(&self.number);
        if !self.ended {
            self.shared.count(Code::Cancelled);
        }
        self.shared.gauges.watchers.sub(self.counted);
        self.shared.gauges.streams.dec();
    }
}

/// An error as a reason, in the words in which Go's gRPC shows a status: clients know it by them.
fn in_full(error: &ApiError) -> String {
    format!(
        "rpc error: code = {} desc = {error}",
        code_label(error.code())
    )
}

fn look_up(store: &Store, lookups: &[Lookup]) -> Result<Vec<Option<KeyValue>>, ApiError> {
    let before = |lookup: &Lookup| store.kv_before(&lookup.key, lookup.mod_revision);
    lookups.iter().map(before).collect()
}

/// Runs a read on the scan pool when its turn comes.
async fn in_pool<T: Send + 'static>(
    shared: &Shared,
    read: impl FnOnce() -> Result<T, ApiError> + Clone + Send + 'static,
) -> Result<T, ApiError> {
    let _turn = shared.reads.acquire().await;
    loop {
        match shared.scans.run(read.clone()).await {
            Err(ApiError::TooManyRequests) => sleep(POOL_PAUSE).await,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;
    use crate::api::testing::{FakeReplica, fake_api};
    use crate::watch::testing::Keyspace;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// The first stream of a thread starts the relay, and may look at the hub before the relay runs for the first time.
    /// What was published between the two used to wake the stream with the next publication only.
    #[tokio::test]
    async fn publication_before_the_relay_runs_wakes_the_stream() {
        let keyspace = Keyspace::new(WatchHub::new());
        let (_api, state) = fake_api();
        let service = WatchService::new(
            keyspace.hub.clone(),
            keyspace.store.clone(),
            Arc::new(FakeReplica(state)),
            Arc::new(ScanPool::start(1, 4).unwrap()),
            &Metrics::new(),
            WatchOptions::new(5, 7),
        );
        let woken = Arc::new(Woken::default());
        let lane = service.0.lane();
        lane.wakers().insert(0, Waker::from(Arc::clone(&woken)));
        keyspace.put("a", "1");
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        assert!(woken.0.load(Ordering::SeqCst));
    }
}
