//! What every engine must do, as one suite that each engine's tests instantiate with [`suite!`].
//!
//! An engine takes part with a [`Setup`], which opens it and lets it restart without a clean close.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use raft_log::{GroupId, Index};

use super::{Change, Engine, EngineBatch, Pair, Snapshot};

/// The group of all batches here.
pub(crate) const GROUP: GroupId = GroupId(1);

/// Where [`batch`] records the index, as a state machine does.
const APPLIED: &str = "~applied";

/// An engine under test.
pub(crate) trait Setup {
    /// Its type.
    type Engine: Engine;

    /// An empty engine.
    fn open(&self) -> Self::Engine;

    /// Ends the engine without closing it, as a crash does, and opens what is left.
    fn reopen(&self, engine: Self::Engine) -> Self::Engine;
}

/// One change.
pub(crate) fn put(key: &str, value: &str) -> (Bytes, Change) {
    (
        Bytes::copy_from_slice(key.as_bytes()),
        Change::Put(Bytes::copy_from_slice(value.as_bytes())),
    )
}

/// One removal.
pub(crate) fn delete(key: &str) -> (Bytes, Change) {
    (Bytes::copy_from_slice(key.as_bytes()), Change::Delete)
}

/// A batch that brings [`GROUP`] to an index, with the record that says so.
pub(crate) fn batch(index: u64, changes: impl IntoIterator<Item = (Bytes, Change)>) -> EngineBatch {
    let mut changes: BTreeMap<Bytes, Change> = changes.into_iter().collect();
    changes.extend([put(APPLIED, &index.to_string())]);
    EngineBatch {
        changes,
        applied: Some((GROUP, Index(index))),
    }
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn read(engine: &impl Engine, key: &str) -> Option<String> {
    let now = text(engine.get(key.as_bytes()).unwrap());
    assert_eq!(
        now,
        text(engine.snapshot().get(key.as_bytes()).unwrap()),
        "get and snapshot differ"
    );
    now
}

fn applied(engine: &impl Engine) -> u64 {
    read(engine, APPLIED).map_or(0, |index| index.parse().unwrap())
}

/// The pairs between two bounds.
fn scan(snapshot: &dyn Snapshot, from: Bound<&str>, to: Bound<&str>) -> Vec<(String, String)> {
    let bytes = |bound: Bound<&'static str>| bound.map(str::as_bytes);
    // The tests use literals; the leak of a few bytes keeps the signature simple.
    let fixed = |bound: Bound<&str>| bound.map(|key| &*key.to_owned().leak());
    let (from, to) = (bytes(fixed(from)), bytes(fixed(to)));
    let pairs = snapshot.range(from, to).map(Result::unwrap);
    let pair = |(key, value): Pair| (text(Some(key)).unwrap(), text(Some(value)).unwrap());
    pairs.map(pair).collect()
}

fn keys(snapshot: &dyn Snapshot, from: Bound<&str>, to: Bound<&str>) -> Vec<String> {
    scan(snapshot, from, to)
        .into_iter()
        .map(|(key, _)| key)
        .collect()
}

pub(crate) fn batch_becomes_visible_as_a_whole(setup: &impl Setup) {
    let engine = setup.open();
    assert_eq!(read(&engine, "a"), None);
    engine
        .write(batch(1, [put("a", "1"), put("b", "1")]))
        .unwrap();
    let before = engine.snapshot();
    engine
        .write(batch(2, [put("b", "2"), delete("a"), delete("missing")]))
        .unwrap();
    assert_eq!(
        (read(&engine, "a"), read(&engine, "b")),
        (None, Some("2".into()))
    );
    assert_eq!(text(before.get(b"a").unwrap()).as_deref(), Some("1"));
    assert_eq!(text(before.get(b"b").unwrap()).as_deref(), Some("1"));
    assert_eq!(applied(&engine), 2);
}

pub(crate) fn snapshot_is_isolated_from_writes_deletes_and_flushes(setup: &impl Setup) {
    let engine = setup.open();
    let value = |round: u64| format!("{round}-{}", "x".repeat(100));
    let mut held: Vec<(u64, std::sync::Arc<dyn Snapshot>)> = vec![(0, engine.snapshot())];
    for round in 1..=12 {
        let key = |i: u64| format!("k{i:03}");
        let puts = (0..50).map(|i| put(&key(i), &value(round)));
        let deletes = (0..50)
            .filter(|i| i % 7 == round % 7)
            .map(|i| delete(&key(i)));
        engine.write(batch(round, puts.chain(deletes))).unwrap();
        held.push((round, engine.snapshot()));
        match round % 3 {
            0 => engine.persist().unwrap(),
            1 => engine.request_persist().unwrap(),
            _ => (),
        }
    }
    for (round, snapshot) in &held {
        let pairs = scan(
            snapshot.as_ref(),
            Bound::Included("k"),
            Bound::Excluded("l"),
        );
        let expected = (0..50).filter(|i| *round > 0 && i % 7 != round % 7);
        let expected: Vec<_> = expected
            .map(|i| (format!("k{i:03}"), value(*round)))
            .collect();
        assert_eq!(pairs, expected, "round {round}");
        for i in 0..50 {
            let found = text(snapshot.get(format!("k{i:03}").as_bytes()).unwrap());
            assert_eq!(
                found,
                (*round > 0 && i % 7 != round % 7).then(|| value(*round))
            );
        }
    }
}

pub(crate) fn range_honours_all_bounds(setup: &impl Setup) {
    use Bound::{Excluded, Included, Unbounded};
    let engine = setup.open();
    for (index, keys) in [["a", "c", "e"], ["b", "d", "f"]].iter().enumerate() {
        let changes: BTreeMap<_, _> = keys.iter().map(|key| put(key, "v")).collect();
        engine
            .write(EngineBatch {
                changes,
                applied: None,
            })
            .unwrap();
        if index == 0 {
            engine.persist().unwrap();
        }
    }
    engine
        .write(EngineBatch {
            changes: [delete("c"), put("bb", "v")].into(),
            applied: None,
        })
        .unwrap();
    let all = ["a", "b", "bb", "d", "e", "f"];
    let snapshot = engine.snapshot();
    let ends = ["", "a", "b", "ba", "bb", "c", "d", "f", "g"];
    let kinds = [Included, Excluded, |_| Unbounded];
    for low in ends {
        for high in ends {
            for from in kinds.map(|kind| kind(low)) {
                for to in kinds.map(|kind| kind(high)) {
                    let inside = |key: &&str| {
                        let above = match from {
                            Included(bound) => *key >= bound,
                            Excluded(bound) => *key > bound,
                            Unbounded => true,
                        };
                        let below = match to {
                            Included(bound) => *key <= bound,
                            Excluded(bound) => *key < bound,
                            Unbounded => true,
                        };
                        above && below
                    };
                    let expected: Vec<&str> = all.iter().copied().filter(inside).collect();
                    assert_eq!(
                        keys(snapshot.as_ref(), from, to),
                        expected,
                        "{from:?} {to:?}"
                    );
                }
            }
        }
    }
}

pub(crate) fn delete_hides_older_values_wherever_they_are(setup: &impl Setup) {
    let engine = setup.open();
    engine
        .write(batch(1, [put("a", "1"), put("b", "1"), put("c", "1")]))
        .unwrap();
    engine.persist().unwrap();
    engine.write(batch(2, [delete("a")])).unwrap();
    assert_eq!(read(&engine, "a"), None);
    engine.persist().unwrap();
    assert_eq!(read(&engine, "a"), None);
    engine
        .write(batch(3, [put("a", "3"), delete("b")]))
        .unwrap();
    assert_eq!(read(&engine, "a").as_deref(), Some("3"));
    engine.persist().unwrap();
    assert_eq!(read(&engine, "b"), None);
    let snapshot = engine.snapshot();
    let found = keys(snapshot.as_ref(), Bound::Unbounded, Bound::Excluded("~"));
    assert_eq!(found, ["a", "c"]);
}

pub(crate) fn persist_makes_the_applied_index_durable(setup: &impl Setup) {
    let engine = setup.open();
    engine.persist().unwrap();
    assert_eq!(engine.durable_index(GROUP), Index(0));
    engine.write(batch(1, [put("a", "1")])).unwrap();
    assert_eq!(engine.durable_index(GROUP), Index(0));
    engine.persist().unwrap();
    assert_eq!(engine.durable_index(GROUP), Index(1));
    assert_eq!(engine.durable_index(GroupId(9)), Index(0));
    let other = EngineBatch {
        changes: [put("b", "1")].into(),
        applied: Some((GroupId(9), Index(70))),
    };
    engine.write(other).unwrap();
    engine.write(batch(2, [put("a", "2")])).unwrap();
    assert_eq!(engine.durable_index(GROUP), Index(1));
    engine.persist().unwrap();
    assert_eq!(engine.durable_index(GROUP), Index(2));
    assert_eq!(engine.durable_index(GroupId(9)), Index(70));
    let engine = setup.reopen(engine);
    assert_eq!(engine.durable_index(GROUP), Index(2));
    assert_eq!(engine.durable_index(GroupId(9)), Index(70));
    assert_eq!(read(&engine, "a").as_deref(), Some("2"));
    engine.close().unwrap();
    engine.close().unwrap();
}

/// Each batch moves an amount between two accounts, so that their sum tells whether a batch was split.
pub(crate) fn reopen_finds_the_state_of_one_batch(setup: &impl Setup) {
    const ACCOUNTS: u64 = 40;
    const TOTAL: u64 = 1000 * ACCOUNTS;
    let name = |account: u64| format!("account{account:02}");
    let mut engine = setup.open();
    let mut states: Vec<Vec<u64>> = vec![vec![1000; 40]];
    engine
        .write(batch(1, (0..ACCOUNTS).map(|i| put(&name(i), "1000"))))
        .unwrap();
    states.push(states[0].clone());
    for restart in 1..=4_u64 {
        let mut floor = engine.durable_index(GROUP).0;
        for step in 0..250_u64 {
            let index = states.len() as u64;
            let mut state = states.last().unwrap().clone();
            let (from, to) = (
                (index * 7 + restart) % ACCOUNTS,
                (index * 11 + 3) % ACCOUNTS,
            );
            let amount = state[from as usize].min(index % 13);
            state[from as usize] -= amount;
            state[to as usize] += amount;
            let filler = put(&format!("filler{index:06}"), &"f".repeat(200));
            let moved = [from, to].map(|i| put(&name(i), &state[i as usize].to_string()));
            engine
                .write(batch(index, moved.into_iter().chain([filler])))
                .unwrap();
            states.push(state);
            match step % 60 {
                20 => {
                    engine.persist().unwrap();
                    floor = index;
                }
                45 => engine.request_persist().unwrap(),
                _ => (),
            }
        }
        engine = setup.reopen(engine);
        let at = applied(&engine);
        assert!(
            at >= floor,
            "batch {floor} was durable, but batch {at} is the newest"
        );
        assert_eq!(engine.durable_index(GROUP), Index(at));
        let found: Vec<u64> = (0..ACCOUNTS)
            .map(|i| read(&engine, &name(i)).unwrap().parse().unwrap())
            .collect();
        assert_eq!(found, states[at as usize], "batch {at} is not whole");
        assert_eq!(found.iter().sum::<u64>(), TOTAL);
        states.truncate(at as usize + 1);
        let fillers = engine.snapshot();
        let fillers = keys(
            fillers.as_ref(),
            Bound::Included("filler"),
            Bound::Excluded("filles"),
        );
        assert_eq!(fillers.len() as u64, at - 1);
    }
}

pub(crate) fn readers_see_whole_batches_during_writes_and_flushes(setup: &impl Setup) {
    let engine = setup.open();
    let names = ["a", "m", "x"];
    let write = |index: u64| {
        let same = names.map(|name| put(name, &index.to_string()));
        let filler = put(&format!("n{:04}", index % 500), &"f".repeat(100));
        engine
            .write(batch(index, same.into_iter().chain([filler])))
            .unwrap();
    };
    write(1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = 0;
                let mut rounds = 0;
                while !done.load(Ordering::Acquire) || rounds < 5 {
                    let snapshot = engine.snapshot();
                    let found = names.map(|name| text(snapshot.get(name.as_bytes()).unwrap()));
                    assert!(
                        found
                            .iter()
                            .all(|value| *value == found[0] && value.is_some())
                    );
                    let (from, to) = (Bound::Included(&b"a"[..]), Bound::Unbounded);
                    let scanned: BTreeMap<Bytes, Bytes> =
                        snapshot.range(from, to).map(Result::unwrap).collect();
                    for name in names {
                        let value = scanned.get(name.as_bytes()).cloned();
                        assert_eq!(text(value), found[0]);
                    }
                    let index: u64 = found[0].as_ref().unwrap().parse().unwrap();
                    assert!(index >= newest, "the past came back");
                    newest = index;
                    let now: u64 = text(engine.get(b"m").unwrap()).unwrap().parse().unwrap();
                    assert!(now >= index, "a get is older than an earlier snapshot");
                    rounds += 1;
                }
            });
        }
        for index in 2..=3000 {
            write(index);
            if index % 200 == 0 {
                engine.request_persist().unwrap();
            }
        }
        engine.persist().unwrap();
        done.store(true, Ordering::Release);
    });
    assert_eq!(read(&engine, "x").as_deref(), Some("3000"));
}

