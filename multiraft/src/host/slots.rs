//! The groups of a host, and which of them have something to do: a turn costs nothing for the others.
//!
//! A group rests when a turn has left it nothing to do, until its next deadline or the next input. While it rests its time
//! stands still; [`Slots::wake`] makes up for that first, so that what comes is seen after the time that passed before it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft_log::{GroupId, Index};
use raft_node::StateMachine;
use raft_node::core::Membership;
use raft_node::driver::Group;

use crate::Reply;
use crate::status::Published;

pub(super) struct Slot<S: StateMachine> {
    pub(super) group: Group<S>,
    pub(super) published: Arc<Published>,
    /// Reads that arrived in this turn and share one round.
    pub(super) reads: Vec<Reply<()>>,
    /// The members as last seen.
    pub(super) members: Membership,
    /// Who hears that the state was replaced, while it is to be.
    pub(super) replaced: Option<Reply<()>>,
    /// The log was begun anew, and has not caught up as far as was seen.
    pub(super) is_guarded: bool,
    /// Somebody else votes as well.
    is_shared: bool,
    /// There may be something for the log to give up.
    is_dirty: bool,
    is_awake: bool,
    /// What it had to persist was collected since it woke.
    pub(super) is_collected: bool,
    ticked_at: u64,
    /// When it wakes by itself.
    due: Option<u64>,
}

/// Those of the start ascending by group, then those that joined.
pub(super) struct Slots<S: StateMachine> {
    list: Vec<Slot<S>>,
    index: BTreeMap<GroupId, usize>,
    /// Those that are awake, each once.
    awake: Vec<usize>,
    timers: BTreeSet<(u64, usize)>,
    dirty: Vec<usize>,
    shared: usize,
    now: u64,
}

impl<S: StateMachine> Default for Slots<S> {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<S: StateMachine> Slots<S> {
    /// All of them are awake.
    pub(super) fn new(mut groups: Vec<Group<S>>) -> Self {
        groups.sort_unstable_by_key(Group::id);
        let index: BTreeMap<_, _> = groups
            .iter()
            .enumerate()
            .map(|(at, group)| (group.id(), at))
            .collect();
        assert_eq!(index.len(), groups.len(), "each group is there once");
        let list: Vec<_> = groups
            .into_iter()
            .map(|group| Slot::new(group, 0))
            .collect();
        Self {
            awake: (0..list.len()).collect(),
            timers: BTreeSet::new(),
            dirty: (0..list.len()).collect(),
            shared: 0,
            now: 0,
            list,
            index,
        }
    }

