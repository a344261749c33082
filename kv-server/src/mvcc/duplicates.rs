//! Which forwarded commands were applied: the part of applied state that lets a member propose one again without it
//! taking effect twice.
//!
//! Per member it holds the newest run seen (its boot id), a mark below which every sequence is over, and the sequences
//! at or above the mark that were applied: at most [`OPEN_SEQUENCES_MAX`], since a member has no more open. A command of
//! an older run, below the mark, or applied already is dropped. The row goes with the member, and once a membership is
//! known, commands of who is not in it are dropped as well: member ids are never given out twice.
//!
//! A command that is dropped has no answer. Whoever waits for it has had one, or will hear that the outcome is unknown.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use multiraft::forward::{OPEN_SEQUENCES_MAX, Origin};
use prost::Message;
use raft_log::NodeId;
use raft_node::core::Membership;

use super::codec::{self, DUPLICATE, Fields, Keys, damaged};
use super::read::Read;
use crate::engine::{Change, EngineError};
use crate::pb::command::{self, Called, Caller, Forwarded};

/// The tag of [`Forwarded`]'s only field, which begins a forwarded command and no other.
const ORIGIN_TAG: u8 = (15 << 3) | 2;
/// The tag of [`Called`]'s only field, which follows, or begins a command that was not forwarded.
const CALLER_TAG: u8 = (14 << 3) | 2;

/// Puts the caller in front of an encoded command.
#[must_use]
pub fn call(caller: Caller, command: &impl Message) -> Bytes {
    let called = Called {
        caller: Some(caller),
    };
    let mut out = BytesMut::with_capacity(called.encoded_len() + command.encoded_len());
    out.put_slice(&called.encode_to_vec());
    out.put_slice(&command.encode_to_vec());
    out.freeze()
}

/// The caller of a command; none when it has none.
///
/// # Errors
/// Bytes that begin like an envelope and are none.
pub(super) fn caller(payload: &Bytes) -> Result<Option<Caller>, prost::DecodeError> {
    match payload.first() {
        Some(&ORIGIN_TAG | &CALLER_TAG) => Ok(Called::decode(payload.clone())?.caller),
        _ => Ok(None),
    }
}

/// Puts the origin in front of an encoded command.
#[must_use]
pub fn stamp(origin: &Origin, payload: &[u8]) -> Bytes {
    let forwarded = Forwarded {
        origin: Some(command::Origin {
            member: origin.member.0,
            boot: origin.boot,
            sequence: origin.sequence,
            lowest_open: origin.lowest_open,
        }),
    };
    let mut out = BytesMut::with_capacity(forwarded.encoded_len() + payload.len());
    out.put_slice(&forwarded.encode_to_vec());
    out.put_slice(payload);
    out.freeze()
}

/// The origin of a command; none when it was not forwarded.
///
/// # Errors
/// Bytes that begin like an origin and are none.
pub(super) fn origin(payload: &Bytes) -> Result<Option<Origin>, prost::DecodeError> {
    if payload.first() != Some(&ORIGIN_TAG) {
        return Ok(None);
    }
    let origin = Forwarded::decode(payload.clone())?
        .origin
        .unwrap_or_default();
    Ok(Some(Origin {
        member: NodeId(origin.member),
        boot: origin.boot,
        sequence: origin.sequence,
        lowest_open: origin.lowest_open,
    }))
}

/// What is known of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    boot: u64,
    /// Invariant: not in `applied`, and every sequence below is over.
    mark: u64,
    /// Invariant: all within `mark..mark + OPEN_SEQUENCES_MAX`.
    applied: BTreeSet<u64>,
}

impl Row {
    /// Notes the command; false when it must not be applied.
    fn admit(&mut self, origin: &Origin) -> bool {
        let Origin {
            boot,
            sequence,
            lowest_open,
            ..
        } = *origin;
        let window = lowest_open..lowest_open.saturating_add(OPEN_SEQUENCES_MAX);
        if boot < self.boot || !window.contains(&sequence) {
            return false;
        }
        if boot > self.boot {
            *self = Self {
                boot,
                ..Self::default()
            };
        }
        if lowest_open > self.mark {
            self.mark = lowest_open;
            self.applied = self.applied.split_off(&lowest_open);
        }
        if sequence < self.mark || !self.applied.insert(sequence) {
            return false;
        }
        while self.applied.remove(&self.mark) {
            self.mark += 1;
        }
        assert!(
            self.applied
                .last()
                .is_none_or(|last| last - self.mark < OPEN_SEQUENCES_MAX),
            "a member has more sequences open than its window holds"
        );
        true
    }

