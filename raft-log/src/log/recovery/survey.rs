//! Which segments a start has to read: names, headers and manifest, before anything else is looked at.
//!
//! Nothing is changed here, and a foreign, newer or incomplete log is refused as a whole.

use std::io;

use super::super::LogOptions;
use super::super::format::{
    self, BATCH_HEADER, HeaderFault, SEGMENT_DATA, SEGMENT_ID_MAX, SegmentHeader,
};
use super::super::inspect::batch_at;
use super::super::manifest::{self, Contents, Found};
use super::super::segment::{segment_id, segment_path};
use super::RecoveryReport;
use super::scan::load;
use super::table::{self, Inventory, Kind, Label, Stock};
use crate::vfs::{OpenMode, SharedVfs};
use crate::{ErrorKind, LogError};

/// The segments to read, and those to remove.
pub(in super::super) struct Survey {
    /// In order; each is the predecessor of the next.
    pub(in super::super) headers: Vec<SegmentHeader>,
    /// Made and never named in the manifest: to be removed before the log goes on under their ids.
    pub(super) unnamed: Vec<u64>,
    /// Struck off the manifest, or taken over by a later one: to be removed once the manifest is written anew.
    pub(super) struck: Vec<u64>,
    /// What the manifest said.
    pub(super) manifest: Option<Contents>,
}

pub(super) fn survey(
    vfs: &SharedVfs,
    options: &LogOptions,
    report: &mut RecoveryReport,
) -> Result<Survey, LogError> {
    let dir = &options.dir;
    let names = vfs
        .list(dir)
        .map_err(|error| LogError::io("cannot list the log's directory", dir, error))?;
    let ids: Vec<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
    let found = manifest::read(vfs, dir, options.store_id)?;
    let contents = match found {
        Found::Whole(contents) | Found::Half(contents) => Some(contents),
        Found::Absent | Found::Damaged => None,
    };
    let oldest = contents.map_or(0, |contents| contents.oldest);
    let (mut headers, mut struck) = (Vec::new(), Vec::new());
    for id in &ids {
        match read_header(vfs, options, *id, *id < oldest)? {
            (Kind::LeftOver, _) => struck.push(*id),
            (_, top) => headers.push(top),
        }
    }
    if !struck.is_empty() {
        report.notes.push(format!(
            "removed segments {} to {:016x}, which were not needed any more",
            hex(struck.first()),
            struck.last().copied().unwrap_or_default()
        ));
    }
    let unnamed = unnamed(vfs, options, found, &mut headers, report)?;
    struck.extend(replaced(&mut headers));
    for pair in headers.windows(2) {
        if pair[1].predecessor != pair[0].id || pair[1].first_seq < pair[0].first_seq {
            return Err(LogError::differs(
                ErrorKind::Corruption,
                &segment_path(dir, pair[1].id),
                0,
                format!("the successor of segment {:016x}", pair[0].id),
                format!("one of {:016x}", pair[1].predecessor),
                "a segment is missing, restore it or rebuild this member",
            ));
        }
    }
    Ok(Survey {
        headers,
        unnamed,
        struck,
        manifest: contents,
    })
}

/// Takes out the segments that a start has taken over, and did not get to remove: the next one names the same predecessor
/// and begins with the same batch. It was synced as a whole before it got its name.
pub(super) fn replaced(headers: &mut Vec<SegmentHeader>) -> Vec<u64> {
    let mut gone = Vec::new();
    let mut next: Option<SegmentHeader> = None;
    for at in (0..headers.len()).rev() {
        let top = headers[at];
        let by = next
            .filter(|next| next.predecessor == top.predecessor && next.first_seq == top.first_seq);
        if by.is_some() {
            gone.push(headers.remove(at).id);
        } else {
            next = Some(top);
        }
    }
    gone
}

fn hex(id: Option<&u64>) -> String {
    format!("{:016x}", id.copied().unwrap_or_default())
}

