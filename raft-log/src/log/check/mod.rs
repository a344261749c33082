//! Judges the files of a log without changing them: what a start would make of them, and what it would not notice.
//!
//! [`check`] runs the judgement of a start, all of it, and stops where a start begins to write. Besides, it reads every
//! sealed segment to the end, which a start leaves to whoever needs an entry, and each live entry in them. For people
//! and tools, also beside a running server: it takes no lock and writes nothing. What it reads may then be in the
//! middle of a write, so it looks again, and what has not stayed as it was is not called damage.
//!
//! It repairs nothing. [`salvage`](super::salvage) copies what can be trusted elsewhere.

mod segments;

use std::fmt;
use std::path::{Path, PathBuf};

pub use segments::SegmentCheck;

use super::format::GroupCheckpoint;
use super::manifest::Found;
use super::segment::segment_path;
use super::{LogOptions, RecoveryReport, inspect, manifest, recovery, votes};
use crate::vfs::SharedVfs;
use crate::{Difference, ErrorKind, GroupId, Index, LogError};

/// How often a log is looked at that changes all the time.
const LOOKS_MAX: u32 = 10;

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that must be there is, and verifies.
    Fine,
    /// The same, and behind it lies a write that a crash tore and nobody was told about.
    TornTail,
    /// A start is refused, or finds later that entries cannot be read, or bytes are not what was written and no crash
    /// explains it.
    Damaged,
    /// A file cannot be read, or is of a newer version.
    Unknown,
    /// It changed at each look in a way that could not be judged.
    Changing,
}

/// Whether a finding is damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A crash leaves this behind, or nothing follows from it.
    Note,
    /// Something is wrong.
    Damage,
}

/// Something that is not as a clean stop leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Whether it is damage.
    pub severity: Severity,
    /// What kind of error a start or a reader makes of it.
    pub kind: ErrorKind,
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes, if one place can be named.
    pub offset: Option<u64>,
    /// What should be there, what is, and what to do.
    pub difference: Difference,
    /// What it means for the data.
    pub meaning: String,
    /// Entries that cannot be read because of it: group, first and last index.
    pub lost: Vec<(GroupId, Index, Index)>,
}

/// What was found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Check {
    /// What it comes to.
    pub verdict: Verdict,
    /// What a start would report, or why it would be refused. Its notes say what a start does, not what was done.
    pub start: Result<RecoveryReport, LogError>,
    /// The segments that belong to the log, ascending.
    pub segments: Vec<SegmentCheck>,
    /// What a start would find of each group; empty when it would be refused.
    pub groups: Vec<(GroupId, GroupCheckpoint)>,
    /// Everything worth a word, damage first.
    pub findings: Vec<Finding>,
    /// How often the files were looked at.
    pub looks: u32,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        let Difference {
            expected,
            found,
            advice,
        } = &self.difference;
        write!(
            f,
            ": expected {expected}, found {found}; {}; {advice}",
            self.meaning
        )
    }
}

impl Finding {
    /// What a start says when it is refused.
    fn refusal(error: &LogError, dir: &Path) -> Self {
        let difference = error.difference().cloned().unwrap_or_else(|| Difference {
            expected: "a log that can be opened".into(),
            found: error.to_string(),
            advice: "look at the file, then start again or rebuild this member".into(),
        });
        let meaning = match error.kind() {
            ErrorKind::Corruption => {
                "a server alone refuses to start: acknowledged data is damaged or missing here"
            }
            ErrorKind::SuspectTail => {
                "a server alone refuses to start: what is damaged may have been acknowledged, or not"
            }
            ErrorKind::ForeignStore => {
                "a server alone refuses to start: nothing in this file belongs to this store"
            }
            ErrorKind::NewerFormat => {
                "a server alone refuses to start: nothing is known about the file's content"
            }
            _ => "a server alone refuses to start: what lies here is not known",
        };
        Self {
            severity: Severity::Damage,
            kind: error.kind(),
            path: error.path().unwrap_or(dir).to_owned(),
            offset: error.offset(),
            difference,
            meaning: meaning.into(),
            lost: Vec::new(),
        }
    }

    /// True when the two speak of the same bytes.
    fn is_same(&self, other: &Self) -> bool {
        self.path == other.path
            && self.offset == other.offset
            && self.difference == other.difference
    }
}

/// Judges the log in `options.dir`. Between two looks at a log that somebody may be writing to it calls `pause`, which
/// should take long enough for a write to end; whoever knows that nobody writes passes an empty function.
///
/// # Errors
/// The directory cannot be listed. Whatever is wrong with its files is part of the answer.
pub fn check(
    vfs: &SharedVfs,
    options: &LogOptions,
    pause: &mut dyn FnMut(),
) -> Result<Check, LogError> {
    let mut before = look(vfs, options)?;
    while before.is_in_question() {
        if before.looks == LOOKS_MAX {
            before.verdict = Verdict::Changing;
            break;
        }
        pause();
        let mut now = look(vfs, options)?;
        now.looks = before.looks + 1;
        let is_old = |finding: &Finding| before.findings.iter().any(|old| old.is_same(finding));
        if now.questions().all(is_old) {
            return Ok(now);
        }
        before = now;
    }
    Ok(before)
}

