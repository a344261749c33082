//! Who sees which events, when.
//!
//! [`WatchHub`] is the one event log of a keyspace: the applying thread publishes each revision once, and recent ones
//! stay in a ring. A [`Feed`] is one client's stream: its watchers, and cursors into the log. Cursors move only when the
//! client takes what is sent, so a slow client holds a bounded piece of the log and nobody else waits for it; what left
//! the ring in the meantime is read from the store's history, and what compaction took cancels the watcher with a
//! revision from which it can resume.
//!
//! A feed does no IO and reads no clock: it says what to read and what to send. `server` drives it. The order of
//! revisions is the hub's: what the hub has not published does not exist for watchers, even if the store has it.
//!
//! Source: etcd v3's documented watch guarantees (ordered, unique, reliable, atomic, resumable, bookmarkable).

mod batch;
mod feed;
mod follower;
mod hub;
mod index;
#[cfg(test)]
mod property;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watcher;

pub use feed::{Feed, FeedOptions, Lookup, Step, StoreState};
pub use follower::{Followed, Follower};
pub use hub::{Signal, WatchHub};
