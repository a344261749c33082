//! The state machine of a linear keyspace: the only writer. Driven by the host thread.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use multiraft::forward::{Origin, Outcomes};
use prost::Message;
use raft_log::GroupId;
use raft_node::core::Membership;
use raft_node::{Applied, ApplyError, Entry, EntryKind, Index, StateMachine, TickContext};

use super::cache::Cache;
use super::codec::{self, Keys, LEASE, Meta};
use super::compact::Compactor;
use super::duplicates::{self, Duplicates};
use super::read::{Fail, Read};
use super::store::Store;
use super::types::{CommandOutput, CommandResult, EventSink, LeaseInfo, LeaseSink};
use super::write::{LeaseNews, Writer};
use crate::engine::{Change, Engine, EngineBatch, EngineError};
use crate::pb::command::Command;

/// How a keyspace is kept.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// The group that replicates it.
    pub group: GroupId,
    /// Keys whose metadata is kept in memory so that writes to them read nothing; about 150 bytes each. Default
    /// 65,536.
    pub cache_entries: usize,
    /// Changes that one tick's step of history compaction looks at; at least 1. Default 256: well under a millisecond.
    pub compaction_step: usize,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            group: GroupId(1),
            cache_entries: 65_536,
            compaction_step: 256,
        }
    }
}

/// Who hears of what was applied.
#[derive(Clone)]
pub struct Sinks {
    /// The watch hub.
    pub events: Arc<dyn EventSink>,
    /// The lessor.
    pub leases: Arc<dyn LeaseSink>,
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks").finish_non_exhaustive()
    }
}

/// Applies commands to one keyspace.
pub struct KvStateMachine {
    engine: Arc<dyn Engine>,
    options: KvOptions,
    keys: Keys,
    sinks: Sinks,
    store: Arc<Store>,
    meta: Meta,
    cache: Cache,
    leases: BTreeMap<i64, LeaseInfo>,
    duplicates: Duplicates,
    outcomes: Option<Arc<Outcomes<CommandOutput>>>,
    compactor: Option<Compactor>,
    last_tick: u64,
}

impl fmt::Debug for KvStateMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvStateMachine")
            .field("group", &self.options.group)
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

impl KvStateMachine {
    /// Opens the keyspace of a group at what the engine holds of it, and tells the lessor of each lease.
    ///
    /// # Errors
    /// The engine's, and a record that cannot be decoded.
    pub fn open(
        engine: Arc<dyn Engine>,
        options: KvOptions,
        sinks: Sinks,
    ) -> Result<(Self, Arc<Store>), EngineError> {
        let mut keys = Keys {
            group: options.group,
            generation: 0,
        };
        let meta = engine.get(&keys.meta())?.map(Meta::decode).transpose()?;
        let meta = meta.unwrap_or_else(Meta::new);
        keys.generation = meta.generation;
        let mut leases = BTreeMap::new();
        let snapshot = engine.snapshot();
        for pair in snapshot.scan(&keys.first(LEASE), &keys.end(LEASE)) {
            let (key, record) = pair?;
            let lease = codec::decode_lease(&key, record)?;
            sinks.leases.granted(lease);
            leases.insert(lease.id, lease);
        }
        let duplicates = Duplicates::load(&snapshot, keys)?;
        let store = Arc::new(Store::new(Arc::clone(&engine), keys, &meta, leases.clone()));
        let mut machine = Self {
            cache: Cache::new(options.cache_entries),
            engine,
            options,
            keys,
            sinks,
            store: Arc::clone(&store),
            meta,
            leases,
            duplicates,
            outcomes: None,
            compactor: None,
            last_tick: 0,
        };
        machine.schedule();
        Ok((machine, store))
    }

    /// Names who hears what became of forwarded commands.
    pub fn report_forwarded(&mut self, outcomes: Arc<Outcomes<CommandOutput>>) {
        self.outcomes = Some(outcomes);
    }

    /// Starts the walk to the floor, if it was not finished.
    fn schedule(&mut self) {
        if self.meta.compact > self.meta.compact_finished {
            self.compactor = Some(Compactor::new(self.meta.compact));
        }
    }

    fn write(&mut self, mut changes: BTreeMap<Bytes, Change>) -> Result<(), EngineError> {
        changes.insert(self.keys.meta(), Change::Put(self.meta.encode()));
        let applied = Some((self.options.group, self.meta.index));
        self.engine.write(EngineBatch { changes, applied })
    }

    /// One bounded step of history compaction.
    fn compact_step(&mut self) -> Result<(), EngineError> {
        let Some(compactor) = self.compactor.as_mut() else {
            return Ok(());
        };
        let snapshot = self.engine.snapshot();
        let step = compactor.step(&snapshot, self.keys, self.options.compaction_step.max(1))?;
        if step.finished {
            self.meta.compact_finished = compactor.floor;
            self.compactor = None;
        }
        self.write(
            step.deletes
                .into_iter()
                .map(|key| (key, Change::Delete))
                .collect(),
        )?;
        self.store.publish(&self.meta);
        Ok(())
    }

