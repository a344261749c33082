//! Ranges that find their keys in memory: they have the answers of a walk over the engine, whatever is written meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use multiraft::InlineTasks;

use super::*;
use crate::pb::mvccpb::KeyValue;

const KEYS: u32 = 1_500;

fn key(number: u32) -> String {
    format!("/{:02}/{number:05}", number % 7)
}

/// Where all keys are counted at once, and so are in blocks.
fn filled(bytes_max: usize) -> Rig {
    let options = KvOptions {
        count_worth_keys: 1,
        ranges: Arc::new(RangeCache::new(bytes_max)),
        ..KvOptions::default()
    };
    let mut rig = Rig::with(Arc::default(), options);
    rig.machine.run_tasks_on(Arc::new(InlineTasks));
    let ops: Vec<_> = (0..KEYS).map(|number| put(&key(number), "v")).collect();
    for some in ops.chunks(500) {
        rig.apply(some);
    }
    let blocks = RangeRequest {
        count_only: true,
        ..all()
    };
    assert_eq!(rig.store.range(&blocks).unwrap().count, i64::from(KEYS));
    rig
}

fn list(from: &str, to: &[u8], limit: i64) -> RangeRequest {
    RangeRequest {
        range_end: Bytes::copy_from_slice(to),
        limit,
        ..point(from)
    }
}

/// What a walk over the engine finds.
fn walked(rig: &Rig, request: &RangeRequest) -> (Vec<KeyValue>, i64) {
    let unlimited = RangeRequest {
        limit: 0,
        ..request.clone()
    };
    let part = rig.store.range_part(&unlimited, usize::MAX, usize::MAX);
    let mut kvs = part.unwrap().kvs;
    let count = i64::try_from(kvs.len()).unwrap();
    if request.limit > 0 {
        kvs.truncate(usize::try_from(request.limit).unwrap());
    }
    (kvs, count)
}

/// Says how many were answered at once.
fn check(rig: &Rig, rng: &mut StdRng) -> usize {
    let mut at_once = 0;
    for _ in 0..60 {
        let [from, to] = [(); 2].map(|()| key(rng.random_range(0..2 * KEYS)));
        let to = match rng.random_range(0..3) {
            0 => &[0],
            _ => to.as_bytes(),
        };
        let request = list(&from, to, [0, 1, 20, 100, 700][rng.random_range(0..5)]);
        let (kvs, count) = walked(rig, &request);
        let more = count > i64::try_from(kvs.len()).unwrap();
        let found = rig.store.range(&request).unwrap();
        assert_eq!(found.kvs, kvs, "{request:?}");
        assert_eq!((found.count, found.more), (count, more), "{request:?}");
        if let Some(found) = rig.store.range_at_once(&request) {
            at_once += 1;
            assert_eq!(found.kvs, kvs, "{request:?}");
            assert_eq!((found.count, found.more), (count, more), "{request:?}");
            assert_eq!(found.header.unwrap().revision, rig.store.revision());
        }
    }
    at_once
}

/// Ranges of older revisions, and of the newest by its number.
fn check_old(rig: &Rig, rng: &mut StdRng) {
    let newest = rig.store.revision();
    let oldest = rig.store.compact_revision().max(1);
    for _ in 0..20 {
        let revision = match rng.random_range(0..3) {
            0 => newest,
            1 => newest - rng.random_range(0..40),
            _ => rng.random_range(oldest..=newest),
        };
        let [from, to] = [(); 2].map(|()| key(rng.random_range(0..2 * KEYS)));
        let to = match rng.random_range(0..3) {
            0 => &[0],
            _ => to.as_bytes(),
        };
        let request = RangeRequest {
            revision: revision.max(oldest),
            ..list(&from, to, [0, 1, 30, 700][rng.random_range(0..4)])
        };
        let (kvs, count) = walked(rig, &request);
        let found = rig.store.range(&request).unwrap();
        assert_eq!((found.count, found.kvs), (count, kvs), "{request:?}");
        let counted = RangeRequest {
            count_only: true,
            ..request
        };
        assert_eq!(rig.store.range(&counted).unwrap().count, count);
    }
}

