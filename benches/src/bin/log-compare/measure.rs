//! Slices and rounds: every engine in turn, for a short while, over and over.
//!
//! The order within a round rotates, so that none always runs behind the same neighbour. Only the call that appends is
//! timed; making payloads is not. A slice's rate counts what was acknowledged from the start of its first
//! thread to the end of its last.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::Failure;
use crate::wals::{Lane, Limit, OkayWal, Ours, RaftEngine, Wal};

pub(crate) const PAYLOAD_BYTES: usize = 256;

/// Random bytes that each thread takes its payloads from.
const POOL_BYTES: usize = 1 << 20;

/// What is measured: so many threads, each with a group of its own, and so many entries in an append.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    threads: usize,
    entries: usize,
}

impl Workload {
    pub(crate) const ALL: [Self; 4] = [
        Self::new("one-writer", 1, 1),
        Self::new("groups-16", 16, 1),
        Self::new("groups-64", 64, 1),
        Self::new("batch-64", 1, 64),
    ];

    const fn new(name: &'static str, threads: usize, entries: usize) -> Self {
        Self {
            name,
            threads,
            entries,
        }
    }
}

/// What one engine did at one workload.
pub(crate) struct Series {
    pub(crate) engine: &'static str,
    /// Entries per second, one figure per round.
    pub(crate) rates: Vec<f64>,
    /// Time of an append in nanoseconds, over all rounds.
    pub(crate) times: Histogram<u64>,
}

/// All engines at one workload; ours is the first.
pub(crate) type Point = Vec<Series>;

/// A full-period generator: each number of 0..2^64 once, in an order without pattern.
pub(crate) fn random_bytes(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0xD134_2543_DE82_EF95);
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    });
    words.take(len / 8).flatten().collect::<Vec<u8>>().into()
}

/// Payloads out of a pool of random bytes, at ever other offsets.
pub(crate) struct Payloads {
    pool: Bytes,
    taken: usize,
}

impl Payloads {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            pool: random_bytes(seed, POOL_BYTES),
            taken: 0,
        }
    }

    /// Fills `out` with `count` payloads.
    pub(crate) fn take(&mut self, count: usize, out: &mut Vec<Bytes>) {
        out.clear();
        for _ in 0..count {
            let at = self.taken.wrapping_mul(PAYLOAD_BYTES + 8) % (POOL_BYTES - PAYLOAD_BYTES);
            self.taken = self.taken.wrapping_add(1);
            out.push(self.pool.slice(at..at + PAYLOAD_BYTES));
        }
    }
}

/// Up to a minute, at a precision of one per cent; its memory is taken at once, and not while appends are timed.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 2).expect("two digits are within its bounds")
}

/// One thread's slice: appends until the time is up.
fn work(
    lane: &mut dyn Lane,
    payloads: &mut Payloads,
    entries: usize,
    length: Duration,
) -> Result<Histogram<u64>, Failure> {
    let (mut times, mut batch) = (histogram(), Vec::new());
    let mut now = Instant::now();
    let end = now + length;
    while now < end {
        payloads.take(entries, &mut batch);
        let start = Instant::now();
        lane.append(&batch)?;
        now = Instant::now();
        times.saturating_record((now - start).as_nanos() as u64);
    }
    Ok(times)
}

type Times = Result<Histogram<u64>, Failure>;

/// The threads of one engine. They live as long as the run, so that no slice pays for new threads' memory; dropping
/// `starts` ends them.
struct Writers {
    starts: Vec<Sender<Duration>>,
    times: Receiver<Times>,
}

impl Writers {
    fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        wal: &'env dyn Wal,
        workload: &Workload,
    ) -> Result<Self, Failure> {
        let (done, times) = channel();
        let mut starts = Vec::new();
        for group in 1..=workload.threads as u64 {
            let (mut lane, entries) = (wal.lane(group)?, workload.entries);
            let (start, slices) = channel();
            let done = done.clone();
            starts.push(start);
            scope.spawn(move || {
                let mut payloads = Payloads::new(group);
                // Nobody listens any more once another thread has failed.
                for length in slices {
                    let _ = done.send(work(&mut *lane, &mut payloads, entries, length));
                }
            });
        }
        Ok(Self { starts, times })
    }

    /// All threads' slice: appends per second, and their times.
    fn slice(&self, length: Duration) -> Result<(f64, Histogram<u64>), Failure> {
        let begin = Instant::now();
        for start in &self.starts {
            start.send(length)?;
        }
        let mut times = histogram();
        for _ in &self.starts {
            times.add(self.times.recv()??)?;
        }
        Ok((times.len() as f64 / begin.elapsed().as_secs_f64(), times))
    }
}

/// Runs one workload: a round to warm up, then `rounds` that count.
pub(crate) fn run(
    work: &Workload,
    dir: &Path,
    rounds: usize,
    length: Duration,
) -> Result<Point, Failure> {
    let mut sample = Vec::new();
    Payloads::new(0).take(work.entries, &mut sample);
    let ours = Ours::open(&dir.join("ours"))?;
    let bytes = ours.append_len(&sample)?;
    let mut wals: Vec<(&'static str, Box<dyn Wal>)> = vec![
        ("ours", Box::new(ours)),
        (
            "raft-engine",
            Box::new(RaftEngine::open(&dir.join("raft-engine"))?),
        ),
        ("okaywal", Box::new(OkayWal::open(&dir.join("okaywal"))?)),
    ];
    if work.threads == 1 {
        let random = random_bytes(u64::MAX, POOL_BYTES);
        let limit = Limit::open(&dir.join("limit"), bytes, &random)?;
        wals.push(("limit", Box::new(limit)));
    }
    std::thread::scope(|scope| {
        let mut point = Vec::new();
        let mut writers = Vec::new();
        for (engine, wal) in &wals {
            writers.push(Writers::start(scope, &**wal, work)?);
            point.push(Series {
                engine,
                rates: Vec::new(),
                times: histogram(),
            });
        }
        for round in 0..=rounds {
            for turn in 0..wals.len() {
                let engine = (turn + round) % wals.len();
                let (rate, times) = writers[engine].slice(length)?;
                if round > 0 {
                    point[engine].rates.push(rate * work.entries as f64);
                    point[engine].times.add(times)?;
                }
            }
        }
        Ok(point)
    })
}
