//! `flotilla log stat`: where the bytes are, by group and kind, and what writing them cost.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use hdrhistogram::Histogram;
use raft_log::log::inspect::{BatchInfo, DiskRecord};
use raft_log::{GroupId, Record};
use serde_json::json;

use super::table::columns;
use super::walk::{Groups, Walk};
use super::{Dir, INTO_STRING};
use crate::failure::{Failure, print};

/// More than any batch has.
const BYTES_MAX: u64 = 1 << 40;

/// Flags of `flotilla log stat`.
#[derive(Args, Debug)]
pub(super) struct StatArgs {
    #[command(flatten)]
    dir: Dir,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

/// Bytes of one kind of record of one group.
#[derive(Clone, Copy, Default)]
struct Sum {
    records: u64,
    /// What the group's owner handed over.
    payload: u64,
}

struct Stat {
    sums: BTreeMap<(GroupId, &'static str), Sum>,
    batches: u64,
    batch_bytes: Histogram<u64>,
    batch_records: Histogram<u64>,
    payload_sizes: Histogram<u64>,
    /// Entries that a later record put in their place.
    overwritten: u64,
    groups: Groups,
}

impl Stat {
    fn new() -> Self {
        // Fixed bounds: a histogram that grows by itself would clamp what is recorded with saturation.
        let histogram = || {
            Histogram::new_with_bounds(1, BYTES_MAX, 3)
                .expect("the bounds are constants that fit three digits")
        };
        Self {
            sums: BTreeMap::new(),
            batches: 0,
            batch_bytes: histogram(),
            batch_records: histogram(),
            payload_sizes: histogram(),
            overwritten: 0,
            groups: Groups::default(),
        }
    }

    fn see(&mut self, batch: &BatchInfo) {
        let is_checkpoint = matches!(batch.records.first(), Some((_, DiskRecord::Checkpoint(_))));
        if !is_checkpoint && !batch.records.is_empty() {
            self.batches += 1;
            self.batch_bytes.saturating_record(batch.len);
            self.batch_records
                .saturating_record(batch.records.len() as u64);
        }
        for (id, record) in &batch.records {
            if let DiskRecord::Entry(entry) = record {
                let last = self.groups.last(*id);
                self.overwritten += (last.0 + 1).saturating_sub(entry.index.0);
                self.payload_sizes
                    .saturating_record(entry.payload.len() as u64);
            }
            let sum = self.sums.entry((*id, kind(record))).or_default();
            sum.records += 1;
            sum.payload += payload(record);
            self.groups.see(*id, record);
        }
    }

    fn payload(&self) -> u64 {
        self.sums.values().map(|sum| sum.payload).sum()
    }
}

/// The name of a record's kind.
pub(super) fn kind(record: &DiskRecord) -> &'static str {
    match record {
        DiskRecord::Entry(_) | DiskRecord::Other(Record::Entries(_)) => "entry",
        DiskRecord::Other(Record::HardState(_)) => "hard-state",
        DiskRecord::Other(Record::Truncate(_)) => "truncate",
        DiskRecord::Other(Record::Compact(_)) => "compact",
        DiskRecord::Other(Record::SnapshotRef(_)) => "snapshot",
        DiskRecord::Other(Record::Incarnation(_)) => "incarnation",
        DiskRecord::Other(Record::Destroy) => "destroy",
        DiskRecord::Checkpoint(_) => "checkpoint",
    }
}

fn payload(record: &DiskRecord) -> u64 {
    let bytes = match record {
        DiskRecord::Entry(entry) => entry.payload.len(),
        DiskRecord::Other(Record::Compact(base)) => base.membership.len(),
        DiskRecord::Other(Record::SnapshotRef(snapshot)) => snapshot.membership.len(),
        _ => 0,
    };
    bytes as u64
}

pub(super) fn run(args: &StatArgs) -> Result<(), Failure> {
    let mut stat = Stat::new();
    let walk = Walk::all(&args.dir, &mut |_, batch| stat.see(&batch))?;
    let used: u64 = walk.infos.iter().map(|info| info.end).sum();
    let allocated: u64 = walk.infos.iter().map(|info| info.len).sum();
    let text = if args.json {
        json(&stat, used, allocated)
    } else {
        table(&stat, used, allocated)
    };
    print(&text)?;
    walk.verdict()
}

/// Bytes written per byte of payload.
fn amplification(stat: &Stat, used: u64) -> f64 {
    used as f64 / stat.payload().max(1) as f64
}

fn table(stat: &Stat, used: u64, allocated: u64) -> String {
    let mut out = String::new();
    let rows = stat.sums.iter().map(|((id, kind), sum)| {
        let each = sum.payload / sum.records.max(1);
        vec![
            id.0.to_string(),
            (*kind).to_owned(),
            sum.records.to_string(),
            sum.payload.to_string(),
            each.to_string(),
        ]
    });
    let header = ["GROUP", "KIND", "RECORDS", "PAYLOAD", "EACH"];
    columns(&mut out, &header, rows.collect());
    out.push('\n');
    let quantiles = |h: &Histogram<u64>| {
        [0.5, 0.9, 0.99, 1.0]
            .map(|q| h.value_at_quantile(q).to_string())
            .to_vec()
    };
    let row = |name: &str, h: &Histogram<u64>| {
        std::iter::once(name.to_owned())
            .chain(quantiles(h))
            .collect::<Vec<_>>()
    };
    let rows = vec![
        row("payload of an entry, bytes", &stat.payload_sizes),
        row("batch, bytes", &stat.batch_bytes),
        row("batch, records", &stat.batch_records),
    ];
    columns(&mut out, &["", "P50", "P90", "P99", "MAX"], rows);
    write!(
        out,
        "\n{} batches, {} entries overwritten\n{used} bytes used of {allocated} allocated, {:.2} per byte of payload\n",
        stat.batches,
        stat.overwritten,
        amplification(stat, used)
    )
    .expect(INTO_STRING);
    out
}

fn json(stat: &Stat, used: u64, allocated: u64) -> String {
    let kinds = stat.sums.iter().map(|((id, kind), sum)| {
        json!({"group": id.0, "kind": kind, "records": sum.records, "payload": sum.payload})
    });
    let value = json!({
        "kinds": kinds.collect::<Vec<_>>(),
        "batches": stat.batches,
        "batch_bytes_p50": stat.batch_bytes.value_at_quantile(0.5),
        "batch_records_p50": stat.batch_records.value_at_quantile(0.5),
        "overwritten": stat.overwritten,
        "used": used,
        "allocated": allocated,
        "amplification": amplification(stat, used),
    });
    format!("{value}\n")
}
