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
use crate::process::PATIENCE;
use crate::sim::checkers::linearizable::{Action, Operation, Outcome, check};

const KEYS: u64 = 4;
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
    operations: Mutex<BTreeMap<u64, Vec<Operation>>>,
    /// Writes with an answer, and who waits for more of them.
    written: Mutex<u64>,
    progress: Condvar,
}

/// Clients that run.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients, spread over the members at `urls`.
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
        Self { shared, threads }
    }

    /// Waits until so many more writes were acknowledged; returns how long that took.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_for_writes(&self, more: u64) -> Duration {
        let begun = Instant::now();
        let mut written = lock(&self.shared.written);
        let wanted = *written + more;
        while *written < wanted {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            assert!(
                !left.is_zero(),
                "{} of {more} writes are missing",
                wanted - *written
            );
            let waited = self.shared.progress.wait_timeout(written, left);
            written = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        begun.elapsed()
    }

    /// Ends the clients, lets every member serve each key once more, and checks the whole history.
    ///
    /// # Panics
    /// When it is not linearizable, or a member does not serve.
    pub fn check(self, urls: &[String]) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        for url in urls {
            let client = Client::new(url, PATIENCE);
            for key in 0..KEYS {
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
            let key = random % KEYS;
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
    let key = format!("key-{number}");
    let sent = now();
    let answer = match action {
        Action::Put(value) => client.put(&key, &value.to_string()),
        Action::Swap(from, to) => client.swap(&key, &from.to_string(), &to.to_string()),
        Action::Get | Action::Delete => client.get(&key, false),
    };
    let failed = answer.as_ref().err().cloned();
    let answer = answer.ok().map(|value| {
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
