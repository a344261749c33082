//! Files that released code wrote open for ever. `UPDATE=1 cargo test -p raft-log --test golden` writes those of today
//! anew; what an earlier code wrote stays as it is.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the golden files lie beside the tests, and a failed expectation is a failed test"
)]

mod log;
mod snapshots;

use std::path::{Path, PathBuf};

use raft_log::StoreId;

const STORE: StoreId = StoreId(0x0123_4567_89ab_cdef);

fn golden(run: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/golden/v1")
        .join(run)
}

/// True when the files of today are to be written anew.
fn updating() -> bool {
    std::env::var_os("UPDATE").is_some()
}

/// Writes a golden file, if it is another one: other tests read meanwhile.
fn keep(path: &Path, content: &[u8]) {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return;
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}
