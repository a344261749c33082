//! What happened in a run, in order: a hash of it, to compare two runs, and a story for a reader.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Collects the events of a run.
pub struct Trace {
    hasher: DefaultHasher,
    tell: bool,
}

impl Trace {
    /// A trace that prints each event when `tell` is set.
    #[must_use]
    pub fn new(tell: bool) -> Self {
        // Its keys are fixed, so that the same events give the same hash in each process.
        Self {
            hasher: DefaultHasher::new(),
            tell,
        }
    }

    /// Something happened.
    pub fn event(&mut self, now: u64, what: &impl Hash, story: impl FnOnce() -> String) {
        (now, what).hash(&mut self.hasher);
        if self.tell {
            self.say(now, &story());
        }
    }

    /// For the reader only: whether it is printed does not change the hash.
    pub fn say(&self, now: u64, story: &impl fmt::Display) {
        if self.tell {
            eprintln!("{:>8.2}s  {story}", now as f64 / 100.0);
        }
    }

    /// The hash of all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}