    fn apply_batch(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<CommandOutput>,
    ) -> Result<(), ApplyError> {
        let mut writer = Writer {
            engine: self.engine.as_ref(),
            keys: self.keys,
            cache: &mut self.cache,
            leases: &mut self.leases,
            duplicates: &mut self.duplicates,
            meta: self.meta.clone(),
            changes: BTreeMap::new(),
            events: Vec::new(),
            revisions: Vec::new(),
            lease_news: Vec::new(),
            compacted: None,
            snapshot: OnceCell::new(),
        };
        let mut forwarded = Vec::new();
        for entry in entries {
            assert_eq!(
                entry.index,
                writer.meta.index.next(),
                "entries are applied in order"
            );
            let (output, origin) = apply_entry(&mut writer, entry, membership)?;
            forwarded.extend(origin.map(|origin| (origin, outputs.len())));
            outputs.push(output);
            writer.meta.index = entry.index;
            writer.meta.term = entry.term;
        }
        let Writer {
            meta,
            mut changes,
            revisions,
            lease_news,
            compacted,
            ..
        } = writer;
        if !revisions.is_empty() {
            let record = codec::encode_revisions(revisions.iter().map(Arc::as_ref));
            let record = record.map_err(|error| ApplyError(Box::new(error)))?;
            changes.insert(self.keys.revision(meta.revision), Change::Put(record));
        }
        self.duplicates.flush(self.keys, &mut changes);
        self.meta = meta;
        self.write(changes)
            .map_err(|error| ApplyError(Box::new(error)))?;
        if let Some(outcomes) = &self.outcomes {
            for (origin, output) in forwarded {
                outcomes.applied(self.options.group, &origin, &outputs[output]);
            }
        }
        if !lease_news.is_empty() {
            self.store.publish_leases(&lease_news);
        }
        self.store.publish(&self.meta);
        if !revisions.is_empty() {
            self.sinks.events.publish(&revisions);
        }
        if let Some(floor) = compacted {
            self.sinks.events.compacted(floor);
            self.schedule();
        }
        for news in lease_news {
            match news {
                LeaseNews::Granted(lease) => self.sinks.leases.granted(lease),
                LeaseNews::Revoked(id) => self.sinks.leases.revoked(id),
                LeaseNews::Checkpointed(id, rest) => self.sinks.leases.checkpointed(id, rest),
            }
        }
        Ok(())
    }
}

/// The output of an entry, and who forwarded it, when somebody did and it took effect.
fn apply_entry(
    writer: &mut Writer<'_>,
    entry: &Entry,
    membership: Option<&Membership>,
) -> Result<(CommandOutput, Option<Origin>), ApplyError> {
    let nothing = (Ok(CommandResult::None), None);
    if entry.kind == EntryKind::Config {
        let membership = membership.expect("a membership comes with each change of it");
        writer.duplicates.keep_members(membership);
        writer.meta.membership = Some((entry.index, membership.clone()));
        return Ok(nothing);
    }
    if entry.payload.is_empty() {
        return Ok(nothing);
    }
    let damage = |what: String| {
        ApplyError(
            format!(
                "entry {} is not a command of this version: {what}",
                entry.index
            )
            .into(),
        )
    };
    let origin = duplicates::origin(&entry.payload).map_err(|error| damage(error.to_string()))?;
    if let Some(origin) = origin {
        let members = writer.meta.membership.as_ref();
        if !writer
            .duplicates
            .admit(&origin, members.map(|(_, members)| members))
        {
            return Ok(nothing);
        }
    }
    let command =
        Command::decode(entry.payload.clone()).map_err(|error| damage(error.to_string()))?;
    let op = command
        .op
        .ok_or_else(|| damage("it has no operation".to_owned()))?;
    match writer.execute(op, entry.index) {
        Ok(result) => Ok((Ok(result), origin)),
        Err(Fail::Api(error)) => Ok((Err(error), origin)),
        Err(Fail::Engine(error)) => Err(ApplyError(Box::new(error))),
    }
}

impl StateMachine for KvStateMachine {
    type Output = CommandOutput;

    fn applied(&self) -> Applied {
        Applied {
            index: self.meta.index,
            term: self.meta.term,
            membership: self.meta.membership.clone(),
        }
    }

    fn durable_index(&self) -> Index {
        self.engine.durable_index(self.options.group)
    }

    fn request_persist(&mut self) {
        if let Err(error) = self.engine.request_persist() {
            // The next write meets the same error and stops the member.
            tracing::error!(%error, "the storage engine cannot persist");
        }
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), ApplyError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.apply_batch(entries, membership, outputs)
    }

    fn tick(&mut self, context: TickContext, proposals: &mut Vec<Bytes>) {
        self.last_tick = context.tick;
        // A commit is known before it is applied: until an entry of its own term is, there may be renewals and
        // expiries of earlier leaders that the lessor has not heard of.
        let leading = context.leading.filter(|term| *term == self.meta.term);
        let for_leases = TickContext { leading, ..context };
        self.sinks.leases.tick(for_leases, proposals);
        if let Err(error) = self.compact_step() {
            // History that stays only costs space; the walk starts again at the next compaction or open.
            tracing::error!(%error, "history compaction stopped");
            self.compactor = None;
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        let lease = self.sinks.leases.next_deadline();
        match self.compactor {
            Some(_) => Some(lease.map_or(self.last_tick + 1, |tick| tick.min(self.last_tick + 1))),
            None => lease,
        }
    }
}
