//! An event store on the log, without any Raft: a stream is a group, an event is an entry.
//!
//! What it gets from the log: an append is atomic over streams and durable when it returns, appends of many threads
//! share a sync, and whoever appends can demand that the stream has not moved since it looked.
//!
//! `cargo run -p raft-log --example event_store`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use raft_log::vfs::RealFs;
use raft_log::{
    Base, Entry, EntryKind, GroupId, Index, Log, LogError, LogOptions, Record, StoreId, Term,
    WriteBatch,
};

/// There is no leader and so only one term.
const TERM: Term = Term(1);

/// A stream, the version that it must have, and the events to add.
type Append<'a> = (u64, u64, &'a [&'a str]);

struct EventStore {
    log: Log,
    /// Held from the look at the versions to the hand-over, not during the sync.
    appending: Mutex<()>,
}

impl EventStore {
    fn open(dir: &Path) -> Result<Self, LogError> {
        let options = LogOptions::new(dir.join("events"), StoreId(7));
        let (log, _report) = Log::open(Arc::new(RealFs::new()), options)?;
        let appending = Mutex::new(());
        Ok(Self { log, appending })
    }

    /// The number of events that the stream has had; zero for one that does not exist.
    fn version(&self, stream: u64) -> u64 {
        let info = self.log.group(GroupId(stream));
        info.map_or(0, |info| info.last_index.0)
    }

    /// Adds events to streams, all or none, if each stream has the version that is expected of it.
    fn append(&self, appends: &[Append<'_>]) -> Result<(), Box<dyn Error>> {
        let looking = self
            .appending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut batch = WriteBatch::new();
        for (stream, expected, events) in appends {
            let found = self.version(*stream);
            if found != *expected {
                return Err(format!("stream {stream} is at {found}, not at {expected}").into());
            }
            if self.log.group(GroupId(*stream)).is_none() {
                batch.push(GroupId(*stream), Record::Compact(Base::default()));
            }
            let entry = |(index, text): (u64, &&str)| Entry {
                index: Index(index),
                term: TERM,
                kind: EntryKind::Normal,
                payload: (*text).to_owned().into(),
            };
            let entries = (expected + 1..).zip(*events).map(entry).collect();
            batch.push(GroupId(*stream), Record::Entries(entries));
        }
        let ticket = self.log.submit(batch)?;
        // From here on others see the new versions; nobody is told that they are durable before they are.
        drop(looking);
        Ok(self.log.wait(ticket)?)
    }

    /// The events behind version `after`, a page at a time.
    fn read(&self, stream: u64, after: u64) -> Result<Vec<String>, LogError> {
        let range = Index(after + 1)..Index(self.version(stream) + 1);
        let entries = self.log.entries(GroupId(stream), range, 64 << 10)?;
        let text = |entry: Entry| String::from_utf8_lossy(&entry.payload).into_owned();
        Ok(entries.into_iter().map(text).collect())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    const ORDERS: u64 = 1;
    const STOCK: u64 = 2;
    let dir = tempfile::tempdir()?;
    let store = EventStore::open(dir.path())?;
    store.append(&[(STOCK, 0, &["ten lamps arrived"])])?;
    store.append(&[
        (ORDERS, 0, &["order 1 placed", "order 1 paid"]),
        (STOCK, 1, &["a lamp reserved"]),
    ])?;
    // Somebody who looked before that has to look again, and nothing of the append is kept.
    let late = store.append(&[
        (ORDERS, 2, &["order 2 placed"]),
        (STOCK, 1, &["a lamp reserved"]),
    ]);
    println!("refused: {}", late.expect_err("the stock has moved"));
    drop(store);

    let store = EventStore::open(dir.path())?;
    println!("orders: {:?}", store.read(ORDERS, 0)?);
    println!("stock after 1: {:?}", store.read(STOCK, 1)?);
    Ok(())
}

#[test]
fn example_runs() {
    main().expect("an example works");
}
