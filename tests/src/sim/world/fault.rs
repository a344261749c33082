//! What goes wrong in a run: a list that is drawn before the run begins, so that it can be shortened.
//!
//! Each seed draws which kinds of faults it has and how often (swarm testing): a run in which everything fails at once
//! reaches less than many runs in which a few things do. A fault carries all that it needs; leaving one out does not
//! change what the others do.

use raft_log::vfs::sim::{Fault as DiskFault, Rng};

/// Ticks of 10 ms in one simulated second.
pub const SECOND: u64 = 100;

/// Watchers of a run.
pub const WATCHERS: u64 = 2;

/// One thing that goes wrong. Members are named by their place, from 0; times are ticks.
#[expect(
    missing_docs,
    reason = "the text of each fault says what its fields are"
)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The process ends, within so many operations of its disk. With `power` all that was not synced may be lost,
    /// torn or reordered. Of the engine's batches that are not persisted, `keep` of 16 parts survive.
    Crash {
        node: usize,
        power: bool,
        ops: u64,
        keep: u64,
        down: u64,
    },
    /// Everything loses its power at once.
    PowerLossOfAll { keep: u64, down: u64 },
    /// Syncs take so long, from now on for a while.
    SlowDisk {
        node: usize,
        ticks: u64,
        sync_ticks: u64,
    },
    /// An operation of the disk fails once.
    DiskError {
        node: usize,
        kind: DiskError,
        pass: u64,
    },
    /// The disk has only so many bytes left for a while.
    DiskFull { node: usize, room: u64, ticks: u64 },
    /// A byte of the log changes. At most a minority of the members is hit, and nobody while good copies are few.
    BitRot { node: usize, place: u64, mask: u8 },
    /// Members are cut off until only a majority with the leader and `node` is left, for a while. Then the log of `node` loses
    /// its newest entries, and the rest of that majority stops: what they had agreed on is with those who stopped alone.
    LoseLog {
        node: usize,
        place: u64,
        ticks: u64,
        down: u64,
    },
    /// The clock of a member goes at so many percent for a while.
    ClockRate {
        node: usize,
        percent: u64,
        ticks: u64,
    },
    /// The clock of a member jumps forward.
    ClockJump { node: usize, ticks: u64 },
    /// A member does nothing for a while; what arrives waits.
    Pause { node: usize, ticks: u64 },
    /// Applying takes so long, for a while.
    SlowApply {
        node: usize,
        ticks: u64,
        apply_ticks: u64,
    },
    /// These directions carry nothing for a while.
    Partition {
        cut: Vec<(usize, usize)>,
        ticks: u64,
    },
    /// The network misbehaves for a while; in percent, and ticks.
    Network { net: Net, ticks: u64 },
    /// The engine makes durable what it has.
    Persist { node: usize },
    /// Whoever leads hands over to a member.
    Transfer { to: usize },
    /// Whoever leads hands over to a member, if one is named, and is cut off for a while in this way; so long its disk
    /// takes so many ticks for each sync, and what it is sent is late by up to `late`.
    Depose {
        to: Option<usize>,
        how: CutOff,
        ticks: u64,
        sync_ticks: u64,
        late: u64,
    },
    /// Everything that whoever leads is sent comes up to `late` ticks later than it should. After so long it hands over to a
    /// member, and from then on nobody hears it, nor does it hear that member: what it gets is old mail of the others.
    OldMail { to: usize, late: u64, ticks: u64 },
    /// A member's process ends again and again, while everything that it is sent is late.
    Flap {
        node: usize,
        times: u64,
        every: u64,
        late: u64,
    },
    /// A client of a member compacts history up to so many revisions below the newest; the member's process then ends
    /// within so many operations of its disk, if a number is given.
    Compact {
        node: usize,
        back: u64,
        crash: Option<u64>,
    },
    /// A watcher takes nothing for a while, then from the same stream or, with `again`, from a new one.
    SlowWatcher {
        watcher: usize,
        ticks: u64,
        again: bool,
    },
    /// A member is cut off for so long that the others' logs may have gone on without it.
    Lag { node: usize, ticks: u64 },
    /// A member makes a snapshot.
    Snapshot { node: usize },
    /// Whoever leads is asked for a change of the membership, and is alone from that moment on for `alone` ticks, or alone
    /// with those that come.
    Change {
        kind: ChangeKind,
        pick: u64,
        alone: u64,
    },
    /// At the next such moment, the process of the member that sends a snapshot ends, or that of the one that makes or takes
    /// it, as by [`Fault::Crash`].
    SnapshotCrash {
        moment: Moment,
        sender: bool,
        power: bool,
        ops: u64,
        keep: u64,
        down: u64,
    },
}

