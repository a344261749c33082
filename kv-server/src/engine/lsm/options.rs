//! The settings of the engine on disk, and how they become the tree's.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lsm_tree::compaction::{Factory, Leveled};
use lsm_tree::config::{
    BlockSizePolicy, BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
    RestartIntervalPolicy,
};
use lsm_tree::{Cache, Config, DescriptorTable, SequenceNumberCounter};

use crate::engine::EngineError;

/// Settings of an [`LsmEngine`](super::LsmEngine).
#[derive(Clone, Debug)]
pub struct LsmOptions {
    /// Bytes in memory after which a memtable is sealed and flushed; default 16 MiB, at least 1 KiB. A restart replays
    /// up to three times as much from the log.
    pub memtable_bytes: u64,
    /// Bytes in memory that are not on disk at which a write waits for a flush; default 64 MiB, at least four times
    /// `memtable_bytes`.
    pub unpersisted_bytes_max: u64,
    /// The same while the disk is full, where waiting helps nobody: past it a write fails and the store stops. Default
    /// 128 MiB, at least `unpersisted_bytes_max`. What the front end had accepted before it saw
    /// [`out_of_space`](crate::engine::Engine::out_of_space) must fit between the two.
    pub full_disk_bytes_max: u64,
    /// Bytes of blocks and indexes kept in memory; default 32 MiB. All filters, the indexes of the newest tables, and the
    /// upper level of all others, are in memory beside it.
    pub cache_bytes: u64,
    /// Bytes of a data block; default 4 KiB, 512 bytes to 1 MiB. Larger ones make scans faster and point gets slower.
    pub block_bytes: u32,
    /// Entries of a data block after which a key is written in full; default 8, at least 1.
    pub restart_interval: u8,
    /// Bytes of a table; default 16 MiB, at least 1 KiB. Larger ones make each compaction longer.
    pub table_bytes: u64,
    /// Flushed tables that start a compaction; default 4, 2 to 12.
    pub flushed_tables_max: u8,
    /// Bits per key of the filters that answer most gets of missing keys; default 10.
    pub filter_bits: f32,
    /// Table files kept open; default 256, at least 8.
    pub open_files_max: usize,
    /// Hears how long each flush took. Default nobody.
    pub observe_flush: FlushObserver,
}

/// Who hears of flushes.
#[derive(Clone, Default)]
pub struct FlushObserver(pub Option<Arc<dyn Fn(Duration) + Send + Sync>>);

impl fmt::Debug for FlushObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushObserver").finish_non_exhaustive()
    }
}

impl Default for LsmOptions {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            memtable_bytes: 16 * MIB,
            unpersisted_bytes_max: 64 * MIB,
            full_disk_bytes_max: 128 * MIB,
            cache_bytes: 32 * MIB,
            block_bytes: 4096,
            restart_interval: 8,
            table_bytes: 16 * MIB,
            flushed_tables_max: 4,
            filter_bits: 10.0,
            open_files_max: 256,
            observe_flush: FlushObserver::default(),
        }
    }
}

impl LsmOptions {
    /// Checks the bounds.
    pub(super) fn validate(&self) -> Result<(), EngineError> {
        let rules = [
            (self.memtable_bytes >= 1024, "memtable_bytes is under 1 KiB"),
            (
                self.unpersisted_bytes_max >= self.memtable_bytes.saturating_mul(4),
                "unpersisted_bytes_max is under four times memtable_bytes",
            ),
            (
                self.full_disk_bytes_max >= self.unpersisted_bytes_max,
                "full_disk_bytes_max is under unpersisted_bytes_max",
            ),
            (
                (512..=1 << 20).contains(&self.block_bytes),
                "block_bytes is not within 512 bytes and 1 MiB",
            ),
            (self.restart_interval >= 1, "restart_interval is zero"),
            (self.table_bytes >= 1024, "table_bytes is under 1 KiB"),
            (
                (2..=12).contains(&self.flushed_tables_max),
                "flushed_tables_max is not within 2 and 12",
            ),
            (
                (0.0..=64.0).contains(&self.filter_bits),
                "filter_bits is not within 0 and 64",
            ),
            (self.open_files_max >= 8, "open_files_max is under 8"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(EngineError::new("check the engine's options", *broken)),
            None => Ok(()),
        }
    }

    /// The tree's settings. Filters are in memory as a whole, so that a key is looked for where it is, mostly: two records of a key
    /// take two to three bytes of them. So is the index of the newest tables; those of the others are in pages, of which
    /// the cache holds those in use.
    pub(super) fn config(
        &self,
        dir: &Path,
        sequence: &SequenceNumberCounter,
        filter: Arc<dyn Factory>,
    ) -> Config {
        let bloom = BloomConstructionPolicy::BitsPerKey(self.filter_bits);
        Config::new(dir, sequence.clone(), SequenceNumberCounter::default())
            .use_cache(Arc::new(Cache::with_capacity_bytes(self.cache_bytes)))
            .use_descriptor_table(Some(Arc::new(DescriptorTable::new(self.open_files_max))))
            .data_block_size_policy(BlockSizePolicy::all(self.block_bytes))
            .data_block_restart_interval_policy(RestartIntervalPolicy::all(self.restart_interval))
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(bloom)))
            .filter_block_pinning_policy(PinningPolicy::all(true))
            .index_block_pinning_policy(PinningPolicy::new([true, false]))
            .filter_block_partitioning_policy(PinningPolicy::all(false))
            .index_block_partitioning_policy(PinningPolicy::new([false, true]))
            .with_compaction_filter_factory(Some(filter))
    }

    /// How tables are merged into the levels below.
    pub(super) fn strategy(&self) -> Arc<Leveled> {
        Arc::new(
            Leveled::default()
                .with_table_target_size(self.table_bytes)
                .with_l0_threshold(self.flushed_tables_max),
        )
    }
}
