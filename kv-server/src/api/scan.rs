//! Threads for reads that may take long, so that an RPC thread never waits for the engine to walk a range.
//!
//! The queue has a bound; a read that finds it full is refused, and the client may try again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use tonic::Code;

use crate::ApiError;
use crate::reply;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads and a bounded queue. Dropping it finishes what is queued.
pub struct ScanPool {
    queue: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl ScanPool {
    /// Starts `threads` threads behind a queue of `queued_max` reads.
    pub fn start(threads: usize, queued_max: usize) -> io::Result<Self> {
        Self::start_named("flotilla-scan", threads, queued_max)
    }

    /// The same, with threads of another name.
    pub(crate) fn start_named(name: &str, threads: usize, queued_max: usize) -> io::Result<Self> {
        assert!(
            threads > 0 && queued_max > 0,
            "a pool without threads or queue serves nobody"
        );
        let (sender, receiver) = sync_channel(queued_max);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads)
            .map(|n| {
                let receiver = Arc::clone(&receiver);
                Builder::new()
                    .name(format!("{name}-{n}"))
                    .spawn(move || work(&receiver))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            queue: Some(sender),
            threads,
        })
    }

    /// Runs a read on a thread of the pool.
    pub async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, receiver) = reply::channel();
        let job: Job = Box::new(move || {
            // The caller may have gone away while this waited: then nobody needs the answer.
            if !sender.is_closed() {
                sender.send(read());
            }
        });
        let queue = self
            .queue
            .as_ref()
            .expect("the queue is taken by drop only");
        queue.try_send(job).map_err(|_| ApiError::TooManyRequests)?;
        let lost = || {
            ApiError::Other(
                Code::Internal,
                "flotilla: a read failed; see the log".into(),
            )
        };
        receiver.await.map_err(|_| lost())?
    }
}

impl Drop for ScanPool {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        // A read changes nothing, so its panic costs its own answer only.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a read panicked on a scan thread");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn full_queue_refuses_and_panic_costs_one_read() {
        let pool = ScanPool::start(1, 1).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (started, running) = channel();
        let (release, held) = channel::<()>();
        runtime.block_on(async {
            let first = pool.run(move || {
                started.send(()).unwrap();
                held.recv().unwrap();
                Ok(1)
            });
            let rest = async {
                running.recv().unwrap();
                let second = pool.run(|| -> Result<i32, ApiError> { panic!("in a read") });
                let third = async {
                    assert_eq!(pool.run(|| Ok(3)).await, Err(ApiError::TooManyRequests));
                    release.send(()).unwrap();
                };
                tokio::join!(second, third).0
            };
            let (first, second) = tokio::join!(first, rest);
            assert_eq!(first, Ok(1));
            assert_eq!(second.unwrap_err().code(), Code::Internal);
            assert_eq!(pool.run(|| Ok(4)).await, Ok(4));
        });
    }
}
