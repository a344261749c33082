//! Small files that say what a data directory is: short texts with a checksum, so that a person can read them and a
//! flipped bit is seen.
//!
//! The first line is `<kind> <version>`, the last one `crc32 <8 hex digits>` over all before it. A file is written under
//! a temporary name, synced, renamed and its directory synced, so a crash leaves the old content or the new one. Where the
//! disk has no room for that, one that keeps its length is written in its place if a crash cannot tear it: with the
//! content that it has, or within one sector.

use std::io;
use std::path::{Path, PathBuf};

use raft_log::vfs::{OpenMode, Vfs, VfsFile};

use super::identity::{FORMAT_VERSION, IdentityError};

/// What a disk writes as a whole, or not at all.
const SECTOR_BYTES: usize = 512;

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
    let result = remove(vfs, &temporary).and_then(|()| {
        match write_new(vfs, &temporary, text) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                remove(vfs, &temporary)?;
                if !write_in_place(vfs, &path, text)? {
                    return Err(error);
                }
            }
            file => {
                file?.sync_data()?;
                vfs.rename(&temporary, &path)?;
            }
        }
        vfs.sync_dir(dir)
    });
    result.map_err(|source| IdentityError::Io {
        context: format!("cannot write {}", path.display()),
        source,
    })
}

fn remove(vfs: &dyn Vfs, path: &Path) -> io::Result<()> {
    match vfs.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_new(vfs: &dyn Vfs, path: &Path, text: &str) -> io::Result<Box<dyn VfsFile>> {
    let file = vfs.open(path, OpenMode::CreateNew)?;
    file.write_all_at(text.as_bytes(), 0)?;
    Ok(file)
}

/// Writes a file that is there and takes no more room, as far as a crash leaves all of it as it was or as it becomes; false
/// when it could do otherwise.
fn write_in_place(vfs: &dyn Vfs, path: &Path, text: &str) -> io::Result<bool> {
    let file = match vfs.open(path, OpenMode::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    if file.len()? != text.len() as u64 {
        return Ok(false);
    }
    let mut content = vec![0; text.len()];
    file.read_exact_at(&mut content, 0)?;
    if text.len() > SECTOR_BYTES && content != text.as_bytes() {
        return Ok(false);
    }
    file.write_all_at(text.as_bytes(), 0)?;
    file.sync_data()?;
    Ok(true)
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

/// A name or a URL as it stands in a line. What reads back is written in the same way again, however often.
pub(super) fn in_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

pub(super) fn damaged(path: &Path, detail: String) -> IdentityError {
    let file: PathBuf = path.to_owned();
    IdentityError::Damaged { file, detail }
}

#[cfg(test)]
mod tests {
    use raft_log::vfs::SimFs;
    use raft_log::vfs::sim::CrashKind;

    use super::*;

    const NAME: &str = "FILE";

    fn content(fs: &SimFs) -> String {
        String::from_utf8(fs.read_file(NAME).unwrap()).unwrap()
    }

    fn write(fs: &SimFs, text: &str) -> Result<(), IdentityError> {
        super::write(fs, Path::new(""), NAME, text)
    }

    /// A file system without room for another file.
    fn full(seed: u64, before: &str) -> SimFs {
        let fs = SimFs::new(seed);
        write(&fs, before).unwrap();
        fs.set_capacity(Some(before.len() as u64));
        fs
    }

    #[test]
    fn file_of_one_sector_is_replaced_on_a_full_disk_as_a_whole() {
        let (before, after) = ("a".repeat(300), "b".repeat(300));
        for kind in [CrashKind::Power, CrashKind::Process] {
            let mut seen = [0, 0];
            for n in 0.. {
                let mut finished = false;
                for seed in 0..4 {
                    let fs = full(seed, &before);
                    fs.fail_after(n);
                    finished = write(&fs, &after).is_ok();
                    fs.crash(kind);
                    let found = content(&fs);
                    assert!(found == after || (!finished && found == before), "{found}");
                    seen[usize::from(found == after)] += 1;
                    // What is found is written again by each start.
                    write(&fs, &found).unwrap();
                    fs.crash(CrashKind::Power);
                    assert_eq!(content(&fs), found);
                }
                if finished {
                    break;
                }
            }
            assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
        }
    }

    #[test]
    fn long_file_keeps_its_content_on_a_full_disk() {
        let (before, after) = ("a".repeat(3_000), "b".repeat(3_000));
        let fs = full(1, &before);
        let error = write(&fs, &after).unwrap_err();
        assert!(error.to_string().contains("FILE"), "{error}");
        assert_eq!(content(&fs), before);
        for n in 0.. {
            let fs = full(n, &before);
            fs.fail_after(n);
            let finished = write(&fs, &before).is_ok();
            fs.crash(CrashKind::Power);
            assert_eq!(content(&fs), before);
            if finished {
                break;
            }
        }
        let fs = full(1, &before);
        assert!(write(&fs, "short").is_err(), "its length would change");
        assert_eq!(content(&fs), before);
    }
}
