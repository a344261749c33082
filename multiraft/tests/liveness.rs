//! Golden scripts for store liveness: each file in `testdata/liveness` is a story, with what the stores say to it.
//! `UPDATE=1 cargo test -p multiraft --test liveness` writes what they say now; read the difference.
//!
//! A line is a command, its output follows after `>`. Stores are 1 to 9, with the same number for member and store.
//!
//! - `store 1 epoch 4 peers 2 3`: a store starts, or starts again. `as 8`: on another disk.
//! - `run 20`: so many ticks pass, and beats arrive one tick after they were sent.
//! - `cut 1 2`, `heal 1 2`: beats from 1 to 2 are lost, or arrive again.
//! - `stop 1`: the process is gone. `pause 1` and `wake 1`: it does not run, but what was sent to it arrives later.
//! - `show`: how each store sees each of its peers. `beats`: beats sent since the last time.
//! - `replay 1 2`: the first beat that 1 ever sent to 2 arrives once more.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed expectation of a test harness is a failed test, and scripts are files"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use multiraft::liveness::{Beat, Liveness, LivenessConfig};
use raft_log::{NodeId, StoreId};

#[derive(Default)]
struct World {
    now: u64,
    stores: BTreeMap<u64, (Liveness, Vec<u64>)>,
    paused: BTreeSet<u64>,
    cut: BTreeSet<(u64, u64)>,
    wire: Vec<(u64, u64, Beat)>,
    first: BTreeMap<(u64, u64), Beat>,
    beats: usize,
}

impl World {
    fn tick(&mut self) {
        self.now += 1;
        let wire = std::mem::take(&mut self.wire);
        for (from, to, beat) in wire {
            if self.paused.contains(&to) {
                self.wire.push((from, to, beat));
            } else if let Some((store, _)) = self.stores.get_mut(&to) {
                store.receive(self.now, NodeId(from), beat);
            }
        }
        for (id, (store, _)) in &mut self.stores {
            if self.paused.contains(id) {
                continue;
            }
            for (to, beat) in store.take_due(self.now) {
                self.beats += 1;
                self.first.entry((*id, to.0)).or_insert(beat);
                if !self.cut.contains(&(*id, to.0)) {
                    self.wire.push((*id, to.0, beat));
                }
            }
        }
    }

    fn command(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let mut out = String::new();
        match words[0] {
            "store" => {
                let peers_at = words.iter().position(|word| *word == "peers").unwrap();
                let disk = words.iter().position(|word| *word == "as");
                let disk = disk.map_or(number(1), |at| number(at + 1));
                let config = LivenessConfig::default();
                let mut store = Liveness::new(StoreId(disk), number(3), config);
                let peers: Vec<u64> = (peers_at + 1..words.len()).map(number).collect();
                let known = peers.iter().map(|id| (NodeId(*id), None)).collect();
                store.set_peers(self.now, &known);
                self.stores.insert(number(1), (store, peers));
            }
            "run" => (0..number(1)).for_each(|_| self.tick()),
            "cut" => drop(self.cut.insert((number(1), number(2)))),
            "heal" => drop(self.cut.remove(&(number(1), number(2)))),
            "stop" => drop(self.stores.remove(&number(1))),
            "pause" => drop(self.paused.insert(number(1))),
            "wake" => drop(self.paused.remove(&number(1))),
            "replay" => {
                let beat = self.first[&(number(1), number(2))];
                let (store, _) = self.stores.get_mut(&number(2)).unwrap();
                store.receive(self.now, NodeId(number(1)), beat);
            }
            "beats" => writeln!(out, "> {}", std::mem::take(&mut self.beats)).unwrap(),
            "show" => {
                for (id, (store, peers)) in &self.stores {
                    write!(out, "> tick {}: {id} sees", self.now).unwrap();
                    for peer in peers {
                        let (health, epoch) = (
                            store.health(self.now, NodeId(*peer)),
                            store.epoch_of(NodeId(*peer)),
                        );
                        write!(out, " {peer} {health:?} in epoch {epoch}").unwrap();
                    }
                    out.push('\n');
                }
            }
            other => panic!("no such command: {other}"),
        }
        out
    }
}

#[test]
fn scripts_say_what_their_files_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/liveness");
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let expected = std::fs::read_to_string(&file).unwrap();
        let mut world = World::default();
        let mut found = String::new();
        for line in expected.lines().filter(|line| !line.starts_with('>')) {
            found.push_str(line);
            found.push('\n');
            if !line.is_empty() && !line.starts_with('#') {
                found.push_str(&world.command(line));
            }
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &found).unwrap();
        } else {
            assert_eq!(found, expected, "{}", file.display());
        }
    }
}

#[test]
fn deadline_is_the_next_beat_or_the_end_of_a_life() {
    let config = LivenessConfig::default();
    let mut store = Liveness::new(StoreId(1), 4, config);
    assert_eq!(store.next_deadline(0), None, "who is alone does nothing");
    store.set_peers(5, &BTreeMap::from([(NodeId(2), Some(StoreId(2)))]));
    assert_eq!(store.next_deadline(5), Some(5));
    assert_eq!(store.take_due(5).len(), 1);
    assert_eq!(store.take_due(5).len(), 0);
    assert_eq!(store.next_deadline(5), Some(5 + config.interval_ticks));
    let beat = Beat {
        store: StoreId(2),
        epoch: 7,
        number: 1,
        heard: 4,
        full: false,
    };
    store.receive(6, NodeId(2), beat);
    assert!(store.is_alive(6 + config.timeout_ticks, NodeId(2)));
    assert!(!store.is_alive(7 + config.timeout_ticks, NodeId(2)));
    assert!(!store.is_alive(6, NodeId(3)), "it is no peer");
    assert!(store.has_room(6, NodeId(2)));
    let full = Beat {
        number: 2,
        full: true,
        ..beat
    };
    store.receive(7, NodeId(2), full);
    assert!(store.is_alive(7, NodeId(2)) && !store.has_room(7, NodeId(2)));
    assert!(!store.take_due(16)[0].1.full);
    store.set_full(true);
    assert!(store.take_due(26)[0].1.full);
    store.set_peers(9, &BTreeMap::from([(NodeId(2), Some(StoreId(3)))]));
    assert!(
        !store.is_alive(9, NodeId(2)),
        "another store took its place"
    );
    store.receive(9, NodeId(2), Beat { number: 3, ..beat });
    assert!(!store.is_alive(9, NodeId(2)), "the old one does not count");
}
