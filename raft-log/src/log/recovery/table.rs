//! What a batch that does not verify means, as a table: one row per case, and each input matches exactly one row.

/// What was found where the next batch should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Synced data must lie here: another segment follows, the segment's header or a later batch says so.
    pub(super) known_synced: bool,
    /// A later batch header verifies.
    pub(super) later_header: bool,
    /// The header's bytes are all zero.
    pub(super) empty: bool,
    /// A whole sector of what is damaged is zero, or the batch runs past the file's end.
    pub(super) torn_shape: bool,
    /// The bytes could not be read.
    pub(super) io_error: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The log ends here.
    CleanEnd,
    /// An un-synced write was torn: keep the bytes as evidence and go on without them.
    CutTorn,
    /// Acknowledged data is damaged: refuse.
    Corruption,
    /// It could be either: refuse, unless told to accept it.
    Suspect,
}

struct Row {
    known_synced: Option<bool>,
    later_header: Option<bool>,
    io_error: Option<bool>,
    empty: Option<bool>,
    torn_shape: Option<bool>,
    verdict: Verdict,
}

const fn row(
    known_synced: Option<bool>,
    later_header: Option<bool>,
    io_error: Option<bool>,
    empty: Option<bool>,
    torn_shape: Option<bool>,
    verdict: Verdict,
) -> Row {
    Row {
        known_synced,
        later_header,
        io_error,
        empty,
        torn_shape,
        verdict,
    }
}

const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);

const TABLE: [Row; 7] = [
    //  synced later io    empty torn
    row(YES, None, None, None, None, Verdict::Corruption),
    row(NO, None, YES, None, None, Verdict::Suspect),
    // A crash may keep a later part of a write, and leaves zeros where a part is missing.
    row(NO, YES, NO, None, YES, Verdict::CutTorn),
    row(NO, YES, NO, None, NO, Verdict::Suspect),
    row(NO, NO, NO, YES, None, Verdict::CleanEnd),
    row(NO, NO, NO, NO, YES, Verdict::CutTorn),
    row(NO, NO, NO, NO, NO, Verdict::Suspect),
];

/// The verdict of the one row that matches.
pub(super) fn judge(finding: Finding) -> Verdict {
    matching(finding)
        .next()
        .expect("the table covers every input")
        .verdict
}

fn matching(finding: Finding) -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(move |row| {
        row.known_synced
            .is_none_or(|want| want == finding.known_synced)
            && row
                .later_header
                .is_none_or(|want| want == finding.later_header)
            && row.io_error.is_none_or(|want| want == finding.io_error)
            && row.empty.is_none_or(|want| want == finding.empty)
            && row.torn_shape.is_none_or(|want| want == finding.torn_shape)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_matches_exactly_one_row() {
        for bits in 0..32u8 {
            let bit = |n: u8| bits & (1 << n) != 0;
            let finding = Finding {
                known_synced: bit(0),
                later_header: bit(1),
                empty: bit(2),
                torn_shape: bit(3),
                io_error: bit(4),
            };
            assert_eq!(matching(finding).count(), 1, "{finding:?}");
        }
    }

    #[test]
    fn damaged_batch_without_lost_sector_is_never_cut() {
        for later_header in [false, true] {
            let finding = Finding {
                known_synced: false,
                later_header,
                empty: false,
                torn_shape: false,
                io_error: false,
            };
            assert_eq!(judge(finding), Verdict::Suspect);
        }
    }
}
