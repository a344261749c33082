//! Sends requests and takes the time. Threads with a runtime each, connections spread over the threads, clients over
//! the connections: nothing moves between threads while a round runs.
//!
//! A closed loop keeps `--clients` requests in flight. An open loop follows a schedule that is fixed before the round:
//! a pacing thread hands out due times, and a request's latency counts from its due time, so a server that stalls is
//! charged for every request that should have been sent meanwhile (no coordinated omission).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kv_server::pb::etcdserverpb::kv_client::KvClient;
use multiraft::tls;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::BenchArgs;
use super::workload::{Op, Shared, Source};
use crate::failure::{Failure, chain};
use crate::user::{Caller, User, log_in};

/// Puts per transaction while filling; below etcd's default limit of 128 operations.
const FILL_BATCH: u64 = 100;
/// The pacing thread never sleeps for less: waking it costs CPU that the server needs.
const PACE_MIN: Duration = Duration::from_micros(100);
/// Latencies are kept between one microsecond and ten minutes, with three digits.
const LATENCY_NS_MIN: u64 = 1_000;
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// What an answer may be at most: a range of large values exceeds tonic's default of 4 MiB.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// What one thread saw; merged over threads at the end of a round.
pub(super) struct Recorded {
    /// From due time (open loop) or send time (closed loop) to the answer, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// Open loop: from due time to sending, in nanoseconds. What of the latency is the client's.
    pub(super) send_lag: Histogram<u64>,
    /// Failed requests by gRPC code.
    pub(super) errors: BTreeMap<String, u64>,
    /// Open loop: requests that were due while `--max-inflight` were outstanding, and never sent.
    pub(super) overflow: u64,
    /// The longest time without any acknowledgement, over all clients.
    pub(super) gap_max: Duration,
    /// First send to last answer.
    pub(super) elapsed: Duration,
    /// Open loop: what `--rate` asked for.
    pub(super) rate: Option<u64>,
}

impl Recorded {
    fn new(rate: Option<u64>) -> Self {
        // Fixed bounds: a histogram that grows by itself would clamp what is recorded with saturation.
        let histogram = || {
            Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, 3)
                .expect("the bounds are constants that fit three digits")
        };
        Self {
            latency: histogram(),
            send_lag: histogram(),
            errors: BTreeMap::new(),
            overflow: 0,
            gap_max: Duration::ZERO,
            elapsed: Duration::ZERO,
            rate,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.latency += &other.latency;
        self.send_lag += &other.send_lag;
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
        self.overflow += other.overflow;
        self.gap_max = self.gap_max.max(other.gap_max);
    }
}

/// What the threads of a round share while it runs.
struct RoundClock {
    start: Instant,
    /// Requests that may still be sent; only counts with `--total`.
    left: AtomicU64,
    deadline: Option<Instant>,
    /// When the newest acknowledgement of any client came, in nanoseconds since `start`.
    last_ack_ns: AtomicU64,
}

impl RoundClock {
    fn new(args: &BenchArgs) -> Self {
        let start = Instant::now();
        Self {
            start,
            left: AtomicU64::new(args.total.unwrap_or(u64::MAX)),
            deadline: args.total.is_none().then(|| start + args.duration),
            last_ack_ns: AtomicU64::new(0),
        }
    }

    /// Whether one more request may be sent at `now`; takes it from the total.
    fn take(&self, now: Instant) -> bool {
        match self.deadline {
            Some(deadline) => now < deadline,
            None => self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok(),
        }
    }