/// Which change. A number that is drawn beforehand picks among the members of that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// A new member learns.
    Learner,
    /// A new member votes at once.
    Voter,
    /// A learner is to vote.
    Promote,
    /// A member leaves.
    Remove,
    /// A voter leaves, one that is lost if there is one, and a learner or a new member votes.
    Replace,
    /// Learners are to vote, two new members come, and a voter leaves.
    Several,
}

/// A moment in the life of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// It is cut, and about to be written.
    Making,
    /// Another member begins to receive it, or goes on.
    Receiving,
    /// Another member has it, and takes it up.
    Taking,
}

/// In which directions a leader is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutOff {
    /// Nobody hears it.
    Mute,
    /// It hears nobody.
    Deaf,
    /// Both.
    Alone,
    /// It is alone with one other member.
    With(usize),
    /// It and one other member do not hear each other.
    From(usize),
    /// Nobody hears it, and it does not hear one other member.
    MuteAndDeafTo(usize),
}

impl CutOff {
    /// The directions that carry nothing when `leader` of so many members is cut off.
    #[must_use]
    pub fn links(self, leader: usize, nodes: usize) -> Vec<(usize, usize)> {
        let inside = |at: usize| at == leader || matches!(self, Self::With(with) if with == at);
        let cut = |from: usize, to: usize| match self {
            Self::Mute => from == leader,
            Self::MuteAndDeafTo(other) => from == leader || (from, to) == (other, leader),
            Self::Deaf => to == leader,
            Self::Alone | Self::With(_) => inside(from) != inside(to),
            Self::From(other) => (from, to) == (leader, other) || (from, to) == (other, leader),
        };
        let links = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        links
            .filter(|(from, to)| from != to && cut(*from, *to))
            .collect()
    }
}

impl Fault {
    /// The members that must be there for it.
    #[must_use]
    pub fn members(&self) -> Vec<usize> {
        match *self {
            Self::Crash { node, .. }
            | Self::SlowDisk { node, .. }
            | Self::DiskError { node, .. }
            | Self::DiskFull { node, .. }
            | Self::BitRot { node, .. }
            | Self::LoseLog { node, .. }
            | Self::ClockRate { node, .. }
            | Self::ClockJump { node, .. }
            | Self::Pause { node, .. }
            | Self::SlowApply { node, .. }
            | Self::Persist { node }
            | Self::Compact { node, .. }
            | Self::Lag { node, .. }
            | Self::Flap { node, .. }
            | Self::Snapshot { node } => vec![node],
            Self::Transfer { to } | Self::OldMail { to, .. } => vec![to],
            Self::Depose { to, how, .. } => {
                let with = match how {
                    CutOff::From(other) | CutOff::With(other) | CutOff::MuteAndDeafTo(other) => {
                        Some(other)
                    }
                    CutOff::Mute | CutOff::Deaf | CutOff::Alone => None,
                };
                to.into_iter().chain(with).collect()
            }
            Self::PowerLossOfAll { .. }
            | Self::Partition { .. }
            | Self::Network { .. }
            | Self::SlowWatcher { .. }
            | Self::SnapshotCrash { .. }
            | Self::Change { .. } => Vec::new(),
        }
    }

