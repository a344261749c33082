//! The state machine of a linear keyspace: the only writer. Driven by the host thread.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use multiraft::forward::{Origin, Outcomes};
use multiraft::{Cut, InlineTasks, SnapshotState, Tasks};
use prost::Message;
use raft_log::{GroupId, SnapshotRef};
use raft_node::core::Membership;
use raft_node::{Applied, ApplyError, Entry, EntryKind, Index, StateMachine, TickContext};

use super::alarms::Alarms;
use super::auth::Auth;
use super::cache::Cache;
use super::codec::{self, Keys, LEASE, Meta};
use super::compact::Compactor;
use super::duplicates::{self, Duplicates};
use super::install::{Install, Sweep};
use super::keyspaces::Keyspaces;
use super::members::Members;
use super::range_cache::RangeCache;
use super::read::{Fail, Read};
use super::size;
use super::snapshot::{Generation, KvCut};
use super::state_check::{CheckSink, StateCut};
use super::store::Store;
use super::types::{CommandOutput, CommandResult, EventSink, LeaseInfo, LeaseSink};
use super::write::{LeaseNews, Writer};
use crate::auth::{TokenNews, TokenSink};
use crate::engine::{Change, Engine, EngineBatch, EngineError, Snapshot};
use crate::pb::command::{Command, MemberChange};
use crate::testing::{Bug, bug};

