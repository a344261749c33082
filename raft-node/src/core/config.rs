//! Settings of a core, and what it is restored from.

use std::fmt;

use super::incarnation::Incarnation;
use super::membership::Membership;
use crate::{GroupId, HardState, Index, NodeId, Term};

/// Settings. A tick is 10 ms wherever real time drives the core.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member; never zero.
    pub id: NodeId,
    /// The group, for messages of assertions.
    pub group: GroupId,
    /// Ticks between heartbeats of a leader; at least 1. Default 10.
    pub heartbeat_ticks: u64,
    /// Ticks without a leader until a member campaigns, at least: each wait is drawn from `[n, 2n)`. More than
    /// `heartbeat_ticks`, or followers campaign against a live leader. Default 100.
    pub election_ticks: u64,
    /// Ticks that one write may take; at least 1. Past it a leader hands over or steps down, and others do not campaign. A
    /// sole voter waits. Default 200.
    pub persist_ticks_max: u64,
    /// Ticks for which a leader that a majority has answered reads without a round; 0 for never. Less than
    /// `election_ticks`. Default 0.
    ///
    /// Danger: it assumes that while one member counts `election_ticks`, no other counts less than `lease_ticks`: clocks
    /// that go faster or slower than that make reads stale. Nine tenths of `election_ticks` bear a difference of ten
    /// percent. All members of a group have it, with the same `election_ticks`, before any of them may lead with it.
    pub lease_ticks: u64,
    /// Ticks for which a leader waits to hear of a snapshot that a member needs, before it takes the transfer for failed;
    /// at least 1. Default 6,000: one minute.
    pub snapshot_ticks_max: u64,
    /// Ticks without work after which a group sleeps, where its members may ([`super::Core::allow_sleep`]); 0 for never.
    /// Default 100.
    pub sleep_ticks: u64,
    /// Payload bytes of one append message, plus one entry. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Append messages on their way to one member. Default 512.
    pub inflight_messages_max: usize,
    /// Payload bytes on their way to one member. Default 16 MiB.
    pub inflight_bytes_max: usize,
    /// Payload bytes proposed and not committed; past it proposals are refused. Default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Payload bytes kept in memory for members that are not far behind; older entries are fetched. Default 8 MiB.
    pub window_bytes_max: usize,
    /// A number that no earlier run of this member used; zero when there is none, and then only a leader reads. It keeps a
    /// late answer to a question of an earlier run from serving a stale read. Default 0.
    pub boot: u64,
    /// Where the jitter of elections comes from.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: NodeId::ZERO,
            group: GroupId(1),
            heartbeat_ticks: 10,
            election_ticks: 100,
            persist_ticks_max: 200,
            lease_ticks: 0,
            snapshot_ticks_max: 6_000,
            sleep_ticks: 100,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 512,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            window_bytes_max: 8 << 20,
            boot: 0,
            seed: 0,
        }
    }
}

/// Settings that were checked.
#[derive(Clone, Debug)]
pub struct ValidConfig(pub(super) Config);

/// A setting out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(&'static str);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Checks all settings.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let checks = [
            (
                self.id != NodeId::ZERO,
                "the member id is zero; ids start at 1",
            ),
            (
                self.heartbeat_ticks >= 1,
                "the heartbeat interval is below one tick of 10 ms",
            ),
            (
                self.election_ticks > self.heartbeat_ticks,
                "the election timeout is not above the heartbeat interval; use at least five times as much",
            ),
            (
                self.persist_ticks_max >= 1,
                "the time that a write may take is below one tick of 10 ms",
            ),
            (
                self.lease_ticks < self.election_ticks,
                "the lease is not below the election timeout; use at most nine tenths of it",
            ),
            (
                self.snapshot_ticks_max >= 1,
                "the time without news of a snapshot is below one tick of 10 ms",
            ),
            (
                self.message_bytes_max > 0,
                "append messages need room for at least one byte",
            ),
            (
                self.inflight_messages_max > 0,
                "at least one append message must be in flight",
            ),
            (
                self.inflight_bytes_max > 0,
                "at least one byte must be in flight",
            ),
            (
                self.uncommitted_bytes_max > 0,
                "at least one byte must be allowed uncommitted",
            ),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, message)) => Err(ConfigError(message)),
            None => Ok(ValidConfig(self)),
        }
    }
}

/// What a core is restored from.
#[derive(Clone, Debug, Default)]
pub struct Initial {
    /// Term, vote and commit index; the commit index lies between the base and the last index.
    pub hard_state: HardState,
    /// The last index that is not in the log.
    pub base_index: Index,
    /// Its term.
    pub base_term: Term,
    /// The last index in the log, all of which is durable.
    pub last_index: Index,
    /// The terms of the log's entries: the first index of each run, and its term.
    pub terms: Vec<(Index, Term)>,
    /// The last index that the state machine has applied.
    pub applied: Index,
    /// The membership as of `applied`. A member that joins and knows none yet starts with the voters that it was told of,
    /// without itself: it does not campaign until an entry names it.
    pub membership: Membership,
    /// Memberships of entries above `applied`, ascending by index.
    pub changes: Vec<(Index, Membership)>,
    /// Which log this is, and whether it may have lost something. Both are durable before the member is started; a sole voter
    /// that is guarded would wait for itself for ever.
    pub incarnation: Incarnation,
}
