//! `flotilla recover`: which of the members that are left has the newest entries, and making it a cluster of its own.
//!
//! Without `--force-new-cluster` it only looks: it takes no lock and writes nothing. What a recovery does, and in which
//! order, is in `kv_server::node`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use kv_server::node::{DATA_GROUP, Identity, NodeError, Recovery, pending_recovery, recover};
use raft_log::log::inspect::DiskRecord;
use raft_log::vfs::RealFs;
use raft_log::{EntryKind, Index, NodeId, Record, Term};
use raft_node::core::Membership;
use serde_json::{Value, json};

use crate::failure::{Failure, print};
use crate::log::table::columns;
use crate::log::walk::{Groups, Walk};
use crate::log::{Dir, INTO_STRING};

/// Flags of `flotilla recover`.
#[derive(Args, Debug)]
pub(crate) struct RecoverArgs {
    /// The data directories of the members that are left
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// Make the member in the one directory, whose server is stopped, the only member of a new cluster
    #[arg(long)]
    force_new_cluster: bool,
    /// Print JSON, an object on a line for each directory
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub(crate) fn run(args: &RecoverArgs) -> Result<(), Failure> {
    if !args.force_new_cluster {
        return look(args);
    }
    let [dir] = &args.dirs[..] else {
        return Err(Failure::Usage(
            "--force-new-cluster takes one directory: that of the member with the newest entries, which `flotilla recover` \
             without it names"
                .to_owned(),
        ));
    };
    let recovery = recover(dir).map_err(|error| match error {
        NodeError::NotRecoverable(_) => Failure::Failed(format!("{error}; nothing was changed")),
        _ if error.is_damage() => Failure::Damaged(error.to_string()),
        _ => Failure::Failed(error.to_string()),
    })?;
    print(&if args.json {
        format!("{}\n", to_json(dir, &recovery))
    } else {
        to_text(dir, &recovery)
    })
}

fn to_text(dir: &Path, recovery: &Recovery) -> String {
    let mut out = String::new();
    let (to, evidence) = (recovery.to, recovery.evidence(dir));
    writeln!(
        out,
        "member {:x} is the only member of cluster {to:x} now; it was one of cluster {:x}",
        recovery.member.0, recovery.from
    )
    .expect(INTO_STRING);
    for group in &recovery.groups {
        writeln!(
            out,
            "group {}: entries up to {} are kept, the last one of term {}; up to {} they were known to be committed",
            group.group, group.last, group.last_term, group.commit
        )
        .expect(INTO_STRING);
    }
    writeln!(
        out,
        "what was there before is written down in {}\n\n\
         Start its server as before, then add members with empty data directories. The others of the old cluster are \
         refused: do not start them again.",
        evidence.display()
    )
    .expect(INTO_STRING);
    out
}

fn to_json(dir: &Path, recovery: &Recovery) -> Value {
    let group = |group: &kv_server::node::RecoveredGroup| {
        json!({
            "group": group.group.0,
            "last_index": group.last.0,
            "last_term": group.last_term.0,
            "commit": group.commit.0,
        })
    };
    json!({
        "dir": dir.display().to_string(),
        "member": format!("{:x}", recovery.member.0),
        "cluster": format!("{:x}", recovery.to),
        "old_cluster": format!("{:x}", recovery.from),
        "groups": recovery.groups.iter().map(group).collect::<Vec<_>>(),
        "evidence": recovery.evidence(dir).display().to_string(),
    })
}

/// Where the member in a directory stands.
struct Standing {
    dir: PathBuf,
    identity: Identity,
    last_term: Term,
    last: Index,
    commit: Index,
    membership: Membership,
    /// The log was damaged and begun anew, and has not been given back what it lost.
    is_guarded: bool,
    /// A recovery was begun and is not finished.
    is_pending: bool,
}

fn look(args: &RecoverArgs) -> Result<(), Failure> {
    let found = args.dirs.iter().map(|dir| standing(dir));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let text = if args.json {
        found
            .iter()
            .map(|one| format!("{}\n", standing_json(one)))
            .collect()
    } else {
        standing_text(&found)
    };
    print(&text)
}

/// What the records of the group of data come to.
#[derive(Default)]
struct Seen {
    groups: Groups,
    /// The first index of each run of one term, and each membership, of entries in force.
    terms: BTreeMap<Index, Term>,
    memberships: BTreeMap<Index, Bytes>,
}

impl Seen {
    fn see(&mut self, record: &DiskRecord) {
        self.groups.see(DATA_GROUP, record);
        let cut = match record {
            DiskRecord::Entry(entry) => entry.index,
            DiskRecord::Other(Record::Truncate(from)) => *from,
            DiskRecord::Checkpoint(state) => state.last_index.next(),
            DiskRecord::Other(_) => return,
        };
        drop(self.terms.split_off(&cut));
        drop(self.memberships.split_off(&cut));
        if let DiskRecord::Entry(entry) = record {
            if self.terms.values().next_back() != Some(&entry.term) {
                self.terms.insert(entry.index, entry.term);
            }
            if entry.kind == EntryKind::Config {
                self.memberships.insert(entry.index, entry.payload.clone());
            }
        }
    }
}

fn standing(dir: &Path) -> Result<Standing, Failure> {
    let identity = Identity::read(&RealFs::new(), dir)
        .map_err(|error| Failure::Damaged(error.to_string()))?
        .ok_or_else(|| {
            Failure::Failed(format!(
                "{} holds no member: there is no IDENTITY file in it",
                dir.display()
            ))
        })?;
    let mut seen = Seen::default();
    let data_dir = dir.to_owned();
    let walk = Walk::all(&Dir { data_dir }, &mut |_, batch| {
        for (group, record) in &batch.records {
            if *group == DATA_GROUP {
                seen.see(record);
            }
        }
    })?;
    walk.verdict().map_err(|failure| {
        failure.map(|text| format!("{text}; `flotilla log verify {}` says more", dir.display()))
    })?;
    let group = seen.groups.0.remove(&DATA_GROUP).unwrap_or_default();
    let above = |index: &Index| *index > group.base.index;
    let newest = seen.memberships.iter().next_back();
    let membership = newest.filter(|(index, _)| above(index));
    let membership = membership.map_or(&group.base.membership, |(_, payload)| payload);
    let membership = Membership::decode(membership)
        .map_err(|error| Failure::Damaged(format!("{}: {error}", dir.display())))?;
    let last_term = match seen.terms.values().next_back() {
        Some(term) if above(&group.last_index) => *term,
        _ => group.base.term,
    };
    let pending = pending_recovery(dir).map_err(|error| Failure::Damaged(error.to_string()))?;
    Ok(Standing {
        dir: dir.to_owned(),
        identity,
        last_term,
        last: group.last_index,
        commit: group.hard_state.commit,
        membership,
        is_guarded: group.incarnation.guarded,
        is_pending: pending.is_some(),
    })
}

/// The directories whose entries reach furthest: as in an election, the term of the last entry counts first. One whose log
/// may lack acknowledged entries in the middle of its past counts after all others.
fn best(found: &[Standing]) -> Vec<&Standing> {
    let reach = |one: &&Standing| (!one.is_guarded, one.last_term, one.last);
    let newest = found.iter().map(|one| reach(&one)).max();
    found
        .iter()
        .filter(|one| Some(reach(one)) == newest)
        .collect()
}

fn ids(ids: &[NodeId]) -> String {
    if ids.is_empty() {
        return "-".to_owned();
    }
    let ids: Vec<_> = ids.iter().map(|id| format!("{:x}", id.0)).collect();
    ids.join(",")
}

fn standing_text(found: &[Standing]) -> String {
    let mut out = String::new();
    let rows = found.iter().map(|one| {
        vec![
            one.dir.display().to_string(),
            one.identity.name.clone(),
            format!("{:x}", one.identity.member.0),
            format!("{:x}", one.identity.cluster),
            one.last_term.to_string(),
            one.last.to_string(),
            one.commit.to_string(),
            ids(&one.membership.voters),
            ids(&one.membership.learners),
        ]
    });
    let header = [
        "DIRECTORY",
        "NAME",
        "MEMBER",
        "CLUSTER",
        "LAST-TERM",
        "LAST",
        "COMMIT",
        "VOTERS",
        "LEARNERS",
    ];
    columns(&mut out, &header, rows.collect());
    out.push('\n');
    for one in found.iter().filter(|one| one.is_pending) {
        writeln!(
            out,
            "{}: a recovery was begun and is not finished; the next start of the server finishes it, or another \
             `flotilla recover --force-new-cluster`",
            one.dir.display()
        )
        .expect(INTO_STRING);
    }
    for one in found.iter().filter(|one| one.is_guarded) {
        writeln!(
            out,
            "{}: its log was damaged and begun anew; it may lack entries that it had acknowledged",
            one.dir.display()
        )
        .expect(INTO_STRING);
    }
    let clusters = |a: &Standing, b: &Standing| a.identity.cluster == b.identity.cluster;
    if !found.iter().all(|one| clusters(one, &found[0])) {
        out.push_str("These are members of different clusters: they cannot be compared.\n");
        return out;
    }
    let best = best(found);
    let names: Vec<_> = best
        .iter()
        .map(|one| one.dir.display().to_string())
        .collect();
    let voters = best[0].membership.voters.len();
    if voters == 1 {
        out.push_str("One member votes: it decides alone, and there is nothing to recover.\n");
        return out;
    }
    writeln!(
        out,
        "Newest entries: {}. Nothing was changed.\n\n\
         {voters} members vote, so {} of them must be lost for good before this is right: what they acknowledged without \
         the members above is lost with them. Look for their disks and backups first. Stop every server of this cluster \
         that is left, keep copies of the directories, then\n\n    \
         flotilla recover {} --force-new-cluster\n\n\
         makes that member the only one of a new cluster, with all entries above; the others are refused from then on.",
        names.join(", "),
        voters.div_ceil(2),
        names[0]
    )
    .expect(INTO_STRING);
    out
}

fn standing_json(one: &Standing) -> Value {
    let hex =
        |ids: &[NodeId]| -> Vec<String> { ids.iter().map(|id| format!("{:x}", id.0)).collect() };
    json!({
        "dir": one.dir.display().to_string(),
        "name": one.identity.name,
        "member": format!("{:x}", one.identity.member.0),
        "cluster": format!("{:x}", one.identity.cluster),
        "last_term": one.last_term.0,
        "last_index": one.last.0,
        "commit": one.commit.0,
        "voters": hex(&one.membership.voters),
        "outgoing": hex(&one.membership.voters_outgoing),
        "learners": hex(&one.membership.learners),
        "guarded": one.is_guarded,
        "recovery_pending": one.is_pending,
    })
}
