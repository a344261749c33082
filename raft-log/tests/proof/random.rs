//! Long random workloads with crashes, failing disks and full ones at random moments, all from one seed.

use raft_log::vfs::sim::{CrashKind, Fault, Lie, Rng, SimFs, is_crash};
use raft_log::{
    Entry, ErrorKind, GroupId, HardState, Index, LogError, NodeId, Record, SnapshotError, Term,
    Ticket, WriteBatch,
};

use crate::model::{History, State};
use crate::world::{OPS, Op, Refusal, World};

const GROUPS: u64 = 3;
const ROUNDS: usize = 12;
/// Faults hit once and crashes of a start are rare, so a store that does not open after so many never will.
const STARTS_MAX: usize = 100;

/// What goes wrong besides crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// Writes and syncs fail with EIO.
    Disk,
    /// There is no space, for a while.
    Full,
}

struct Run {
    rng: Rng,
    fs: SimFs,
    lie: Option<Lie>,
    trouble: Trouble,
    history: History,
    unique: u64,
    /// Syncs of directories fail too. A kernel that cannot do one stops the file system, so each crash loses power.
    sync_dir_faults: bool,
    /// The process ends by itself.
    ends: bool,
}

/// One run; what it says is wrong if anything is.
pub(crate) fn run(seed: u64, trouble: Trouble, lie: Option<Lie>) -> Result<(), String> {
    let mut run = Run {
        rng: Rng::new(seed),
        fs: SimFs::new(seed),
        lie,
        trouble,
        history: History::new(State::new()),
        unique: 0,
        sync_dir_faults: seed.is_multiple_of(3),
        ends: false,
    };
    for round in 0..ROUNDS {
        let more = run
            .round()
            .map_err(|text| format!("seed {seed}, round {round}, {trouble:?}: {text}"))?;
        if !more {
            break;
        }
    }
    Ok(())
}

impl Run {
    /// False when the run ends here.
    fn round(&mut self) -> Result<bool, String> {
        let Some(mut world) = self.start()? else {
            return Ok(false);
        };
        let steps = self.rng.below(40);
        self.fs.fail_after(self.rng.below(160));
        self.trouble();
        let outcome = self.work(&mut world, steps);
        self.history = world.history.clone();
        self.unique = world.unique;
        if let Err(error) = &outcome
            && !self.fs.is_down()
        {
            self.failed(&world, error)?;
        }
        drop(world);
        self.crash();
        Ok(true)
    }

    /// Starts, through crashes and failures of the start itself; `None` when nothing can be opened any more.
    fn start(&mut self) -> Result<Option<World>, String> {
        for _ in 0..STARTS_MAX {
            if self.rng.chance(1, 3) {
                self.fs.fail_after(self.rng.below(40));
            }
            let opened = World::try_open(&self.fs, self.lie, &self.history, self.unique);
            if self.fs.is_down() {
                drop(opened);
                self.crash();
                continue;
            }
            match opened {
                Ok(world) => {
                    self.history = world.history.clone();
                    return Ok(Some(world));
                }
                Err(Refusal::Log(error)) if self.injected(&error) => self.crash(),
                // A recorded snapshot that is missing is no fault of the disk.
                Err(Refusal::Snapshots(error @ SnapshotError::Io { .. }))
                    if self.trouble != Trouble::None && !error.is_missing() =>
                {
                    self.crash();
                }
                Err(Refusal::Wrong(text)) => return Err(text),
                Err(Refusal::Log(error)) => {
                    return Err(format!("the log refuses to open: {error:?}"));
                }
                Err(Refusal::Snapshots(error)) => return Err(error.to_string()),
            }
        }
        Err(format!("{STARTS_MAX} starts in a row failed"))
    }

    /// Faults hit once, so a start that meets one is only repeated.
    fn injected(&self, error: &LogError) -> bool {
        self.trouble != Trouble::None && matches!(error.kind(), ErrorKind::Io | ErrorKind::Full)
    }

