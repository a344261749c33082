//! Every decoder on bytes that were made from golden files, from a seed: it refuses them, or what it decodes encodes to
//! the same bytes. The package `fuzz` runs the same functions for as long as one likes.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the golden files lie beside the tests, and a failed expectation is a failed test"
)]

use std::path::{Path, PathBuf};

use raft_log::fuzzing::{TARGETS, Target};
use raft_log::vfs::sim::Rng;

/// Where the batches of a segment begin, the length of their headers, and that of a footer without its index.
const SEGMENT_DATA: usize = 4096;
const HEADER: usize = 64;

fn golden(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/v1");
    std::fs::read(dir.join(name)).unwrap()
}

/// The snapshot files that end so.
fn snapshots(suffix: &str) -> Vec<Vec<u8>> {
    let dir = "snap/group-000000000000a1b2";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/v1");
    let names = std::fs::read_dir(path.join(dir)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    names
        .iter()
        .map(|name| golden(&format!("{dir}/{name}")))
        .collect()
}

fn u32_at(data: &[u8], at: usize) -> usize {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize
}

/// The batches of a segment, as they lie in it.
fn batches(segment: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut found) = (SEGMENT_DATA, Vec::new());
    while u32_at(segment, at) != 0 {
        let end = at + HEADER + u32_at(segment, at + 40);
        found.push(segment[at..end].to_vec());
        at = end;
    }
    found
}

/// The footer of a segment, with its index.
fn footer(segment: &[u8]) -> Vec<u8> {
    let index = u32_at(segment, segment.len() - HEADER + 12);
    segment[segment.len() - HEADER - index..].to_vec()
}

/// The chunks of a snapshot file, as the target takes them.
fn chunks(file: &[u8]) -> Vec<Vec<u8>> {
    let mut at = 104 + u32_at(file, 12) + 4;
    let (end, size) = (file.len() - 40, u32_at(file, 64) as u64);
    let mut left = u64::from_le_bytes(file[end + 16..end + 24].try_into().unwrap());
    let mut found = Vec::new();
    while at < end {
        let next = at + 8 + u32_at(file, at);
        let mut chunk = (found.len() as u64).to_le_bytes().to_vec();
        // The target adds one.
        chunk.extend_from_slice(&(left.min(size) as u32 - 1).to_le_bytes());
        chunk.extend_from_slice(&file[at..next]);
        found.push(chunk);
        (at, left) = (next, left.saturating_sub(size));
    }
    found
}

/// What a decoder is given in golden files.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let segments = || {
        let names = ["closed/", "closed-2/", "killed-2/"].into_iter();
        let names = names.flat_map(|run| [1, 2].map(|id| format!("{run}{id:016x}.seg")));
        names.map(|name| golden(&name))
    };
    match target.name {
        "segment_header" => segments().map(|file| file[..HEADER].to_vec()).collect(),
        "batch" => segments().flat_map(|file| batches(&file)).collect(),
        // The first segment of each run has one, and the last of a closed one.
        "footer" => {
            let files = segments().filter(|file| file.ends_with(&footer(file)[..]));
            let sealed = files.filter(|file| file[file.len() - HEADER] != 0);
            sealed.map(|file| footer(&file)).collect()
        }
        "manifest" => {
            let file = golden("closed/MANIFEST");
            file.chunks(4096)
                .map(|block| block[..HEADER].to_vec())
                .collect()
        }
        "votes" => vec![golden("closed/votes")],
        "snapshot_header" => {
            let files = snapshots(".snap").into_iter().chain(snapshots(".part"));
            files
                .map(|file| file[..108 + u32_at(&file, 12)].to_vec())
                .collect()
        }
        "snapshot_chunk" => snapshots(".snap")
            .iter()
            .flat_map(|file| chunks(file))
            .collect(),
        "snapshot_file" => snapshots(".snap"),
        "snapshot_numbers" => vec![golden("snap/NUMBERS")],
        "snapshot_receive" => {
            let received = snapshots(".snap").pop().unwrap();
            let whole = received.len() - 40;
            vec![snapshots(".part").remove(0), received[..whole].to_vec()]
        }
        other => panic!("no golden bytes for {other}"),
    }
}

