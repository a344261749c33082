mod crash;
mod damage;
mod faults;

use std::ops::Bound::Unbounded;

use super::super::conformance::{self, GROUP, Setup, batch, delete, put};
use super::*;

/// A directory, and how to open it.
struct Lsm {
    dir: tempfile::TempDir,
    options: LsmOptions,
}

impl Setup for Lsm {
    type Engine = LsmEngine;

    fn open(&self) -> LsmEngine {
        LsmEngine::open(self.dir.path(), self.options.clone()).unwrap()
    }

    fn reopen(&self, engine: LsmEngine) -> LsmEngine {
        drop(engine);
        self.open()
    }
}

fn with(options: LsmOptions) -> Lsm {
    let dir = tempfile::tempdir().unwrap();
    Lsm { dir, options }
}

/// Memtables and tables so small that a few hundred batches are flushed and compacted many times.
fn small() -> LsmOptions {
    LsmOptions {
        memtable_bytes: 4096,
        unpersisted_bytes_max: 16 * 1024,
        full_disk_bytes_max: 64 * 1024,
        table_bytes: 2048,
        block_bytes: 512,
        flushed_tables_max: 2,
        ..LsmOptions::default()
    }
}

mod with_defaults {
    use super::*;
    conformance::suite!(with(LsmOptions::default()));
}

mod with_small_tables {
    use super::*;
    conformance::suite!(with(small()));
}

/// All pairs a user can see, as text.
fn contents(snapshot: &dyn Snapshot) -> Vec<(String, String)> {
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    snapshot
        .range(Unbounded, Unbounded)
        .map(|pair| pair.unwrap())
        .map(|(key, value)| (text(key), text(value)))
        .collect()
}

/// Waits for the background thread to get somewhere, without asking anything of it.
fn wait_until(engine: &LsmEngine, done: impl Fn(&shared::State) -> bool) {
    let mut state = engine.shared.lock();
    while !done(&state) {
        state = engine.shared.progress.wait(state).unwrap();
    }
}

#[test]
fn write_of_a_key_that_cannot_be_kept_changes_nothing() {
    let setup = with(small());
    let engine = setup.open();
    for key in ["", "\0a", &"k".repeat(65_536)] {
        let refused = engine.write(batch(1, [put("a", "1"), put(key, "1")]));
        assert!(refused.is_err(), "a key of {} bytes", key.len());
        assert!(contents(engine.snapshot().as_ref()).is_empty());
    }
    let longest = "k".repeat(65_535);
    engine.write(batch(1, [put(&longest, "1")])).unwrap();
    engine.persist().unwrap();
    let found = engine.get(longest.as_bytes()).unwrap();
    assert_eq!(found.as_deref(), Some(&b"1"[..]));
}

#[test]
fn open_with_options_out_of_bounds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broken = LsmOptions {
        unpersisted_bytes_max: 1,
        ..LsmOptions::default()
    };
    assert!(LsmEngine::open(dir.path(), broken).is_err());
}

#[test]
fn records_of_the_engine_are_hidden_from_every_read() {
    let setup = with(small());
    let mut engine = setup.open();
    engine.write(batch(7, [put("a", "1")])).unwrap();
    engine.persist().unwrap();
    engine = setup.reopen(engine);
    assert_eq!(engine.durable_index(GROUP), Index(7));
    let (view, at) = engine.shared.read();
    let own: Vec<_> = view.range(Unbounded, Unbounded, at).collect();
    assert_eq!(own.len(), 3, "the record is there");
    let (key, _) = own[0].as_ref().unwrap();
    assert_eq!(engine.get(key).unwrap(), None);
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.get(key).unwrap(), None);
    let keys = contents(snapshot.as_ref());
    let keys: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["a", "~applied"]);
    use std::ops::Bound::{Excluded, Included};
    assert_eq!(snapshot.range(Unbounded, Included(key)).count(), 0);
    assert_eq!(snapshot.range(Excluded(&[]), Excluded(&[1])).count(), 0);
}

#[test]
fn index_without_changes_is_persisted() {
    let setup = with(LsmOptions::default());
    let mut engine = setup.open();
    for group in 1..=3 {
        engine
            .write(EngineBatch {
                changes: [].into(),
                applied: Some((GroupId(group), Index(group * 10))),
            })
            .unwrap();
        engine.persist().unwrap();
    }
    for _ in 0..3 {
        engine = setup.reopen(engine);
        for group in 1..=3 {
            assert_eq!(engine.durable_index(GroupId(group)), Index(group * 10));
        }
    }
}

