//! Many consensus groups on one disk: the host loop that steps them on one log, and the handle by which any thread
//! proposes, reads and looks.
//!
//! - [`HostCore`] makes all decisions and owns no thread and no clock: a simulator calls [`HostCore::turn`].
//! - [`Host`] runs one on a thread of its own, with the real clock.
//! - [`HostHandle`] reaches it from any thread, through an inbox with bounds.
//! - [`liveness`] says which stores are alive, by one exchange per pair of them.
//! - [`SnapshotTransfer`] and [`begin_receive`] carry a snapshot to a member that lags.
//! - [`forward`] lets a member serve clients while another one leads.
//! - [`transport`] carries messages between members, and is the only module of them that knows a network.
//! - [`tls`] protects connections, those of clients too.

mod error;
pub mod forward;
mod handle;
mod host;
mod inbox;
pub mod liveness;
mod snapshots;
mod status;
mod tasks;
#[cfg(feature = "seeded-bugs")]
#[doc(hidden)]
pub mod testing;
#[cfg(not(feature = "seeded-bugs"))]
mod testing;
mod thread;
pub mod tls;
mod transfer;
pub mod transport;
mod writer;

pub use error::HostError;
pub use handle::HostHandle;
pub use host::{HostCore, HostOptions, Outbox, Turn};
pub use inbox::InboxLimits;
pub use snapshots::{Cut, HOLD_TICKS, Pace, SnapshotSetup, SnapshotState, install, restore};
pub use status::GroupStatus;
pub use tasks::{InlineTasks, Task, TaskThread, Tasks};
pub use thread::Host;
pub use transfer::{SnapshotTransfer, begin_receive};

/// Called exactly once with the outcome; never blocks.
pub type Reply<T> = Box<dyn FnOnce(Result<T, HostError>) + Send>;

/// Milliseconds of one tick.
pub const TICK_MS: u64 = 10;
