//! How fast a snapshot is written, against a plain file of the same size, and what it costs the
//! others.
//!
//! ```text
//! cargo run --release -p raft-log --example snapshot_speed -- [DIR] [MIB] [ROUNDS]
//! ```
//!
//! Alternates the two, so that a disk which changes its speed changes it for both, and compares the
//! median times. A plain file is written 1 MiB at a time and synced once at
//! the end. `SNAPSHOT_SYNC_MIB` sets how often a snapshot is synced instead, `SNAPSHOT_INLINE=1` that it waits
//! for each of these syncs. Prints `ratio NAME VALUE` lines: bandwidth
//! against the plain file, compressed content against plain content, and the memory that writing
//! and reading take. Then it measures the sync of a small write in another file, as the log does
//! it, alone and while a snapshot or a plain file is written.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement reads the clock, prints, and compares with a plain file"
)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use raft_log::snapshot::{Compression, SnapshotMeta, SnapshotOptions, SnapshotStore};
use raft_log::vfs::RealFs;
use raft_log::{GroupId, Index, IoMode, SnapshotRef, StoreId, Term};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const GROUP: GroupId = GroupId(1);
const PIECE: usize = 1 << 20;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mib: usize = args.next().map_or(Ok(1024), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(6), |text| text.parse())?;
    let dir = tempfile::tempdir_in(parent)?;
    let noise = noise();

    let idle_kib = resident_kib("VmRSS")?;
    let mut samples = [const { Vec::new() }; 2];
    for round in 0..rounds {
        let mut seconds = [0.0; 2];
        // Who goes first changes, as a disk remembers what was written before.
        for turn in 0..2 {
            let snapshot_turn = (round + turn) % 2 == 0;
            let start = Instant::now();
            if snapshot_turn {
                remove(
                    dir.path(),
                    &snapshot(dir.path(), Compression::None, &noise, mib)?,
                )?;
            } else {
                plain(&dir.path().join("plain"), &noise, mib)?;
            }
            seconds[usize::from(snapshot_turn)] = start.elapsed().as_secs_f64();
            settle(dir.path())?;
        }
        let [plain, snapshot] = seconds;
        println!(
            "round {round}: plain {:.0} MiB/s, snapshot {:.0} MiB/s",
            mib as f64 / plain,
            mib as f64 / snapshot
        );
        samples[0].push(plain);
        samples[1].push(snapshot);
    }
    let [of_plain, of_snapshot] = samples.map(median);
    println!("ratio snapshot-vs-disk {:.3}", of_plain / of_snapshot);

    let written = snapshot(dir.path(), Compression::None, &noise, mib)?;
    let start = Instant::now();
    read(dir.path(), &written)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("read and verified: {:.0} MiB/s", mib as f64 / seconds);
    remove(dir.path(), &written)?;
    let peak_kib = resident_kib("VmHWM")?;
    println!(
        "memory above idle {:.1} MiB",
        (peak_kib - idle_kib) as f64 / 1024.0
    );

    for (name, content) in [("text", text()), ("noise", noise.clone())] {
        // The best of some, as compression costs the processor and the disk only adds noise.
        let mut best = [f64::INFINITY; 2];
        let mut file_len = 0;
        for _ in 0..rounds.min(3) {
            for (slot, compression) in [Compression::None, Compression::Lz4]
                .into_iter()
                .enumerate()
            {
                let start = Instant::now();
                let snapshot = snapshot(dir.path(), compression, &content, mib)?;
                best[slot] = best[slot].min(start.elapsed().as_secs_f64());
                file_len = store(dir.path(), compression)?.list()?[0].file_len;
                remove(dir.path(), &snapshot)?;
                settle(dir.path())?;
            }
        }
        println!("ratio lz4-{name}-speed {:.3}", best[0] / best[1]);
        let content_len = (mib * PIECE) as f64;
        println!("ratio lz4-{name}-size {:.3}", file_len as f64 / content_len);
    }

    stalls(dir.path(), &noise, mib)
}