    /// The run, the mark, and a bit for each sequence from the mark on, up to the last one that is set.
    fn encode(&self) -> Bytes {
        let bits = self.applied.last().map_or(0, |last| last - self.mark + 1);
        let bytes = usize::try_from(bits.div_ceil(8)).expect("bounded by the window");
        let mut out = codec::record(16 + bytes);
        out.put_u64_le(self.boot);
        out.put_u64_le(self.mark);
        let start = out.len();
        out.put_bytes(0, bytes);
        for sequence in &self.applied {
            let bit = usize::try_from(sequence - self.mark).expect("bounded by the window");
            out[start + bit / 8] |= 1 << (bit % 8);
        }
        out.freeze()
    }

    fn decode(record: Bytes) -> Result<Self, EngineError> {
        let mut fields = Fields::of(record)?;
        let (boot, mark) = (fields.u64()?, fields.u64()?);
        let bits = fields.rest();
        if bits.len() as u64 * 8 > OPEN_SEQUENCES_MAX
            || mark.checked_add(OPEN_SEQUENCES_MAX).is_none()
        {
            return Err(damaged("a row of the duplicate table is out of range"));
        }
        let is_set = |bit: &u64| bits[(bit / 8) as usize] & (1 << (bit % 8)) != 0;
        let applied = (0..bits.len() as u64 * 8).filter(is_set);
        Ok(Self {
            boot,
            mark,
            applied: applied.map(|bit| mark + bit).collect(),
        })
    }
}

/// The table, and which of its rows the batch in progress has changed.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    rows: BTreeMap<NodeId, Row>,
    changed: BTreeSet<NodeId>,
}

impl Duplicates {
    /// Reads the table.
    pub(super) fn load(read: &dyn Read, keys: Keys) -> Result<Self, EngineError> {
        let mut rows = BTreeMap::new();
        for pair in read.scan(&keys.first(DUPLICATE), &keys.end(DUPLICATE)) {
            let (key, record) = pair?;
            let member = key
                .last_chunk::<8>()
                .ok_or_else(|| damaged("a duplicate row's key is too short"))?;
            rows.insert(NodeId(u64::from_be_bytes(*member)), Row::decode(record)?);
        }
        Ok(Self {
            rows,
            changed: BTreeSet::new(),
        })
    }

    /// Notes a forwarded command; false when it must not be applied. `membership` is the one in force, if applied
    /// entries have named one.
    pub(super) fn admit(&mut self, origin: &Origin, membership: Option<&Membership>) -> bool {
        let member = origin.member;
        if membership.is_some_and(|membership| !membership.members().contains(&member)) {
            return false;
        }
        self.changed.insert(member);
        self.rows.entry(member).or_default().admit(origin)
    }

    /// Forgets who is no member any more.
    pub(super) fn keep_members(&mut self, membership: &Membership) {
        let members = membership.members();
        let changed = &mut self.changed;
        self.rows.retain(|member, _| {
            let keep = members.contains(member);
            if !keep {
                changed.insert(*member);
            }
            keep
        });
    }

