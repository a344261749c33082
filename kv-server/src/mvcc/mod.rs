//! The MVCC store.
mod types;
pub use types::{
    CommandOutput, CommandResult, Event, EventKind, EventSink, LeaseInfo, LeaseSink, RevisionEvents,
};