/// What a small write and its sync take while others write much.
fn stalls(dir: &Path, noise: &[u8], mib: usize) -> Outcome<()> {
    let probe = |work: &(dyn Fn() -> Outcome<()> + Sync)| -> Outcome<Vec<f64>> {
        let path = dir.join("probe");
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&path)?;
        file.write_all_at(&vec![0; 16 << 20], 0)?;
        file.sync_all()?;
        let done = AtomicBool::new(false);
        let millis = std::thread::scope(|scope| -> Outcome<Vec<f64>> {
            let prober = scope.spawn(|| -> Outcome<Vec<f64>> {
                let mut millis = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let offset = (millis.len() * 4096 % (16 << 20)) as u64;
                    let start = Instant::now();
                    file.write_all_at(&[7; 512], offset)?;
                    file.sync_data()?;
                    millis.push(start.elapsed().as_secs_f64() * 1000.0);
                }
                Ok(millis)
            });
            let worked = work();
            done.store(true, Ordering::Relaxed);
            let millis = prober.join().expect("the prober returns its errors")?;
            worked.map(|()| millis)
        })?;
        settle(dir)?;
        Ok(millis)
    };
    let alone = || {
        let start = Instant::now();
        while start.elapsed().as_secs() < 2 {
            std::hint::spin_loop();
        }
        Ok(())
    };
    let with_plain = || plain(&dir.join("plain"), noise, mib);
    let with_snapshot = || {
        let snapshot = snapshot(dir, Compression::None, noise, mib)?;
        remove(dir, &snapshot)
    };
    let cases: [(&str, &(dyn Fn() -> Outcome<()> + Sync)); 3] = [
        ("alone", &alone),
        ("beside a plain file", &with_plain),
        ("beside a snapshot", &with_snapshot),
    ];
    for (name, work) in cases {
        let mut millis = probe(work)?;
        millis.sort_by(f64::total_cmp);
        let at = |part: f64| millis[((millis.len() - 1) as f64 * part) as usize];
        println!(
            "small sync {name}: p50 {:.2} ms, p99 {:.2} ms, worst {:.1} ms, {} syncs",
            at(0.5),
            at(0.99),
            at(1.0),
            millis.len()
        );
    }
    Ok(())
}

fn store(dir: &Path, compression: Compression) -> Outcome<SnapshotStore> {
    let mut options = SnapshotOptions::new(dir.join("snap"), StoreId(1));
    options.compression = compression;
    if let Ok(mib) = std::env::var("SNAPSHOT_SYNC_MIB") {
        options.sync_bytes = mib.parse::<u64>()? << 20;
    }
    if std::env::var_os("SNAPSHOT_INLINE").is_some() {
        options.io = IoMode::Inline;
    }
    Ok(SnapshotStore::open_with(Arc::new(RealFs::new()), options)?)
}

fn snapshot(
    dir: &Path,
    compression: Compression,
    content: &[u8],
    mib: usize,
) -> Outcome<SnapshotRef> {
    let mut writer = store(dir, compression)?.create(SnapshotMeta {
        group: GROUP,
        creation: 1,
        index: Index(1),
        term: Term(1),
        membership: "members".into(),
    })?;
    for _ in 0..mib {
        writer.write_all(content)?;
    }
    Ok(writer.finish()?.keep())
}

fn read(dir: &Path, snapshot: &SnapshotRef) -> Outcome<()> {
    let mut reader = store(dir, Compression::None)?.open_snapshot(GROUP, snapshot)?;
    let mut buf = vec![0; 64 << 10];
    while reader.read(&mut buf)? > 0 {}
    Ok(())
}

fn remove(dir: &Path, snapshot: &SnapshotRef) -> Outcome<()> {
    Ok(store(dir, Compression::None)?.remove(GROUP, snapshot)?)
}

fn plain(path: &Path, content: &[u8], mib: usize) -> Outcome<()> {
    let mut file = File::create(path)?;
    for _ in 0..mib {
        file.write_all(content)?;
    }
    file.sync_all()?;
    std::fs::remove_file(path)?;
    Ok(())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Lets what was removed settle, so that the next one does not pay for it.
fn settle(dir: &Path) -> Outcome<()> {
    Ok(File::open(dir)?.sync_all()?)
}

/// 1 MiB that does not compress.
fn noise() -> Vec<u8> {
    let mut out = vec![0; PIECE];
    raft_log::vfs::sim::Rng::new(1).fill(&mut out);
    out
}

/// 1 MiB of short words, as keys and JSON are.
fn text() -> Vec<u8> {
    let mut rng = raft_log::vfs::sim::Rng::new(2);
    let mut out = Vec::with_capacity(PIECE + 64);
    while out.len() < PIECE {
        let (a, b) = (rng.below(100_000), rng.below(1000));
        writeln!(
            out,
            "/registry/pods/default/web-{a:05} {{\"uid\":\"{b:x}\"}}"
        )
        .expect("a vector takes everything");
    }
    out.truncate(PIECE);
    out
}

/// A line of `/proc/self/status`, in KiB.
fn resident_kib(field: &str) -> Outcome<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no such line")?.parse()?)
}
