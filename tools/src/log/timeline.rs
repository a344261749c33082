//! `flotilla log timeline`: what happened to each group, without its commands: terms, votes, leaders, cuts,
//! compactions, snapshots, and where segments begin.

use std::collections::BTreeMap;

use clap::Args;
use raft_log::log::inspect::{BatchInfo, DiskRecord};
use raft_log::{EntryKind, GroupId, HardState, Record, Term};
use serde_json::json;

use super::Dir;
use super::walk::{Groups, Walk};
use crate::failure::{Failure, print};

/// Flags of `flotilla log timeline`.
#[derive(Args, Debug)]
pub(super) struct TimelineArgs {
    #[command(flatten)]
    dir: Dir,
    /// Only this group
    #[arg(long)]
    group: Option<u64>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// One thing that happened.
struct Happening {
    segment: u64,
    offset: u64,
    group: Option<GroupId>,
    text: String,
}

#[derive(Default)]
struct Timeline {
    groups: Groups,
    /// The newest term and vote, and the newest term of an entry, that were reported.
    votes: BTreeMap<GroupId, HardState>,
    terms: BTreeMap<GroupId, Term>,
    happenings: Vec<Happening>,
}

impl Timeline {
    fn see(&mut self, segment: u64, batch: &BatchInfo, first: bool) {
        let mut tell = |group, text| {
            let offset = batch.offset;
            self.happenings.push(Happening {
                segment,
                offset,
                group,
                text,
            });
        };
        if first {
            tell(None, format!("segment begins after batch {}", batch.seq));
        }
        for (id, record) in &batch.records {
            match record {
                DiskRecord::Other(Record::HardState(state)) => {
                    let before = self.votes.insert(*id, *state).unwrap_or_default();
                    if (before.term, before.vote) != (state.term, state.vote) {
                        let vote = state.vote.map_or_else(
                            || "no vote".to_owned(),
                            |vote| format!("vote for {:x}", vote.0),
                        );
                        tell(Some(*id), format!("term {}, {vote}", state.term));
                    }
                }
                DiskRecord::Entry(entry) => {
                    let last = self.groups.last(*id);
                    if entry.index <= last {
                        let from = entry.index;
                        tell(Some(*id), format!("entries {from} to {last} overwritten"));
                    }
                    if self.terms.insert(*id, entry.term) != Some(entry.term) {
                        let text =
                            format!("entry {} is the first of term {}", entry.index, entry.term);
                        tell(Some(*id), text);
                    }
                    if entry.kind == EntryKind::Config {
                        tell(
                            Some(*id),
                            format!("entry {} changes the membership", entry.index),
                        );
                    }
                }
                DiskRecord::Other(Record::Truncate(from)) => {
                    tell(Some(*id), format!("cut from {from} on"));
                }
                DiskRecord::Other(Record::Compact(base)) => {
                    let text = if self.groups.0.contains_key(id) {
                        format!("compacted to {}", base.index)
                    } else {
                        format!("created, begins after {}", base.index)
                    };
                    tell(Some(*id), text);
                }
                DiskRecord::Other(Record::SnapshotRef(snapshot)) => {
                    let text = format!("snapshot {} at {}", snapshot.number, snapshot.index);
                    tell(Some(*id), text);
                }
                DiskRecord::Other(Record::Incarnation(incarnation)) => {
                    let text = match incarnation.guarded {
                        true => {
                            format!("begun anew as incarnation {}, guarded", incarnation.number)
                        }
                        false => format!("guard of incarnation {} ended", incarnation.number),
                    };
                    tell(Some(*id), text);
                }
                DiskRecord::Other(Record::Destroy) => tell(Some(*id), "destroyed".to_owned()),
                DiskRecord::Checkpoint(state) => {
                    self.votes.insert(*id, state.hard_state);
                }
                DiskRecord::Other(Record::Entries(_)) => {}
            }
            self.groups.see(*id, record);
        }
    }
}

pub(super) fn run(args: &TimelineArgs) -> Result<(), Failure> {
    let (mut timeline, mut newest) = (Timeline::default(), None);
    let walk = Walk::all(&args.dir, &mut |segment, batch| {
        let first = newest.replace(segment) != Some(segment);
        timeline.see(segment, &batch, first);
    })?;
    let wanted = |one: &&Happening| match (args.group, one.group) {
        (Some(wanted), Some(group)) => wanted == group.0,
        (Some(_), None) => false,
        (None, _) => true,
    };
    let mut text = String::new();
    for one in timeline.happenings.iter().filter(wanted) {
        let line = if args.json {
            let group = one.group.map(|group| group.0);
            json!({"segment": one.segment, "offset": one.offset, "group": group, "what": one.text})
                .to_string()
        } else {
            let group = one
                .group
                .map_or_else(|| "-".to_owned(), |group| group.to_string());
            format!(
                "{:016x} {:>9} {group} {}",
                one.segment, one.offset, one.text
            )
        };
        text.push_str(&line);
        text.push('\n');
    }
    print(&text)?;
    walk.verdict()
}
