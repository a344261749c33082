//! Clients that write and read a few keys while things go wrong, and what they saw.
//!
//! Each client talks to one member until that fails it, then to the next. What got no answer, or an error, may have taken
//! effect or not: the checker takes it for either.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tonic::Status;

use super::Client;
use super::watching::{Watchers, history};
use crate::process::PATIENCE;
use crate::sim::checkers::linearizable::{Action, Operation, Outcome, check};

const KEYS: u64 = 4;
const PREFIX: &str = "key-";
/// Longer than a client of a cluster without a leader waits before it tries another member.
const CALL_PATIENCE: Duration = Duration::from_millis(1_500);
/// The pause of a client after an error.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Shared {
    /// Orders all that happens.
    clock: AtomicU64,
    /// Values are unique.
    values: AtomicU64,
    stop: AtomicBool,
    /// Which set of keys is in use.
    set: AtomicU64,
    operations: Mutex<BTreeMap<u64, Vec<Operation>>>,
    /// Acknowledged writes: revision, key, value.
    acknowledged: Mutex<Vec<(i64, String, u64)>>,
    /// Writes with an answer, and who waits for more of them.
    written: Mutex<u64>,
    progress: Condvar,
}

/// Clients that run.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    watchers: Watchers,
}

impl Load {
    /// Starts clients, spread over the members at `urls`, and a watcher at each of these.
    ///
    /// # Panics
    /// When there is no thread.
    #[must_use]
    pub fn start(urls: &[String], clients: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let client = |number: usize| {
            let (shared, urls) = (Arc::clone(&shared), urls.to_vec());
            thread::Builder::new()
                .name(format!("client-{number}"))
                .spawn(move || run(&shared, &urls, number))
                .expect("a thread can be started")
        };
        let threads = (0..clients).map(client).collect();
        Self {
            shared,
            threads,
            watchers: Watchers::start(urls, PREFIX),
        }
    }

    /// Lets the clients go on with other keys: checking the history of one takes longer the more it has.
    pub fn next_keys(&self) {
        self.shared.set.fetch_add(1, Ordering::SeqCst);
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        *lock(&self.shared.written)
    }

    /// Waits until so many more writes were acknowledged; returns how long that took.
    ///
    /// # Panics
    /// When none is for too long.
    pub fn wait_for_writes(&self, more: u64) -> Duration {
        let begun = Instant::now();
        let mut written = lock(&self.shared.written);
        let wanted = *written + more;
        let (mut seen, mut seen_at) = (*written, begun);
        while *written < wanted {
            if *written > seen {
                (seen, seen_at) = (*written, Instant::now());
            }
            let left = PATIENCE.saturating_sub(seen_at.elapsed());
            assert!(
                !left.is_zero(),
                "nothing more is written, and {} of {more} writes are missing",
                wanted - *written
            );
            let waited = self.shared.progress.wait_timeout(written, left);
            written = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        begun.elapsed()
    }

    /// Ends the clients, lets every member serve each key once more, and checks everything that clients and watchers saw.
    ///
    /// # Panics
    /// When it is not linearizable, an acknowledged write is not there, a watcher was not sent all of it, or a member does
    /// not serve.
    pub fn check(self, urls: &[String]) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        let keys: Vec<u64> = lock(&self.shared.operations).keys().copied().collect();
        let mut newest = 0;
        for url in urls {
            let client = Client::new(url, PATIENCE);
            newest = client.newest_change(PREFIX).unwrap_or_else(|error| {
                panic!("{url} does not serve a read in the end: {error}");
            });
            for key in keys.iter().copied() {
                if let Err(error) = operate(&self.shared, &client, key, Action::Get) {
                    panic!("{url} does not serve a read in the end: {error}");
                }
            }
        }
        let operations = lock(&self.shared.operations);
        let answered = |ops: &Vec<Operation>| ops.iter().filter(|op| op.answer.is_some()).count();
        for (key, operations) in operations.iter() {
            assert!(answered(operations) > 0, "nothing happened to key {key}");
            let outcome = check(operations);
            assert_eq!(
                outcome,
                Outcome::Linearizable,
                "key {key}, {} operations: {operations:?}",
                operations.len()
            );
        }
        drop(operations);
        let truth = history(&urls[0], PREFIX, newest);
        for (at, events) in self.watchers.finish(newest).iter().enumerate() {
            let differs = truth.iter().zip(events).find(|(is, sent)| is != sent);
            let (is, sent) = (truth.len(), events.len());
            assert!(
                events == &truth,
                "the watcher that began at member {at} was sent {sent} of {is} events; the first that differ: {differs:?}"
            );
        }
        for (revision, key, value) in lock(&self.shared.acknowledged).iter() {
            let found = truth.get(revision);
            assert!(
                found.is_some_and(|(k, v)| k == key && *v == value.to_string()),
                "{key} = {value} was acknowledged at revision {revision}, where there is {found:?}"
            );
        }
    }
}

fn run(shared: &Shared, urls: &[String], number: usize) {
    // Any sequence will do, as long as clients differ.
    let mut random = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut last = BTreeMap::new();
    for at in number.. {
        let client = Client::new(&urls[at % urls.len()], CALL_PATIENCE);
        loop {
            if shared.stop.load(Ordering::SeqCst) {
                return;
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = shared.set.load(Ordering::SeqCst) * KEYS + random % KEYS;
            let value = shared.values.fetch_add(1, Ordering::SeqCst) + 1;
            let action = match random / KEYS % 8 {
                0..4 => Action::Put(value),
                4 => Action::Swap(last.get(&key).copied().unwrap_or(0), value),
                _ => Action::Get,
            };
            if operate(shared, &client, key, action).is_err() {
                break;
            }
            if let Action::Put(value) = action {
                last.insert(key, value);
            }
        }
        thread::park_timeout(PAUSE);
    }
}

/// Does one thing and notes what became of it.
fn operate(shared: &Shared, client: &Client, number: u64, action: Action) -> Result<(), Status> {
    let now = || shared.clock.fetch_add(1, Ordering::SeqCst);
    let key = format!("{PREFIX}{number}");
    let sent = now();
    let answer = match action {
        Action::Put(value) => client
            .put_at(&key, &value.to_string())
            .map(|(before, revision)| (before, Some((revision, value)))),
        Action::Swap(from, to) => client
            .swap_at(&key, &from.to_string(), &to.to_string())
            .map(|(before, revision)| (before, revision.map(|revision| (revision, to)))),
        Action::Get | Action::Delete => client.get(&key, false).map(|value| (value, None)),
    };
    let failed = answer.as_ref().err().cloned();
    let answer = answer.ok().map(|(value, written)| {
        if let Some((revision, value)) = written {
            lock(&shared.acknowledged).push((revision, key.clone(), value));
        }
        let value = value.map(|value| value.parse().expect("clients write numbers"));
        (now(), value)
    });
    let is_answered = answer.is_some();
    let operation = Operation {
        sent,
        answer,
        action,
    };
    lock(&shared.operations)
        .entry(number)
        .or_default()
        .push(operation);
    if is_answered && matches!(action, Action::Put(_)) {
        *lock(&shared.written) += 1;
        shared.progress.notify_all();
    }
    failed.map_or(Ok(()), Err)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
