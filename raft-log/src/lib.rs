//! A durable log for many groups on one disk, and a snapshot store beside it.
//!
//! All groups of a store share one log, so that one `fdatasync` covers the work of all of them. A write is submitted as
//! a [`WriteBatch`], which is atomic: after any crash either all of it or nothing of it is there. [`Log::submit`]
//! returns a [`Ticket`]; when the ticket completes, the batch is on disk.
//!
//! The crate is synchronous. It knows the shape of Raft's records (entries with a term, hard state, truncation, the base
//! that a snapshot leaves behind), but nothing of the protocol, and it can be used without Raft.
//!
//! Every file access goes through [`vfs::Vfs`]: the real file system, or, with the feature `sim`, a simulated one that
//! loses, tears and corrupts writes on command from one seed.

pub mod snapshot;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod testing;
#[cfg(not(feature = "sim"))]
mod testing;
pub mod vfs;

mod batch;
mod error;
mod ids;
pub mod log;

pub use batch::{Base, Entry, EntryKind, HardState, Record, SnapshotRef, WriteBatch};
pub use error::{ErrorKind, LogError};
pub use ids::{GroupId, Index, NodeId, StoreId, Term};
pub use log::{GroupInfo, IoMode, Log, LogOptions, LogStats, RecoveryReport, Space, Ticket};
pub use snapshot::{SnapshotError, SnapshotStore};
