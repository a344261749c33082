//! One consensus group: the Raft core, which does no IO, and the driver that joins it to a log and a state machine.
pub mod core;
pub mod driver;
mod state_machine;
#[cfg(feature = "seeded-bugs")]
#[doc(hidden)]
pub mod testing;
#[cfg(not(feature = "seeded-bugs"))]
mod testing;

pub use raft_log::{Entry, EntryKind, GroupId, HardState, Index, NodeId, Term};
pub use state_machine::{Applied, ApplyError, StateMachine, TickContext};
