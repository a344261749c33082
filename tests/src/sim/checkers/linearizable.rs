//! Linearizability of single-key operations: there is an order of all operations on a key, in which each comes after
//! those that were answered before it was sent, and in which the answers are those of a register.
//!
//! Source: Wing and Gong, "Testing and Verifying Concurrent Objects"; Lowe, "Testing for Linearizability" (partitions by
//! object, and a cache of visited configurations). Values are unique. An operation without an answer may take effect at
//! any time or never; one whose value nobody saw can be taken as never.

mod search;
#[cfg(test)]
mod tests;

pub use search::check;

/// What was asked for; values are unique in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set it. Answers what was there before.
    Put(u64),
    /// Remove it. Answers what was there before.
    Delete,
    /// Answers what is there.
    Get,
    /// Set it to the second if it is the first. Answers what was there before.
    Swap(u64, u64),
}

/// One operation on one key.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// When it was sent; no two events of a history have the same time.
    pub sent: u64,
    /// When it was answered and with what; none if it was not.
    pub answer: Option<(u64, Option<u64>)>,
    /// What was asked for.
    pub action: Action,
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Violated,
    /// It was not found within the bound of steps.
    GaveUp,
}

/// The register: what an action leaves.
fn apply(state: Option<u64>, action: Action) -> Option<u64> {
    match action {
        Action::Put(value) => Some(value),
        Action::Delete => None,
        Action::Get => state,
        Action::Swap(from, to) if state == Some(from) => Some(to),
        Action::Swap(..) => state,
    }
}