    fn trouble(&mut self) {
        match self.trouble {
            Trouble::None => {}
            Trouble::Disk => {
                let kinds = [Fault::Write, Fault::Sync, Fault::SyncDir];
                let kind = kinds[self.rng.below(2 + u64::from(self.sync_dir_faults)) as usize];
                self.fs.fail_nth(kind, self.rng.below(20));
            }
            Trouble::Full => self
                .fs
                .set_capacity(Some((40 << 10) + self.rng.below(60 << 10))),
        }
    }

    fn crash(&mut self) {
        let stops = self.trouble == Trouble::Disk && self.sync_dir_faults;
        let power = self.rng.chance(1, 2) || stops;
        self.fs.crash(if power {
            CrashKind::Power
        } else {
            CrashKind::Process
        });
        // The disk may still be full at the next start.
        if self.trouble != Trouble::Full || self.rng.chance(1, 2) {
            self.fs.set_capacity(None);
        }
    }

    /// A failure that was injected latches: nothing is acknowledged after it.
    fn failed(&mut self, world: &World, error: &LogError) -> Result<(), String> {
        if !self.injected(error) {
            return Err(format!("an unexpected failure: {error:?}"));
        }
        if error.kind() == ErrorKind::Full {
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        batch.push(GroupId(9), Record::Compact(raft_log::Base::default()));
        match world.log.write(batch) {
            Err(_) => Ok(()),
            Ok(()) => Err(format!("the log went on after {error:?}")),
        }
    }

    fn work(&mut self, world: &mut World, steps: u64) -> Result<(), LogError> {
        let mut tickets: Vec<(Ticket, usize)> = Vec::new();
        for _ in 0..steps {
            let batch = self.batch(world);
            if std::mem::take(&mut self.ends) {
                return Ok(());
            }
            let Some(batch) = batch else { continue };
            world.history.submit(&batch);
            let at = world.history.states.len() - 1;
            let queued = if self.rng.chance(1, 2) {
                world.log.enqueue_accepted(batch)
            } else {
                world.log.enqueue(batch)
            };
            match queued {
                Ok(ticket) => tickets.push((ticket, at)),
                // Nothing of it was taken.
                Err(error) if error.kind() == ErrorKind::Full => {
                    world.history.states.pop();
                }
                Err(error) => return Err(error),
            }
            let Some((ticket, _)) = tickets.last().copied() else {
                continue;
            };
            if self.rng.chance(1, 2) {
                continue;
            }
            let outcome = if self.rng.chance(1, 3) {
                world.log.drive().map(|_| ())
            } else {
                world.log.wait(ticket)
            };
            // Also after a failure: what was acknowledged before it stays so.
            for (ticket, at) in &tickets {
                if world.log.is_durable(*ticket).unwrap_or(false) {
                    world.history.synced = world.history.synced.max(*at);
                }
            }
            match outcome {
                Err(error) if error.kind() == ErrorKind::Full => {
                    if self.rng.chance(1, 2) {
                        self.fs.set_capacity(None);
                    }
                }
                other => other?,
            }
            if self.rng.chance(1, 12) {
                return self.close(world);
            }
        }
        Ok(())
    }

    fn close(&mut self, world: &mut World) -> Result<(), LogError> {
        world.log.close()?;
        world.history.ack_all();
        Ok(())
    }

    /// A step of the enumeration, or one with sizes and places drawn at random.
    fn batch(&mut self, world: &mut World) -> Option<WriteBatch> {
        if self.rng.chance(1, 3) {
            let op = OPS[self.rng.below(OPS.len() as u64) as usize];
            return match op {
                Op::Close => None,
                // A failed sync of the snapshots' directories is final too: the process ends.
                Op::Snapshot(id) => world.snapshot(id).unwrap_or_else(|_| {
                    self.ends = true;
                    None
                }),
                op => world.batch(op),
            };
        }
        let mut batch = WriteBatch::new();
        for id in 1..=GROUPS {
            let id = GroupId(id);
            let Some(group) = world.history.newest().get(&id).cloned() else {
                if self.rng.chance(1, 2) {
                    return world.batch(Op::Destroy(id.0));
                }
                continue;
            };
            let ((last, term), base) = (group.last(), group.base.index);
            if self.rng.chance(1, 2) {
                continue;
            }
            match self.rng.below(8) {
                0 => batch.push(
                    id,
                    Record::Truncate(Index(base.0 + 1 + self.rng.below(last.0 - base.0 + 1))),
                ),
                1 => {
                    let index = Index(base.0 + self.rng.below(last.0 - base.0 + 1));
                    let term = match index == base {
                        true => group.base.term,
                        false => group.entries[(index.0 - base.0 - 1) as usize].term,
                    };
                    let base = raft_log::Base {
                        index,
                        term,
                        ..group.base.clone()
                    };
                    batch.push(id, Record::Compact(base));
                }
                2 => {
                    // A base above the last entry, as an installed snapshot leaves it.
                    if self.rng.chance(1, 4) {
                        let base = raft_log::Base {
                            index: Index(last.0 + 1 + self.rng.below(5)),
                            term: Term(term.0 + 1),
                            ..group.base.clone()
                        };
                        batch.push(id, Record::Compact(base));
                    }
                }
                3 => batch.push(
                    id,
                    Record::HardState(HardState {
                        term: Term(group.hard.term.0 + self.rng.below(2)),
                        vote: group.hard.vote.or(Some(NodeId(1 + self.rng.below(3)))),
                        commit: Index(self.rng.below(last.0 + 1)),
                    }),
                ),
                kind => {
                    let from = match kind {
                        4 => Index(base.0 + 1 + self.rng.below(last.0 - base.0 + 1)),
                        _ => last.next(),
                    };
                    let term = Term(term.0.max(1) + self.rng.below(2));
                    batch.push(id, Record::Entries(self.entries(world, from, term)));
                }
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn entries(&mut self, world: &mut World, from: Index, term: Term) -> Vec<Entry> {
        let mut entries = Vec::new();
        for at in 0..=self.rng.below(4) {
            let len = match self.rng.below(10) {
                0 => 6_000,
                1 => 0,
                _ => self.rng.below(1_500),
            };
            entries.push(world.entry(Index(from.0 + at), term, len as usize));
        }
        entries
    }
}

fn seeds(test: &str, trouble: Trouble, normal: u64) {
    let seeds = match crate::number("FLOTILLA_LOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..normal * crate::runs(),
    };
    for seed in seeds {
        if let Err(text) = run(seed, trouble, None) {
            panic!(
                "{text}\nreproduce: FLOTILLA_LOG_SEED={seed} cargo test -p raft-log --test proof -- \
                 --exact random::{test}"
            );
        }
    }
}

#[test]
fn crashes_of_a_long_run_keep_what_was_acknowledged() {
    let test = "crashes_of_a_long_run_keep_what_was_acknowledged";
    seeds(test, Trouble::None, 600);
}

#[test]
fn failing_disk_latches_and_keeps_what_was_acknowledged() {
    let test = "failing_disk_latches_and_keeps_what_was_acknowledged";
    seeds(test, Trouble::Disk, 400);
}

#[test]
fn full_disk_ends_by_itself_and_keeps_what_was_acknowledged() {
    let test = "full_disk_ends_by_itself_and_keeps_what_was_acknowledged";
    seeds(test, Trouble::Full, 400);
}

#[test]
fn same_seed_gives_the_same_run() {
    let trace = |seed| {
        let mut run = Run {
            rng: Rng::new(seed),
            fs: SimFs::new(seed),
            lie: None,
            trouble: Trouble::Disk,
            history: History::new(State::new()),
            unique: 0,
            sync_dir_faults: false,
            ends: false,
        };
        for _ in 0..ROUNDS {
            run.round().unwrap();
        }
        (run.fs.op_count(), format!("{:?}", run.history.newest()))
    };
    assert_eq!(trace(11), trace(11));
    assert_ne!(trace(11), trace(12));
}

#[test]
fn run_cut_short_is_told_from_one_that_failed() {
    let fs = SimFs::new(1);
    let mut world = World::open(&fs, None, &History::new(State::new()), 0).unwrap();
    fs.fail_after(0);
    let batch = world.batch(Op::Append(1)).unwrap();
    let error = world.log.write(batch).unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert!(is_crash(source.downcast_ref::<std::io::Error>().unwrap()));
}