/// Bytes of a snapshot that one step of an install writes, about: a few milliseconds.
const INSTALL_STEP_BYTES: usize = 1 << 20;

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
    /// Keys that ranges found one by one until all are counted, so that from then on ranges are counted in blocks, and those that
    /// are read often are kept in memory. Default 20,000.
    pub count_worth_keys: u64,
    /// Where the latter are kept: one for all keyspaces of a node. Default one of its own.
    pub ranges: Arc<RangeCache>,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            group: GroupId(1),
            cache_entries: 65_536,
            compaction_step: 256,
            count_worth_keys: 20_000,
            ranges: Arc::default(),
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
    members: Members,
    keyspaces: Keyspaces,
    alarms: Alarms,
    auth: Auth,
    tokens: Option<Arc<dyn TokenSink>>,
    outcomes: Option<Arc<Outcomes<CommandOutput>>>,
    checks: Option<Arc<dyn CheckSink>>,
    compactor: Option<Compactor>,
    install: Option<Install>,
    install_step_bytes: usize,
    sweep: Option<Sweep>,
    /// Generations that were replaced and that somebody may still read.
    replaced: Vec<Generation>,
    tasks: Arc<dyn Tasks>,
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
        let mut meta = meta.unwrap_or_else(Meta::new);
        keys.generation = meta.generation;
        let snapshot = engine.snapshot();
        if meta.bytes.is_none() {
            meta.bytes = Some(size::walk(&snapshot, keys)?);
        }
        let leases = load_leases(&snapshot, keys)?;
        for lease in leases.values() {
            sinks.leases.granted(*lease);
        }
        let duplicates = Duplicates::load(&snapshot, keys)?;
        let members = Members::load(&snapshot, keys, &meta)?;
        let keyspaces = Keyspaces::load(&snapshot, keys)?;
        let alarms = Alarms::load(&snapshot, keys)?;
        let auth = Auth::load(&snapshot, keys)?;
        let sweep = Sweep::if_needed(&engine, keys)?;
        let store = Store::new(Arc::clone(&engine), &options, keys, &meta, leases.clone());
        let store = Arc::new(store);
        store.publish_members(members.table());
        store.publish_keyspaces(keyspaces.table());
        store.publish_alarms(alarms.list());
        store.publish_auth(Arc::clone(auth.state()));
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
            members,
            keyspaces,
            alarms,
            auth,
            tokens: None,
            outcomes: None,
            checks: None,
            compactor: None,
            install: None,
            install_step_bytes: INSTALL_STEP_BYTES,
            sweep,
            replaced: Vec::new(),
            tasks: Arc::new(InlineTasks),
            last_tick: 0,
        };
        machine.schedule();
        Ok((machine, store))
    }

    /// Names who hears what became of forwarded commands.
    pub fn report_forwarded(&mut self, outcomes: Arc<Outcomes<CommandOutput>>) {
        self.outcomes = Some(outcomes);
    }

    /// Names who remembers tokens; nobody does unless this is called.
    pub fn tell_tokens(&mut self, tokens: Arc<dyn TokenSink>) {
        self.tokens = Some(tokens);
    }

    /// Names who gets a cut of the state when an entry asks for one; nobody does unless this is called.
    pub fn check_state(&mut self, checks: Arc<dyn CheckSink>) {
        self.checks = Some(checks);
    }

    /// Lets a step of an install write about so many bytes; 1 MiB unless this is called.
    pub fn install_in_steps_of(&mut self, bytes: usize) {
        self.install_step_bytes = bytes;
    }

    /// Names who gives space back after a snapshot was installed, inline if nobody is named; and who makes counts of keys, of
    /// which there are none if nobody is.
    pub fn run_tasks_on(&mut self, tasks: Arc<dyn Tasks>) {
        let store = Arc::downgrade(&self.store);
        self.store.counting().walk_by(Arc::clone(&tasks), store);
        self.tasks = tasks;
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
        self.meta.shrink(step.deletes.values().sum());
        let deletes = step.deletes.into_keys().map(|key| (key, Change::Delete));
        self.write(deletes.collect())?;
        self.store.publish(&self.meta);
        Ok(())
    }

    /// One bounded step of removing what a snapshot replaced, or what an install left that was cut short.
    fn sweep_step(&mut self) -> Result<(), EngineError> {
        let Some(sweep) = self.sweep.as_mut().filter(|_| self.install.is_none()) else {
            return Ok(());
        };
        let budget = self.options.compaction_step.max(1);
        let deletes = sweep.step(
            &self.engine,
            &self.tasks,
            self.keys,
            &mut self.replaced,
            budget,
        )?;
        match deletes {
            Some(deletes) if deletes.is_empty() => Ok(()),
            Some(deletes) => {
                let deletes = deletes.into_iter().map(|key| (key, Change::Delete));
                self.write(deletes.collect())
            }
            None => {
                self.sweep = None;
                Ok(())
            }
        }
    }

    /// Makes a snapshot that is written as a whole the state, in one engine batch, and tells everybody.
    fn replace(&mut self, install: Install) -> Result<(), EngineError> {
        let Install { keys, meta, .. } = install;
        let snapshot = self.engine.snapshot();
        let leases = load_leases(&snapshot, keys)?;
        let duplicates = Duplicates::load(&snapshot, keys)?;
        let members = Members::load(&snapshot, keys, &meta)?;
        let keyspaces = Keyspaces::load(&snapshot, keys)?;
        let alarms = Alarms::load(&snapshot, keys)?;
        let auth = Auth::load(&snapshot, keys)?;
        drop(snapshot);
        let changes = BTreeMap::from([(keys.meta(), Change::Put(meta.encode()))]);
        let applied = Some((self.options.group, meta.index));
        let batch = EngineBatch { changes, applied };
        let engine = &self.engine;
        let former = self
            .store
            .replace(&meta, leases.clone(), || engine.write(batch))?;
        self.replaced.push(former);
        self.store.publish_members(members.table());
        self.members = members;
        self.store.publish_keyspaces(keyspaces.table());
        self.keyspaces = keyspaces;
        self.store.publish_alarms(alarms.list());
        self.alarms = alarms;
        self.store.publish_auth(Arc::clone(auth.state()));
        self.auth = auth;
        // What became of them in the entries between is not known.
        if let Some(tokens) = &self.tokens {
            tokens.cleared();
        }
        for id in self.leases.keys() {
            self.sinks.leases.revoked(*id);
        }
        for lease in leases.values() {
            self.sinks.leases.granted(*lease);
        }
        if !bug(Bug::InstallKeepsCache) {
            self.cache = Cache::new(self.options.cache_entries);
        }
        (self.keys, self.leases) = (keys, leases);
        if !bug(Bug::InstallKeepsDuplicates) {
            self.duplicates = duplicates;
        }
        self.meta = meta;
        self.compactor = None;
        self.schedule();
        self.sweep = Some(Sweep::new());
        if let Some(outcomes) = &self.outcomes {
            outcomes.jumped(self.options.group);
        }
        self.sinks.events.jumped(self.meta.revision);
        self.sinks.events.auth_changed();
        Ok(())
    }

    /// Applies entries in one engine batch, up to the first that asks for a cut of the state; says how many.
    fn apply_batch(
        &mut self,
        entries: &[Entry],
        membership: Option<&Membership>,
        outputs: &mut Vec<CommandOutput>,
    ) -> Result<usize, ApplyError> {
        let before = outputs.len();
        let mut writer = Writer {
            engine: self.engine.as_ref(),
            keys: self.keys,
            cache: &mut self.cache,
            leases: &mut self.leases,
            duplicates: &mut self.duplicates,
            members: &mut self.members,
            keyspaces: &mut self.keyspaces,
            alarms: &mut self.alarms,
            auth: &mut self.auth,
            meta: self.meta.clone(),
            changes: BTreeMap::new(),
            notes: Vec::new(),
            events: Vec::new(),
            revisions: Vec::new(),
            lease_news: Vec::new(),
            compacted: None,
            check: false,
            snapshot: OnceCell::new(),
            store: &self.store,
            applied: self.meta.index,
            counts: OnceCell::new(),
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
            if writer.check {
                break;
            }
        }
        let Writer {
            mut meta,
            mut changes,
            notes,
            revisions,
            lease_news,
            compacted,
            check,
            counts,
            ..
        } = writer;
        // Whoever brings them on copies what somebody holds.
        drop(counts);
        if !revisions.is_empty() {
            let record = codec::encode_revisions(revisions.iter().map(Arc::as_ref));
            let record = record.map_err(|error| ApplyError(Box::new(error)))?;
            let key = self.keys.revision(meta.revision);
            meta.grow(key.len() + record.len());
            changes.insert(key, Change::Put(record));
        }
        self.duplicates.flush(self.keys, &mut changes);
        self.meta = meta;
        self.write(changes)
            .map_err(|error| ApplyError(Box::new(error)))?;
        let (counting, engine) = (self.store.counting(), &self.engine);
        counting.applied(self.meta.index, &revisions, notes, self.keys, || {
            engine.snapshot()
        });
        if let Some(outcomes) = &self.outcomes {
            for (origin, output) in forwarded {
                outcomes.applied(self.options.group, &origin, &outputs[output]);
            }
        }
        if !lease_news.is_empty() {
            self.store.publish_leases(&lease_news);
        }
        if let Some(table) = self.members.take_changed(self.meta.index) {
            self.store.publish_members(table);
        }
        if let Some(table) = self.keyspaces.take_changed() {
            self.store.publish_keyspaces(table);
        }
        if std::mem::take(&mut self.alarms.changed) {
            self.store.publish_alarms(self.alarms.list());
        }
        for news in self.auth.take_news() {
            let Some(tokens) = &self.tokens else { continue };
            match news {
                TokenNews::Assigned { token, user } => tokens.assigned(&token, &user),
                TokenNews::Invalidated(user) => tokens.invalidated(&user),
                TokenNews::Cleared => tokens.cleared(),
            }
        }
        // Before the events, so that nobody is sent one that came after the permission was lost.
        if let Some(auth) = self.auth.take_changed() {
            self.store.publish_auth(auth);
            self.sinks.events.auth_changed();
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
        if let (true, Some(checks)) = (check, &self.checks) {
            let opened = self
                .store
                .open()
                .map_err(|error| ApplyError(Box::new(error)))?;
            checks.cut(StateCut::new(opened));
        }
        Ok(outputs.len() - before)
    }
}

