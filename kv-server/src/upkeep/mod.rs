//! What a member does on its own, now and then: the decisions, without a thread and without a clock.
//!
//! `node::upkeep` has the thread that tells them the time and does what they say. What they decide becomes an entry of
//! the log before it changes anything.

mod compaction;
mod quota;
mod rebuild;
mod state;

pub use compaction::{AutoCompaction, CompactionSchedule};
pub use quota::{QuotaAct, QuotaLook, QuotaWatch};
pub use rebuild::{Rebuild, RebuildAct, RebuildLook};
pub use state::{Finding, StateChecks, Verdict};
