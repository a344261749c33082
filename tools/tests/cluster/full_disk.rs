//! One member's disk becomes full, while it follows and while it leads. The others go on, and it comes back by itself.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flotilla_tests::cluster::{Client, Cluster, Load};
use flotilla_tests::process::{PATIENCE, SmallDisk};

use super::{CLIENTS, FLOTILLA, QUICK, settle};

const DISK_MEGABYTES: u32 = 96;
/// What is written until the log finds no room for another segment.
const VALUE_BYTES: usize = 100_000;
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// Takes all the space of a disk, also what is given back, until it is dropped.
struct Hog {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hog {
    fn start(dir: &Path) -> Self {
        let path = dir.join("hog");
        let file = File::create(&path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut at = 0;
            while !stopped.load(Ordering::SeqCst) {
                let mut piece = vec![1; 1 << 20];
                while !piece.is_empty() {
                    match file.write_at(&piece, at) {
                        Ok(written) => at += written as u64,
                        Err(_) => piece.truncate(piece.len() / 2),
                    }
                }
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        let thread = Some(thread);
        Self { path, stop, thread }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(fs::remove_file(&self.path));
    }
}

fn is_full(client: &Client) -> bool {
    let status = client.status();
    status.is_ok_and(|status| status.errors.iter().any(|error| error.contains("NOSPACE")))
}

#[test]
fn member_whose_disk_is_full_stops_nobody_and_comes_back_with_the_space() {
    let Some(disk) = SmallDisk::mount(DISK_MEGABYTES) else {
        println!("skipped: this process may not mount a file system");
        return;
    };
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    let small = 0;
    cluster.setups[small].data_dir = disk.path().join("data");
    cluster.start_all();
    let load = Load::start(&cluster.urls(), CLIENTS);
    for leads in [false, true] {
        lead(&cluster, small, leads);
        let hog = Hog::start(disk.path());
        let member = cluster.client(small);
        fill(&cluster, &member);
        // The others go on, led by one of them.
        let leader = cluster.leader_among(&[1, 2]);
        load.wait_for_writes(100);
        let key = format!("while-full-{leads}");
        cluster.client(leader).put(&key, "written").unwrap();
        assert!(is_full(&member));
        assert!(member.get("key-0", true).is_ok(), "stale reads go on");

        drop(hog);
        cluster.wait("end of the alarm", || !is_full(&member));
        cluster.wait("member that caught up", || {
            let seen = member.get(&key, false);
            seen.is_ok_and(|value| value.as_deref() == Some("written"))
        });
        member.put("at-the-full-one", "taken").unwrap();
        load.wait_for_writes(50);
    }
    settle(&cluster, load);
}

/// Writes at all members until the one whose disk is full says so.
fn fill(cluster: &Cluster, member: &Client) {
    let value = "x".repeat(VALUE_BYTES);
    let begun = Instant::now();
    for at in 0.. {
        assert!(begun.elapsed() < PATIENCE, "the disk does not become full");
        let key = format!("fill-{}", at % 50);
        match member.put(&key, &value) {
            Err(error) if error.message() == NO_SPACE => return,
            // Without it the others may wait for a new leader.
            _ => drop(cluster.client(1 + at % 2).put(&key, &value)),
        }
    }
}

/// Moves leadership to a member, or away from it.
fn lead(cluster: &Cluster, member: usize, leads: bool) {
    let id = |member| {
        let status = cluster.client(member).status().unwrap();
        status.header.unwrap().member_id
    };
    cluster.wait("leadership where it is wanted", || {
        let leader = cluster.leader();
        if (leader == member) == leads {
            return true;
        }
        let to = if leads { member } else { (member + 1) % 3 };
        // It may have moved meanwhile.
        drop(cluster.client(leader).move_leader(id(to)));
        false
    });
}
