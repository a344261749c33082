//! `flotilla log verify`: whether everything is there and verifies, and what it means where it does not.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kv_server::node::{Identity, IdentityError, known_members};
use raft_log::log::check::{self, Check, Finding, SegmentCheck, Severity, Verdict};
use raft_log::log::inspect::{self, GroupCheckpoint};
use raft_log::vfs::{RealFs, SharedVfs};
use raft_log::{ErrorKind, GroupId, LogOptions, StoreId};
use serde_json::{Value, json};

use super::table::columns;
use super::{Dir, INTO_STRING, failure_of, segments};
use crate::failure::{Failure, print};

/// Longer than a write takes on a disk that works.
const PAUSE: Duration = Duration::from_millis(100);

/// Flags of `flotilla log verify`.
#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

/// Which store a data directory says it is, and what is wrong with the file that says so.
pub(super) struct Owner {
    /// From `IDENTITY`, else from the newest segment with a header that verifies.
    pub(super) store: StoreId,
    /// Why `IDENTITY` cannot be trusted.
    pub(super) damage: Option<String>,
}

impl Owner {
    pub(super) fn of(vfs: &SharedVfs, data_dir: &Path, log: &Path) -> Result<Self, Failure> {
        let damage = match Identity::read(&**vfs, data_dir) {
            Ok(Some(identity)) => {
                return Ok(Self {
                    store: identity.store,
                    damage: None,
                });
            }
            Ok(None) => format!(
                "{}: expected a file, found none; a start is refused: restore it from a backup of this data directory",
                data_dir.join("IDENTITY").display()
            ),
            Err(error @ IdentityError::Damaged { .. }) => error.to_string(),
            Err(error) => return Err(Failure::Failed(error.to_string())),
        };
        let Some(store) = inspect::store_of(&**vfs, log).map_err(|error| failure_of(&error))?
        else {
            return Err(Failure::Damaged(format!(
                "{damage}; no segment says which store this is either"
            )));
        };
        Ok(Self {
            store,
            damage: Some(damage),
        })
    }
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let vfs: SharedVfs = Arc::new(RealFs::new());
    let log = args.dir.log();
    segments(&args.dir)?;
    let mut owner = Owner::of(&vfs, &args.dir.data_dir, &log)?;
    let members = match known_members(&vfs, &args.dir.data_dir) {
        Ok(members) => members,
        Err(error @ IdentityError::Damaged { .. }) => {
            owner.damage.get_or_insert_with(|| error.to_string());
            1
        }
        Err(error) => return Err(Failure::Failed(error.to_string())),
    };
    let options = LogOptions::new(&log, owner.store);
    let found = check::check(&vfs, &options, &mut || std::thread::sleep(PAUSE))
        .map_err(|error| failure_of(&error))?;
    let verdict = match (&owner.damage, found.verdict) {
        (Some(_), _) => Verdict::Damaged,
        (None, verdict) => verdict,
    };
    let remedy = Remedy::of(&found, &owner, members);
    let text = if args.json {
        to_json(&found, &owner, verdict, remedy)
    } else {
        to_text(&found, &owner, verdict, remedy)
    };
    print(&text)?;
    outcome(args, &found, &owner, verdict, remedy)
}

/// Who gives back what is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Nothing is.
    None,
    /// The other members, after a start.
    Peers,
    /// The other members, once this one was removed and added again: nobody else has its term and vote.
    AddAgain,
    /// Nobody: it is alone, or this is not its log.
    Nobody,
}

impl Remedy {
    fn of(found: &Check, owner: &Owner, members: usize) -> Self {
        let of_log = |finding: &&Finding| !finding.path.ends_with("votes");
        if owner.damage.is_some() {
            return Self::Nobody;
        }
        let in_log = || damage_of(found).filter(of_log);
        if in_log().next().is_none() {
            return Self::None;
        }
        let can_renew =
            |one: &Finding| matches!(one.kind, ErrorKind::Corruption | ErrorKind::SuspectTail);
        if members < 2 || !in_log().all(can_renew) {
            return Self::Nobody;
        }
        // A block of each slot may be torn; both are not.
        if damage_of(found).any(|finding| !of_log(&finding)) {
            return Self::AddAgain;
        }
        Self::Peers
    }

    /// What a start does, and what to do.
    fn advice(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Nobody => None,
            Self::Peers => Some(
                "this is a member of a cluster: a start begins the log anew, and its peers give back what is missing",
            ),
            Self::AddAgain => Some(
                "this is a member of a cluster, but term and vote are damaged as well, so a start is refused: remove the \
                 member and add it again with an empty data directory",
            ),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Peers => "peers",
            Self::AddAgain => "add again",
            Self::Nobody => "nobody",
        }
    }
}

/// The exit code, and the first thing that is wrong.
fn outcome(
    args: &VerifyArgs,
    found: &Check,
    owner: &Owner,
    verdict: Verdict,
    remedy: Remedy,
) -> Result<(), Failure> {
    // All of it was printed.
    let place = |finding: &Finding| match finding.offset {
        Some(offset) => format!("{} at offset {offset}", finding.path.display()),
        None => finding.path.display().to_string(),
    };
    let (first, count) = match &owner.damage {
        Some(damage) => (damage.clone(), 1 + damage_of(found).count()),
        None => (
            damage_of(found).next().map(place).unwrap_or_default(),
            damage_of(found).count(),
        ),
    };
    match verdict {
        Verdict::Fine | Verdict::TornTail => Ok(()),
        Verdict::Damaged => Err(Failure::Damaged(match remedy.advice() {
            Some(advice) => format!("{count} places are damaged, the first is {first}; {advice}"),
            None => format!(
                "{count} places are damaged, the first is {first}; to copy what can be trusted: flotilla log salvage \
                 {} --to NEW",
                args.dir.data_dir.display()
            ),
        })),
        Verdict::Unknown => Err(Failure::Failed(format!(
            "{count} places cannot be judged, the first is {first}"
        ))),
        Verdict::Changing => Err(Failure::Failed(format!(
            "the log changed at each of {} looks; try again, or stop the server: {first}",
            found.looks
        ))),
    }
}

