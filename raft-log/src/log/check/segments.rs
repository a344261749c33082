//! Reads the segments that a start takes by their footers: every batch, and every live entry.

use std::path::PathBuf;

use super::super::footer::{FOOTER, Footer};
use super::super::format::{
    self, BATCH_HEADER, BatchHeader, SEGMENT_DATA, SegmentHeader, u32_at, u64_at,
};
use super::super::index::Groups;
use super::super::inspect::{batch_at, behind};
use super::super::read::entry_in;
use super::super::recovery::load;
use super::super::segment::segment_path;
use super::super::{LogOptions, footer};
use super::{Check, Finding, Severity};
use crate::vfs::SharedVfs;
use crate::{Difference, ErrorKind, GroupId, Index, LogError};

/// What was found in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentCheck {
    /// The number in its name.
    pub id: u64,
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// The sequence of its first batch.
    pub first_seq: u64,
    /// The last batch that verifies and is not superseded; `first_seq - 1` when none is.
    pub last_seq: u64,
    /// Where it ends, in bytes.
    pub end: u64,
    /// It has a footer that verifies.
    pub sealed: bool,
    /// Bytes that do not verify, or cannot be read, and should.
    pub damaged_bytes: u64,
}

/// Batches that do not verify, although a later one proves that they were synced.
#[derive(Debug)]
struct Gap {
    /// Where it begins and ends, in bytes.
    from: usize,
    to: usize,
    expected: String,
    found: String,
}

/// What a walk over the batches of a segment came to.
#[derive(Debug)]
struct Walked {
    gaps: Vec<Gap>,
    /// The newest batch that verifies.
    last: u64,
    /// Where the walk ended.
    end: usize,
}