    /// One more, awake, whose time begins now.
    ///
    /// # Panics
    /// If it is there already: two would write to one log.
    pub(super) fn add(&mut self, group: Group<S>) -> Arc<Published> {
        let at = self.list.len();
        let before = self.index.insert(group.id(), at);
        assert!(before.is_none(), "each group is there once");
        let slot = Slot::new(group, self.now);
        let published = Arc::clone(&slot.published);
        self.list.push(slot);
        self.awake.push(at);
        self.dirty.push(at);
        published
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.index.keys().copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Slot<S>> {
        self.list.iter()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Slot<S>> {
        self.list.iter_mut()
    }

    pub(super) fn get(&self, group: GroupId) -> Option<&Slot<S>> {
        self.index.get(&group).map(|at| &self.list[*at])
    }

    /// A slot by its place, as it is.
    pub(super) fn at(&mut self, at: usize) -> &mut Slot<S> {
        &mut self.list[at]
    }

    /// How many are awake; more may be after a call of [`Slots::wake`].
    pub(super) fn awake_len(&self) -> usize {
        self.awake.len()
    }

    /// One of those that are awake.
    pub(super) fn awake(&mut self, n: usize) -> &mut Slot<S> {
        &mut self.list[self.awake[n]]
    }

    /// Something happens to a group.
    ///
    /// # Panics
    /// If there is no such group: the handle refuses unknown ones.
    pub(super) fn wake(&mut self, group: GroupId) -> &mut Slot<S> {
        let at = *self.index.get(&group).expect("a group of this host");
        self.wake_at(at)
    }

    pub(super) fn wake_at(&mut self, at: usize) -> &mut Slot<S> {
        let slot = &mut self.list[at];
        if !slot.is_awake {
            slot.is_awake = true;
            slot.is_collected = false;
            self.awake.push(at);
            if let Some(due) = slot.due.take() {
                self.timers.remove(&(due, at));
            }
            slot.pass(self.now);
        }
        slot
    }

    /// Time goes on to `now`: for those that are awake, and those that wake by it.
    pub(super) fn tick(&mut self, now: u64) {
        self.now = now.max(self.now);
        for at in &self.awake {
            self.list[*at].pass(self.now);
        }
        while let Some(&(due, at)) = self.timers.first() {
            if due > self.now {
                break;
            }
            self.wake_at(at);
        }
        self.awake.sort_unstable();
    }

    /// Those that have nothing to do rest until they have.
    pub(super) fn rest(&mut self) {
        let (now, list) = (self.now, &mut self.list);
        for at in &self.awake {
            let slot = &mut list[*at];
            if !slot.is_dirty && slot.group.entries_not_durable() > 0 {
                slot.is_dirty = true;
                self.dirty.push(*at);
            }
        }
        self.awake.retain(|at| {
            let slot = &mut list[*at];
            let rests = slot.is_collected
                && !slot.group.can_apply()
                && !slot.group.is_restoring()
                && !slot.group.waits_for_clock()
                && slot.reads.is_empty();
            if rests {
                slot.is_awake = false;
                slot.due = slot.group.next_deadline(now).map(|in_| now + in_.max(1));
                self.timers.extend(slot.due.map(|due| (due, *at)));
            }
            !rests
        });
    }

    /// The next tick at which one of them has something to do, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<u64> {
        let awake = self.awake.iter().filter_map(|at| {
            let due = self.list[*at].group.next_deadline(self.now)?;
            Some(self.now + due.max(1))
        });
        awake.chain(self.timers.first().map(|(due, _)| *due)).min()
    }

    /// Takes those whose log may have something to give up.
    pub(super) fn take_dirty(&mut self, all: bool) -> Vec<usize> {
        for at in std::mem::take(&mut self.dirty) {
            self.list[at].is_dirty = false;
            if !all {
                self.dirty.push(at);
            }
        }
        if all {
            return (0..self.list.len()).collect();
        }
        std::mem::take(&mut self.dirty)
    }

    /// This one is to be looked at again.
    pub(super) fn keep_dirty(&mut self, at: usize) {
        if !std::mem::replace(&mut self.list[at].is_dirty, true) {
            self.dirty.push(at);
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn place(&self, group: GroupId) -> Option<usize> {
        self.index.get(&group).copied()
    }

    /// Notes whether somebody else votes in a group that is awake.
    pub(super) fn set_shared(&mut self, n: usize, is_shared: bool) {
        let slot = &mut self.list[self.awake[n]];
        if slot.is_shared != is_shared {
            slot.is_shared = is_shared;
            self.shared = if is_shared {
                self.shared + 1
            } else {
                self.shared - 1
            };
        }
    }

    /// True when this member is the only voter of every group.
    pub(super) fn is_alone(&self) -> bool {
        self.shared == 0
    }
}

impl<S: StateMachine> Slot<S> {
    /// Awake, with everything to be looked at.
    fn new(group: Group<S>, ticked_at: u64) -> Self {
        Self {
            published: Arc::default(),
            reads: Vec::new(),
            members: Membership::default(),
            replaced: None,
            is_guarded: false,
            is_shared: false,
            is_dirty: true,
            is_awake: true,
            is_collected: false,
            ticked_at,
            due: None,
            group,
        }
    }

    /// Where the state stands that waits for another one.
    pub(super) fn wants_state_above(&self) -> Option<Index> {
        let waits = self.group.is_held() && !self.group.is_restoring();
        waits.then(|| self.group.applied())
    }

    fn pass(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.ticked_at);
        if elapsed > 0 {
            self.ticked_at = now;
            self.group.tick(now, elapsed);
        } else if self.group.waits_for_clock() {
            self.group.clock_read();
        }
    }
}