    /// Notes an acknowledgement; the time since the one before it, of any client.
    fn ack(&self, now: Instant) -> Duration {
        let now_ns = nanos(now - self.start);
        let before = self.last_ack_ns.fetch_max(now_ns, Ordering::Relaxed);
        Duration::from_nanos(now_ns.saturating_sub(before))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A task's view of its thread: never contended, because each thread has its own.
type Shelf = Arc<Mutex<Recorded>>;

fn record(shelf: &Shelf, clock: &RoundClock, from: Instant, result: Result<(), Status>) {
    let now = Instant::now();
    let mut recorded = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    match result {
        Ok(()) => {
            recorded.latency.saturating_record(nanos(now - from));
            recorded.gap_max = recorded.gap_max.max(clock.ack(now));
        }
        Err(status) => {
            *recorded
                .errors
                .entry(format!("{:?}", status.code()))
                .or_default() += 1;
        }
    }
}

async fn send(client: &mut KvClient<Caller>, op: Op) -> Result<(), Status> {
    match op {
        Op::Put(put) => client.put(Request::new(put)).await.map(drop),
        Op::Range(range) => client.range(Request::new(range)).await.map(drop),
        Op::Txn(txn) => client.txn(Request::new(txn)).await.map(drop),
    }
}

async fn connect(
    args: &BenchArgs,
    endpoint: &str,
    count: usize,
    user: Option<&User>,
) -> Result<Vec<KvClient<Caller>>, Failure> {
    let url = if endpoint.contains("://") {
        endpoint.to_owned()
    } else {
        format!("http://{endpoint}")
    };
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(|error| Failure::Usage(format!("endpoint {url:?}: {error}")))?
        .connect_timeout(Duration::from_secs(5))
        .timeout(args.timeout)
        .tcp_nodelay(true);
    let tls = args.tls.open([&url])?;
    let mut clients = Vec::with_capacity(count);
    let mut token = None;
    for _ in 0..count {
        let channel = tls::connect(&endpoint, tls.as_ref())
            .await
            .map_err(|error| {
                Failure::failed(
                    format!("connecting to {url} (is the server running?)"),
                    chain(&error),
                )
            })?;
        let token = match &token {
            Some(token) => token,
            None => {
                let logged_in = log_in(&channel, user).await.map_err(|status| {
                    Failure::failed(format!("logging in at {url}"), status.message())
                })?;
                token.insert(logged_in)
            }
        };
        let client = KvClient::with_interceptor(channel, token.clone());
        clients.push(client.max_decoding_message_size(ANSWER_BYTES_MAX));
    }
    Ok(clients)
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting a runtime", error))
}

/// Writes every key once, so that workloads that read find something.
pub(super) fn fill(args: &BenchArgs, endpoint: &str, user: Option<&User>) -> Result<(), Failure> {
    let shared = Shared::new(args, args.seed);
    let next = Arc::new(AtomicU64::new(0));
    runtime()?.block_on(async {
        let mut tasks = JoinSet::new();
        let clients = connect(args, endpoint, 4, user).await?;
        for (number, mut client) in clients.into_iter().enumerate() {
            let mut source = Source::new(args, shared.clone(), args.seed + number as u64);
            let (next, keys) = (next.clone(), args.key_space);
            tasks.spawn(async move {
                loop {
                    let from = next.fetch_add(FILL_BATCH, Ordering::Relaxed);
                    if from >= keys {
                        return Ok(());
                    }
                    client
                        .txn(source.fill(from, keys.min(from + FILL_BATCH)))
                        .await?;
                }
            });
        }
        while let Some(joined) = tasks.join_next().await {
            let result: Result<(), Status> = joined.expect("a filling task does not panic");
            result.map_err(|error| Failure::failed(format!("filling {endpoint}"), error))?;
        }
        Ok(())
    })
}

/// How many threads send: one per core, at most one per connection.
fn thread_count(args: &BenchArgs) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    args.threads
        .map_or(cores, |n| n as usize)
        .min(args.conns as usize)
}

/// The part of `total` that falls to one of `threads`.
fn share(total: u32, threads: usize, thread: usize) -> usize {
    let total = total as usize;
    total / threads + usize::from(thread < total % threads)
}

/// One round against one endpoint.
pub(super) fn run_round(
    args: &BenchArgs,
    endpoint: &str,
    seed: u64,
    user: Option<&User>,
) -> Result<Recorded, Failure> {
    let threads = thread_count(args);
    let shared = Shared::new(args, seed);
    // Threads connect, then all meet; the clock is made when everybody is there, and handed out at a second meeting.
    let barrier = Barrier::new(threads + 1);
    let clock: Mutex<Option<Arc<RoundClock>>> = Mutex::new(None);
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads)
        .map(|_| mpsc::unbounded_channel::<Instant>())
        .unzip();
    let outcome: Vec<Result<Recorded, Failure>> = thread::scope(|scope| {
        let mut handles = Vec::new();
        for (number, due) in receivers.into_iter().enumerate() {
            let source = Source::new(args, shared.clone(), seed ^ ((number as u64 + 1) << 32));
            let (barrier, clock) = (&barrier, &clock);
            let body = move || {
                let worker = Worker::connect(args, endpoint, user, (threads, number), source);
                barrier.wait();
                barrier.wait();
                let clock = clock.lock().unwrap_or_else(PoisonError::into_inner).clone();
                worker?.run(args, &clock.expect("set between the two meetings"), due)
            };
            let spawned = thread::Builder::new()
                .name(format!("bench-{number}"))
                .spawn_scoped(scope, body);
            handles.push(spawned.expect("a handful of threads can be started"));
        }
        barrier.wait();
        let round_clock = Arc::new(RoundClock::new(args));
        *clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(round_clock.clone());
        barrier.wait();
        if let Some(rate) = args.rate {
            pace(rate, &round_clock, &senders);
        }
        drop(senders);
        handles
            .into_iter()
            .map(|handle| handle.join().expect("a sending thread does not panic"))
            .collect()
    });
    let clock = clock.into_inner().unwrap_or_else(PoisonError::into_inner);
    let clock = clock.expect("the round ran");
    let mut all = Recorded::new(args.rate);
    for recorded in outcome {
        all.merge(&recorded?);
    }
    all.elapsed = clock.start.elapsed();
    if let Some(deadline) = clock.deadline {
        // A server that stopped answering before the end is charged for the rest of the round.
        let last = clock.start + Duration::from_nanos(clock.last_ack_ns.load(Ordering::Relaxed));
        all.gap_max = all.gap_max.max(deadline.saturating_duration_since(last));
    }
    Ok(all)
}

