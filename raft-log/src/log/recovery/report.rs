//! What opening a log found and did, for people.

use std::fmt;

/// What opening a log found and did. Its `Display` is one line for a log file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Segments that belong to the log.
    pub segments: usize,
    /// How many of them were not read, because their footers say where their entries lie.
    pub from_footers: usize,
    /// Batches in those segments that count.
    pub batches: u64,
    /// Batches that verified without proof of a sync, and were copied to the new segment.
    pub copied: u64,
    /// The newest segment, if the new one takes its place because little is in it.
    pub taken_over: Option<u64>,
    /// Bytes of an un-synced tail that were left behind, and where the evidence is.
    pub cut: Option<String>,
    /// Vote blocks that did not verify and were replaced from the intact log.
    pub vote_blocks_replaced: usize,
    /// Whatever else was not as a clean stop leaves it, and what was done about it; each names its file.
    pub notes: Vec<String>,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "found {} batches in {} segments ({} by their footers), copied {} unproven ones",
            self.batches, self.segments, self.from_footers, self.copied
        )?;
        if self.vote_blocks_replaced > 0 {
            write!(
                f,
                ", replaced {} damaged vote blocks",
                self.vote_blocks_replaced
            )?;
        }
        if let Some(id) = self.taken_over {
            write!(f, ", took segment {id:016x} over into the new one")?;
        }
        for note in self.cut.iter().chain(&self.notes) {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}