/// Ranges of transactions, behind what was written before them in the same batch, and in the same transaction.
fn check_txns(rig: &mut Rig, rng: &mut StdRng) {
    let range = |rng: &mut StdRng| {
        let [from, to] = [(); 2].map(|()| key(rng.random_range(0..2 * KEYS)));
        let limited = list(&from, to.as_bytes(), 5);
        let keys = RangeRequest {
            limit: 0,
            keys_only: true,
            ..limited.clone()
        };
        [limited, keys].map(|range| op(Request::RequestRange(range)))
    };
    let mut ops = Vec::new();
    for _ in 0..10 {
        let number = rng.random_range(0..2 * KEYS);
        ops.push(put(&key(number), "t"));
        ops.push(delete(&key(rng.random_range(0..2 * KEYS)), ""));
        let put = op(Request::RequestPut(put_request(&key(number + 7), "t")));
        let [limited, keys] = range(rng);
        let success = vec![put, limited, keys];
        ops.push(Op::Txn(TxnRequest {
            success,
            ..TxnRequest::default()
        }));
    }
    let mut answers: Vec<_> = rig.apply(&ops).into_iter().map(Result::unwrap).collect();
    answers.retain(|answer| matches!(answer, CommandResult::Txn(_)));
    let read = TxnRequest {
        success: range(rng).to_vec(),
        ..TxnRequest::default()
    };
    answers.push(CommandResult::Txn(rig.store.read_txn(&read).unwrap()));
    for answer in answers {
        let CommandResult::Txn(answer) = answer else {
            panic!("only transactions are left")
        };
        let ranges: Vec<_> = (answer.responses.into_iter())
            .filter_map(|one| match one.response {
                Some(Response::ResponseRange(range)) => Some(range),
                _ => None,
            })
            .collect();
        let [limited, keys] = &ranges[..] else {
            panic!("two ranges are in each")
        };
        assert_eq!(limited.count, keys.count);
        assert_eq!(i64::try_from(keys.kvs.len()).unwrap(), keys.count);
        assert_eq!(limited.more, keys.kvs.len() > limited.kvs.len());
    }
}

fn change(rig: &mut Rig, rng: &mut StdRng, changes: u32) {
    let ops: Vec<_> = (0..changes)
        .map(|n| match rng.random_range(0..40) {
            0 => delete(
                &key(rng.random_range(0..KEYS)),
                &key(rng.random_range(0..KEYS)),
            ),
            1..8 => delete(&key(rng.random_range(0..2 * KEYS)), ""),
            _ => put(&key(rng.random_range(0..2 * KEYS)), &format!("w{n}")),
        })
        .collect();
    rig.apply(&ops);
}

#[test]
fn ranges_of_blocks_in_memory_are_what_a_walk_finds() {
    // The second one holds a few blocks only.
    for (bytes_max, at_once_min) in [(16 << 20, 150), (20_000, 1)] {
        let mut rng = StdRng::seed_from_u64(11);
        let mut rig = filled(bytes_max);
        let mut at_once = 0;
        for round in 0..30 {
            at_once += check(&rig, &mut rng);
            check_old(&rig, &mut rng);
            check_txns(&mut rig, &mut rng);
            if round % 20 == 19 {
                let floor = rig.store.revision() - 300;
                rig.one(compact(floor)).unwrap();
                rig.tick_until_compacted();
            }
            assert!(rig.store.ranges().bytes() <= bytes_max);
            let changes = [1, 20, 300][round % 3];
            change(&mut rig, &mut rng, changes);
        }
        assert!(
            at_once >= at_once_min,
            "{at_once} of 1,800 were answered at once"
        );
    }
}