/// Hands out due times, in turn, until the round is over. Bursts after a late wake-up keep their own due times.
fn pace(rate: u64, clock: &RoundClock, senders: &[mpsc::UnboundedSender<Instant>]) {
    for number in 0u64.. {
        let offset = u128::from(number) * 1_000_000_000 / u128::from(rate);
        let due = clock.start + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX));
        if !clock.take(due) {
            return;
        }
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait.max(PACE_MIN));
        }
        // A thread that failed has dropped its receiver; its error is reported when it is joined.
        if senders[number as usize % senders.len()].send(due).is_err() {
            return;
        }
    }
}

/// One thread's runtime, connections and source of requests.
struct Worker {
    runtime: Runtime,
    clients: Vec<KvClient<Caller>>,
    source: Source,
    closed_clients: usize,
    inflight_max: usize,
}

impl Worker {
    fn connect(
        args: &BenchArgs,
        endpoint: &str,
        user: Option<&User>,
        (threads, number): (usize, usize),
        source: Source,
    ) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let conns = share(args.conns, threads, number);
        let clients = runtime.block_on(connect(args, endpoint, conns, user))?;
        Ok(Self {
            runtime,
            clients,
            source,
            closed_clients: share(args.clients, threads, number),
            inflight_max: share(args.max_inflight, threads, number).max(1),
        })
    }

    fn run(
        self,
        args: &BenchArgs,
        clock: &Arc<RoundClock>,
        due: mpsc::UnboundedReceiver<Instant>,
    ) -> Result<Recorded, Failure> {
        let shelf: Shelf = Arc::new(Mutex::new(Recorded::new(args.rate)));
        let Self {
            runtime,
            clients,
            source,
            closed_clients,
            inflight_max,
        } = self;
        runtime.block_on(async {
            if args.rate.is_some() {
                open_loop(clients, source, inflight_max, clock, &shelf, due).await;
            } else {
                closed_loop(&clients, source, closed_clients, clock, &shelf).await;
            }
        });
        drop(runtime); // ends the tasks that drive connections, and with them all other references
        let shelf = Arc::into_inner(shelf).expect("all tasks have ended");
        Ok(shelf.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn closed_loop(
    clients: &[KvClient<Caller>],
    source: Source,
    count: usize,
    clock: &Arc<RoundClock>,
    shelf: &Shelf,
) {
    let source = Arc::new(Mutex::new(source));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let mut client = clients[number % clients.len()].clone();
        let (source, clock, shelf) = (source.clone(), clock.clone(), shelf.clone());
        tasks.spawn(async move {
            loop {
                let now = Instant::now();
                if !clock.take(now) {
                    return;
                }
                let op = source.lock().unwrap_or_else(PoisonError::into_inner).next();
                let result = send(&mut client, op).await;
                record(&shelf, &clock, now, result);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn open_loop(
    clients: Vec<KvClient<Caller>>,
    mut source: Source,
    inflight_max: usize,
    clock: &Arc<RoundClock>,
    shelf: &Shelf,
    mut due: mpsc::UnboundedReceiver<Instant>,
) {
    let mut tasks = JoinSet::new();
    let mut turn = 0;
    while let Some(due) = due.recv().await {
        while tasks.try_join_next().is_some() {}
        {
            let mut recorded = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            if tasks.len() >= inflight_max {
                recorded.overflow += 1;
                continue;
            }
            recorded
                .send_lag
                .saturating_record(nanos(Instant::now() - due));
        }
        let mut client = clients[turn % clients.len()].clone();
        turn += 1;
        let (op, clock, shelf) = (source.next(), clock.clone(), shelf.clone());
        tasks.spawn(async move {
            let result = send(&mut client, op).await;
            record(&shelf, &clock, due, result);
        });
    }
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_latency_of_a_second_is_reported_within_its_digits() {
        let mut recorded = Recorded::new(None);
        recorded.latency.saturating_record(1_000_000_000);
        let mut merged = Recorded::new(None);
        merged.merge(&recorded);
        let p50 = merged.latency.value_at_quantile(0.5);
        assert!(p50.abs_diff(1_000_000_000) < 1_000_000, "recorded {p50} ns");
    }

    #[test]
    fn share_uneven_split_gives_all_of_it() {
        for (total, threads) in [(8, 2), (7, 2), (1, 2), (5, 3)] {
            let sum: usize = (0..threads)
                .map(|thread| share(total, threads, thread))
                .sum();
            assert_eq!(sum, total as usize);
        }
    }
}