fn load_leases(
    snapshot: &Arc<dyn Snapshot>,
    keys: Keys,
) -> Result<BTreeMap<i64, LeaseInfo>, EngineError> {
    let mut leases = BTreeMap::new();
    for pair in snapshot.scan(&keys.first(LEASE), &keys.end(LEASE)) {
        let (key, record) = pair?;
        let lease = codec::decode_lease(&key, record)?;
        leases.insert(lease.id, lease);
    }
    Ok(leases)
}

/// The output of an entry, and who forwarded it, when somebody did and it took effect.
fn apply_entry(
    writer: &mut Writer<'_>,
    entry: &Entry,
    membership: Option<&Membership>,
) -> Result<(CommandOutput, Option<Origin>), ApplyError> {
    let nothing = (Ok(CommandResult::None), None);
    let damage = |what: String| {
        ApplyError(
            format!(
                "entry {} is not a command of this version: {what}",
                entry.index
            )
            .into(),
        )
    };
    if entry.kind == EntryKind::Config {
        let membership = membership.expect("a membership comes with each change of it");
        let context =
            Membership::context(&entry.payload).map_err(|error| damage(error.to_string()))?;
        let change = MemberChange::decode(context).map_err(|error| damage(error.to_string()))?;
        writer.duplicates.keep_members(membership);
        let before = writer.meta.membership.as_ref().map(|(_, members)| members);
        writer
            .members
            .change(change, before, membership, writer.keys, &mut writer.changes);
        writer
            .alarms
            .keep(membership, writer.keys, &mut writer.changes);
        writer.meta.membership = Some((entry.index, membership.clone()));
        return Ok(nothing);
    }
    if entry.payload.is_empty() {
        return Ok(nothing);
    }
    let origin = duplicates::origin(&entry.payload).map_err(|error| damage(error.to_string()))?;
    if let Some(origin) = origin {
        let members = writer.meta.membership.as_ref();
        let admitted = writer
            .duplicates
            .admit(&origin, members.map(|(_, members)| members));
        if !admitted && !bug(Bug::ForgetDuplicates) {
            return Ok(nothing);
        }
    }
    let command =
        Command::decode(entry.payload.clone()).map_err(|error| damage(error.to_string()))?;
    let op = command
        .op
        .ok_or_else(|| damage("it has no operation".to_owned()))?;
    let caller = duplicates::caller(&entry.payload).map_err(|error| damage(error.to_string()))?;
    if bug(Bug::ApplyTwice) {
        drop(writer.execute(op.clone(), caller.as_ref(), entry.index));
    }
    match writer.execute(op, caller.as_ref(), entry.index) {
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
        assert!(
            self.install.is_none(),
            "nothing is applied while a snapshot is installed"
        );
        let mut rest = entries;
        while !rest.is_empty() {
            let applied = self.apply_batch(rest, membership, outputs)?;
            rest = &rest[applied..];
        }
        Ok(())
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
        if let Err(error) = self.sweep_step() {
            // What stays only costs space; the next open begins again.
            tracing::error!(%error, "removing a replaced state stopped");
            self.sweep = None;
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        let lease = self.sinks.leases.next_deadline();
        let works = self.compactor.is_some() || self.sweep.is_some();
        let next = works.then_some(self.last_tick + 1);
        lease.into_iter().chain(next).min()
    }
}

impl SnapshotState for KvStateMachine {
    fn cut(&self) -> Box<dyn Cut> {
        let generation = self.store.generation();
        Box::new(KvCut {
            snapshot: self.engine.snapshot(),
            keys: self.keys,
            meta: self.meta.clone(),
            _generation: generation,
        })
    }

    fn begin_install(
        &mut self,
        snapshot: &SnapshotRef,
        content: Box<dyn std::io::Read + Send>,
    ) -> Result<(), ApplyError> {
        let begun = Install::begin(self.keys, &self.meta, snapshot, content);
        self.install = Some(begun.map_err(|error| ApplyError(Box::new(error)))?);
        Ok(())
    }

    fn install_step(&mut self) -> Result<bool, ApplyError> {
        let mut step = || {
            let Some(mut install) = self.install.take() else {
                return Ok(true);
            };
            let is_dropping = self.sweep.as_ref().is_some_and(Sweep::is_dropping);
            // Where tables are being dropped nothing new may be written.
            if is_dropping || !install.step(self.engine.as_ref(), self.install_step_bytes)? {
                self.install = Some(install);
                return Ok(false);
            }
            self.replace(install).map(|()| true)
        };
        step().map_err(|error: EngineError| ApplyError(Box::new(error)))
    }

    fn install_waits(&self) -> bool {
        self.install.is_some() && self.sweep.as_ref().is_some_and(Sweep::is_dropping)
    }
}
