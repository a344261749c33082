//! A durable log for many groups on one disk, and a snapshot store beside it.
//!
//! A group is any sequence of entries that has to survive: the log of a Raft group, a stream of events, a queue. All
//! groups of a store share one log on disk, so that one `fdatasync` covers the work of all of them. A write is a
//! [`WriteBatch`], which is atomic: after any crash either all of it or nothing of it is there. [`Log::submit`] returns
//! a [`Ticket`]; when the ticket completes, the batch is on disk.
//!
//! ```
//! use std::sync::Arc;
//! use raft_log::vfs::RealFs;
//! use raft_log::{Base, Entry, EntryKind, GroupId, Index, Log, LogOptions, Record, StoreId, Term, WriteBatch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("log");
//! let options = LogOptions::new(&dir, StoreId(1));
//! let (log, report) = Log::open(Arc::new(RealFs::new()), options.clone())?;
//! println!("{report}");
//!
//! let group = GroupId(1);
//! let mut batch = WriteBatch::new();
//! batch.push(group, Record::Compact(Base::default())); // creates the group
//! batch.push(group, Record::Entries(vec![Entry {
//!     index: Index(1),
//!     term: Term(1),
//!     kind: EntryKind::Normal,
//!     payload: "hello".into(),
//! }]));
//! let ticket = log.submit(batch)?; // reads see it from here on
//! log.wait(ticket)?; // and from here on it survives
//!
//! drop(log); // no clean end is needed
//! let (log, _) = Log::open(Arc::new(RealFs::new()), options)?;
//! assert_eq!(log.entries(group, Index(1)..Index(2), usize::MAX)?[0].payload, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # What it guarantees
//!
//! - **A completed ticket is durable**, through the end of the process and the loss of power. Tickets complete in order.
//! - **A start finds a prefix**: every batch whose ticket completed, then possibly some that were submitted behind them,
//!   in order and without a gap. What a start does not find never comes back, also not at a later start.
//! - **No other data**: everything is checksummed. Damage to what was synced is an error that names file and offset;
//!   a torn end is cut, kept as evidence, and reported.
//! - **The first failed sync is final**: every waiter and every later call gets that error. A sync is never tried again,
//!   because the second one would report success without having written anything.
//! - **A full disk is not**: [`Log::space`] says so in time, what was accepted is kept, and it ends when there is space.
//!
//! # Reading order
//!
//! [`WriteBatch`] and [`Record`] are what can be written. [`Log`] opens, writes, waits and reads; [`LogOptions`] is how,
//! [`GroupInfo`] and [`LogStats`] what it tells. [`LogError`] has a [`kind`](LogError::kind) to match on, and so has
//! [`SnapshotError`]: one [`ErrorKind`] for the whole crate, with file and offset where there is one.
//! [`SnapshotStore`] keeps files with a whole group's state, complete or not there at all. [`log::inspect`] looks at the
//! files of a log without opening it, [`log::check`] judges them as a start would, and [`log::salvage`] copies what can be
//! trusted of a damaged one. [`vfs`] is the seam to the file system.
//!
//! The examples `embedded_log` (all of the above), `event_store` (no Raft at all) and `crash_test` (a crash test of
//! another store) run with `cargo run -p raft-log --example NAME`.
//!
//! # Who waits, and where
//!
//! The crate is synchronous and has no `async` in it. [`Log::wait`] blocks; on an idle log the waiter writes and syncs on
//! its own thread, which saves the hop to another. [`Log::is_durable`] polls, and [`Log::on_progress`] is called after
//! each sync. Together they are a future in three lines:
//!
//! ```
//! use std::future::poll_fn;
//! use std::sync::{Arc, Mutex};
//! use std::task::{Poll, Waker};
//! use raft_log::{Log, LogError, Ticket};
//!
//! type Wakers = Arc<Mutex<Vec<Waker>>>;
//!
//! /// Once, after opening the log.
//! fn connect(log: &Log) -> Wakers {
//!     let wakers = Wakers::default();
//!     let woken = wakers.clone();
//!     log.on_progress(Box::new(move || woken.lock().unwrap().drain(..).for_each(Waker::wake)));
//!     wakers
//! }
//!
//! async fn durable(log: &Log, wakers: &Wakers, ticket: Ticket) -> Result<(), LogError> {
//!     poll_fn(|context| {
//!         wakers.lock().unwrap().push(context.waker().clone()); // first, or a sync in between is missed
//!         let state = log.is_durable(ticket);
//!         if let Ok(false) = state { Poll::Pending } else { Poll::Ready(state.map(drop)) }
//!     })
//!     .await
//! }
//! # // Not shown: the smallest executor there is, and a run on it.
//! # struct Unpark(std::thread::Thread);
//! # impl std::task::Wake for Unpark {
//! #     fn wake(self: Arc<Self>) { self.0.unpark() }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let options = raft_log::LogOptions::new(dir.path().join("log"), raft_log::StoreId(1));
//! # let (log, _) = Log::open(Arc::new(raft_log::vfs::RealFs::new()), options)?;
//! # let wakers = connect(&log);
//! # let mut batch = raft_log::WriteBatch::new();
//! # batch.push(raft_log::GroupId(1), raft_log::Record::Compact(raft_log::Base::default()));
//! # let ticket = log.submit(batch)?;
//! # let mut future = std::pin::pin!(durable(&log, &wakers, ticket));
//! # let waker = Arc::new(Unpark(std::thread::current())).into();
//! # let mut context = std::task::Context::from_waker(&waker);
//! # loop {
//! #     match future.as_mut().poll(&mut context) {
//! #         Poll::Ready(outcome) => break outcome?,
//! #         Poll::Pending => std::thread::park(),
//! #     }
//! # }
//! # assert!(log.is_durable(ticket)?);
//! # Ok(())
//! # }
//! ```
//!
//! In [`IoMode::Inline`] there is no thread: whoever calls [`Log::wait`] or [`Log::drive`] does the work, which makes a
//! simulation deterministic.
//!
//! # What it does not do
//!
//! It knows the shape of Raft's records (entries with a term, a hard state, truncation, the base that a snapshot leaves
//! behind), but nothing of the protocol; who has no terms uses one. It interprets no payload, repairs no damage, and
//! decides neither when a group is compacted nor which snapshots are kept: [`Log::needs_compaction`] names who keeps
//! the oldest segment.
//!
//! # Crash tests, of this crate and of yours
//!
//! Every file access goes through [`vfs::Vfs`]: the real file system, or, with the feature `sim`, a simulated one that
//! loses, tears and corrupts writes on command from one seed. `vfs::sim` says how to test a store of your own with it;
//! how this crate is tested is in `docs/TESTING.md`, what lies on disk in `docs/FORMAT.md`.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod snapshot;
#[cfg(feature = "seeded-bugs")]
#[doc(hidden)]
pub mod testing;
#[cfg(not(feature = "seeded-bugs"))]
mod testing;
pub mod vfs;

mod batch;
mod error;
mod ids;
pub mod log;
mod lz4;

pub use batch::{Base, Entry, EntryKind, HardState, Incarnation, Record, SnapshotRef, WriteBatch};
pub use error::{Difference, ErrorKind, LogError};
pub use ids::{GroupId, Index, NodeId, StoreId, Term};
pub use log::{GroupInfo, IoMode, Log, LogOptions, LogStats, RecoveryReport, Space, Ticket};
pub use snapshot::{SnapshotError, SnapshotStore};