/// Holds the segments against the manifest; takes out those that are not named in it and hold nothing of their own.
fn unnamed(
    vfs: &SharedVfs,
    options: &LogOptions,
    found: Found,
    headers: &mut Vec<SegmentHeader>,
    report: &mut RecoveryReport,
) -> Result<Vec<u64>, LogError> {
    let path = options.dir.join("MANIFEST");
    let (whole, newest) = match found {
        Found::Whole(contents) => (true, Some(contents.newest)),
        Found::Half(contents) => (false, Some(contents.newest)),
        Found::Absent | Found::Damaged => (false, None),
    };
    let named = newest.unwrap_or_default();
    let split = headers.partition_point(|top| top.id <= named);
    let mut used = None;
    for top in &headers[split..] {
        if whole && !is_as_made(vfs, options, top)? {
            used = Some(top.id);
        }
    }
    let stock = table::take_stock(Inventory {
        present: found != Found::Absent,
        known: newest.is_some(),
        whole,
        reached: headers.last().is_some_and(|top| top.id >= named),
        beyond: split < headers.len(),
        used: used.is_some(),
    });
    let refuse = |kind, expected: String, found: String, advice: &str| {
        Err(LogError::differs(kind, &path, 0, expected, found, advice))
    };
    match stock {
        Stock::Suspect if !options.accept_suspect_tail => {
            return refuse(
                ErrorKind::SuspectTail,
                "a block that verifies".into(),
                "none, so it is not known whether the newest segment is there".into(),
                "look at the segments, then accept the suspect tail or rebuild this member",
            );
        }
        Stock::Missing => {
            return refuse(
                ErrorKind::Corruption,
                format!("segment {named:016x}"),
                headers.last().map_or("none".into(), |top| {
                    format!("{:016x} as the newest", top.id)
                }),
                "restore the segment or rebuild this member",
            );
        }
        Stock::Contradiction => {
            return refuse(
                ErrorKind::Corruption,
                format!("segment {named:016x} as the newest"),
                format!("batches in {}", hex(used.as_ref())),
                "the manifest is not of this log, restore it or rebuild this member",
            );
        }
        Stock::Named => {
            let unnamed: Vec<u64> = headers.drain(split..).map(|top| top.id).collect();
            report.notes.push(format!(
                "made segment {} again, which a start or a rotation left unused",
                hex(unnamed.first())
            ));
            return Ok(unnamed);
        }
        Stock::All | Stock::Suspect => {}
    }
    match found {
        Found::Half(_) => report
            .notes
            .push("replaced a damaged block of MANIFEST".into()),
        Found::Damaged => report
            .notes
            .push("replaced MANIFEST, of which no block verified".into()),
        Found::Absent if !headers.is_empty() => report
            .notes
            .push("made MANIFEST, which was not there".into()),
        Found::Absent | Found::Whole(_) => {}
    }
    Ok(Vec::new())
}

/// True when a segment holds nothing but what it was given before it got its name.
fn is_as_made(
    vfs: &SharedVfs,
    options: &LogOptions,
    top: &SegmentHeader,
) -> Result<bool, LogError> {
    let segment = load(vfs, options, *top)?;
    if let Some(error) = &segment.io_error {
        let path = segment_path(&options.dir, top.id);
        let text = format!(
            "a part of the segment cannot be read: {error}; look at the disk, then start again"
        );
        return Err(LogError::at(ErrorKind::Io, &path, 0, text));
    }
    let (mut at, mut seq, mut chain) = (SEGMENT_DATA as usize, top.first_seq - 1, top.chain);
    while seq <= top.synced_seq {
        let Some((header, body)) = batch_at(&segment.data, at, top.salt(), seq, chain) else {
            return Ok(false);
        };
        at += BATCH_HEADER + body.len();
        (seq, chain) = (seq + 1, header.crc);
    }
    let rest = segment.data.get(at..).unwrap_or_default();
    Ok(rest.iter().take(BATCH_HEADER).all(|byte| *byte == 0))
}

/// Reads and judges the header of one segment; `struck` when the manifest needs it no more.
pub(in super::super) fn read_header(
    vfs: &SharedVfs,
    options: &LogOptions,
    id: u64,
    struck: bool,
) -> Result<(Kind, SegmentHeader), LogError> {
    let path = segment_path(&options.dir, id);
    let mut bytes = [0; 64];
    let read = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file.read_exact_at(&mut bytes, 0),
        Err(error) => Err(error),
    };
    let failure = match read {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Some(error),
        _ => None,
    };
    let decoded = SegmentHeader::decode(&bytes);
    let kind = table::identify(Label {
        readable: failure.is_none(),
        sound: !matches!(decoded, Err(HeaderFault::Damaged)),
        version: !matches!(decoded, Err(HeaderFault::Newer(_))),
        ours: decoded.is_ok_and(|top| top.store == options.store_id),
        named: decoded.is_ok_and(|top| top.id == id && id <= SEGMENT_ID_MAX && top.first_seq > 0),
        struck,
    });
    let error = |kind, expected: String, found: String, advice: &str| {
        Err(LogError::differs(kind, &path, 0, expected, found, advice))
    };
    match (kind, decoded, failure) {
        (Kind::Segment | Kind::LeftOver, Ok(top), _) => Ok((kind, top)),
        (Kind::Newer, Err(HeaderFault::Newer(version)), _) => error(
            ErrorKind::NewerFormat,
            format!("format {} or older", format::FORMAT_VERSION),
            version.to_string(),
            "open it with a newer version",
        ),
        (Kind::Foreign, Ok(top), _) => error(
            ErrorKind::ForeignStore,
            format!("store {}", options.store_id),
            top.store.to_string(),
            "the file belongs to another data directory, move it back",
        ),
        (Kind::Renamed, Ok(top), _) => error(
            ErrorKind::Corruption,
            format!("segment {id:016x}"),
            format!("{:016x}", top.id),
            "a file was renamed, restore its name",
        ),
        (_, _, Some(failure)) => Err(LogError::io("cannot read a segment", &path, failure)),
        _ => error(
            ErrorKind::Corruption,
            "a segment header".into(),
            "bytes that do not verify".into(),
            "restore the file or rebuild this member",
        ),
    }
}
