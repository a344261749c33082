//! Small files that say what a data directory is: short texts with a checksum, so that a person can read them and a
//! flipped bit is seen.
//!
//! The first line is `<kind> <version>`, the last one `crc32 <8 hex digits>` over all before it. A file is written under
//! a temporary name, synced, renamed and its directory synced, so a crash leaves the old content or the new one.

use std::io;
use std::path::{Path, PathBuf};

use raft_log::vfs::{OpenMode, Vfs};

use super::identity::{FORMAT_VERSION, IdentityError};

/// Reads a file; none when it is not there.
pub(super) fn read(
    vfs: &dyn Vfs,
    path: &Path,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, IdentityError> {
    let io = |source| IdentityError::Io {
        context: format!("cannot read {}", path.display()),
        source,
    };
    let file = match vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let len = file.len().map_err(io)?;
    if len > bytes_max {
        let detail = format!("expected at most {bytes_max} bytes, found {len}");
        return Err(damaged(path, detail));
    }
    let mut content = vec![0; usize::try_from(len).expect("checked against the maximum")];
    file.read_exact_at(&mut content, 0).map_err(io)?;
    Ok(Some(content))
}

/// Writes a file, durably.
pub(super) fn write(
    vfs: &dyn Vfs,
    dir: &Path,
    name: &str,
    text: &str,
) -> Result<(), IdentityError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let result = (|| {
        match vfs.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = vfs.open(&temporary, OpenMode::CreateNew)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync_data()?;
        vfs.rename(&temporary, &path)?;
        vfs.sync_dir(dir)
    })();
    result.map_err(|source| IdentityError::Io {
        context: format!("cannot write {}", path.display()),
        source,
    })
}

/// Adds first and last line.
pub(super) fn seal(kind: &str, lines: &str) -> String {
    let body = format!("{kind} {FORMAT_VERSION}\n{lines}");
    let crc = crc32fast::hash(body.as_bytes());
    format!("{body}crc32 {crc:08x}\n")
}

/// The lines between the first and the last, verified.
pub(super) fn unseal<'a>(
    content: &'a [u8],
    kind: &str,
    path: &Path,
) -> Result<&'a str, IdentityError> {
    let damaged = |detail: String| damaged(path, detail);
    let text = std::str::from_utf8(content)
        .map_err(|error| damaged(format!("offset {}: not text", error.valid_up_to())))?;
    // The version comes before the checksum: a newer format may checksum itself in another way.
    let version = text
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix(' ')?.split('\n').next())
        .and_then(|version| version.parse::<u32>().ok())
        .ok_or_else(|| damaged(format!("offset 0: expected `{kind} <version>`")))?;
    if version > FORMAT_VERSION {
        return Err(IdentityError::Newer {
            file: path.to_owned(),
            found: version,
        });
    }
    let body_len = text
        .rfind("crc32 ")
        .ok_or_else(|| damaged("expected a last line `crc32 <8 hex digits>`".to_owned()))?;
    let (body, crc_line) = text.split_at(body_len);
    let expected = format!("crc32 {:08x}\n", crc32fast::hash(body.as_bytes()));
    if crc_line != expected {
        return Err(damaged(format!(
            "offset {body_len}: expected `{}`, found `{}`",
            expected.trim_end(),
            crc_line.trim_end().escape_default()
        )));
    }
    Ok(body.split_once('\n').map_or("", |(_, lines)| lines))
}

pub(super) fn damaged(path: &Path, detail: String) -> IdentityError {
    let file: PathBuf = path.to_owned();
    IdentityError::Damaged { file, detail }
}
