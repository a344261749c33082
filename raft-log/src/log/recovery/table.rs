//! What is made of what a start finds, as tables: one row per case, and each input matches exactly one row.
//!
//! Four questions are decided here and nowhere else: what a segment's header makes of the file, whether the segments
//! are those that the manifest names, what lies where the next batch should begin, and whether a group's term and vote
//! are known. The rest of `recovery` gathers the inputs and carries out the verdicts.

const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);
const ANY: Option<bool> = None;

/// A row: what each input must be, and what follows.
type Row<const N: usize, V> = ([Option<bool>; N], V);

fn matching<const N: usize, V>(table: &[Row<N, V>], inputs: [bool; N]) -> impl Iterator<Item = &V> {
    table.iter().filter_map(move |(wanted, verdict)| {
        let fits = wanted
            .iter()
            .zip(inputs)
            .all(|(want, is)| want.is_none_or(|want| want == is));
        fits.then_some(verdict)
    })
}

fn decide<const N: usize, V: Copy>(table: &[Row<N, V>], inputs: [bool; N]) -> V {
    *matching(table, inputs)
        .next()
        .expect("the table covers every input")
}

// ---- where a batch should begin ----

/// What was found where the next batch should begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Synced data must lie here: another segment follows, or a header, a footer or a later batch says so.
    pub(super) known_synced: bool,
    /// A later batch header verifies.
    pub(super) later_header: bool,
    /// The segment could not be read somewhere.
    pub(super) io_error: bool,
    /// The header's bytes are all zero.
    pub(super) empty: bool,
    /// A whole sector of what is damaged is zero, or the batch runs past the file's end.
    pub(super) torn_shape: bool,
    /// The header does not verify, and nothing but zeros follows it.
    pub(super) bare: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The log ends here.
    CleanEnd,
    /// An un-synced write was torn, or a mark without records is damaged: keep the bytes and go on without them.
    Cut,
    /// Acknowledged data is damaged: refuse.
    Corruption,
    /// It could be either: refuse, unless told to accept it.
    Suspect,
}

const BATCH: [Row<6, Verdict>; 8] = [
    // synced later io   empty torn bare
    ([YES, ANY, ANY, ANY, ANY, ANY], Verdict::Corruption),
    ([NO, ANY, YES, ANY, ANY, ANY], Verdict::Suspect),
    // A crash may keep a later part of a write, and leaves zeros where a part is missing.
    ([NO, YES, NO, ANY, YES, ANY], Verdict::Cut),
    ([NO, YES, NO, ANY, NO, ANY], Verdict::Suspect),
    ([NO, NO, NO, YES, ANY, ANY], Verdict::CleanEnd),
    ([NO, NO, NO, NO, YES, ANY], Verdict::Cut),
    // A batch with records has bytes that are not zero behind its header: this one had none, or they never came.
    ([NO, NO, NO, NO, NO, YES], Verdict::Cut),
    ([NO, NO, NO, NO, NO, NO], Verdict::Suspect),
];

/// The verdict of the one row that matches.
pub(super) fn judge(finding: Finding) -> Verdict {
    decide(
        &BATCH,
        [
            finding.known_synced,
            finding.later_header,
            finding.io_error,
            finding.empty,
            finding.torn_shape,
            finding.bare,
        ],
    )
}

// ---- which segments there are ----

/// What the manifest and the names of the segments say about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inventory {
    /// There is a manifest.
    pub(super) present: bool,
    /// One of its blocks verifies.
    pub(super) known: bool,
    /// Both do, so that it cannot be older than the newest write that was synced.
    pub(super) whole: bool,
    /// The newest segment that it names is there, or one behind it.
    pub(super) reached: bool,
    /// There are segments behind the newest one that it names.
    pub(super) beyond: bool,
    /// One of those holds more than what it was made with.
    pub(super) used: bool,
}

/// What to do about the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stock {
    /// Read all of them.
    All,
    /// Leave out those that are not named: a run stopped between making and naming them, and put nothing into them.
    Named,
    /// The newest segment is gone: refuse.
    Missing,
    /// The manifest is not of this log's time: refuse.
    Contradiction,
    /// Whether the newest segment is there is not known: refuse, unless told to accept it.
    Suspect,
}

const STOCK: [Row<6, Stock>; 7] = [
    // present known whole reached beyond used
    ([NO, ANY, ANY, ANY, ANY, ANY], Stock::All),
    ([YES, NO, ANY, ANY, ANY, ANY], Stock::Suspect),
    ([YES, YES, ANY, NO, ANY, ANY], Stock::Missing),
    ([YES, YES, ANY, YES, NO, ANY], Stock::All),
    // The block that is lost may have named it.
    ([YES, YES, NO, YES, YES, ANY], Stock::All),
    ([YES, YES, YES, YES, YES, NO], Stock::Named),
    ([YES, YES, YES, YES, YES, YES], Stock::Contradiction),
];

