//! The log in a program of one's own: write, wait, start again, forget what is old.
//!
//! `cargo run -p raft-log --example embedded_log`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::RealFs;
use raft_log::{
    Base, Entry, EntryKind, GroupId, Index, Log, LogError, LogOptions, Record, StoreId, Term,
    WriteBatch,
};

const GROUP: GroupId = GroupId(1);

/// Opens the log below `dir`; the number stands for this data directory and must stay the same.
fn open(dir: &Path) -> Result<Log, LogError> {
    let options = LogOptions::new(dir.join("log"), StoreId(0x5eed));
    let (log, report) = Log::open(Arc::new(RealFs::new()), options)?;
    println!("opened: {report}");
    Ok(log)
}

/// One batch with one entry. Entries are numbered from 1, and the log checks that none is left out.
fn entry(index: u64, text: &str) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let entry = Entry {
        index: Index(index),
        term: Term(1),
        kind: EntryKind::Normal,
        payload: text.to_owned().into(),
    };
    batch.push(GROUP, Record::Entries(vec![entry]));
    batch
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let log = open(dir.path())?;

    // A group exists from its first base record on.
    let mut create = WriteBatch::new();
    create.push(GROUP, Record::Compact(Base::default()));
    log.write(create)?;

    // Several batches can be on their way; one sync makes all of them durable.
    let mut newest = None;
    for index in 1..=5 {
        newest = Some(log.submit(entry(index, &format!("entry {index}")))?);
    }
    log.wait(newest.ok_or("nothing was submitted")?)?;
    println!("{:?}", log.stats());

    // Without a clean close: dropping it is what a crash of the process does.
    drop(log);
    let log = open(dir.path())?;
    for entry in log.entries(GROUP, Index(1)..Index(6), usize::MAX)? {
        println!(
            "{}: {}",
            entry.index,
            String::from_utf8_lossy(&entry.payload)
        );
    }

    // Whatever is covered elsewhere can go; segments without live entries are removed.
    let mut forget = WriteBatch::new();
    let base = Base {
        index: Index(3),
        term: Term(1),
        ..Base::default()
    };
    forget.push(GROUP, Record::Compact(base));
    log.write(forget)?;
    let gone = log.entries(GROUP, Index(1)..Index(6), usize::MAX);
    println!("{}", gone.expect_err("entry 1 is compacted"));
    log.close()?;
    Ok(())
}

#[test]
fn example_runs() {
    main().expect("an example works");
}
