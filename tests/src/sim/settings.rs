//! How a simulated member is set up.

use raft_log::NodeId;

/// How a member is set up; small, so that every mechanism has something to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All voters.
    pub voters: Vec<NodeId>,
    /// Entries kept for members that lag.
    pub catch_up_entries: u64,
    /// Applied entries after which the engine is asked to persist.
    pub snapshot_entries: u64,
    /// Bytes of recent entries that the log keeps in memory.
    pub log_cache_bytes: usize,
    /// Bytes of recent entries that the core keeps in memory.
    pub window_bytes: usize,
    /// Bytes of entries in one message, plus an entry.
    pub message_bytes: usize,
    /// Messages with entries on their way to one member.
    pub inflight_messages: usize,
    /// Revisions that the watch hub keeps in memory.
    pub watch_revisions: usize,
    /// Keys whose metadata the state machine keeps in memory.
    pub key_cache_entries: usize,
    /// Keys that ranges find until all are counted.
    pub count_worth_keys: u64,
    /// Changes that one step of history compaction looks at.
    pub compaction_step: usize,
    /// Ticks without a leader until a member campaigns, at least.
    pub election_ticks: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u64,
    /// Ticks for which a leader reads without a round once a majority has answered it; 0 for never.
    pub read_lease_ticks: u64,
    /// Leases end by themselves, as the product's lessor has it.
    pub expires: bool,
    /// Members serve clients while another one leads. Needs `expires`.
    pub forwards: bool,
    /// Snapshots are made, sent and taken up.
    pub snapshots: Option<SnapshotSettings>,
    /// Where the jitter of elections comes from.
    pub seed: u64,
}

/// How a member's snapshots are set up.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotSettings {
    /// Content bytes of one chunk.
    pub chunk_bytes: u32,
    /// A file is synced each time that it has grown by so much.
    pub sync_bytes: u64,
    /// What one step of an install writes, about.
    pub step_bytes: usize,
    /// Ticks for which a log is held for a snapshot.
    pub hold_ticks: u64,
    /// Ticks without news after which a leader gives a transfer up.
    pub silent_ticks: u64,
}
