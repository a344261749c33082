//! A crash test of a store of one's own, and the bug that it finds.
//!
//! The store keeps one value in a file, replaced by writing another file and renaming it. One version forgets to sync
//! that file before the rename. It passes every test without a crash, and most with one.
//!
//! `cargo run -p raft-log --example crash_test`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::io;
use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::sim::{BytewiseFs, CrashKind, Lie, LyingFs, SimFs};
use raft_log::vfs::{OpenMode, SharedVfs};

/// The store under test. In production it is given a `RealFs`.
struct Store {
    vfs: SharedVfs,
    careful: bool,
}

const DIR: &str = "/store";

fn in_dir(name: &str) -> std::path::PathBuf {
    Path::new(DIR).join(name)
}

impl Store {
    fn open(vfs: SharedVfs, careful: bool) -> io::Result<Self> {
        vfs.create_dir_all(Path::new(DIR))?;
        match vfs.remove(&in_dir("new")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A name that is visible after a crash need not be durable.
        vfs.sync_dir(Path::new(DIR))?;
        Ok(Self { vfs, careful })
    }

    fn put(&self, value: &[u8]) -> io::Result<()> {
        let file = self.vfs.open(&in_dir("new"), OpenMode::CreateNew)?;
        file.write_all_at(value, 0)?;
        if self.careful {
            file.sync_data()?;
        }
        self.vfs.rename(&in_dir("new"), &in_dir("value"))?;
        self.vfs.sync_dir(Path::new(DIR))
    }

    fn get(&self) -> io::Result<Option<Vec<u8>>> {
        match self.vfs.open(&in_dir("value"), OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(file) => {
                let mut value = vec![0; usize::try_from(file.len()?).expect("it is small")];
                file.read_exact_at(&mut value, 0)?;
                Ok(Some(value))
            }
        }
    }
}

fn value(number: u8) -> Vec<u8> {
    vec![number; 1_500]
}

/// Runs three puts, and judges every outcome of a crash at every moment of each. `wrap` is the file system that the
/// store sees.
fn crash_test(
    careful: bool,
    wrap: impl Fn(&SimFs) -> SharedVfs,
) -> Result<usize, Box<dyn std::error::Error>> {
    let fs = SimFs::new(1);
    let store = Store::open(wrap(&fs), careful)?;
    let mut crashes = 0;
    fs.keep_images();
    for number in 1..=3 {
        store.put(&value(number))?;
        // Within the put either value may be there; once it has returned, only the new one.
        let before = (number > 1).then(|| value(number - 1));
        let after = Some(value(number));
        let within = fs.take_images().into_iter();
        let within = within.map(|image| (image, vec![before.clone(), after.clone()]));
        let returned = [(fs.fork(0), vec![after.clone()])];
        for (moment, (image, allowed)) in within.chain(returned).enumerate() {
            for seed in 0..20 {
                let kind = [CrashKind::Power, CrashKind::Process][seed as usize % 2];
                let crashed = image.fork(seed);
                crashed.crash(kind);
                // Twice: what one start finds, the next one must find as well, whatever is lost in between.
                let mut found = Vec::new();
                for _ in 0..2 {
                    found.push(Store::open(wrap(&crashed), careful)?.get()?);
                    crashed.crash(CrashKind::Power);
                }
                if !allowed.contains(&found[0]) || found[0] != found[1] {
                    let lens: Vec<_> = found.iter().map(|v| v.as_ref().map(Vec::len)).collect();
                    return Err(format!(
                        "put {number}, moment {moment}, {kind:?} with seed {seed}: found values of {lens:?} bytes"
                    )
                    .into());
                }
                crashes += 1;
            }
        }
    }
    Ok(crashes)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bug = crash_test(false, SimFs::shared).expect_err("the bug is found");
    println!("without the sync: {bug}");
    println!(
        "with it: {} crashes, all fine",
        crash_test(true, SimFs::shared)?
    );

    // Does the test notice what it is there for? Break the promises of the file system instead of the store.
    for lie in [Lie::SkipSync("new"), Lie::SkipSyncDir] {
        let lying = |fs: &SimFs| -> SharedVfs { Arc::new(LyingFs::new(fs.shared(), lie)) };
        println!(
            "{lie:?}: {}",
            crash_test(true, lying).expect_err("the lie is found")
        );
    }

    // And does the store do all its IO through the seam, in as many calls as it takes?
    let vfs: SharedVfs = Arc::new(BytewiseFs::new(SimFs::new(1).shared()));
    let store = Store::open(vfs, true)?;
    store.put(&value(9))?;
    assert_eq!(store.get()?, Some(value(9)));
    Ok(())
}

#[test]
fn example_runs() {
    main().expect("an example works");
}
