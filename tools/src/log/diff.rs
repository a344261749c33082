//! `flotilla log diff`: where the logs of two members of a group part.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use raft_log::log::inspect::{BatchInfo, DiskRecord};
use raft_log::{Entry, GroupId, Index, Record, Term};
use serde_json::{Value, json};

use super::walk::{Groups, Walk};
use super::{Dir, INTO_STRING};
use crate::failure::{Failure, print};

/// Differing entries that are listed; the number of all is.
const LISTED_MAX: usize = 20;

/// Flags of `flotilla log diff`.
#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// The data directory of one member
    a: PathBuf,
    /// The data directory of another
    b: PathBuf,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

/// What identifies an entry: its term, and its payload's length and checksum.
type Print = (Term, usize, u32);

/// The entries of each group that are in force at the end of a log.
#[derive(Default)]
struct Logs {
    entries: BTreeMap<GroupId, BTreeMap<Index, Print>>,
    groups: Groups,
}

impl Logs {
    fn read(data_dir: &Path) -> Result<(Self, Walk), Failure> {
        let dir = Dir {
            data_dir: data_dir.to_owned(),
        };
        let mut logs = Self::default();
        let walk = Walk::all(&dir, &mut |_, batch| logs.see(&batch))?;
        Ok((logs, walk))
    }

    fn see(&mut self, batch: &BatchInfo) {
        for (id, record) in &batch.records {
            let entries = self.entries.entry(*id).or_default();
            match record {
                DiskRecord::Entry(entry) => {
                    drop(entries.split_off(&entry.index));
                    entries.insert(entry.index, print_of(entry));
                }
                DiskRecord::Other(Record::Truncate(from)) => drop(entries.split_off(from)),
                DiskRecord::Other(Record::Compact(base)) => {
                    *entries = entries.split_off(&base.index.next());
                }
                DiskRecord::Other(Record::Destroy) => entries.clear(),
                DiskRecord::Checkpoint(state) => {
                    drop(entries.split_off(&state.last_index.next()));
                    *entries = entries.split_off(&state.base.index.next());
                }
                DiskRecord::Other(_) => {}
            }
            self.groups.see(*id, record);
        }
    }

    fn base(&self, id: GroupId) -> Index {
        self.groups
            .0
            .get(&id)
            .map_or(Index::ZERO, |group| group.base.index)
    }

    fn commit(&self, id: GroupId) -> Index {
        self.groups
            .0
            .get(&id)
            .map_or(Index::ZERO, |group| group.hard_state.commit)
    }
}

fn print_of(entry: &Entry) -> Print {
    (
        entry.term,
        entry.payload.len(),
        crc32fast::hash(&entry.payload),
    )
}

/// How one group differs.
struct Difference {
    id: GroupId,
    /// Indexes that both logs hold, and the last of them up to which they agree.
    shared: (Index, Index),
    agree_to: Index,
    /// Index, and what each side has there.
    differing: Vec<(Index, Option<Print>, Option<Print>)>,
    commit: (Index, Index),
}

fn compare(id: GroupId, a: &Logs, b: &Logs) -> Difference {
    let empty = BTreeMap::new();
    let (ours, theirs) = (
        a.entries.get(&id).unwrap_or(&empty),
        b.entries.get(&id).unwrap_or(&empty),
    );
    // Below either base there is nothing to compare.
    let from = a.base(id).max(b.base(id)).next();
    let to = a.groups.last(id).max(b.groups.last(id));
    let at = |entries: &BTreeMap<Index, Print>, index: Index| entries.get(&index).copied();
    let all = (from.0..=to.0)
        .map(Index)
        .map(|index| (index, at(ours, index), at(theirs, index)));
    let differing: Vec<_> = all.filter(|(_, a, b)| a != b).collect();
    let both = a.groups.last(id).min(b.groups.last(id));
    Difference {
        id,
        shared: (from, both),
        agree_to: differing.first().map_or(to, |(index, _, _)| index.prev()),
        differing,
        commit: (a.commit(id), b.commit(id)),
    }
}

pub(super) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let (a, walk_a) = Logs::read(&args.a)?;
    let (b, walk_b) = Logs::read(&args.b)?;
    let ids: Vec<GroupId> = a
        .groups
        .0
        .keys()
        .chain(b.groups.0.keys())
        .copied()
        .collect();
    let ids: std::collections::BTreeSet<GroupId> = ids.into_iter().collect();
    let found: Vec<Difference> = ids.into_iter().map(|id| compare(id, &a, &b)).collect();
    let text = if args.json {
        let groups: Vec<Value> = found.iter().map(to_json).collect();
        format!("{}\n", json!({ "groups": groups }))
    } else {
        found.iter().map(to_text).collect()
    };
    print(&text)?;
    walk_a.verdict()?;
    walk_b.verdict()
}

fn shown(print: Option<Print>) -> String {
    match print {
        None => "-".to_owned(),
        Some((term, len, crc)) => format!("term {term}, {len} bytes, crc {crc:08x}"),
    }
}

fn to_text(found: &Difference) -> String {
    let mut out = String::new();
    let Difference {
        id,
        shared: (from, to),
        agree_to,
        differing,
        commit,
    } = found;
    if differing.is_empty() {
        writeln!(out, "{id}: the same from {from} to {to}").expect(INTO_STRING);
        return out;
    }
    writeln!(
        out,
        "{id}: the same from {from} to {agree_to}, {} indexes differ; commit indexes seen: {} and {}",
        differing.len(),
        commit.0,
        commit.1
    )
    .expect(INTO_STRING);
    for (index, a, b) in differing.iter().take(LISTED_MAX) {
        writeln!(out, "  {index}  {}  |  {}", shown(*a), shown(*b)).expect(INTO_STRING);
    }
    if differing.len() > LISTED_MAX {
        writeln!(out, "  and {} more", differing.len() - LISTED_MAX).expect(INTO_STRING);
    }
    out
}

fn to_json(found: &Difference) -> Value {
    let side = |print: Option<Print>| {
        print.map(|(term, len, crc)| json!({"term": term.0, "bytes": len, "crc": crc}))
    };
    let listed = found.differing.iter().take(LISTED_MAX);
    json!({
        "group": found.id.0,
        "from": found.shared.0.0,
        "agree_to": found.agree_to.0,
        "differing": found.differing.len(),
        "first": listed.map(|(index, a, b)| json!({"index": index.0, "a": side(*a), "b": side(*b)}))
            .collect::<Vec<_>>(),
        "commit": [found.commit.0.0, found.commit.1.0],
    })
}