    /// Adds the rows that changed to a batch, once each.
    pub(super) fn flush(&mut self, keys: Keys, changes: &mut BTreeMap<Bytes, Change>) {
        for member in std::mem::take(&mut self.changed) {
            let change = match self.rows.get(&member) {
                Some(row) => Change::Put(row.encode()),
                None => Change::Delete,
            };
            changes.insert(keys.duplicate(member), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from(boot: u64, sequence: u64, lowest_open: u64) -> Origin {
        Origin {
            member: NodeId(7),
            boot,
            sequence,
            lowest_open,
        }
    }

    #[test]
    fn sequence_seen_again_is_dropped() {
        let mut row = Row::default();
        assert!(row.admit(&from(1, 1, 1)));
        assert!(!row.admit(&from(1, 1, 1)));
        assert!(row.admit(&from(1, 3, 1)));
        assert!(row.admit(&from(1, 2, 1)));
        assert!(!row.admit(&from(1, 3, 1)));
    }

    #[test]
    fn sequence_below_the_mark_is_dropped() {
        let mut row = Row::default();
        assert!(row.admit(&from(1, 9, 8)));
        assert!(!row.admit(&from(1, 5, 4)), "the sender closed it");
        assert!(row.admit(&from(1, 8, 4)), "it was still open");
    }

    #[test]
    fn older_boot_is_dropped_and_a_newer_one_begins_again() {
        let mut row = Row::default();
        assert!(row.admit(&from(2, 5, 1)));
        assert!(!row.admit(&from(1, 6, 1)));
        assert!(row.admit(&from(3, 5, 1)));
        assert!(!row.admit(&from(2, 7, 1)));
        assert!(row.admit(&from(3, 1, 1)));
    }

    #[test]
    fn sequence_outside_its_own_window_is_dropped() {
        let mut row = Row::default();
        assert!(row.admit(&from(1, OPEN_SEQUENCES_MAX, 1)));
        let before = row.clone();
        assert!(!row.admit(&from(1, OPEN_SEQUENCES_MAX + 1, 1)));
        assert!(!row.admit(&from(9, 3, 4)));
        assert_eq!(row, before, "it leaves no trace, not even of its boot");
    }

    #[test]
    fn full_window_encodes_in_few_bytes() {
        let mut row = Row::default();
        for sequence in 2..=OPEN_SEQUENCES_MAX {
            assert!(row.admit(&from(1, sequence, 1)));
        }
        let record = row.encode();
        assert_eq!(record.len(), 17 + 512);
        assert_eq!(Row::decode(record).unwrap(), row);
        assert!(row.admit(&from(1, 1, 1)));
        assert_eq!(row.encode().len(), 17, "the mark moved over all of them");
        assert_eq!(row.mark, OPEN_SEQUENCES_MAX + 1);
    }

    #[test]
    fn stamped_command_gives_its_origin_back() {
        let payload = Bytes::from_static(b"\x0a\x00");
        let stamped = stamp(&from(3, 9, 4), &payload);
        assert_eq!(origin(&stamped), Ok(Some(from(3, 9, 4))));
        assert_eq!(origin(&payload), Ok(None));
        let whole = command::Command::decode(stamped).unwrap();
        assert_eq!(whole, command::Command::decode(payload).unwrap());
        assert!(origin(&Bytes::from_static(b"\x7a\x09")).is_err());
    }

    #[test]
    fn row_that_was_cut_or_is_too_long_is_refused() {
        let mut row = Row::default();
        assert!(row.admit(&from(1, 5, 1)));
        let record = row.encode();
        for len in 0..17 {
            assert!(Row::decode(record.slice(..len)).is_err(), "{len} bytes");
        }
        let long = [&record[..], &[0; 512]].concat();
        assert!(Row::decode(long.into()).is_err());
    }

    proptest! {
        /// Against the plain rule: every (boot, sequence) at most once, never below a lowest open one of that boot that
        /// came before, never an older boot; and a row that was written and read decides as one that was not.
        #[test]
        fn any_commands_are_admitted_as_the_plain_rule_says(
            steps in proptest::collection::vec((1_u64..4, 1_u64..40, 0_u64..40), 1..200),
        ) {
            let (mut row, mut seen) = (Row::default(), BTreeSet::new());
            let (mut newest, mut closed) = (0, 0);
            for (boot, sequence, back) in steps {
                let lowest_open = sequence.saturating_sub(back).max(1);
                let mut expected = boot >= newest;
                if boot > newest {
                    (newest, closed) = (boot, 0);
                }
                if expected {
                    closed = closed.max(lowest_open);
                    expected = sequence >= closed && seen.insert((boot, sequence));
                }
                prop_assert_eq!(row.admit(&from(boot, sequence, lowest_open)), expected);
                row = Row::decode(row.encode()).unwrap();
            }
        }
    }
}