    /// Ticks until it ends; none for one that is over at once.
    #[must_use]
    pub fn lasts(&self) -> Option<u64> {
        match *self {
            Self::SlowDisk { ticks, .. }
            | Self::DiskFull { ticks, .. }
            | Self::ClockRate { ticks, .. }
            | Self::SlowApply { ticks, .. }
            | Self::Partition { ticks, .. }
            | Self::Network { ticks, .. }
            | Self::Depose { ticks, .. }
            | Self::LoseLog { ticks, .. }
            | Self::Lag { ticks, .. }
            | Self::SlowWatcher { ticks, .. } => Some(ticks),
            Self::Change { alone, .. } => Some(alone).filter(|ticks| *ticks > 0),
            Self::OldMail { late, ticks, .. } => Some(late + ticks),
            Self::Flap { times, every, .. } => Some((times + 1) * every),
            Self::Crash { .. }
            | Self::PowerLossOfAll { .. }
            | Self::DiskError { .. }
            | Self::BitRot { .. }
            | Self::ClockJump { .. }
            | Self::Pause { .. }
            | Self::Persist { .. }
            | Self::Transfer { .. }
            | Self::Snapshot { .. }
            | Self::SnapshotCrash { .. }
            | Self::Compact { .. } => None,
        }
    }
}

/// Which operation of a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskError {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A sync of a file.
    Sync,
    /// A sync of a directory. A kernel that cannot do that stops the file system: power is lost next.
    SyncDir,
}

impl DiskError {
    /// As the simulated disk calls it.
    #[must_use]
    pub fn on_disk(self) -> DiskFault {
        match self {
            Self::Read => DiskFault::Read,
            Self::Write => DiskFault::Write,
            Self::Sync => DiskFault::Sync,
            Self::SyncDir => DiskFault::SyncDir,
        }
    }
}

/// How a network behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Net {
    /// Of a hundred messages, how many are lost.
    pub loss: u64,
    /// Of a hundred messages, how many arrive twice.
    pub duplicates: u64,
    /// Of a hundred messages, how many are delayed far beyond the others.
    pub strays: u64,
    /// Ticks that a message takes at most, beyond the next one. Messages of one link overtake each other.
    pub delay: u64,
}

impl Net {
    /// As bad as both.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        Self {
            loss: self.loss.max(other.loss),
            duplicates: self.duplicates.max(other.duplicates),
            strays: self.strays.max(other.strays),
            delay: self.delay.max(other.delay),
        }
    }
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scheduled {
    /// Its place in the list of its seed, from 0: what is left of a list keeps its numbers.
    pub number: usize,
    /// When it happens.
    pub at: u64,
    /// What happens.
    pub fault: Fault,
}

/// The kinds that a seed has or has not.
const KINDS: u64 = 22;
/// The kind of bits that rot: in members that were there from the beginning.
const BIT_ROT: u64 = 6;
/// The kind of changes of the membership.
const CHANGES: u64 = 19;
/// Members that faults are drawn for when some come and go.
const PLACES: usize = 7;

/// Draws the faults of a run of so many members and ticks.
#[must_use]
pub fn draw(rng: &mut Rng, nodes: usize, ticks: u64) -> Vec<Scheduled> {
    let kinds: Vec<u64> = (0..KINDS).filter(|_| rng.chance(1, 2)).collect();
    // Between a fault every 0.5 s and one every 8 s.
    let pause = [SECOND / 2, SECOND, 3 * SECOND, 8 * SECOND][rng.below(4) as usize];
    let mut rotten: Vec<usize> = Vec::new();
    let mut schedule = Vec::new();
    let mut at = rng.below(2 * pause);
    while at < ticks && !kinds.is_empty() {
        let kind = kinds[rng.below(kinds.len() as u64) as usize];
        let places = if kinds.contains(&CHANGES) && kind != BIT_ROT {
            PLACES
        } else {
            nodes
        };
        let fault = one(rng, kind, places);
        let allowed = match &fault {
            // More would leave nothing good.
            Fault::BitRot { node, .. } | Fault::LoseLog { node, .. } if !rotten.contains(node) => {
                let may = rotten.len() < (nodes - 1) / 2 && rng.chance(1, 4);
                if may {
                    rotten.push(*node);
                }
                may
            }
            _ => true,
        };
        if allowed {
            let number = schedule.len();
            schedule.push(Scheduled { number, at, fault });
        }
        at += 1 + rng.below(2 * pause);
    }
    schedule
}