pub(crate) fn drop_range_and_deletes_empty_only_the_range(setup: &impl Setup) {
    let mut engine = setup.open();
    let mut index = 0;
    for prefix in ["a", "b", "c"] {
        for i in 0..300 {
            index += 1;
            let key = format!("{prefix}{i:04}");
            engine
                .write(batch(index, [put(&key, &"v".repeat(150))]))
                .unwrap();
        }
    }
    engine.persist().unwrap();
    engine.drop_range(b"b", b"c").unwrap();
    let snapshot = engine.snapshot();
    let left = keys(
        snapshot.as_ref(),
        Bound::Included("b"),
        Bound::Excluded("c"),
    );
    engine
        .write(batch(index + 1, left.iter().map(|key| delete(key))))
        .unwrap();
    engine.persist().unwrap();
    engine = setup.reopen(engine);
    let snapshot = engine.snapshot();
    assert!(
        keys(
            snapshot.as_ref(),
            Bound::Included("b"),
            Bound::Excluded("c")
        )
        .is_empty()
    );
    assert_eq!(
        keys(
            snapshot.as_ref(),
            Bound::Included("a"),
            Bound::Excluded("b")
        )
        .len(),
        300
    );
    assert_eq!(
        keys(
            snapshot.as_ref(),
            Bound::Included("c"),
            Bound::Excluded("d")
        )
        .len(),
        300
    );
    assert_eq!(read(&engine, "b0000"), None);
    assert_eq!(applied(&engine), index + 1);
}

/// Instantiates the suite for a [`Setup`] that has a `Default`-like unit expression.
macro_rules! suite {
    ($setup:expr) => {
        $crate::engine::conformance::suite!($setup;
            batch_becomes_visible_as_a_whole,
            snapshot_is_isolated_from_writes_deletes_and_flushes,
            range_honours_all_bounds,
            delete_hides_older_values_wherever_they_are,
            persist_makes_the_applied_index_durable,
            reopen_finds_the_state_of_one_batch,
            readers_see_whole_batches_during_writes_and_flushes,
            drop_range_and_deletes_empty_only_the_range,
        );
    };
    ($setup:expr; $($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                $crate::engine::conformance::$name(&$setup);
            }
        )*
    };
}
pub(crate) use suite;
