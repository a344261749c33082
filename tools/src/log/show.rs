//! `flotilla log show`: every record, with its place in the files and what it means.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufWriter, ErrorKind, Write};
use std::time::Duration;

use clap::Args;
use kv_server::pb::command::{AuthCommand, Command, auth_command::Op as AuthOp, command::Op};
use kv_server::pb::etcdserverpb::alarm_request::AlarmAction;
use prost::Message;
use raft_log::log::inspect::{BatchInfo, DiskRecord, SegmentInfo};
use raft_log::{Entry, EntryKind, GroupId, HardState, Incarnation, Record};
use serde_json::{Value, json};

use super::Dir;
use super::stat::kind;
use crate::failure::Failure;

/// Bytes of a key or a value that are printed; the length always is.
const SHOWN_BYTES_MAX: usize = 64;
/// Groups that an error lists.
const GROUPS_LISTED_MAX: usize = 20;

/// Flags of `flotilla log show`.
#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    dir: Dir,
    /// Only this segment, as `log ls` names it
    #[arg(long, value_parser = parse_hex)]
    segment: Option<u64>,
    /// Only this group
    #[arg(long)]
    group: Option<u64>,
    /// Only entries from this index on
    #[arg(long)]
    from: Option<u64>,
    /// Only entries up to this index
    #[arg(long)]
    to: Option<u64>,
    /// Only records of this kind: entry, hard-state, truncate, compact, snapshot, destroy or checkpoint
    #[arg(long, value_parser = ["entry", "hard-state", "truncate", "compact", "snapshot", "destroy", "checkpoint"])]
    kind: Option<String>,
    /// Go on with what a server adds, until interrupted
    #[arg(long, short, conflicts_with_all = ["segment", "to"])]
    follow: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

fn parse_hex(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16)
        .map_err(|_| format!("expected a segment such as 000000000000000a, found {text:?}"))
}

impl ShowArgs {
    fn wants(&self, group: GroupId, record: &DiskRecord) -> bool {
        if self.group.is_some_and(|wanted| wanted != group.0) {
            return false;
        }
        if self
            .kind
            .as_ref()
            .is_some_and(|wanted| wanted != kind(record))
        {
            return false;
        }
        match record {
            DiskRecord::Entry(entry) => {
                self.from.is_none_or(|from| entry.index.0 >= from)
                    && self.to.is_none_or(|to| entry.index.0 <= to)
            }
            // Who asks for some entries wants those alone.
            _ => self.from.is_none() && self.to.is_none(),
        }
    }
}

/// How often a log that is followed is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