impl Check {
    /// What a writer may have caused that was at work.
    fn questions(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| {
            finding.severity == Severity::Damage || finding.kind == ErrorKind::SuspectTail
        })
    }

    fn is_in_question(&self) -> bool {
        self.questions().next().is_some()
    }

    /// Adds a finding; of two about the same place the later one is the more precise.
    fn add(&mut self, finding: Finding) {
        let same = self
            .findings
            .iter_mut()
            .find(|old| old.path == finding.path && old.offset == finding.offset);
        match same {
            Some(old) if self.start.is_err() => old.difference = finding.difference,
            _ => self.findings.push(finding),
        }
    }

    fn decide(&mut self) {
        self.findings
            .sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let mut damage = self.findings.iter().filter(|finding| {
            finding.severity == Severity::Damage
                && !matches!(finding.kind, ErrorKind::Io | ErrorKind::NewerFormat)
        });
        self.verdict = match &self.start {
            _ if damage.next().is_some() => Verdict::Damaged,
            Err(_) => Verdict::Unknown,
            Ok(_)
                if self
                    .findings
                    .iter()
                    .any(|it| it.severity == Severity::Damage) =>
            {
                Verdict::Unknown
            }
            Ok(report) if report.cut.is_some() => Verdict::TornTail,
            Ok(_) => Verdict::Fine,
        };
    }
}

/// Looks once.
fn look(vfs: &SharedVfs, options: &LogOptions) -> Result<Check, LogError> {
    let dir = &options.dir;
    let ids = inspect::segment_ids(&**vfs, dir)?;
    let mut check = Check {
        verdict: Verdict::Fine,
        start: Ok(RecoveryReport::default()),
        segments: Vec::new(),
        groups: Vec::new(),
        findings: Vec::new(),
        looks: 1,
    };
    match recovery::judge(vfs, options) {
        Ok(plan) => {
            let mut report = plan.report;
            if let Some(cut) = &plan.cut {
                let finding = torn(dir, cut);
                report.cut = Some(finding.difference.found.clone());
                check.findings.push(finding);
            }
            check.groups = plan.groups.checkpoint();
            check.start = Ok(report);
            let headers: Vec<_> = plan.survey.headers.iter().map(|top| Ok(*top)).collect();
            segments::read_all(vfs, options, &headers, Some(&plan.groups), &mut check);
        }
        Err(error) => {
            check.findings.push(Finding::refusal(&error, dir));
            check.start = Err(error);
            // What the manifest has struck off is not needed, whatever is in it.
            let oldest = match manifest::read(vfs, dir, options.store_id) {
                Ok(Found::Whole(contents) | Found::Half(contents)) => contents.oldest,
                _ => 0,
            };
            let headers: Vec<_> = ids
                .iter()
                .filter(|id| **id >= oldest)
                .map(|id| recovery::read_header(vfs, options, *id, false).map(|(_, top)| top))
                .collect();
            segments::read_all(vfs, options, &headers, None, &mut check);
        }
    }
    read_votes(vfs, options, &mut check);
    read_manifest(vfs, options, &mut check);
    check.decide();
    Ok(check)
}

fn torn(dir: &Path, cut: &recovery::Cut) -> Finding {
    Finding {
        severity: Severity::Note,
        kind: ErrorKind::SuspectTail,
        path: segment_path(dir, cut.segment),
        offset: Some(cut.offset),
        difference: Difference {
            expected: "the end of the log".into(),
            found: match &cut.behind {
                None => format!("{} bytes of a torn write", cut.bytes.len()),
                Some(behind) => format!("{} bytes of a torn write ({behind})", cut.bytes.len()),
            },
            advice: "the next start leaves them behind and keeps a copy".into(),
        },
        meaning: "it was never acknowledged".into(),
        lost: Vec::new(),
    }
}

/// Vote blocks that do not verify. A crash tears one of a group's two at most.
fn read_votes(vfs: &SharedVfs, options: &LogOptions, check: &mut Check) {
    let found = match votes::read(vfs, &options.dir, options.store_id) {
        Ok(found) => found,
        Err(error) => return check.add(Finding::refusal(&error, &options.dir)),
    };
    for at in &found.damaged {
        let both = found.damaged.contains(&votes::other_half(*at));
        let meaning = match (&check.start, both) {
            (Ok(_), true) => {
                "nothing is lost, the log has term and vote as well; no crash does this"
            }
            (Ok(_), false) => "nothing is lost, a crash may leave it so",
            (Err(_), _) => "term and vote of a group are known from elsewhere at best",
        };
        check.add(Finding {
            severity: if both {
                Severity::Damage
            } else {
                Severity::Note
            },
            kind: ErrorKind::Corruption,
            path: options.dir.join("votes"),
            offset: Some(*at),
            difference: Difference {
                expected: "a vote slot or zeros".into(),
                found: "bytes that do not verify".into(),
                advice: "the next start that is not refused writes it anew".into(),
            },
            meaning: meaning.into(),
            lost: Vec::new(),
        });
    }
}

/// Blocks of the manifest that do not verify. When both are, the start said so.
fn read_manifest(vfs: &SharedVfs, options: &LogOptions, check: &mut Check) {
    let damaged = manifest::damaged(vfs, &options.dir);
    if let [at] = damaged[..] {
        check.add(Finding {
            severity: Severity::Note,
            kind: ErrorKind::Corruption,
            path: options.dir.join("MANIFEST"),
            offset: Some(at),
            difference: Difference {
                expected: "a block of the manifest".into(),
                found: "bytes that do not verify".into(),
                advice: "the next start that is not refused writes it anew".into(),
            },
            meaning: "nothing is lost, the other block verifies; a crash may leave it so".into(),
            lost: Vec::new(),
        });
    }
}