fn damage_of(found: &Check) -> impl Iterator<Item = &Finding> {
    let all = found.findings.iter();
    all.filter(|finding| finding.severity == Severity::Damage)
}

fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fine => "fine",
        Verdict::TornTail => "torn tail",
        Verdict::Damaged => "damaged",
        Verdict::Unknown => "unknown",
        Verdict::Changing => "changing",
    }
}

/// Entries that a group's log cannot give.
fn lost(found: &Check, group: GroupId) -> Vec<(u64, u64)> {
    let all = found.findings.iter().flat_map(|finding| &finding.lost);
    all.filter(|(id, _, _)| *id == group)
        .map(|(_, first, last)| (first.0, last.0))
        .collect()
}

fn state(segment: &SegmentCheck) -> String {
    match segment.damaged_bytes {
        0 => "ok".to_owned(),
        bytes => format!("{bytes} bytes damaged"),
    }
}

fn to_text(found: &Check, owner: &Owner, verdict: Verdict, remedy: Remedy) -> String {
    let mut out = String::new();
    let rows = found.segments.iter().map(|segment| {
        vec![
            format!("{:016x}", segment.id),
            segment.first_seq.to_string(),
            segment.last_seq.to_string(),
            segment.end.to_string(),
            segment.len.to_string(),
            if segment.sealed { "sealed" } else { "open" }.to_owned(),
            state(segment),
        ]
    });
    let header = ["SEGMENT", "FIRST", "LAST", "USED", "BYTES", "END", "STATE"];
    columns(&mut out, &header, rows.collect());
    if !found.groups.is_empty() {
        out.push('\n');
        let rows = found.groups.iter().map(|(id, group)| {
            let lost = lost(found, *id).into_iter();
            let lost = lost.map(|(from, to)| match from == to {
                true => from.to_string(),
                false => format!("{from}-{to}"),
            });
            let lost: Vec<String> = lost.collect();
            vec![
                id.0.to_string(),
                group.base.index.to_string(),
                group.last_index.to_string(),
                group.hard_state.term.to_string(),
                group.hard_state.commit.to_string(),
                if lost.is_empty() {
                    "none".to_owned()
                } else {
                    lost.join(",")
                },
            ]
        });
        let header = ["GROUP", "BASE", "LAST", "TERM", "COMMIT", "UNREADABLE"];
        columns(&mut out, &header, rows.collect());
    }
    out.push('\n');
    if let Some(damage) = &owner.damage {
        writeln!(out, "damage: {damage}").expect(INTO_STRING);
    }
    for finding in &found.findings {
        let label = match finding.severity {
            Severity::Note => "note",
            Severity::Damage => "damage",
        };
        writeln!(out, "{label}: {finding}").expect(INTO_STRING);
    }
    if let Ok(report) = &found.start {
        for note in &report.notes {
            writeln!(out, "note: the next start will say: {note}").expect(INTO_STRING);
        }
    }
    if let Some(advice) = remedy.advice() {
        writeln!(out, "note: {advice}").expect(INTO_STRING);
    }
    writeln!(out, "verdict: {}", name(verdict)).expect(INTO_STRING);
    out
}

fn to_json(found: &Check, owner: &Owner, verdict: Verdict, remedy: Remedy) -> String {
    let value = json!({
        "verdict": name(verdict),
        "repair": remedy.name(),
        "identity": owner.damage.as_deref().unwrap_or("fine"),
        "segments": found.segments.iter().map(segment_json).collect::<Vec<_>>(),
        "groups": found.groups.iter().map(|(id, group)| group_json(found, *id, group)).collect::<Vec<_>>(),
        "findings": found.findings.iter().map(finding_json).collect::<Vec<_>>(),
        "start": match &found.start {
            Ok(report) => json!({
                "refused": false,
                "batches": report.batches,
                "copied": report.copied,
                "cut": report.cut,
                "notes": report.notes,
            }),
            Err(error) => json!({"refused": true, "error": error.to_string()}),
        },
        "looks": found.looks,
    });
    format!("{value}\n")
}

fn segment_json(segment: &SegmentCheck) -> Value {
    json!({
        "id": segment.id,
        "file": segment.path.display().to_string(),
        "bytes": segment.len,
        "used": segment.end,
        "first_seq": segment.first_seq,
        "last_seq": segment.last_seq,
        "sealed": segment.sealed,
        "damaged_bytes": segment.damaged_bytes,
    })
}

fn group_json(found: &Check, id: GroupId, group: &GroupCheckpoint) -> Value {
    json!({
        "group": id.0,
        "base_index": group.base.index.0,
        "last_index": group.last_index.0,
        "term": group.hard_state.term.0,
        "commit": group.hard_state.commit.0,
        "incarnation": group.incarnation.number,
        "guarded": group.incarnation.guarded,
        "unreadable": lost(found, id),
    })
}

fn finding_json(finding: &Finding) -> Value {
    let lost = finding.lost.iter();
    json!({
        "damage": finding.severity == Severity::Damage,
        "file": finding.path.display().to_string(),
        "offset": finding.offset,
        "expected": finding.difference.expected,
        "found": finding.difference.found,
        "meaning": finding.meaning,
        "advice": finding.difference.advice,
        "lost": lost.map(|(group, from, to)| json!({"group": group.0, "from": from.0, "to": to.0})).collect::<Vec<_>>(),
    })
}
