//! Which stores are alive: one exchange per pair of stores, however many groups they share.
//!
//! Members of an idle group need to know whether its leader is still there, and nothing else; so they ask about the
//! leader's *store*, and an idle group costs no message. Each store sends every other one that it shares a group with a
//! [`Beat`] at an interval, and takes for dead what it has not heard of for longer than a bound.
//!
//! # Epochs
//! A beat carries its sender's epoch, which grows with every start, and the epoch in which it has last heard the
//! receiver. A store counts as alive *for us* only while it says that it hears us, in our epoch: a link that lets messages
//! pass in one direction only makes both ends dead to each other, and a store that restarted is not mistaken for the run
//! that came before. What was believed of an older epoch is forgotten, and a message of an older epoch is dropped.
//!
//! # What it is not
//! An answer is a hint about the past: the other store may have stopped since, and a beat counts from when it arrives,
//! however long it was under way. It decides when a member looks for a new
//! leader, and never stands for the quorum contact of a ReadIndex round or of a keepalive, nor for a vote: those ask the
//! group itself.
//!
//! Time is ticks; it sends nothing by itself, and depends on nothing but what it is told.

use std::collections::BTreeMap;

use raft_log::{NodeId, StoreId};

use crate::TICK_MS;

/// Stores at most that one exchanges beats with; a cluster is smaller.
pub const PEERS_MAX: usize = 1_024;

/// How often is spoken, and how long silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Ticks between two beats to a store. Default 10: 100 ms. At least 1.
    pub interval_ticks: u64,
    /// Ticks without a beat that confirms ours, after which a store counts as dead. Default 100: one second. More than
    /// two intervals, so that one lost beat is no death.
    pub timeout_ticks: u64,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self {
            interval_ticks: 100 / TICK_MS,
            timeout_ticks: 1_000 / TICK_MS,
        }
    }
}

/// One message between two stores. It may be lost, doubled or late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The sender's store, so that another disk under a known member is seen.
    pub store: StoreId,
    /// The sender's epoch: its boot id.
    pub epoch: u64,
    /// Counts the sender's beats in that epoch, from 1.
    pub number: u64,
    /// The newest epoch in which the sender has heard the receiver; 0 when it has not, or not for too long.
    pub heard: u64,
    /// The sender's disk is full: its groups cannot take entries.
    pub full: bool,
}

/// What is known of one store.
#[derive(Clone, Debug, Default)]
struct Peer {
    /// The store behind the member, once it is known.
    store: Option<StoreId>,
    epoch: u64,
    /// The newest beat of that epoch.
    number: u64,
    /// When it was last heard.
    heard_at: Option<u64>,
    /// When it last said that it hears this run.
    confirmed_at: Option<u64>,
    /// What it said last of its disk.
    full: bool,
    /// When it is sent the next beat.
    due: u64,
    sent: u64,
}

/// How a member's store is doing, as far as one can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It was heard, and heard us, within the bound.
    Alive,
    /// It was heard within the bound, but does not hear us.
    OneWay,
    /// Nothing was heard of it within the bound.
    Dead,
    /// It has a store that is not the one it had: a wiped or an exchanged disk.
    Foreign,
}

/// What this store knows of the others.
#[derive(Debug)]
pub struct Liveness {
    store: StoreId,
    epoch: u64,
    /// This store's disk is full.
    full: bool,
    config: LivenessConfig,
    peers: BTreeMap<NodeId, Peer>,
    foreign: BTreeMap<NodeId, StoreId>,
}

impl Liveness {
    /// For this store's run `epoch`: the durable counter of its starts.
    ///
    /// # Panics
    /// If the settings are out of their bounds, or the epoch is 0.
    #[must_use]
    pub fn new(store: StoreId, epoch: u64, config: LivenessConfig) -> Self {
        assert!(epoch > 0, "epochs count from 1");
        assert!(config.interval_ticks > 0, "an interval is at least a tick");
        assert!(
            config.timeout_ticks > 2 * config.interval_ticks,
            "one lost beat is no death"
        );
        Self {
            store,
            epoch,
            full: false,
            config,
            peers: BTreeMap::new(),
            foreign: BTreeMap::new(),
        }
    }

