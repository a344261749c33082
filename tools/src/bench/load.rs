//! Sends requests and takes the time. Threads with a runtime each, connections spread over the threads, clients over
//! the connections: nothing moves between threads while a round runs.
//!
//! A closed loop keeps `--clients` requests in flight. An open loop follows a schedule that is fixed before the round:
//! a pacing thread hands out due times, and a request's latency counts from its due time, so a server that stalls is
//! charged for every request that should have been sent meanwhile (no coordinated omission).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_server::pb::etcdserverpb::kv_client::KvClient;
use kv_server::pb::etcdserverpb::{CompactionRequest, PutResponse, TxnResponse};
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::args::{Kind, LoadArgs};
use super::client::{Connection, Method, Target};
use super::collect::{Recorded, Sinks, collect};
use super::ledger::Ledger;
use super::recorded::{RoundClock, Shelf, nanos};
use super::watch::Watchers;
use super::workload::{Op, Shared, Source};
use crate::failure::Failure;

/// Puts per transaction while filling: below etcd's default limits of 128 operations and 1.5 MiB.
const FILL_KEYS: u64 = 100;
const FILL_BYTES: u64 = 1 << 20;
/// The pacing thread never sleeps for less: waking it costs CPU that the server needs.
const PACE_MIN: Duration = Duration::from_micros(100);
/// How often to look whether other threads are done.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(super) fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting a runtime", error))
}

/// What the tasks of a round share.
struct Round {
    clock: Arc<RoundClock>,
    ledger: Arc<Ledger>,
    shared: Arc<Shared>,
    timeout: Duration,
    /// Writes that were acknowledged before it.
    acknowledged_before: u64,
    /// Threads that still send.
    sending: AtomicUsize,
}

impl Round {
    /// Sends a request that was due at `from`, and records what comes of it.
    async fn perform(&self, connection: &Connection, op: Op, shelf: &Shelf, from: Instant) {
        let method = op.method;
        let calling = connection.call(method, op.message, op.write.is_some());
        let late = |_| Err(Status::deadline_exceeded("no answer in time"));
        let answer = timeout(self.timeout, calling).await.unwrap_or_else(late);
        let result = answer.and_then(|answer| {
            if let Some(write) = op.write
                && let Some(revision) = revision(method, answer.message)?
            {
                self.ledger.note(write, revision);
            }
            if let Some(id) = op.grants {
                self.shared.granted(id);
            }
            Ok(answer.bytes)
        });
        shelf.answered(
            &self.clock,
            method,
            from,
            result.as_ref().map(|bytes| *bytes),
        );
    }

    /// What a watcher of a request that is due at `from` is told.
    fn stamp(&self, from: Instant) -> u64 {
        nanos(from.saturating_duration_since(self.clock.start))
    }
}

/// The revision at which a write was done, from its answer; none if the transaction did not write.
fn revision(method: Method, message: Bytes) -> Result<Option<i64>, Status> {
    let wrong = |error| Status::internal(format!("an answer that is none: {error}"));
    let (header, wrote) = if method == Method::Txn {
        let answer = TxnResponse::decode(message).map_err(wrong)?;
        (answer.header, answer.succeeded)
    } else {
        (PutResponse::decode(message).map_err(wrong)?.header, true)
    };
    let header = header.ok_or_else(|| Status::internal("an answer without a header"))?;
    Ok(wrote.then_some(header.revision))
}

/// Writes every key once, so that workloads that read find something.
pub(super) fn fill(args: &LoadArgs, target: &Target, ledger: &Arc<Ledger>) -> Result<(), Failure> {
    let shared = Shared::new(args, args.seed);
    let next = Arc::new(AtomicU64::new(0));
    let batch = (FILL_BYTES / (args.val_size + args.key_size).max(1) as u64).clamp(1, FILL_KEYS);
    runtime()?.block_on(async {
        let mut tasks = JoinSet::new();
        for (number, connection) in target.connect(4).await?.into_iter().enumerate() {
            let mut source = Source::new(args, shared.clone(), args.seed + number as u64);
            let (next, keys, ledger) = (next.clone(), args.key_space, ledger.clone());
            tasks.spawn(async move {
                loop {
                    let from = next.fetch_add(batch, Ordering::Relaxed);
                    if from >= keys {
                        return Ok(());
                    }
                    let (message, writes) = source.fill(from, keys.min(from + batch));
                    let answer = connection.call(Method::Txn, message, true).await?;
                    let revision = revision(Method::Txn, answer.message)?;
                    let revision = revision.ok_or_else(|| {
                        Status::internal("a transaction without a condition failed")
                    })?;
                    for write in writes {
                        ledger.note(write, revision);
                    }
                }
            });
        }
        while let Some(joined) = tasks.join_next().await {
            let result: Result<(), Status> = joined.expect("a filling task does not panic");
            result.map_err(|status| {
                let doing = format!("filling {}", target.name);
                Failure::failed(doing, format!("{:?}: {}", status.code(), status.message()))
            })?;
        }
        Ok(())
    })
}