/// Reads all segments whose headers verify, and adds what is wrong with the others.
pub(super) fn read_all(
    vfs: &SharedVfs,
    options: &LogOptions,
    headers: &[Result<SegmentHeader, LogError>],
    groups: Option<&Groups>,
    check: &mut Check,
) {
    for (at, header) in headers.iter().enumerate() {
        let next = headers.get(at + 1);
        let outcome = match header {
            Ok(top) => {
                // Behind one that cannot be read, the segment's own end has to do.
                let stop = next.and_then(|next| next.as_ref().ok().map(|next| next.first_seq));
                read_one(vfs, options, top, stop, groups, check)
            }
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = outcome {
            check.add(Finding::refusal(&error, &options.dir));
        }
    }
}

fn read_one(
    vfs: &SharedVfs,
    options: &LogOptions,
    top: &SegmentHeader,
    stop: Option<u64>,
    groups: Option<&Groups>,
    check: &mut Check,
) -> Result<(), LogError> {
    let path = segment_path(&options.dir, top.id);
    let segment = load(vfs, options, *top)?;
    let data = &segment.data;
    let footer = Footer::read(&*segment.file, data.len() as u64, top.salt());
    let last = footer.as_ref().map(|(footer, _)| footer.last_seq);
    let walked = walk(data, top, stop, last);
    let mut lost = groups.map_or_else(Vec::new, |groups| unreadable(groups, top.id, data));
    let mut damaged_bytes = 0;
    // Of what ends the log the start has said what it is.
    let judged = stop.is_none() && groups.is_some();
    for gap in walked.gaps.iter().filter(|_| !judged) {
        damaged_bytes += (gap.to - gap.from) as u64;
        let inside = |at: u64| (gap.from as u64..gap.to as u64).contains(&at);
        let (mine, others) = lost.into_iter().partition(|(_, _, at)| inside(*at));
        lost = others;
        let mut finding = damage(path.clone(), gap.from as u64, mine);
        finding.difference.expected.clone_from(&gap.expected);
        finding.difference.found.clone_from(&gap.found);
        if groups.is_none() {
            finding.meaning =
                "a server alone refuses to start: acknowledged data may lie here".into();
        } else if finding.lost.is_empty() {
            finding.meaning = "no entry that is still needed lies here".into();
        }
        check.add(finding);
    }
    // What the footer points at and is not that entry.
    while let Some((group, index, at)) = lost.first().copied() {
        let (mine, others) = lost.into_iter().partition(|it| it.0 == group);
        lost = others;
        let mut finding = damage(path.clone(), at, mine);
        finding.difference.expected = format!("entry {index} of {group}");
        finding.difference.found = "bytes that do not verify".into();
        check.add(finding);
    }
    let fixed = &data[data.len().saturating_sub(FOOTER)..];
    if stop.is_some() && footer.is_none() && fixed.iter().any(|byte| *byte != 0) {
        check.add(footer_note(path.clone(), data.len()));
    }
    check.segments.push(SegmentCheck {
        id: top.id,
        path,
        len: data.len() as u64,
        first_seq: top.first_seq,
        last_seq: walked.last,
        end: walked.end as u64,
        sealed: footer.is_some(),
        damaged_bytes,
    });
    Ok(())
}

/// What a sealed segment does not hold any more; the caller says what should be there.
fn damage(path: PathBuf, offset: u64, lost: Vec<(GroupId, Index, u64)>) -> Finding {
    let lost = ranges(&lost);
    let list: Vec<String> = lost
        .iter()
        .map(|(group, first, last)| match first == last {
            true => format!("entry {first} of {group}"),
            false => format!("entries {first} to {last} of {group}"),
        })
        .collect();
    Finding {
        severity: Severity::Damage,
        kind: ErrorKind::Corruption,
        path,
        offset: Some(offset),
        difference: Difference {
            expected: String::new(),
            found: String::new(),
            advice: "restore the file or rebuild this member".into(),
        },
        meaning: format!(
            "a server alone does not notice at its start, but reading {} fails",
            list.join(", ")
        ),
        lost,
    }
}

fn footer_note(path: PathBuf, len: usize) -> Finding {
    Finding {
        severity: Severity::Note,
        kind: ErrorKind::Corruption,
        path,
        offset: Some((len - FOOTER) as u64),
        difference: Difference {
            expected: "a footer or zeros".into(),
            found: "bytes that do not verify".into(),
            advice: "nothing to do".into(),
        },
        meaning: "nothing is lost, a start reads the segment instead".into(),
        lost: Vec::new(),
    }
}

/// Neighbours of one group joined.
fn ranges(lost: &[(GroupId, Index, u64)]) -> Vec<(GroupId, Index, Index)> {
    let mut out: Vec<(GroupId, Index, Index)> = Vec::new();
    for (group, index, _) in lost {
        match out.last_mut() {
            Some(last) if last.0 == *group && last.2.next() == *index => last.2 = *index,
            _ => out.push((*group, *index, *index)),
        }
    }
    out
}

/// The live entries of a segment whose records do not verify, with their offsets, by group and index.
fn unreadable(groups: &Groups, segment: u64, data: &[u8]) -> Vec<(GroupId, Index, u64)> {
    let mut out = Vec::new();
    for (id, group) in &groups.map {
        let from = group.entries.partition_point(|at| at.segment() < segment);
        let to = group.entries.partition_point(|at| at.segment() <= segment);
        for (at, position) in group.entries.range(from..to).enumerate() {
            let index = Index(group.first_held() + (from + at) as u64);
            let start = position.offset() as usize;
            let bytes = data.get(start..start + position.len as usize);
            if bytes
                .and_then(|bytes| entry_in(bytes, *id, index))
                .is_none()
            {
                out.push((*id, index, position.offset()));
            }
        }
    }
    out
}

/// Goes from batch to batch up to `stop`, the first that is superseded, or, in the last segment, up to `last`, the last
/// that its footer names, or as far as later headers prove that there was something.
fn walk(data: &[u8], top: &SegmentHeader, stop: Option<u64>, last: Option<u64>) -> Walked {
    let end = footer::batches_end(data, top.salt());
    let data = &data[..end];
    let stop = stop.or(last.map(|last| last.saturating_add(1)));
    let mut walked = Walked {
        gaps: Vec::new(),
        last: top.first_seq - 1,
        end: SEGMENT_DATA as usize,
    };
    let (mut at, mut seq, mut chain) = (SEGMENT_DATA as usize, top.first_seq - 1, top.chain);
    while at == SEGMENT_DATA as usize || stop.is_none_or(|stop| seq < stop) {
        if let Some((header, body)) = batch_at(data, at, top.salt(), seq, chain)
            && format::decode_records(body).is_some()
        {
            at += BATCH_HEADER + body.len();
            (walked.last, walked.end) = (seq, at);
            (seq, chain) = (seq + 1, header.crc);
            continue;
        }
        let later = resume(data, at, top.salt(), seq, stop);
        let (to, next) = match (&later, stop) {
            (Some((to, header)), _) => (*to, header.seq),
            (None, Some(stop)) => (used(data, at), stop.max(seq + 1)),
            (None, None) => break,
        };
        // Else the log ends here, and it is for the start's judgement what this is.
        if stop.is_none()
            && !later_headers(data, at, top.salt()).any(|(_, it)| it.synced_seq >= seq)
        {
            break;
        }
        let (expected, mut found) = describe(data, at, top.salt(), seq, chain, next - 1);
        // In a segment with a footer that goes without saying.
        if let Some(behind) = behind(data, at, top.salt(), seq).filter(|_| last.is_none()) {
            found = format!("{found} ({behind})");
        }
        walked.gaps.push(Gap {
            from: at,
            to,
            expected,
            found,
        });
        let Some((to, header)) = later else { break };
        (at, seq, chain) = (to, header.seq, header.chain);
    }
    walked
}

/// The first header behind `at` that verifies and is of a later batch.
fn resume(
    data: &[u8],
    at: usize,
    salt: u64,
    seq: u64,
    stop: Option<u64>,
) -> Option<(usize, BatchHeader)> {
    later_headers(data, at, salt)
        .find(|(_, header)| header.seq > seq && stop.is_none_or(|stop| header.seq < stop))
}

/// All headers behind `at` that verify, with their offsets.
fn later_headers(
    data: &[u8],
    at: usize,
    salt: u64,
) -> impl Iterator<Item = (usize, BatchHeader)> + '_ {
    (at + 8..data.len().saturating_sub(BATCH_HEADER - 1))
        .step_by(8)
        .filter(|step| data[*step] != 0)
        .filter_map(move |step| {
            let header = BatchHeader::decode(&data[step..], step as u64, salt)?;
            Some((step, header))
        })
}

