//! The engines: a batch as a put makes it, a get of a key that is there and of one that is not, a scan of 100 keys.
//!
//! With `ENGINE_PACE=30000` in the environment it instead fills the engine on disk with a million keys at that many
//! puts per second (0: as fast as it goes), and reports how long the slowest batches took, how fast reads are, and how
//! long a restart takes.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints what it measures, and ends where it cannot"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Bound;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use kv_server::engine::lsm::{LsmEngine, LsmOptions};
use kv_server::engine::memory::MemoryEngine;
use kv_server::engine::{Change, Engine, EngineBatch};
use raft_log::{GroupId, Index};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE_BYTES: usize = 256;

/// A full-period generator: each number of 0..2^64 once, in an order without pattern.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn value(&mut self) -> Bytes {
        let words = (0..VALUE_BYTES / 8).flat_map(|_| self.next().to_le_bytes());
        words.collect::<Vec<u8>>().into()
    }
}

fn key(table: u8, number: u64) -> Bytes {
    // Spread over the key space, so that neighbours in time are not neighbours on disk.
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{}key-{spread:016x}-{number:08}", char::from(table))
        .into_bytes()
        .into()
}

/// What a put of the key-value store writes: the version with its value, a small record of the newest, and one of the
/// revision.
fn put(random: &mut Random, number: u64, index: u64) -> EngineBatch {
    let mut revision = vec![2];
    revision.extend(index.to_be_bytes());
    let changes = BTreeMap::from([
        (key(1, number), Change::Put(random.value())),
        (revision.into(), Change::Put(Bytes::from(vec![0; 32]))),
        (key(3, number), Change::Put(Bytes::from(vec![0; 24]))),
    ]);
    EngineBatch {
        changes,
        applied: Some((GroupId(1), Index(index))),
    }
}

fn compare(criterion: &mut Criterion, name: &str, engine: &dyn Engine) {
    const KEYS: u64 = 100_000;
    let mut random = Random(1);
    for number in 0..KEYS {
        engine.write(put(&mut random, number, number + 1)).unwrap();
    }
    engine.persist().unwrap();
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_secs(1));
    let mut index = KEYS;
    group.bench_function("batch", |bencher| {
        let prepare = || {
            index += 1;
            let number = random.next() % KEYS;
            put(&mut random, number, index)
        };
        bencher.iter_batched(
            prepare,
            |batch| engine.write(batch).unwrap(),
            BatchSize::SmallInput,
        );
    });
    let mut random = Random(2);
    group.bench_function("get", |bencher| {
        bencher.iter(|| engine.get(&key(1, random.next() % KEYS)).unwrap().unwrap());
    });
    group.bench_function("get_missing", |bencher| {
        bencher.iter(|| black_box(engine.get(&key(1, KEYS + random.next() % KEYS)).unwrap()));
    });
    group.bench_function("scan_100", |bencher| {
        bencher.iter(|| scan(engine, &key(1, random.next() % KEYS), 100));
    });
    group.finish();
}

fn scan(engine: &dyn Engine, from: &[u8], limit: usize) -> usize {
    let snapshot = engine.snapshot();
    let pairs = snapshot.range(Bound::Included(from), Bound::Unbounded);
    pairs
        .take(limit)
        .filter(|pair| black_box(pair).is_ok())
        .count()
}

fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages * 4096 / (1 << 20)
}

fn rate(name: &str, runs: u64, mut run: impl FnMut(u64)) {
    let start = Instant::now();
    (0..runs).for_each(&mut run);
    let each = start.elapsed() / u32::try_from(runs).unwrap();
    println!(
        "{name}: {each:?} each, {:.0} per second",
        1.0 / each.as_secs_f64()
    );
}

fn reads(engine: &LsmEngine, keys: u64) {
    let mut random = Random(3);
    rate("get", 200_000, |_| {
        black_box(engine.get(&key(1, random.next() % keys)).unwrap().unwrap());
    });
    rate("get of the newest record", 200_000, |_| {
        black_box(engine.get(&key(3, random.next() % keys)).unwrap().unwrap());
    });
    rate("get of a missing key", 200_000, |_| {
        black_box(engine.get(&key(3, keys + random.next() % keys)).unwrap());
    });
    rate("scan of 100", 5_000, |_| {
        scan(engine, &key(1, random.next() % keys), 100);
    });
    rate("scan of 500", 1_000, |_| {
        scan(engine, &key(1, random.next() % keys), 500);
    });
}

fn fill(dir: &Path, pace: u64, keys: u64) {
    let options = LsmOptions::default();
    let engine = LsmEngine::open(dir, options.clone()).unwrap();
    let mut took = hdrhistogram::Histogram::<u64>::new(3).unwrap();
    let mut random = Random(4);
    let mut resident = 0;
    let start = Instant::now();
    for number in 0..keys {
        let batch = put(&mut random, number, number + 1);
        if pace > 0 {
            let due = start + Duration::from_secs(number) / u32::try_from(pace).unwrap();
            while Instant::now() < due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        let before = Instant::now();
        engine.write(batch).unwrap();
        took.record(u64::try_from(before.elapsed().as_nanos()).unwrap())
            .unwrap();
        if number % 10_000 == 0 {
            resident = resident.max(resident_mib());
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let micros = |quantile| Duration::from_nanos(took.value_at_quantile(quantile));
    println!(
        "{keys} puts, {:.0} per second; p50 {:?}, p99 {:?}, p99.9 {:?}, p99.99 {:?}, worst {:?}; {resident} MiB resident",
        keys as f64 / seconds,
        micros(0.5),
        micros(0.99),
        micros(0.999),
        micros(0.9999),
        micros(1.0),
    );
    let start = Instant::now();
    engine.persist().unwrap();
    println!(
        "persist: {:?}; {} MiB on disk",
        start.elapsed(),
        engine.disk_bytes() >> 20
    );
    println!("reads right behind the writes:");
    reads(&engine, keys);
    drop(engine);
    let start = Instant::now();
    let engine = LsmEngine::open(dir, options).unwrap();
    println!("restart: {:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(10));
    println!(
        "reads after ten quiet seconds, {} MiB on disk:",
        engine.disk_bytes() >> 20
    );
    reads(&engine, keys);
    println!("{} MiB resident", resident_mib());
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    if let Ok(pace) = std::env::var("ENGINE_PACE") {
        let keys = std::env::var("ENGINE_KEYS").map_or(1_000_000, |keys| keys.parse().unwrap());
        return fill(dir.path(), pace.parse().unwrap(), keys);
    }
    let mut criterion = Criterion::default().configure_from_args();
    compare(&mut criterion, "memory", &MemoryEngine::new());
    let lsm = LsmEngine::open(dir.path(), LsmOptions::default()).unwrap();
    compare(&mut criterion, "lsm", &lsm);
    criterion.final_summary();
}
