//! The table, and the JSON lines.

use std::fmt::Write;

use serde_json::{Value, json};

use super::ask::Answer;
use super::{Report, Row};
use crate::log::INTO_STRING;
use crate::log::table::columns;

/// The commit index of the leader, as far as one answered.
fn leader_commit(rows: &[Row], cluster: u64) -> Option<u64> {
    let of_one = rows.iter().filter(|row| row.cluster == cluster);
    let answers = of_one.filter_map(Row::answer);
    answers
        .filter(|answer| answer.status.leader == answer.member())
        .map(|answer| answer.status.raft_index)
        .max()
}

/// Entries that a member has not applied and its leader knows to be committed.
fn lag(rows: &[Row], row: &Row) -> Option<u64> {
    let applied = row.answer()?.status.raft_applied_index;
    Some(leader_commit(rows, row.cluster)?.saturating_sub(applied))
}

fn role(row: &Row) -> &'static str {
    match row.answer() {
        None => "unreachable",
        Some(answer) if answer.status.is_learner => "learner",
        Some(answer) if answer.status.leader == answer.member() => "leader",
        Some(_) => "follower",
    }
}

fn millis(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "-".to_owned(),
        |seconds| format!("{:.2} ms", seconds * 1e3),
    )
}

fn size(bytes: i64) -> String {
    let bytes = bytes.max(0) as f64;
    for (unit, at) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        let unit_bytes = f64::from(1 << at);
        if bytes >= unit_bytes {
            return format!("{:.1} {unit}", bytes / unit_bytes);
        }
    }
    format!("{bytes} B")
}

fn cells(rows: &[Row], row: &Row) -> Vec<String> {
    let name = match row.member.name.as_str() {
        "" => "-".to_owned(),
        name => name.to_owned(),
    };
    let mut cells = vec![name, format!("{:x}", row.member.id), role(row).to_owned()];
    match &row.seen {
        Err(_) => cells.extend(vec!["-".to_owned(); 9]),
        Ok((url, answer)) => {
            let Answer {
                status, figures, ..
            } = answer;
            let lag = lag(rows, row).map_or_else(|| "-".to_owned(), |lag| lag.to_string());
            let version = figures.version.clone();
            cells.extend([
                status.raft_term.to_string(),
                status.raft_index.to_string(),
                status.raft_applied_index.to_string(),
                lag,
                size(status.db_size),
                millis(figures.fsync_p50),
                millis(figures.fsync_p99),
                version.unwrap_or_else(|| format!("etcd {}", status.version)),
                url.clone(),
            ]);
        }
    }
    cells
}

pub(super) fn to_text(report: &Report) -> String {
    let mut out = String::new();
    let rows = &report.rows;
    let header = [
        "NAME",
        "MEMBER",
        "ROLE",
        "TERM",
        "INDEX",
        "APPLIED",
        "LAG",
        "DB-SIZE",
        "FSYNC-P50",
        "FSYNC-P99",
        "VERSION",
        "ENDPOINT",
    ];
    columns(
        &mut out,
        &header,
        rows.iter().map(|row| cells(rows, row)).collect(),
    );
    out.push('\n');
    for problem in &report.problems {
        writeln!(out, "problem: {problem}").expect(INTO_STRING);
    }
    let voters = || rows.iter().filter(|row| !row.member.is_learner);
    let (all, here) = (
        voters().count(),
        voters().filter(|row| row.seen.is_ok()).count(),
    );
    let spare = here.checked_sub(all / 2 + 1);
    let spare = match spare {
        None => "fewer than a majority: nothing can be written".to_owned(),
        Some(0) if all == 1 => "it has no spare".to_owned(),
        Some(0) => "writes stop if one more fails".to_owned(),
        Some(spare) => format!("{spare} may fail"),
    };
    let verdict = if report.problems.is_empty() {
        "healthy"
    } else {
        "not healthy"
    };
    let answer = if all == 1 {
        "voter answers"
    } else {
        "voters answer"
    };
    writeln!(out, "{verdict}: {here} of {all} {answer}, {spare}").expect(INTO_STRING);
    out
}

pub(super) fn to_json(report: &Report) -> String {
    let rows = &report.rows;
    let mut out = String::new();
    for row in rows {
        writeln!(out, "{}", row_json(rows, row)).expect(INTO_STRING);
    }
    let problems = &report.problems;
    let verdict = json!({"healthy": problems.is_empty(), "problems": problems});
    writeln!(out, "{verdict}").expect(INTO_STRING);
    out
}

fn row_json(rows: &[Row], row: &Row) -> Value {
    let mut value = json!({
        "name": row.member.name,
        "member": format!("{:x}", row.member.id),
        "cluster": format!("{:x}", row.cluster),
        "role": role(row),
        "learner": row.member.is_learner,
        "peer_urls": row.member.peer_ur_ls,
        "client_urls": row.member.client_ur_ls,
        "reachable": row.seen.is_ok(),
    });
    let more = match &row.seen {
        Err(error) => json!({"error": error}),
        Ok((url, answer)) => {
            let Answer {
                status, figures, ..
            } = answer;
            json!({
                "endpoint": url,
                "leader": format!("{:x}", status.leader),
                "term": status.raft_term,
                "index": status.raft_index,
                "applied_index": status.raft_applied_index,
                "lag": lag(rows, row),
                "revision": status.header.map(|header| header.revision),
                "db_size_bytes": status.db_size,
                "db_size_in_use_bytes": status.db_size_in_use,
                "fsync_p50_seconds": figures.fsync_p50,
                "fsync_p99_seconds": figures.fsync_p99,
                "errors": status.errors,
                "version": figures.version,
                "etcd_version": status.version,
            })
        }
    };
    let (Value::Object(value_fields), Value::Object(more)) = (&mut value, more) else {
        unreachable!("both were made as objects");
    };
    value_fields.extend(more);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let told = [0, 1_023, 1_024, 5 << 20, 3 << 30].map(size);
        assert_eq!(told, ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB"]);
    }
}