/// The verdict of the one row that matches.
pub(super) fn take_stock(inventory: Inventory) -> Stock {
    decide(
        &STOCK,
        [
            inventory.present,
            inventory.known,
            inventory.whole,
            inventory.reached,
            inventory.beyond,
            inventory.used,
        ],
    )
}

// ---- a segment's header ----

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// The file could be read.
    pub(super) readable: bool,
    /// Magic and checksum verify.
    pub(super) sound: bool,
    /// The version is one that this build reads.
    pub(super) version: bool,
    /// It belongs to this store.
    pub(super) ours: bool,
    /// Its id is that of its name, and possible.
    pub(super) named: bool,
    /// The manifest has struck it off.
    pub(super) struck: bool,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// A segment of this log.
    Segment,
    /// One that is not needed any more, and whose removal did not last.
    LeftOver,
    /// Refuse: it cannot be read.
    Unreadable,
    /// Refuse: it is damaged.
    Damaged,
    /// Refuse: a newer version wrote it.
    Newer,
    /// Refuse: it is another store's.
    Foreign,
    /// Refuse: it was renamed.
    Renamed,
}

const LABEL: [Row<6, Kind>; 7] = [
    // readable sound version ours named struck
    ([NO, ANY, ANY, ANY, ANY, ANY], Kind::Unreadable),
    ([YES, NO, ANY, ANY, ANY, ANY], Kind::Damaged),
    ([YES, YES, NO, ANY, ANY, ANY], Kind::Newer),
    ([YES, YES, YES, NO, ANY, ANY], Kind::Foreign),
    ([YES, YES, YES, YES, NO, ANY], Kind::Renamed),
    ([YES, YES, YES, YES, YES, YES], Kind::LeftOver),
    ([YES, YES, YES, YES, YES, NO], Kind::Segment),
];

/// The verdict of the one row that matches.
pub(super) fn identify(label: Label) -> Kind {
    decide(
        &LABEL,
        [
            label.readable,
            label.sound,
            label.version,
            label.ours,
            label.named,
            label.struck,
        ],
    )
}

// ---- a group's term and vote ----

/// What log and slots say about one group's term and vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ballot {
    /// The end of the log was cut, and may have held a newer term or vote.
    pub(super) cut: bool,
    /// A slot of the group verifies.
    pub(super) seen: bool,
    /// A block that may be the group's does not.
    pub(super) damaged: bool,
    /// The log has a term, so a slot was written once.
    pub(super) voted: bool,
}

/// Whether they can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The newer of log and slots.
    Newer,
    /// Term and vote are unknown: refuse.
    Unknown,
}

const BALLOT: [Row<4, Trust>; 6] = [
    // cut  seen damaged voted
    ([NO, ANY, ANY, ANY], Trust::Newer),
    ([YES, YES, NO, ANY], Trust::Newer),
    ([YES, YES, YES, ANY], Trust::Unknown),
    ([YES, NO, YES, ANY], Trust::Unknown),
    ([YES, NO, NO, YES], Trust::Unknown),
    ([YES, NO, NO, NO], Trust::Newer),
];

/// The verdict of the one row that matches.
pub(super) fn trust(ballot: Ballot) -> Trust {
    decide(
        &BALLOT,
        [ballot.cut, ballot.seen, ballot.damaged, ballot.voted],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_input_has_one_row<const N: usize, V: std::fmt::Debug>(table: &[Row<N, V>]) {
        for bits in 0..1u32 << N {
            let inputs: [bool; N] = std::array::from_fn(|n| bits & (1 << n) != 0);
            let found: Vec<&V> = matching(table, inputs).collect();
            assert_eq!(found.len(), 1, "{inputs:?}: {found:?}");
        }
    }

    #[test]
    fn every_input_matches_exactly_one_row() {
        each_input_has_one_row(&BATCH);
        each_input_has_one_row(&STOCK);
        each_input_has_one_row(&LABEL);
        each_input_has_one_row(&BALLOT);
    }

    #[test]
    fn damaged_batch_with_a_body_and_without_lost_sector_is_never_cut() {
        for later_header in [false, true] {
            let finding = Finding {
                known_synced: false,
                later_header,
                io_error: false,
                empty: false,
                torn_shape: false,
                bare: false,
            };
            assert_eq!(judge(finding), Verdict::Suspect);
        }
    }

    #[test]
    fn segment_that_was_used_is_never_left_out() {
        for bits in 0..32u32 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let inventory = Inventory {
                present: bit(0),
                known: bit(1),
                whole: bit(2),
                reached: bit(3),
                beyond: bit(4),
                used: true,
            };
            assert_ne!(take_stock(inventory), Stock::Named, "{inventory:?}");
        }
    }
}