/// How many threads send: one per core, at most one per connection.
fn thread_count(args: &LoadArgs) -> usize {
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

/// One round against one server.
pub(super) fn run_round(
    args: &LoadArgs,
    target: &Target,
    ledger: &Arc<Ledger>,
    seed: u64,
    sinks: &mut Sinks<'_>,
) -> Result<Recorded, Failure> {
    let threads = thread_count(args);
    let shared = Shared::new(args, seed);
    // One for each thread, and one for what cannot be sent.
    let shelves: Vec<Shelf> = (0..=threads).map(|_| Shelf::default()).collect();
    // Threads connect, then all meet; the clock is made when everybody is there, and handed out at a second meeting.
    let barrier = Barrier::new(threads + 1);
    let meeting: OnceLock<Arc<Round>> = OnceLock::new();
    let per_thread = (args.max_inflight as usize).div_ceil(threads);
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads)
        .map(|_| mpsc::channel::<Instant>(per_thread))
        .unzip();
    thread::scope(|scope| {
        let mut handles = Vec::new();
        for (number, due) in receivers.into_iter().enumerate() {
            let source = Source::new(args, shared.clone(), seed ^ ((number as u64 + 1) << 32));
            let (barrier, meeting, shelf) = (&barrier, &meeting, shelves[number].clone());
            let body = move || {
                let worker = Worker::connect(args, target, (threads, number), source);
                barrier.wait();
                barrier.wait();
                let round = meeting.get().expect("set between the two meetings");
                let result = worker.and_then(|worker| worker.run(args, round, &shelf, due));
                if result.is_err() {
                    round.sending.fetch_sub(1, Ordering::AcqRel);
                }
                result
            };
            let spawned = thread::Builder::new()
                .name(format!("bench-{number}"))
                .spawn_scoped(scope, body);
            handles.push(spawned.expect("a handful of threads can be started"));
        }
        barrier.wait();
        let round = Arc::new(Round {
            clock: Arc::new(RoundClock::new(args)),
            ledger: ledger.clone(),
            shared: shared.clone(),
            timeout: args.timeout,
            acknowledged_before: ledger.acknowledged(),
            sending: AtomicUsize::new(threads),
        });
        let clock = round.clock.clone();
        assert!(meeting.set(round).is_ok(), "nobody else sets it");
        barrier.wait();
        let (ends, ended) = std::sync::mpsc::channel::<()>();
        let collector = thread::Builder::new()
            .name("bench-collect".to_owned())
            .spawn_scoped(scope, {
                let (clock, shelves) = (clock.clone(), &shelves);
                move || collect(&clock, shelves, &ended, sinks)
            })
            .expect("a handful of threads can be started");
        if let Some(rate) = args.rate {
            pace(rate, &clock, &senders, &shelves[threads]);
        }
        drop(senders);
        let outcome: Vec<Result<u64, Failure>> = handles
            .into_iter()
            .map(|handle| handle.join().expect("a sending thread does not panic"))
            .collect();
        drop(ends);
        let recorded = collector.join().expect("the collector does not panic");
        let missing = outcome.into_iter().sum::<Result<u64, Failure>>()?;
        let mut recorded = recorded?;
        recorded.missing_events = missing;
        recorded.rate = args.rate;
        let mut end = clock.last_ack();
        if let Some(deadline) = clock.deadline {
            // A server that stopped answering before the end is charged for the rest of the round.
            let gap = deadline.saturating_duration_since(end);
            recorded.seen.gap_max = recorded.seen.gap_max.max(gap);
            end = end.max(deadline);
        }
        recorded.elapsed = end - clock.measured_from;
        Ok(recorded)
    })
}