#[test]
fn superseded_values_leave_the_disk() {
    let setup = with(small());
    let engine = setup.open();
    for index in 1..=2_000_u64 {
        let key = format!("k{}", index % 10);
        engine
            .write(batch(index, [put(&key, &"v".repeat(200))]))
            .unwrap();
    }
    engine.persist().unwrap();
    for i in 0..10 {
        let changes = [delete(&format!("k{i}"))];
        engine.write(batch(2_001 + i, changes)).unwrap();
    }
    engine.persist().unwrap();
    wait_until(&engine, |state| state.idle);
    // 400 KB were written; the last few tables are left, with what they supersede.
    let bytes = engine.disk_bytes();
    assert!(bytes < 40_000, "{bytes} bytes");
    assert_eq!(contents(engine.snapshot().as_ref()).len(), 1);
}

/// With the default sizes nothing would be compacted for a long time: a quota would stay full.
#[test]
fn space_of_what_was_removed_is_given_back_on_demand() {
    let setup = with(LsmOptions::default());
    let engine = setup.open();
    // Nothing to do is fine.
    engine.request_reclaim().unwrap();
    let keys = || (0..300).map(|i| format!("k{i:03}"));
    let written = keys().map(|key| put(&key, &"v".repeat(1_000)));
    engine.write(batch(1, written)).unwrap();
    engine.persist().unwrap();
    let before = engine.snapshot();
    engine
        .write(batch(2, keys().skip(1).map(|key| delete(&key))))
        .unwrap();
    assert!(engine.data_bytes() > 300_000);
    engine.request_reclaim().unwrap();
    wait_until(&engine, |state| state.idle && !state.reclaim);
    let bytes = engine.data_bytes();
    assert!(bytes < 20_000, "{bytes} bytes");
    assert_eq!(contents(before.as_ref()).len(), 301, "and the index");
    drop(before);
    let left = contents(engine.snapshot().as_ref());
    assert_eq!(left.len(), 2);
    let engine = setup.reopen(engine);
    assert_eq!(contents(engine.snapshot().as_ref()), left);
    assert_eq!(engine.durable_index(GROUP), Index(2));
}

/// The tree counts the runs of a level in one byte.
#[test]
fn flushes_that_outpace_compactions_keep_the_runs_few() {
    let setup = with(small());
    let engine = setup.open();
    let mut most = 0;
    for index in 1..=1_500_u64 {
        let ends = [put("a", "1"), put("z", &"v".repeat(200))];
        engine.write(batch(index, ends)).unwrap();
        most = most.max(engine.shared.tree.l0_run_count());
    }
    assert!((2..=16).contains(&most), "{most} runs");
    drop(engine);
    let engine = setup.open();
    assert!(engine.durable_index(GROUP) > Index(1_400));
}

#[test]
fn snapshot_outlives_compactions_of_all_that_it_reads() {
    let setup = with(small());
    let engine = setup.open();
    let write = |round: u64| {
        let changes = (0..40).map(|i| put(&format!("k{i:02}"), &format!("{round:0>100}")));
        engine.write(batch(round, changes)).unwrap();
    };
    write(1);
    engine.persist().unwrap();
    let early = engine.snapshot();
    let expected = contents(early.as_ref());
    let paths =
        |tables: &view::Tables| -> Vec<_> { tables.iter().map(|t| t.path.clone()).collect() };
    let first = paths(&engine.shared.lock().tables);
    let mut walk = early.range(Unbounded, Unbounded);
    let head = walk.next().unwrap().unwrap();
    let is_left = |engine: &LsmEngine| {
        let now = paths(&engine.shared.lock().tables);
        first.iter().any(|path| now.contains(path))
    };
    let mut round = 1;
    while is_left(&engine) {
        round += 1;
        assert!(round < 2000, "the first tables are never compacted");
        write(round);
        engine.persist().unwrap();
    }
    assert_eq!(&*head.0, b"k00");
    assert_eq!(
        walk.map(Result::unwrap).count(),
        40,
        "39 keys and the index"
    );
    assert_eq!(contents(early.as_ref()), expected);
    assert!(
        first.iter().all(|path| path.exists()),
        "held by the snapshot"
    );
}

#[test]
fn use_after_close_is_refused_but_reads_work() {
    let setup = with(small());
    let engine = setup.open();
    engine.write(batch(1, [put("a", "1")])).unwrap();
    engine.close().unwrap();
    assert!(engine.write(batch(2, [put("a", "2")])).is_err());
    assert!(engine.persist().is_err());
    assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
    let engine = setup.reopen(engine);
    assert_eq!(engine.durable_index(GROUP), Index(1));
}
