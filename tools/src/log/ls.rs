//! `flotilla log ls`: one line per segment, one per group.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use kv_server::node::Identity;
use raft_log::log::inspect::{DiskRecord, GroupCheckpoint, SegmentInfo, Tail};
use raft_log::vfs::RealFs;
use raft_log::{GroupId, Record};
use serde_json::{Value, json};

use super::Dir;
use crate::failure::{Failure, print};

/// Flags of `flotilla log ls`.
#[derive(Args, Debug)]
pub(super) struct LsArgs {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where a group stands at the end of the log, as far as it verifies.
type Groups = BTreeMap<GroupId, GroupCheckpoint>;

pub(super) fn run(args: &LsArgs) -> Result<(), Failure> {
    let (log, mut infos, mut groups) = (args.dir.log(), Vec::new(), Groups::new());
    for id in super::segments(&args.dir)? {
        let mut follow = |batch: raft_log::log::inspect::BatchInfo| {
            for (group, record) in batch.records {
                fold(&mut groups, group, record);
            }
        };
        infos.extend(
            super::segment(&log, id, &mut follow).map_err(|error| super::failure_of(&error))?,
        );
    }
    let damage: Vec<String> = infos
        .iter()
        .enumerate()
        .filter_map(|(at, info)| super::damage(info, next_first(&infos, at)))
        .collect();
    let identity = Identity::read(&RealFs::new(), &args.dir.data_dir);
    let identity = identity.map_err(|error| Failure::Damaged(error.to_string()))?;
    let text = if args.json {
        let value = json!({
            "identity": identity.as_ref().map(identity_json),
            "segments": infos.iter().enumerate().map(|(at, info)| segment_json(info, next_first(&infos, at)))
                .collect::<Vec<_>>(),
            "groups": groups.iter().map(|(id, group)| group_json(*id, group)).collect::<Vec<_>>(),
            "damage": damage,
        });
        format!("{value:#}\n")
    } else {
        table(identity.as_ref(), &infos, &groups)
    };
    print(&text)?;
    match damage.first() {
        None => Ok(()),
        Some(first) => Err(Failure::Damaged(first.clone())),
    }
}

fn next_first(infos: &[SegmentInfo], at: usize) -> Option<u64> {
    infos.get(at + 1).map(|next| next.first_seq)
}

fn fold(groups: &mut Groups, id: GroupId, record: DiskRecord) {
    let group = match record {
        DiskRecord::Checkpoint(state) => return drop(groups.insert(id, state)),
        DiskRecord::Other(Record::Destroy) => return drop(groups.remove(&id)),
        _ => groups.entry(id).or_default(),
    };
    match record {
        DiskRecord::Entry(entry) => group.last_index = entry.index,
        DiskRecord::Other(Record::HardState(state)) => group.hard_state = state,
        DiskRecord::Other(Record::Truncate(from)) => group.last_index = from.prev(),
        DiskRecord::Other(Record::Compact(base)) => {
            group.last_index = group.last_index.max(base.index);
            group.base = base;
        }
        DiskRecord::Other(Record::SnapshotRef(snapshot)) => group.snapshot = Some(snapshot),
        DiskRecord::Other(_) | DiskRecord::Checkpoint(_) => {}
    }
}

/// Batches that a later segment holds again.
fn superseded(info: &SegmentInfo, next: Option<u64>) -> u64 {
    next.map_or(0, |next| (info.last_seq + 1).saturating_sub(next))
}

fn tail(info: &SegmentInfo) -> &'static str {
    match info.tail {
        Tail::Clean => "clean",
        Tail::Unverified => "unverified",
        Tail::Unreadable => "unreadable",
    }
}

fn table(identity: Option<&Identity>, infos: &[SegmentInfo], groups: &Groups) -> String {
    let mut out = String::new();
    match identity {
        Some(one) => writeln!(
            out,
            "store {:x} cluster {:x} member {:x} name {}\n",
            one.store.0, one.cluster, one.member.0, one.name
        ),
        None => writeln!(out, "no IDENTITY file\n"),
    }
    .expect(INTO_STRING);
    let header = [
        "SEGMENT",
        "BYTES",
        "USED",
        "FIRST",
        "LAST",
        "SYNCED",
        "SUPERSEDED",
        "RECORDS",
        "TAIL",
    ];
    let rows = infos.iter().enumerate().map(|(at, info)| {
        vec![
            format!("{:016x}", info.id),
            info.len.to_string(),
            info.end.to_string(),
            info.first_seq.to_string(),
            info.last_seq.to_string(),
            info.synced_seq.to_string(),
            superseded(info, next_first(infos, at)).to_string(),
            info.records.to_string(),
            tail(info).to_owned(),
        ]
    });
    columns(&mut out, &header, rows.collect());
    out.push('\n');
    let header = ["GROUP", "BASE", "LAST", "TERM", "VOTE", "COMMIT"];
    let rows = groups.iter().map(|(id, group)| {
        vec![
            id.0.to_string(),
            group.base.index.to_string(),
            group.last_index.to_string(),
            group.hard_state.term.to_string(),
            group
                .hard_state
                .vote
                .map_or_else(|| "-".to_owned(), |vote| format!("{:x}", vote.0)),
            group.hard_state.commit.to_string(),
        ]
    });
    columns(&mut out, &header, rows.collect());
    out
}

/// Left-aligned columns, as wide as their longest cell.
fn columns(out: &mut String, header: &[&str], rows: Vec<Vec<String>>) {
    let header = header
        .iter()
        .map(|name| (*name).to_owned())
        .collect::<Vec<_>>();
    let width = |at: usize| {
        std::iter::once(&header)
            .chain(&rows)
            .map(|row| row[at].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in std::iter::once(&header).chain(&rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end()).expect(INTO_STRING);
    }
}

fn identity_json(identity: &Identity) -> Value {
    json!({
        "store": format!("{:x}", identity.store.0),
        "cluster": format!("{:x}", identity.cluster),
        "member": format!("{:x}", identity.member.0),
        "name": identity.name,
    })
}

fn segment_json(info: &SegmentInfo, next: Option<u64>) -> Value {
    json!({
        "id": info.id,
        "file": info.path.display().to_string(),
        "bytes": info.len,
        "used": info.end,
        "store": format!("{:x}", info.store.0),
        "predecessor": info.predecessor,
        "first_seq": info.first_seq,
        "last_seq": info.last_seq,
        "synced_seq": info.synced_seq,
        "superseded": superseded(info, next),
        "records": info.records,
        "tail": tail(info),
    })
}

fn group_json(id: GroupId, group: &GroupCheckpoint) -> Value {
    json!({
        "group": id.0,
        "base_index": group.base.index.0,
        "last_index": group.last_index.0,
        "term": group.hard_state.term.0,
        "vote": group.hard_state.vote.map(|vote| format!("{:x}", vote.0)),
        "commit": group.hard_state.commit.0,
    })
}

/// Why these writes do not fail.
const INTO_STRING: &str = "writing to a string does not fail";