pub(super) fn run(args: &ShowArgs) -> Result<(), Failure> {
    let ids = super::segments(&args.dir)?;
    if let Some(id) = args.segment.filter(|id| !ids.contains(id)) {
        return Err(Failure::Failed(format!(
            "{}: there is no segment {id:016x}",
            args.dir.log().display()
        )));
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    let wanted = |id: &u64| args.segment.is_none_or(|wanted| wanted == *id);
    let (mut infos, mut groups) = (Vec::new(), BTreeSet::new());
    for id in ids.iter().copied().filter(wanted) {
        infos.extend(segment(args, id, 0, &mut groups, &mut out)?);
    }
    if args.follow {
        return follow(args, infos.pop(), &mut out);
    }
    // A later segment may supersede what does not verify, also one that was not asked for.
    let next = ids
        .iter()
        .find(|id| infos.last().is_some_and(|last| **id > last.id));
    if let Some(next) = next {
        let next = super::segment(&args.dir.log(), *next, &mut |_| ());
        infos.extend(next.map_err(|error| super::failure_of(&error))?);
    }
    let damage = infos
        .iter()
        .enumerate()
        .find_map(|(at, info)| super::damage(info, infos.get(at + 1).map(|next| next.first_seq)));
    match (damage, args.group) {
        (Some(text), _) => Err(Failure::Damaged(text)),
        (None, Some(wanted)) if !groups.contains(&wanted) => Err(no_group(args, wanted, &groups)),
        (None, _) => Ok(()),
    }
}

/// What to say to who asks for a group that the log has never had, as far as it goes back.
fn no_group(args: &ShowArgs, wanted: u64, groups: &BTreeSet<u64>) -> Failure {
    let listed = groups.iter().take(GROUPS_LISTED_MAX);
    let list: Vec<String> = listed.map(ToString::to_string).collect();
    let there = match groups.len().checked_sub(GROUPS_LISTED_MAX) {
        _ if groups.is_empty() => "it has none".to_owned(),
        None | Some(0) => format!("it has {}", list.join(", ")),
        Some(more) => format!("it has {} and {more} more", list.join(", ")),
    };
    let dir = args.dir.log();
    Failure::Failed(format!(
        "{}: there is no group {wanted}; {there}",
        dir.display()
    ))
}

/// Prints what a server adds, until interrupted or until nobody reads any more. A segment that begins meanwhile is
/// printed from its checkpoint on.
fn follow(args: &ShowArgs, last: Option<SegmentInfo>, out: &mut impl Write) -> Result<(), Failure> {
    let (mut at, mut end) = last.map_or((0, 0), |info| (info.id, info.end));
    loop {
        std::thread::sleep(FOLLOW_PAUSE);
        let ids = super::segments(&args.dir)?;
        for id in ids {
            if id < at {
                continue;
            }
            let from = if id == at { end } else { 0 };
            if let Some(info) = segment(args, id, from, &mut BTreeSet::new(), out)? {
                (at, end) = (info.id, info.end);
            }
        }
    }
}

/// Prints the batches of a segment from an offset on, and sees them off; adds the groups that are named in it.
fn segment(
    args: &ShowArgs,
    id: u64,
    from: u64,
    groups: &mut BTreeSet<u64>,
    out: &mut impl Write,
) -> Result<Option<SegmentInfo>, Failure> {
    let mut written = Ok(());
    let mut visit = |batch: BatchInfo| {
        groups.extend(batch.records.iter().map(|(group, _)| group.0));
        if written.is_ok() && batch.offset >= from {
            written = show(args, id, &batch, out);
        }
    };
    let info = super::segment(&args.dir.log(), id, &mut visit)
        .map_err(|error| super::failure_of(&error))?;
    match written.and_then(|()| out.flush()) {
        Ok(()) => Ok(info),
        // A reader that has gone away (`| head`) is not an error, and there is nothing left to do.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed("writing to standard output", error)),
    }
}

fn show(
    args: &ShowArgs,
    segment: u64,
    batch: &BatchInfo,
    out: &mut impl Write,
) -> std::io::Result<()> {
    for (group, record) in &batch.records {
        if !args.wants(*group, record) {
            continue;
        }
        if args.json {
            let mut value = json!({
                "segment": segment,
                "offset": batch.offset,
                "seq": batch.seq,
                "group": group.0,
            });
            let fields = describe_json(record);
            if let (Some(value), Value::Object(fields)) = (value.as_object_mut(), fields) {
                value.extend(fields);
            }
            writeln!(out, "{value}")?;
        } else {
            writeln!(
                out,
                "{segment:016x} {:>9} batch {} {group} {}",
                batch.offset,
                batch.seq,
                describe(record)
            )?;
        }
    }
    Ok(())
}

fn vote(state: &HardState) -> String {
    state
        .vote
        .map_or_else(|| "none".to_owned(), |vote| vote.to_string())
}

fn describe(record: &DiskRecord) -> String {
    match record {
        DiskRecord::Entry(entry) => {
            format!(
                "entry {} term {} {}",
                entry.index,
                entry.term,
                payload(entry)
            )
        }
        DiskRecord::Other(Record::HardState(state)) => {
            format!(
                "hard-state term {} vote {} commit {}",
                state.term,
                vote(state),
                state.commit
            )
        }
        DiskRecord::Other(Record::Truncate(from)) => format!("truncate from {from}"),
        DiskRecord::Other(Record::Compact(base)) => {
            format!(
                "compact to {} term {} creation {:x}",
                base.index, base.term, base.creation
            )
        }
        DiskRecord::Other(Record::SnapshotRef(snapshot)) => format!(
            "snapshot {} at {} term {} {} bytes",
            snapshot.number, snapshot.index, snapshot.term, snapshot.content_len
        ),
        DiskRecord::Other(Record::Incarnation(incarnation)) => {
            format!("incarnation {}", incarnation_text(incarnation))
        }
        DiskRecord::Other(Record::Destroy) => "destroy".to_owned(),
        DiskRecord::Other(Record::Entries(entries)) => format!("{} entries", entries.len()),
        DiskRecord::Checkpoint(state) => {
            let mut text = format!(
                "checkpoint base {} last {} term {} vote {} commit {}",
                state.base.index,
                state.last_index,
                state.hard_state.term,
                vote(&state.hard_state),
                state.hard_state.commit
            );
            if state.incarnation.number > 0 {
                text.push_str(" incarnation ");
                text.push_str(&incarnation_text(&state.incarnation));
            }
            text
        }
    }
}

fn incarnation_text(incarnation: &Incarnation) -> String {
    let guarded = if incarnation.guarded { " guarded" } else { "" };
    format!("{}{guarded}", incarnation.number)
}

fn describe_json(record: &DiskRecord) -> Value {
    match record {
        DiskRecord::Entry(entry) => json!({
            "kind": "entry",
            "index": entry.index.0,
            "term": entry.term.0,
            "bytes": entry.payload.len(),
            "payload": payload(entry),
        }),
        DiskRecord::Other(Record::HardState(state)) => json!({
            "kind": "hard-state",
            "term": state.term.0,
            "vote": state.vote.map(|vote| vote.to_string()),
            "commit": state.commit.0,
        }),
        DiskRecord::Other(Record::Truncate(from)) => json!({"kind": "truncate", "from": from.0}),
        DiskRecord::Other(Record::Compact(base)) => json!({
            "kind": "compact",
            "index": base.index.0,
            "term": base.term.0,
            "creation": format!("{:x}", base.creation),
        }),
        DiskRecord::Other(Record::SnapshotRef(snapshot)) => json!({
            "kind": "snapshot",
            "number": snapshot.number,
            "index": snapshot.index.0,
            "term": snapshot.term.0,
            "bytes": snapshot.content_len,
        }),
        DiskRecord::Other(Record::Incarnation(incarnation)) => json!({
            "kind": "incarnation",
            "number": incarnation.number,
            "guarded": incarnation.guarded,
        }),
        DiskRecord::Other(Record::Destroy) => json!({"kind": "destroy"}),
        DiskRecord::Other(Record::Entries(entries)) => {
            json!({"kind": "entries", "count": entries.len()})
        }
        DiskRecord::Checkpoint(state) => json!({
            "kind": "checkpoint",
            "base_index": state.base.index.0,
            "last_index": state.last_index.0,
            "term": state.hard_state.term.0,
            "vote": state.hard_state.vote.map(|vote| vote.to_string()),
            "commit": state.hard_state.commit.0,
            "incarnation": state.incarnation.number,
            "guarded": state.incarnation.guarded,
        }),
    }
}

/// What an entry proposes, in words.
fn payload(entry: &Entry) -> String {
    if entry.kind == EntryKind::Config {
        return format!("membership ({} bytes)", entry.payload.len());
    }
    if entry.payload.is_empty() {
        return "empty (a leader's first)".to_owned();
    }
    match Command::decode(entry.payload.clone()).map(|command| command.op) {
        Ok(Some(op)) => describe_op(&op),
        Ok(None) | Err(_) => format!(
            "{} bytes that are no command of this version",
            entry.payload.len()
        ),
    }
}

fn describe_op(op: &Op) -> String {
    match op {
        Op::Put(put) => {
            let mut text = format!("put {} = {}", shown(&put.key), shown(&put.value));
            if put.lease != 0 {
                write!(text, " lease {:x}", put.lease).expect("writing to a string does not fail");
            }
            text
        }
        Op::DeleteRange(delete) if delete.range_end.is_empty() => {
            format!("delete {}", shown(&delete.key))
        }
        Op::DeleteRange(delete) => {
            format!(
                "delete {} to {}",
                shown(&delete.key),
                shown(&delete.range_end)
            )
        }
        Op::Txn(txn) => format!(
            "txn of {} compares, {} operations, else {}",
            txn.compare.len(),
            txn.success.len(),
            txn.failure.len()
        ),
        Op::Compact(compact) => format!("compact history to revision {}", compact.revision),
        Op::LeaseGrant(grant) => format!("grant lease {:x} for {} s", grant.id, grant.ttl),
        Op::LeaseRevoke(revoke) => format!("revoke lease {:x}", revoke.id),
        Op::LeaseExpire(expire) => format!("expire {} leases", expire.items.len()),
        Op::PublishMember(member) => format!(
            "member {:x} \"{}\" serves clients at {}",
            member.id,
            member.name.escape_default(),
            member.client_urls.join(",").escape_default()
        ),
        Op::SetAlarm(command) => {
            let request = command.request.unwrap_or_default();
            let (alarm, member) = (request.alarm().as_str_name(), request.member_id);
            let action = match request.action() {
                AlarmAction::Get => "look at",
                AlarmAction::Activate => "raise",
                AlarmAction::Deactivate => "clear",
            };
            format!("{action} the alarm {alarm} of member {member:x}")
        }
        Op::Auth(command) => auth(command),
        Op::RegisterKeyspace(keyspace) => {
            format!("register the keyspace {}", keyspace.name.escape_default())
        }
        Op::CheckState(_) => "compare the states of the members".to_owned(),
        Op::UpdateMember(update) => format!(
            "member {:x} is reached at {}",
            update.id,
            update.peer_urls.join(",").escape_default()
        ),
        Op::LeaseCheckpoint(checkpoint) => format!("checkpoint {} leases", checkpoint.items.len()),
    }
}

/// A change of users and roles, without what is secret of it.
fn auth(command: &AuthCommand) -> String {
    let name = |name: &str| shown(name.as_bytes());
    match &command.op {
        None => "no change of users and roles".to_owned(),
        Some(AuthOp::Enable(_)) => "enable authentication".to_owned(),
        Some(AuthOp::Disable(_)) => "disable authentication".to_owned(),
        Some(AuthOp::AssignToken(assign)) => format!("a token for user {}", name(&assign.user)),
        Some(AuthOp::UserAdd(add)) => format!("add user {}", name(&add.name)),
        Some(AuthOp::UserDelete(delete)) => format!("delete user {}", name(&delete.name)),
        Some(AuthOp::UserChangePassword(change)) => {
            format!("change the password of user {}", name(&change.name))
        }
        Some(AuthOp::UserGrantRole(grant)) => {
            format!(
                "grant role {} to user {}",
                name(&grant.role),
                name(&grant.user)
            )
        }
        Some(AuthOp::UserRevokeRole(revoke)) => {
            format!(
                "revoke role {} from user {}",
                name(&revoke.role),
                name(&revoke.name)
            )
        }
        Some(AuthOp::RoleAdd(add)) => format!("add role {}", name(&add.name)),
        Some(AuthOp::RoleDelete(delete)) => format!("delete role {}", name(&delete.role)),
        Some(AuthOp::RoleGrantPermission(grant)) => {
            let permission = grant.perm.clone().unwrap_or_default();
            format!(
                "grant {} on {} to {} to role {}",
                permission.perm_type().as_str_name(),
                shown(&permission.key),
                shown(&permission.range_end),
                name(&grant.name)
            )
        }
        Some(AuthOp::RoleRevokePermission(revoke)) => format!(
            "revoke the permission on {} to {} from role {}",
            shown(&revoke.key),
            shown(&revoke.range_end),
            name(&revoke.role)
        ),
    }
}

/// Bytes in quotes, escaped, cut to a bound with the length behind.
fn shown(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let mut text = format!("\"{}\"", head.escape_ascii());
    if head.len() < bytes.len() {
        write!(text, "... ({} bytes)", bytes.len()).expect("writing to a string does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_server::pb::etcdserverpb::PutRequest;
    use raft_log::{Index, Term};

    fn entry(payload: Vec<u8>) -> DiskRecord {
        DiskRecord::Entry(Entry {
            index: Index(7),
            term: Term(2),
            kind: EntryKind::Normal,
            payload: payload.into(),
        })
    }

    #[test]
    fn describe_entry_of_a_put_names_key_value_and_lease() {
        let put = PutRequest {
            key: "a\n".into(),
            value: vec![b'x'; 100].into(),
            lease: 0xab,
            ..Default::default()
        };
        let command = Command {
            op: Some(Op::Put(put)),
        };
        let text = describe(&entry(command.encode_to_vec()));
        let value = "x".repeat(64);
        assert_eq!(
            text,
            format!("entry 7 term 2 put \"a\\n\" = \"{value}\"... (100 bytes) lease ab")
        );
    }

    #[test]
    fn describe_entry_that_is_no_command_says_so() {
        let text = describe(&entry(vec![0xff; 3]));
        assert_eq!(
            text,
            "entry 7 term 2 3 bytes that are no command of this version"
        );
    }
}
