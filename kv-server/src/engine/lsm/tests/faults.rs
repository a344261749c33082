//! A disk that is full for a while, a disk that fails, and a thread that panics.

use std::io::ErrorKind;

use super::*;
use crate::engine::lsm::shared::Fault;

fn next_flushes(engine: &LsmEngine, faults: impl IntoIterator<Item = Fault>) {
    engine.shared.faults.lock().unwrap().extend(faults);
}

fn full() -> Fault {
    Fault::Error(ErrorKind::StorageFull)
}

#[test]
fn flush_on_a_full_disk_is_repeated_until_it_works() {
    let setup = with(LsmOptions::default());
    let engine = setup.open();
    next_flushes(&engine, [full(), Fault::Error(ErrorKind::QuotaExceeded)]);
    engine.write(batch(1, [put("a", "1")])).unwrap();
    engine.request_persist().unwrap();
    wait_until(&engine, |_| engine.out_of_space());
    assert_eq!(engine.durable_index(GROUP), Index(0));
    assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
    engine.write(batch(2, [put("a", "2")])).unwrap();
    engine.persist().unwrap();
    assert!(!engine.out_of_space());
    assert_eq!(engine.durable_index(GROUP), Index(2));
    let on_disk = setup.dir.path().join("tables").read_dir().unwrap().count();
    let named = engine.shared.lock().tables.iter().count();
    assert_eq!(on_disk, named, "the failed attempts left nothing");
    let engine = setup.reopen(engine);
    assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
}

#[test]
fn writes_on_a_full_disk_go_on_up_to_the_bound_without_waiting() {
    let setup = with(small());
    let engine = setup.open();
    next_flushes(&engine, (0..1000).map(|_| full()));
    let write = |index: u64| engine.write(batch(index, [put("a", &"x".repeat(500))]));
    write(1).unwrap();
    engine.request_persist().unwrap();
    wait_until(&engine, |_| engine.out_of_space());
    let accepted = (2..1000).take_while(|index| write(*index).is_ok()).count();
    let bytes = accepted as u64 * 500;
    assert!(
        bytes > setup.options.unpersisted_bytes_max,
        "{accepted} batches"
    );
    assert!(
        bytes < setup.options.full_disk_bytes_max,
        "{accepted} batches"
    );
    // The bound is not a failure: with space, all goes on.
    engine.shared.faults.lock().unwrap().clear();
    engine.persist().unwrap();
    write(1000).unwrap();
    assert_eq!(engine.durable_index(GROUP), Index(accepted as u64 + 1));
}

#[test]
fn close_on_a_full_disk_ends_with_an_error() {
    let setup = with(small());
    let engine = setup.open();
    next_flushes(&engine, (0..1000).map(|_| full()));
    engine.write(batch(1, [put("a", "1")])).unwrap();
    assert!(engine.close().is_err());
    let engine = setup.reopen(engine);
    assert_eq!(engine.durable_index(GROUP), Index(0));
    assert!(contents(engine.snapshot().as_ref()).is_empty());
}

#[test]
fn request_without_room_for_a_memtable_is_made_up_for() {
    let setup = with(LsmOptions::default());
    let engine = setup.open();
    next_flushes(&engine, [full()]);
    for index in 1..=4 {
        engine.write(batch(index, [put("a", "1")])).unwrap();
        engine.request_persist().unwrap();
    }
    wait_until(&engine, |state| {
        state.durable.get(&GROUP) == Some(&Index(4))
    });
    assert!(!engine.out_of_space());
}

#[test]
fn flush_that_fails_stops_the_engine() {
    for fault in [Fault::Error(ErrorKind::Other), Fault::Panic] {
        let setup = with(small());
        let engine = setup.open();
        engine.write(batch(1, [put("a", "1")])).unwrap();
        engine.persist().unwrap();
        next_flushes(&engine, [fault]);
        engine.write(batch(2, [put("a", "2")])).unwrap();
        assert!(engine.persist().is_err());
        assert!(engine.write(batch(3, [put("a", "3")])).is_err());
        assert!(engine.request_persist().is_err());
        assert!(engine.drop_range(b"a", b"b").is_err());
        assert!(engine.close().is_err());
        assert_eq!(engine.durable_index(GROUP), Index(1));
        let engine = setup.reopen(engine);
        assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(engine.durable_index(GROUP), Index(1));
    }
}