fn one(rng: &mut Rng, kind: u64, nodes: usize) -> Fault {
    let node = rng.below(nodes as u64) as usize;
    let ticks = [SECOND / 5, SECOND, 5 * SECOND][rng.below(3) as usize];
    let ticks = 1 + rng.below(2 * ticks);
    match kind {
        0 | 1 => Fault::Crash {
            node,
            power: kind == 1,
            ops: rng.below(12),
            keep: rng.below(17),
            down: 1 + rng.below(3 * SECOND),
        },
        2 => Fault::PowerLossOfAll {
            keep: rng.below(17),
            down: 1 + rng.below(SECOND),
        },
        3 => Fault::SlowDisk {
            node,
            ticks,
            sync_ticks: [1, 4, 20, 300][rng.below(4) as usize],
        },
        4 => Fault::DiskError {
            node,
            kind: match rng.below(8) {
                0 => DiskError::Read,
                1 => DiskError::SyncDir,
                2..4 => DiskError::Write,
                _ => DiskError::Sync,
            },
            pass: rng.below(12),
        },
        5 => Fault::DiskFull {
            node,
            room: rng.below(60_000),
            ticks,
        },
        6 => match (rng.next_u64(), rng.below(8)) {
            (place, mask) if mask < 4 => Fault::BitRot {
                node,
                place,
                mask: 1 << (mask * 2 + place % 2),
            },
            (place, down) => Fault::LoseLog {
                node,
                place,
                ticks: ticks.min(SECOND) + SECOND / 5,
                down: (down - 3) * SECOND / 2,
            },
        },
        7 => {
            if rng.chance(1, 2) {
                Fault::ClockRate {
                    node,
                    percent: 95 + rng.below(11),
                    ticks: 10 * ticks,
                }
            } else if rng.chance(1, 3) {
                Fault::ClockJump { node, ticks }
            } else {
                Fault::Pause { node, ticks }
            }
        }
        8 => Fault::SlowApply {
            node,
            ticks,
            apply_ticks: 1 + rng.below(20),
        },
        9 => Fault::Partition {
            cut: partition(rng, nodes),
            ticks,
        },
        10 => Fault::Network {
            net: Net {
                loss: [0, 2, 10, 30][rng.below(4) as usize],
                duplicates: [0, 5, 30][rng.below(3) as usize],
                strays: [0, 2, 10][rng.below(3) as usize],
                delay: [0, 2, 10, 40][rng.below(4) as usize],
            },
            ticks,
        },
        11 => Fault::Persist { node },
        12 => Fault::Transfer { to: node },
        13 => Fault::Depose {
            to: rng.chance(1, 2).then_some(node),
            how: match rng.below(6) {
                0 => CutOff::Mute,
                1 => CutOff::Deaf,
                2 => CutOff::Alone,
                3 | 4 => CutOff::From(node),
                _ => CutOff::With(node),
            },
            ticks: ticks.min(2 * SECOND) + SECOND / 2,
            sync_ticks: [0, 0, 20, 150][rng.below(4) as usize],
            late: [0, 0, 40, 80][rng.below(4) as usize],
        },
        14 => Fault::Compact {
            node,
            back: [0, 1, 5, 40][rng.below(4) as usize],
            crash: rng.chance(1, 2).then(|| rng.below(6)),
        },
        15 => Fault::SlowWatcher {
            watcher: rng.below(WATCHERS) as usize,
            ticks,
            again: rng.chance(1, 2),
        },
        16 => Fault::Lag {
            node,
            ticks: 2 * SECOND + ticks,
        },
        17 => Fault::Snapshot { node },
        20 => Fault::OldMail {
            to: node,
            late: [60, 120, 200][rng.below(3) as usize],
            ticks: SECOND + rng.below(2 * SECOND),
        },
        21 => Fault::Flap {
            node,
            times: 2 + rng.below(4),
            every: 20 + rng.below(60),
            late: [40, 80, 160][rng.below(3) as usize],
        },
        CHANGES => Fault::Change {
            kind: match rng.below(8) {
                0 => ChangeKind::Learner,
                1 => ChangeKind::Voter,
                2 | 3 => ChangeKind::Promote,
                4 => ChangeKind::Remove,
                5 | 6 => ChangeKind::Replace,
                _ => ChangeKind::Several,
            },
            pick: rng.next_u64(),
            alone: [0, 0, 0, 2 * SECOND][rng.below(4) as usize],
        },
        _ => Fault::SnapshotCrash {
            moment: match rng.below(4) {
                0 => Moment::Making,
                1 => Moment::Receiving,
                _ => Moment::Taking,
            },
            sender: rng.chance(1, 4),
            power: rng.chance(1, 2),
            ops: rng.below(10),
            keep: rng.below(17),
            down: 1 + rng.below(SECOND),
        },
    }
}

