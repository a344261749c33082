//! `flotilla status`: all members of a cluster at one look, and whether something is wrong.
//!
//! It asks the endpoints for the members, and each member for its own view, all at the same time; no call needs a leader.
//! What a member says is not compared with what it would say a moment later, so while writes go on a lag of some entries
//! is what it took to ask.

mod ask;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use kv_server::pb::etcdserverpb as pb;
use tokio::task::JoinSet;

use crate::failure::{Failure, print};
use crate::tls::TlsArgs;
use crate::user::{User, UserArgs};
use ask::{Access, Answer, ask, ask_first};

/// Flags of `flotilla status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Members to ask for the others; one that answers is enough
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    endpoints: Vec<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Print JSON, an object on a line for each member
    #[arg(long)]
    json: bool,
    /// Seconds to wait for each member
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    #[command(flatten)]
    user: UserArgs,
}

/// One member, as others have it and as it says itself.
struct Row {
    member: pb::Member,
    cluster: u64,
    /// The URL that answered, and what it said; else why there is no answer.
    seen: Result<(String, Answer), String>,
}

impl Row {
    fn answer(&self) -> Option<&Answer> {
        self.seen.as_ref().ok().map(|(_, answer)| answer)
    }

    fn name(&self) -> String {
        match self.member.name.as_str() {
            "" => format!("{:x}", self.member.id),
            name => name.to_owned(),
        }
    }
}

/// Everything that was learned.
struct Report {
    rows: Vec<Row>,
    /// What is wrong; a cluster is healthy without any.
    problems: Vec<String>,
}

/// Runs the subcommand.
pub(crate) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting the runtime that asks", error))?;
    let report = runtime.block_on(look(args, args.user.user()?))?;
    print(&if args.json {
        page::to_json(&report)
    } else {
        page::to_text(&report)
    })?;
    match report.problems.first() {
        None => Ok(()),
        Some(first) => Err(Failure::Failed(format!("not healthy: {first}"))),
    }
}

async fn look(args: &StatusArgs, user: Option<User>) -> Result<Report, Failure> {
    let endpoints: BTreeSet<String> = args.endpoints.iter().map(|url| with_scheme(url)).collect();
    let access = Access {
        tls: args.tls.open(&endpoints)?,
        user,
        patience: Duration::from_secs(args.timeout),
    };
    let mut asked = JoinSet::new();
    for url in endpoints {
        let access = access.clone();
        asked.spawn(async move {
            let answer = ask(&url, &access).await;
            (url, answer)
        });
    }
    let mut answered: BTreeMap<u64, (String, Answer)> = BTreeMap::new();
    let mut failed: BTreeMap<String, String> = BTreeMap::new();
    for (url, answer) in asked.join_all().await {
        match answer {
            Ok(answer) => drop(answered.insert(answer.member(), (url, answer))),
            Err(error) => drop(failed.insert(url, error)),
        }
    }
    if answered.is_empty() {
        let errors: Vec<_> = failed.values().map(String::as_str).collect();
        return Err(Failure::Failed(format!(
            "no endpoint answers: {}",
            errors.join("; ")
        )));
    }

    let mut members: BTreeMap<u64, (u64, pb::Member)> = BTreeMap::new();
    for (_, answer) in answered.values() {
        for member in &answer.members {
            let known = members.entry(member.id);
            known.or_insert_with(|| (answer.cluster(), member.clone()));
        }
    }
    // Who answered is shown even where nobody lists it.
    for (id, (_, answer)) in &answered {
        let unlisted = || pb::Member {
            id: *id,
            ..pb::Member::default()
        };
        let known = members.entry(*id);
        known.or_insert_with(|| (answer.cluster(), unlisted()));
    }
    let mut others = JoinSet::new();
    for (id, (_, member)) in &members {
        if !answered.contains_key(id) {
            let (id, urls, access) = (*id, member.client_ur_ls.clone(), access.clone());
            others.spawn(async move { (id, ask_first(id, urls, &access).await) });
        }
    }
    let mut missing = BTreeMap::new();
    for (id, answer) in others.join_all().await {
        match answer {
            Ok(answer) => drop(answered.insert(id, answer)),
            Err(error) => drop(missing.insert(id, error)),
        }
    }

    let mut rows: Vec<Row> = members
        .into_iter()
        .map(|(id, (cluster, member))| Row {
            cluster: answered
                .get(&id)
                .map_or(cluster, |(_, answer)| answer.cluster()),
            member,
            seen: answered
                .remove(&id)
                .ok_or_else(|| missing.remove(&id).unwrap_or_default()),
        })
        .collect();
    rows.sort_by(|a, b| (&a.member.name, a.member.id).cmp(&(&b.member.name, b.member.id)));
    // An endpoint that is a member's is in that member's row.
    for row in &rows {
        for url in &row.member.client_ur_ls {
            failed.remove(&with_scheme(url));
        }
    }
    let mut problems: Vec<String> = failed.into_values().collect();
    problems.extend(wrong_with(&rows));
    Ok(Report { rows, problems })
}