/// Changes a few things as a fuzzer does; `other` is a seed to take parts from.
fn mutate(data: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    for _ in 0..=rng.below(3) {
        let len = data.len() as u64;
        if len == 0 {
            return;
        }
        // Where what matters is: at the beginning, at the end, or anywhere.
        let at = match rng.below(4) {
            0 => rng.below(len.min(120)),
            1 => len - 1 - rng.below(len.min(80)),
            _ => rng.below(len),
        } as usize;
        let n = (rng.below(40) as usize).min(data.len() - at);
        match rng.below(8) {
            0 => data[at] ^= 1 << rng.below(8),
            1 => rng.fill(&mut data[at..at + n]),
            2 => data[at..at + n].fill([0, 0xff][rng.below(2) as usize]),
            3 => {
                let from = rng.below(len - n as u64 + 1) as usize;
                data.copy_within(from..from + n, at);
            }
            4 => data.truncate(at),
            5 => data.resize(data.len() + n * 8, 0xa5),
            6 if !other.is_empty() => {
                let from = rng.below(other.len() as u64) as usize;
                let to = (from + n).min(other.len());
                data.splice(at..at + n, other[from..to].iter().copied());
            }
            // A number where numbers are: small, or at an end of its range.
            _ => {
                let width = [4, 8][rng.below(2) as usize];
                let at = at / 4 * 4;
                let edge = [0, 1, u64::MAX, u64::from(u32::MAX), 1 << 63, 1 << 24];
                let edge = edge[rng.below(edge.len() as u64) as usize];
                let number = edge.wrapping_add(rng.below(5)).wrapping_sub(2);
                let end = (at + width).min(data.len());
                data[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
        }
    }
}

/// Says how to repeat a run that panics.
struct Reproduce(&'static str, u64);

impl Drop for Reproduce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "reproduce: FLOTILLA_LOG_SEED={} cargo test -p raft-log --test fuzz -- --exact {}",
                self.1, self.0
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a decoder on mutated golden bytes; how many inputs it decoded.
fn run(target: &Target, test: &'static str, rounds: u64) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{}: no golden bytes", target.name);
    for (at, seed) in seeds.iter().enumerate() {
        assert!((target.run)(seed), "{}: seed {at} fails", target.name);
    }
    let rounds = match number("FLOTILLA_LOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..rounds * number("FLOTILLA_LOG_RUNS").unwrap_or(1),
    };
    let all = rounds.end - rounds.start;
    let mut decoded = 0;
    for round in rounds {
        let _guard = Reproduce(test, round);
        let mut rng = Rng::new(round);
        let mut data = seeds[rng.below(seeds.len() as u64) as usize].clone();
        let other = &seeds[rng.below(seeds.len() as u64) as usize];
        mutate(&mut data, other, &mut rng);
        let used = allocation_counter::measure(|| decoded += u64::from((target.run)(&data)));
        let bound = target.memory_max + 600 * data.len() as u64;
        assert!(
            used.bytes_max <= bound,
            "{} takes {} bytes for {}",
            target.name,
            used.bytes_max,
            data.len()
        );
    }
    eprintln!("{}: {decoded} of {all} decoded", target.name);
    // Both are reached: what is refused, and what lies behind the checksums.
    assert!(
        all == 1 || (decoded > all / 50 && decoded < all),
        "{decoded}"
    );
}

macro_rules! decoders {
    ($($test:ident: $name:literal, $rounds:literal;)*) => {
        $(
            #[test]
            fn $test() {
                let target = TARGETS.iter().find(|target| target.name == $name);
                run(target.unwrap(), stringify!($test), $rounds);
            }
        )*

        /// Every decoder that there is.
        const NAMES: &[&str] = &[$($name),*];
    };
}

decoders! {
    segment_header_of_mutated_bytes_is_refused_or_encodes_to_the_same: "segment_header", 100_000;
    batch_of_mutated_bytes_is_refused_or_encodes_to_the_same: "batch", 100_000;
    footer_of_mutated_bytes_is_refused_or_encodes_to_the_same: "footer", 100_000;
    manifest_of_mutated_bytes_is_refused_or_encodes_to_the_same: "manifest", 100_000;
    vote_slots_of_mutated_bytes_are_refused_or_encode_to_the_same: "votes", 20_000;
    snapshot_header_of_mutated_bytes_is_refused_or_encodes_to_the_same: "snapshot_header", 100_000;
    chunk_of_mutated_bytes_is_refused_or_encodes_to_the_same: "snapshot_chunk", 50_000;
    snapshot_of_mutated_bytes_is_refused_or_encodes_to_the_same: "snapshot_file", 50_000;
    counter_of_mutated_bytes_is_refused_or_encodes_to_the_same: "snapshot_numbers", 50_000;
    receive_of_mutated_bytes_goes_on_with_what_verifies: "snapshot_receive", 20_000;
}

/// With `FLOTILLA_FUZZ_SEEDS` the golden bytes of each decoder are written below that directory, for `fuzz/run`.
#[test]
fn every_decoder_is_tested_and_has_a_fuzz_target() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, NAMES);
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in &TARGETS {
        let path = format!("targets/{}.rs", target.name);
        let built = manifest.contains(&format!("path = \"{path}\""));
        assert!(built && fuzz.join(path).exists(), "{}", target.name);
        let Some(dir) = std::env::var_os("FLOTILLA_FUZZ_SEEDS") else {
            continue;
        };
        let dir = PathBuf::from(dir).join(target.name);
        std::fs::create_dir_all(&dir).unwrap();
        for (at, seed) in seeds(target).iter().enumerate() {
            std::fs::write(dir.join(format!("golden-{at}")), seed).unwrap();
        }
    }
}
