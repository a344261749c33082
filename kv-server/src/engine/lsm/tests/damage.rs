//! Files that were changed, cut or lost: an error, or what was written; never a panic, never something else.
#![expect(
    clippy::disallowed_methods,
    reason = "the files of the tree are not behind the log's vfs"
)]

use std::fs;
use std::path::PathBuf;

use super::*;

fn fill(setup: &Lsm) -> Vec<(String, String)> {
    let engine = setup.open();
    for index in 1..=300_u64 {
        let changes = [put(&format!("k{index:04}"), &"v".repeat(50))];
        engine.write(batch(index, changes)).unwrap();
        if index % 100 == 0 {
            engine.persist().unwrap();
        }
    }
    let expected = contents(engine.snapshot().as_ref());
    engine.close().unwrap();
    expected
}

fn files(setup: &Lsm) -> Vec<PathBuf> {
    let dir = setup.dir.path();
    let mut files: Vec<PathBuf> = [dir.to_owned(), dir.join("tables")]
        .iter()
        .flat_map(|dir| dir.read_dir().unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// Opens the engine and reads everything in every way.
fn read_all(setup: &Lsm) -> Result<Vec<(String, String)>, EngineError> {
    let engine = LsmEngine::open(setup.dir.path(), setup.options.clone())?;
    let snapshot = engine.snapshot();
    let pairs: Result<Vec<_>, _> = snapshot.range(Unbounded, Unbounded).collect();
    for (key, value) in pairs? {
        assert_eq!(engine.get(&key)?, Some(value));
    }
    Ok(contents(snapshot.as_ref()))
}

/// Applies one change to one file at a time, and puts the file back.
fn check(setup: &Lsm, expected: &[(String, String)], change: impl Fn(&mut Vec<u8>, usize)) {
    let saved: Vec<(PathBuf, Vec<u8>)> = files(setup)
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert!(saved.len() >= 3, "current, a version and a table");
    let mut refused = 0;
    for (path, bytes) in &saved {
        let step = (bytes.len() / 97).max(1);
        for at in (0..bytes.len()).step_by(step) {
            let mut changed = bytes.clone();
            change(&mut changed, at);
            fs::write(path, &changed).unwrap();
            match read_all(setup) {
                Ok(found) => assert_eq!(found, expected, "{} at {at}", path.display()),
                Err(_) => refused += 1,
            }
            for (path, bytes) in &saved {
                fs::write(path, bytes).unwrap();
            }
        }
    }
    assert!(
        refused > saved.len() * 10,
        "only {refused} changes were noticed"
    );
    assert_eq!(read_all(setup).unwrap(), expected);
}

#[test]
fn flipped_bits_are_found_or_harmless() {
    let setup = with(LsmOptions {
        block_bytes: 512,
        ..LsmOptions::default()
    });
    let expected = fill(&setup);
    check(&setup, &expected, |bytes, at| bytes[at] ^= 0x10);
}

#[test]
fn files_cut_short_are_refused() {
    let setup = with(LsmOptions {
        block_bytes: 512,
        ..LsmOptions::default()
    });
    let expected = fill(&setup);
    check(&setup, &expected, |bytes, at| bytes.truncate(at));
}

#[test]
fn lost_files_are_refused() {
    for lost in ["current", "version", "table"] {
        let setup = with(LsmOptions::default());
        fill(&setup);
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let path = files(&setup)
            .into_iter()
            .find(|path| match lost {
                "current" => name(path) == "current",
                "version" => name(path).starts_with('v'),
                _ => path.parent().unwrap().ends_with("tables"),
            })
            .unwrap();
        fs::remove_file(&path).unwrap();
        let before = files(&setup);
        let error = read_all(&setup).unwrap_err().to_string();
        assert!(
            error.contains(&setup.dir.path().display().to_string()),
            "{error}"
        );
        assert_eq!(files(&setup), before, "nothing was removed or made up");
    }
}

#[test]
fn leftovers_of_a_crash_are_removed_at_open() {
    let setup = with(LsmOptions::default());
    let expected = fill(&setup);
    let before = files(&setup);
    for name in ["tables/9999", "v9999", ".tmpAbCdEf"] {
        fs::write(setup.dir.path().join(name), b"half").unwrap();
    }
    assert_eq!(read_all(&setup).unwrap(), expected);
    assert_eq!(files(&setup), before);
}

/// A full disk at open was taken for damage, and the engine moved aside.
#[test]
fn io_error_of_the_tree_at_open_keeps_its_kind() {
    let full = std::io::ErrorKind::StorageFull;
    let error = cannot_open("open it".to_owned(), lsm_tree::Error::Io(full.into()));
    let found = error.source.downcast_ref::<std::io::Error>();
    assert_eq!(found.map(std::io::Error::kind), Some(full), "{error}");
}