/// One member alone, two sides, one direction, or one link.
fn partition(rng: &mut Rng, nodes: usize) -> Vec<(usize, usize)> {
    let one = rng.below(nodes as u64) as usize;
    let other = (one + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
    let sides = rng.next_u64();
    let side = |at: usize| sides >> at & 1;
    let kind = rng.below(5);
    let cut = |from: usize, to: usize| match kind {
        0 => from == one || to == one,
        1 => side(from) != side(to),
        2 => from == one,
        3 => to == one,
        _ => (from, to) == (one, other) || (from, to) == (other, one),
    };
    let links = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
    links
        .filter(|(from, to)| from != to && cut(*from, *to))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_is_cut_off_in_the_directions_that_are_named() {
        assert_eq!(CutOff::Mute.links(1, 3), [(1, 0), (1, 2)]);
        assert_eq!(CutOff::Deaf.links(1, 3), [(0, 1), (2, 1)]);
        assert_eq!(
            CutOff::MuteAndDeafTo(0).links(1, 3),
            [(0, 1), (1, 0), (1, 2)]
        );
        assert_eq!(
            CutOff::With(0).links(1, 3),
            [(0, 2), (1, 2), (2, 0), (2, 1)]
        );
        assert_eq!(CutOff::With(1).links(1, 3), CutOff::Alone.links(1, 3));
    }

    #[test]
    fn drawn_schedules_leave_a_majority_without_bit_rot_and_hold_every_kind() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let nodes = [3, 5][seed as usize % 2];
            let schedule = draw(&mut Rng::new(seed), nodes, 120 * SECOND);
            let rotten: std::collections::BTreeSet<usize> = schedule
                .iter()
                .filter_map(|s| match s.fault {
                    Fault::BitRot { node, .. } | Fault::LoseLog { node, .. } => Some(node),
                    _ => None,
                })
                .collect();
            assert!(rotten.len() <= (nodes - 1) / 2, "seed {seed}");
            assert!(schedule.is_sorted_by_key(|scheduled| scheduled.at));
            for scheduled in schedule {
                let text = format!("{:?}", scheduled.fault);
                kinds.insert(text.split(' ').next().unwrap().to_owned());
            }
        }
        assert_eq!(kinds.len(), 24, "{kinds:?}");
    }
}
