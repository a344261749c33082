//! The bytes that a keyspace takes are those that a walk over everything finds, whatever was done.

use std::io::Cursor;

use multiraft::SnapshotState;
use raft_log::SnapshotRef;

use super::*;

fn assert_counted(rig: &Rig, what: &str) {
    let (counted, walked) = rig.store.count_bytes().unwrap();
    assert_eq!(counted, walked, "{what}");
    assert_eq!(rig.store.bytes(), walked, "{what}");
}

fn tick(rig: &mut Rig) {
    let context = TickContext {
        tick: 1,
        leading: None,
    };
    rig.machine.tick(context, &mut Vec::new());
}

#[test]
fn bytes_are_counted_whatever_is_done_and_over_restarts() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rig = Rig::new();
        for round in 0..60 {
            let ops: Vec<_> = (0..rng.random_range(1..6))
                .map(|_| random_op(&mut rng, rig.store.revision()))
                .collect();
            rig.apply(&ops);
            let what = format!("seed {seed} round {round}: {ops:?}");
            assert_counted(&rig, &what);
            match rng.random_range(0..6) {
                0 => tick(&mut rig),
                // A walk of compaction that was not over begins again.
                1 => rig = Rig::on(rig.engine),
                _ => continue,
            }
            assert_counted(&rig, &what);
        }
        rig.tick_until_compacted();
        assert_counted(&rig, "compacted");
    }
}

#[test]
fn bytes_grow_with_history_and_return_when_it_is_compacted() {
    let mut rig = Rig::new();
    assert_eq!(rig.store.bytes(), 0);
    rig.one(put("a", "1")).unwrap();
    let one = rig.store.bytes();
    let long = "v".repeat(1_000);
    for _ in 0..10 {
        rig.one(put("a", &long)).unwrap();
    }
    assert!(rig.store.bytes() > one + 10_000, "{}", rig.store.bytes());
    rig.one(delete("a", "")).unwrap();
    rig.one(put("b", "1")).unwrap();
    let newest = rig.store.revision();
    rig.one(compact(newest)).unwrap();
    rig.tick_until_compacted();
    // Its own revision, below the floor no more, is what is left beside the key.
    assert_eq!(rig.store.bytes(), one);
    rig.one(grant(1)).unwrap();
    assert!(rig.store.bytes() > one);
    rig.one(Op::LeaseRevoke(LeaseRevokeRequest { id: 1 }))
        .unwrap();
    assert_eq!(rig.store.bytes(), one);
}

#[test]
fn keyspace_of_before_it_was_counted_is_counted_when_it_is_opened() {
    let mut rig = Rig::new();
    rig.apply(&[put("a", "1"), put("a", "2"), grant(7), leased("b", 7)]);
    let bytes = rig.store.bytes();
    assert!(bytes > 0);
    let key = codec::Keys {
        group: GroupId(1),
        generation: 0,
    };
    let mut old = codec::Meta::decode(rig.engine.get(&key.meta()).unwrap().unwrap()).unwrap();
    old.bytes = None;
    let changes = BTreeMap::from([(key.meta(), Change::Put(old.encode()))]);
    let applied = None;
    rig.engine.write(EngineBatch { changes, applied }).unwrap();
    let mut rig = Rig::on(rig.engine);
    assert_eq!(rig.store.bytes(), bytes);
    rig.one(put("c", "1")).unwrap();
    assert_counted(&rig, "after the next write");
}

#[test]
fn snapshot_is_counted_where_it_is_installed() {
    let mut rig = Rig::new();
    rig.apply(&[put("a", "1"), put("a", "2"), grant(7), leased("b", 7)]);
    let mut content = Vec::new();
    rig.machine.cut().write(&mut content).unwrap();
    let applied = rig.machine.applied();
    let snapshot = SnapshotRef {
        index: applied.index,
        term: applied.term,
        number: 1,
        content_len: content.len() as u64,
        content_crc: 0,
        membership: Bytes::new(),
    };
    let mut taken = Rig::new();
    taken.one(put("x", "gone")).unwrap();
    let content = Box::new(Cursor::new(content));
    taken.machine.begin_install(&snapshot, content).unwrap();
    while !taken.machine.install_step().unwrap() {}
    assert_eq!(taken.store.bytes(), rig.store.bytes());
    assert_counted(&taken, "installed");
    taken.machine.tick(
        TickContext {
            tick: 1,
            leading: None,
        },
        &mut Vec::new(),
    );
    assert_counted(&Rig::on(taken.engine), "opened again");
}