    /// Says with which members a group is shared, from now on. `stores` has those whose store is known. Others are
    /// forgotten.
    ///
    /// # Panics
    /// If there are more than [`PEERS_MAX`].
    pub fn set_peers(&mut self, now: u64, stores: &BTreeMap<NodeId, Option<StoreId>>) {
        assert!(stores.len() <= PEERS_MAX, "a cluster has few stores");
        self.peers.retain(|id, _| stores.contains_key(id));
        self.foreign.retain(|id, _| stores.contains_key(id));
        for (id, store) in stores {
            let peer = self.peers.entry(*id).or_insert_with(|| Peer {
                due: now,
                ..Peer::default()
            });
            if store.is_some() && peer.store != *store {
                let (due, sent) = (peer.due, peer.sent);
                *peer = Peer {
                    store: *store,
                    due,
                    sent,
                    ..Peer::default()
                };
                self.foreign.remove(id);
            }
        }
    }

    /// Says whether this store's disk is full, from the next beats on.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// The beats that are due. They are sent to members, whatever group they are shared in.
    pub fn take_due(&mut self, now: u64) -> Vec<(NodeId, Beat)> {
        let Self {
            store,
            epoch,
            full,
            config,
            ref mut peers,
            ..
        } = *self;
        let mut beats = Vec::new();
        for (id, peer) in peers {
            if peer.due > now {
                continue;
            }
            // From now, not from when it was due: after a pause there is nothing to make up for.
            peer.due = now + config.interval_ticks;
            peer.sent += 1;
            let heard = if within(peer.heard_at, now, config.timeout_ticks) {
                peer.epoch
            } else {
                0
            };
            let number = peer.sent;
            beats.push((
                *id,
                Beat {
                    store,
                    epoch,
                    number,
                    heard,
                    full,
                },
            ));
        }
        beats
    }

    /// A beat came. One of a store that is no peer, or that is older than what was heard, changes nothing.
    pub fn receive(&mut self, now: u64, from: NodeId, beat: Beat) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        if *peer.store.get_or_insert(beat.store) != beat.store {
            self.foreign.insert(from, beat.store);
            return;
        }
        if (beat.epoch, beat.number) <= (peer.epoch, peer.number) {
            return;
        }
        if beat.epoch > peer.epoch {
            // That it heard us was said by a run that is over.
            peer.confirmed_at = None;
        }
        (peer.epoch, peer.number) = (beat.epoch, beat.number);
        peer.full = beat.full;
        self.foreign.remove(&from);
        peer.heard_at = Some(now);
        if beat.heard == self.epoch {
            peer.confirmed_at = Some(now);
        }
    }

    /// How a member's store is doing; dead when it is no peer.
    #[must_use]
    pub fn health(&self, now: u64, id: NodeId) -> Health {
        let Some(peer) = self.peers.get(&id) else {
            return Health::Dead;
        };
        let bound = self.config.timeout_ticks;
        if self.foreign.contains_key(&id) {
            Health::Foreign
        } else if within(peer.confirmed_at, now, bound) {
            Health::Alive
        } else if within(peer.heard_at, now, bound) {
            Health::OneWay
        } else {
            Health::Dead
        }
    }

    /// True when a group whose leader lives there need not look for another one. A hint, and no quorum contact.
    #[must_use]
    pub fn is_alive(&self, now: u64, id: NodeId) -> bool {
        self.health(now, id) == Health::Alive
    }

    /// True when a group's leader may move there: the store is alive and its disk takes entries. A hint as well.
    #[must_use]
    pub fn has_room(&self, now: u64, id: NodeId) -> bool {
        self.is_alive(now, id) && self.peers.get(&id).is_some_and(|peer| !peer.full)
    }

    /// The run of a member's store that was heard last; 0 before the first beat.
    #[must_use]
    pub fn epoch_of(&self, id: NodeId) -> u64 {
        self.peers.get(&id).map_or(0, |peer| peer.epoch)
    }

    /// The next tick at which a beat is due, or a store that is alive now may count as dead.
    #[must_use]
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let bound = self.config.timeout_ticks;
        let ends = self.peers.values().filter_map(|peer| {
            let end = peer.confirmed_at? + bound + 1;
            Some(end).filter(|end| *end > now)
        });
        let due = self.peers.values().map(|peer| peer.due);
        due.chain(ends).min()
    }
}

fn within(at: Option<u64>, now: u64, bound: u64) -> bool {
    at.is_some_and(|at| now.saturating_sub(at) <= bound)
}