/// Hands out due times, in turn, until the round is over. Bursts after a late wake-up keep their own due times.
fn pace(rate: u64, clock: &RoundClock, senders: &[mpsc::Sender<Instant>], shelf: &Shelf) {
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
        match senders[number as usize % senders.len()].try_send(due) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => shelf.overflowed(clock, due),
            // A thread that failed has dropped its receiver; its error is reported when it is joined.
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

/// One thread's runtime, connections and source of requests.
struct Worker {
    runtime: Runtime,
    connections: Vec<Connection>,
    watchers: Watchers,
    source: Source,
    closed_clients: usize,
    inflight_max: usize,
    /// Where it compacts, if it is the one who does.
    compacts: Option<(KvClient<crate::user::Caller>, Duration)>,
}

impl Worker {
    fn connect(
        args: &LoadArgs,
        target: &Target,
        (threads, number): (usize, usize),
        source: Source,
    ) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let part = |total| share(total, threads, number);
        let (connections, watchers, compacts) = runtime.block_on(async {
            let connections = target.connect(part(args.conns)).await?;
            let watchers = if args.kind == Kind::Watch {
                let conns = part(args.watch_conns);
                Watchers::open(args, target, part(args.watchers), conns).await?
            } else {
                Watchers::default()
            };
            let compacts = match args.compact_every {
                Some(every) if number == 0 => {
                    let (channel, token) = target.channel().await?;
                    Some((KvClient::with_interceptor(channel, token), every))
                }
                _ => None,
            };
            Ok((connections, watchers, compacts))
        })?;
        Ok(Self {
            runtime,
            connections,
            watchers,
            source,
            closed_clients: part(args.clients),
            inflight_max: part(args.max_inflight).max(1),
            compacts,
        })
    }

    /// Returns how many events its watchers have missed.
    fn run(
        self,
        args: &LoadArgs,
        round: &Arc<Round>,
        shelf: &Shelf,
        due: mpsc::Receiver<Instant>,
    ) -> Result<u64, Failure> {
        let Self {
            runtime,
            connections,
            watchers,
            source,
            closed_clients,
            inflight_max,
            compacts,
        } = self;
        let missing = runtime.block_on(async {
            if let Some((client, every)) = compacts {
                tokio::spawn(compact(client, every, round.clone(), shelf.clone()));
            }
            let watching = watchers.run(&round.clock, shelf);
            if args.rate.is_some() {
                open_loop(&connections, source, inflight_max, round, shelf, due).await;
            } else {
                closed_loop(&connections, source, closed_clients, round, shelf).await;
            }
            round.sending.fetch_sub(1, Ordering::AcqRel);
            while args.kind == Kind::Watch && round.sending.load(Ordering::Acquire) > 0 {
                sleep(LOOK_EVERY).await;
            }
            while let Some(op) = round.shared.left_lease() {
                let call = connections[0].call(op.method, op.message, false);
                // What is not revoked ends by itself, and no figure counts it.
                drop(timeout(round.timeout, call).await);
            }
            let acknowledged = round.ledger.acknowledged() - round.acknowledged_before;
            watching.drain(acknowledged, args.timeout).await
        });
        drop(runtime); // ends the tasks that drive connections
        Ok(missing)
    }
}

/// Compacts history at the newest revision that was acknowledged, again and again.
async fn compact(
    mut client: KvClient<crate::user::Caller>,
    every: Duration,
    round: Arc<Round>,
    shelf: Shelf,
) {
    let mut compacted = 0;
    loop {
        sleep(every).await;
        let revision = round.ledger.newest();
        if revision <= compacted {
            continue;
        }
        compacted = revision;
        let request = CompactionRequest {
            revision,
            physical: false,
        };
        if let Err(status) = client.compact(request).await {
            shelf.failed(&status);
        }
    }
}

async fn closed_loop(
    connections: &[Connection],
    source: Source,
    count: usize,
    round: &Arc<Round>,
    shelf: &Shelf,
) {
    let source = Arc::new(Mutex::new(source));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let connection = connections[number % connections.len()].clone();
        let (source, round, shelf) = (source.clone(), round.clone(), shelf.clone());
        tasks.spawn(async move {
            loop {
                let now = Instant::now();
                if !round.clock.take(now) {
                    return;
                }
                let stamp = round.stamp(now);
                let op = {
                    let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
                    source.next(stamp)
                };
                round.perform(&connection, op, &shelf, now).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn open_loop(
    connections: &[Connection],
    mut source: Source,
    inflight_max: usize,
    round: &Arc<Round>,
    shelf: &Shelf,
    mut due: mpsc::Receiver<Instant>,
) {
    let mut tasks = JoinSet::new();
    let mut turn = 0;
    while let Some(due) = due.recv().await {
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= inflight_max {
            shelf.overflowed(&round.clock, due);
            continue;
        }
        shelf.sent(&round.clock, due);
        let connection = connections[turn % connections.len()].clone();
        turn += 1;
        let op = source.next(round.stamp(due));
        let (round, shelf) = (round.clone(), shelf.clone());
        tasks.spawn(async move { round.perform(&connection, op, &shelf, due).await });
    }
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

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