/// Where what is not zero ends, behind `at`.
fn used(data: &[u8], at: usize) -> usize {
    let rest = data.get(at..).unwrap_or_default();
    at + rest
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

/// What should lie at `at` and what does, as precisely as the bytes tell.
fn describe(
    data: &[u8],
    at: usize,
    salt: u64,
    seq: u64,
    chain: u32,
    last: u64,
) -> (String, String) {
    let batch = if seq == last {
        format!("batch {seq}")
    } else {
        format!("batches {seq} to {last}")
    };
    let rest = data.get(at..).unwrap_or_default();
    if rest.len() < BATCH_HEADER {
        return (batch, "the end of the file".into());
    }
    let Some(header) = BatchHeader::decode(rest, at as u64, salt) else {
        let head = &rest[..BATCH_HEADER];
        let (stored, own) = (u32_at(head, 60), crc32fast::hash(&head[..60]));
        return if head.iter().all(|byte| *byte == 0) {
            (batch, "zeros".into())
        } else if stored != own {
            (
                format!("{batch} with a header of checksum {own:08x}"),
                format!("{stored:08x}"),
            )
        } else if u64_at(head, 8) != salt {
            (batch, "a batch of another segment or store".into())
        } else {
            (batch, "a header that is not of this place".into())
        };
    };
    if header.seq != seq {
        return (batch, format!("batch {}", header.seq));
    }
    if header.chain != chain {
        return (
            format!("{batch} behind a header of checksum {chain:08x}"),
            format!("one behind {:08x}", header.chain),
        );
    }
    match rest[BATCH_HEADER..].get(..header.body_len as usize) {
        None => (batch, "the end of the file".into()),
        Some(body) => {
            let own = crc32fast::hash(body);
            if own == header.body_crc {
                (batch, "a record that does not verify".into())
            } else {
                (
                    format!("{batch} with a body of checksum {:08x}", header.body_crc),
                    format!("{own:08x}"),
                )
            }
        }
    }
}