#[test]
fn halves_of_a_long_list_are_the_list() {
    let mut rig = filled(16 << 20);
    assert!(rig.store.list_in_shares(&list("\0", &[0], 0)).is_none());
    let ops: Vec<_> = (0..20_000).map(|n| put(&key(n), &format!("{n}"))).collect();
    for some in ops.chunks(1_000) {
        rig.apply(some);
    }
    for limited in [list("\0", &[0], 15_000), list("/02/", b"/03/", 0)] {
        assert!(rig.store.list_in_shares(&limited).is_none());
    }
    for request in [list("\0", &[0], 0), list("/01/", b"/06/", 0)] {
        let shares = rig.store.list_in_shares(&request).unwrap();
        // What is written now is in neither.
        rig.apply(&[put(&key(1), "later"), delete(&key(5), "")]);
        let mut kvs = Vec::new();
        let count: i64 = (shares.into_iter())
            .map(|share| {
                let before = kvs.len();
                let answer = share.read(1_000, &mut |some| kvs.extend(some)).unwrap();
                assert!(kvs.len() > before + 6_000 && answer.kvs.is_empty());
                answer.count
            })
            .sum();
        assert_eq!(usize::try_from(count).unwrap(), kvs.len());
        rig.apply(&[put(&key(1), "1"), put(&key(5), "5")]);
        let names = |kvs: &[KeyValue]| -> Vec<(Bytes, Bytes)> {
            let pairs = kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone()));
            pairs.collect()
        };
        assert_eq!(names(&kvs), names(&walked(&rig, &request).0));
    }
}

#[test]
fn replaced_state_is_not_answered_from_memory() {
    let rig = filled(16 << 20);
    let request = list("\0", &[0], 100);
    for _ in 0..3 {
        rig.store.range(&request).unwrap();
    }
    assert!(rig.store.range_at_once(&request).is_some());
    rig.store.counting().forget();
    assert!(rig.store.range_at_once(&request).is_none());
}

#[test]
fn block_of_large_values_is_not_held() {
    let mut rig = filled(16 << 20);
    let large = "x".repeat(8 << 10);
    let ops: Vec<_> = (0..KEYS).map(|number| put(&key(number), &large)).collect();
    rig.apply(&ops);
    let request = list("\0", &[0], 50);
    for _ in 0..5 {
        assert_eq!(rig.store.range(&request).unwrap().kvs.len(), 50);
    }
    assert!(rig.store.range_at_once(&request).is_none());
    assert_eq!(rig.store.ranges().bytes(), 0);
}

/// Each batch writes all keys, so a range that does not have one value in all of them has read two states.
#[test]
fn readers_beside_the_writer_see_one_state_and_never_an_older_one() {
    let mut rig = filled(16 << 20);
    let store = Arc::clone(&rig.store);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut newest, mut at_once) = (0, 0);
                    while !over.load(Ordering::Acquire) {
                        let visible = store.revision();
                        let request = list("\0", &[0], 300);
                        let found = store.range_at_once(&request);
                        at_once += usize::from(found.is_some());
                        let found = found.map_or_else(|| store.range(&request), Ok).unwrap();
                        let revision = found.header.unwrap().revision;
                        assert!(revision >= newest.max(visible));
                        newest = revision;
                        let value = &found.kvs[0].value;
                        assert!(found.kvs.iter().all(|kv| kv.value == value));
                        assert!(found.kvs.iter().all(|kv| kv.mod_revision <= revision));
                        assert!(found.kvs[0].mod_revision + i64::from(KEYS) > revision);
                        assert_eq!(found.count, i64::from(KEYS));
                    }
                    at_once
                })
            })
            .collect();
        for round in 0..120 {
            let value = format!("round {round}");
            let ops: Vec<_> = (0..KEYS).map(|number| put(&key(number), &value)).collect();
            rig.apply(&ops);
            if round % 30 == 0 {
                // So that there is something to be found in memory.
                for _ in 0..20 {
                    drop(store.range(&list("\0", &[0], 300)));
                }
            }
        }
        over.store(true, Ordering::Release);
        let at_once: usize = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum();
        assert!(at_once > 0, "nothing was read from memory");
    });
}
