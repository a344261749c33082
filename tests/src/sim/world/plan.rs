//! What a run is made of, and how its members are set up: all of it from the seed.

use raft_log::NodeId;
use raft_log::vfs::sim::Rng;

use super::fault::{self, SECOND, Scheduled};
use crate::sim::settings::{Settings, SnapshotSettings};

/// How long a leader's lease is, of an election timeout: less than what the fastest clock makes of it for the slowest.
const READ_LEASE_PERCENT: u64 = 85;

/// What a run is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything random comes from it.
    pub seed: u64,
    /// Members.
    pub nodes: usize,
    /// Ticks with clients and faults.
    pub ticks: u64,
    /// What goes wrong.
    pub faults: Vec<Scheduled>,
    /// Faults of the seed were left out.
    pub shortened: bool,
    /// A bug that is put into the product, by its name: see [`crate::sim::bugs`].
    pub bug: Option<String>,
}

impl Plan {
    /// The run of a seed.
    #[must_use]
    pub fn new(seed: u64, nodes: usize, seconds: u64) -> Self {
        let mut plan = Self {
            seed,
            nodes,
            ticks: seconds * SECOND,
            faults: Vec::new(),
            shortened: false,
            bug: None,
        };
        let mut rng = Rng::new(seed ^ 0x000f_a017);
        plan.faults = fault::draw(&mut rng, nodes, plan.ticks);
        plan
    }

    /// The same with a bug in the product.
    #[must_use]
    pub fn with_bug(self, name: impl Into<String>) -> Self {
        let bug = Some(name.into());
        Self { bug, ..self }
    }

    /// The same with those faults only, by their numbers in the seed's list.
    #[must_use]
    pub fn only(mut self, numbers: &[usize]) -> Self {
        self.shortened = true;
        self.faults
            .retain(|scheduled| numbers.contains(&scheduled.number));
        self
    }

    /// The options of `flotilla sim` that run this.
    #[must_use]
    pub fn options(&self) -> String {
        let Self {
            seed, nodes, ticks, ..
        } = self;
        let mut options = format!("--seed {seed} --nodes {nodes} --seconds {}", ticks / SECOND);
        if self.shortened {
            let numbers: Vec<String> = self
                .faults
                .iter()
                .map(|scheduled| scheduled.number.to_string())
                .collect();
            options += &format!(" --faults {}", numbers.join(","));
        }
        if let Some(bug) = &self.bug {
            options += &format!(" --bug {bug}");
        }
        options
    }
}

/// How all members of a run are set up.
pub(super) fn settings(rng: &mut Rng, voters: Vec<NodeId>, seed: u64) -> Settings {
    // Of a number of its own, so that all else is drawn as without.
    let leases = Rng::new(seed ^ 0x1ea5_e000).chance(1, 4);
    let count_worth_keys = [1, 100, 20_000][Rng::new(seed ^ 0xc0_0417).below(3) as usize];
    let mut pick = |from: &[u64]| from[rng.below(from.len() as u64) as usize];
    let heartbeat_ticks = pick(&[5, 10, 10]);
    let election_ticks = 10 * heartbeat_ticks;
    Settings {
        voters,
        // The last one compacts nothing.
        catch_up_entries: pick(&[1, 10, 60, u64::MAX]),
        snapshot_entries: pick(&[8, 32, 256, 4_096]),
        log_cache_bytes: pick(&[4_096, 1 << 20, 32 << 20]) as usize,
        window_bytes: pick(&[0, 4_096, 8 << 20]) as usize,
        key_cache_entries: pick(&[1, 8, 65_536]) as usize,
        compaction_step: pick(&[1, 16, 256]) as usize,
        count_worth_keys,
        election_ticks,
        heartbeat_ticks,
        read_lease_ticks: if leases {
            election_ticks * READ_LEASE_PERCENT / 100
        } else {
            0
        },
        expires: true,
        message_bytes: pick(&[1, 2_000, 1 << 20]) as usize,
        inflight_messages: pick(&[1, 4, 512]) as usize,
        watch_revisions: pick(&[0, 8, 65_536]) as usize,
        forwards: pick(&[0, 1, 1, 1]) == 1,
        snapshots: Some(SnapshotSettings {
            chunk_bytes: pick(&[500, 2_000, 16_000]) as u32,
            sync_bytes: pick(&[4 << 10, 16 << 20]),
            step_bytes: pick(&[500, 4_000, 1 << 20]) as usize,
            hold_ticks: pick(&[50, 300, 6_000]),
            silent_ticks: pick(&[300, 1_000]),
        }),
        seed,
    }
}
