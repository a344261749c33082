//! `flotilla log ls`: one line per segment, one per group.

use std::fmt::Write;

use clap::Args;
use kv_server::node::Identity;
use raft_log::GroupId;
use raft_log::log::inspect::{GroupCheckpoint, SegmentInfo, Tail};
use raft_log::vfs::RealFs;
use serde_json::{Value, json};

use super::table::columns;
use super::walk::{Groups, Walk};
use super::{Dir, INTO_STRING};
use crate::failure::{Failure, print};

/// Flags of `flotilla log ls`.
#[derive(Args, Debug)]
pub(super) struct LsArgs {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &LsArgs) -> Result<(), Failure> {
    let mut groups = Groups::default();
    let walk = Walk::all(&args.dir, &mut |_, batch| {
        for (group, record) in &batch.records {
            groups.see(*group, record);
        }
    })?;
    let identity = Identity::read(&RealFs::new(), &args.dir.data_dir);
    let identity = identity.map_err(|error| Failure::Damaged(error.to_string()))?;
    let text = if args.json {
        let segments = walk.infos.iter().enumerate();
        let value = json!({
            "identity": identity.as_ref().map(identity_json),
            "segments": segments.map(|(at, info)| segment_json(info, walk.next_first(at))).collect::<Vec<_>>(),
            "groups": groups.0.iter().map(|(id, group)| group_json(*id, group)).collect::<Vec<_>>(),
            "damage": walk.damage(),
        });
        format!("{value}\n")
    } else {
        table(identity.as_ref(), &walk, &groups)
    };
    print(&text)?;
    walk.verdict()
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
        Tail::WrongLength => "wrong length",
    }
}

fn table(identity: Option<&Identity>, walk: &Walk, groups: &Groups) -> String {
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
    let rows = walk.infos.iter().enumerate().map(|(at, info)| {
        vec![
            format!("{:016x}", info.id),
            info.len.to_string(),
            info.end.to_string(),
            info.first_seq.to_string(),
            info.last_seq.to_string(),
            info.synced_seq.to_string(),
            superseded(info, walk.next_first(at)).to_string(),
            info.records.to_string(),
            tail(info).to_owned(),
        ]
    });
    columns(&mut out, &header, rows.collect());
    out.push('\n');
    let header = ["GROUP", "BASE", "LAST", "TERM", "VOTE", "COMMIT"];
    let rows = groups.0.iter().map(|(id, group)| {
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
        "incarnation": group.incarnation.number,
        "guarded": group.incarnation.guarded,
    })
}