fn with_scheme(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    }
}

/// What keeps the members from being a healthy cluster.
fn wrong_with(rows: &[Row]) -> Vec<String> {
    let mut problems = Vec::new();
    let clusters: BTreeSet<u64> = rows.iter().map(|row| row.cluster).collect();
    if clusters.len() > 1 {
        let ids: Vec<_> = clusters.iter().map(|id| format!("{id:x}")).collect();
        problems.push(format!(
            "the endpoints belong to different clusters: {}",
            ids.join(", ")
        ));
    }
    for row in rows {
        match &row.seen {
            Err(error) => problems.push(format!("{} cannot be reached: {error}", row.name())),
            Ok((_, answer)) => {
                let errors = answer.status.errors.iter();
                problems.extend(errors.map(|error| format!("{}: {}", row.name(), error.trim())));
            }
        }
    }
    for cluster in clusters {
        let of_one = rows.iter().filter(|row| row.cluster == cluster);
        let leaders: BTreeSet<u64> = of_one
            .filter_map(|row| row.answer())
            .map(|answer| answer.status.leader)
            .filter(|leader| *leader != 0)
            .collect();
        if leaders.len() > 1 {
            let ids: Vec<_> = leaders.iter().map(|id| format!("{id:x}")).collect();
            problems.push(format!(
                "members name different leaders: {}; look again, an election may be under way",
                ids.join(", ")
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, cluster: u64, leader: u64, errors: &[&str]) -> Row {
        let answer = Answer {
            status: pb::StatusResponse {
                header: Some(pb::ResponseHeader {
                    cluster_id: cluster,
                    member_id: id,
                    ..pb::ResponseHeader::default()
                }),
                leader,
                errors: errors.iter().map(|error| (*error).to_owned()).collect(),
                ..pb::StatusResponse::default()
            },
            ..Answer::default()
        };
        Row {
            member: pb::Member {
                id,
                name: format!("m{id}"),
                ..pb::Member::default()
            },
            cluster,
            seen: Ok((String::new(), answer)),
        }
    }

    #[test]
    fn members_of_one_cluster_with_one_leader_are_healthy() {
        let rows = [row(1, 9, 2, &[]), row(2, 9, 2, &[]), row(3, 9, 2, &[])];
        assert!(wrong_with(&rows).is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let mut gone = row(4, 9, 0, &[]);
        gone.seen = Err("connection refused".to_owned());
        let rows = [
            row(1, 9, 1, &[]),
            row(2, 9, 2, &["memberID:2 alarm:NOSPACE "]),
            row(3, 9, 0, &["etcdserver: no leader"]),
            gone,
            row(5, 8, 5, &[]),
        ];
        let problems = wrong_with(&rows);
        let expected = [
            "the endpoints belong to different clusters: 8, 9",
            "m2: memberID:2 alarm:NOSPACE",
            "m3: etcdserver: no leader",
            "m4 cannot be reached: connection refused",
            "members name different leaders: 1, 2; look again, an election may be under way",
        ];
        assert_eq!(problems, expected);
    }
}
