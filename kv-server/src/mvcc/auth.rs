//! Users, roles and whether they count, part of applied state: the rows behind [`AuthState`], and what is told of it once a
//! batch is visible.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message;
use raft_log::Index;

use super::codec::{self, AUTH, Fields, Keys, PREFIX, ROLE, USER, damaged};
use super::read::Read;
use crate::auth::{AuthState, TokenNews, Touched};
use crate::engine::{Change, EngineError};
use crate::error::ApiError;
use crate::pb::authpb;
use crate::pb::command::AuthCommand;

/// The tables, as the state machine keeps them.
#[derive(Debug, Default)]
pub(super) struct Auth {
    state: Arc<AuthState>,
    changed: bool,
    /// What happened to tokens in the batch in progress.
    news: Vec<TokenNews>,
}

impl Auth {
    /// Reads the tables.
    pub(super) fn load(read: &dyn Read, keys: Keys) -> Result<Self, EngineError> {
        let config = read
            .get(&keys.first(AUTH))?
            .map(decode_config)
            .transpose()?;
        let mut users = Vec::new();
        for pair in read.scan(&keys.first(USER), &keys.end(USER)) {
            let (key, record) = pair?;
            let user = authpb::User::decode(Fields::of(record)?.rest());
            let user = user.map_err(|_| damaged("a user's record cannot be decoded"))?;
            users.push((name_in(&key)?, user));
        }
        let mut roles = Vec::new();
        for pair in read.scan(&keys.first(ROLE), &keys.end(ROLE)) {
            let (key, record) = pair?;
            let role = authpb::Role::decode(Fields::of(record)?.rest());
            let role = role.map_err(|_| damaged("a role's record cannot be decoded"))?;
            roles.push((name_in(&key)?, role));
        }
        Ok(Self {
            state: Arc::new(AuthState::restore(config, users, roles)),
            ..Self::default()
        })
    }

    /// As it is.
    pub(super) fn state(&self) -> &Arc<AuthState> {
        &self.state
    }

    /// The state, if it changed since the last call.
    pub(super) fn take_changed(&mut self) -> Option<Arc<AuthState>> {
        std::mem::take(&mut self.changed).then(|| Arc::clone(&self.state))
    }

    /// What happened to tokens since the last call.
    pub(super) fn take_news(&mut self) -> Vec<TokenNews> {
        std::mem::take(&mut self.news)
    }

    /// Executes a command; the token is that of who asked for one. An error has changed nothing.
    pub(super) fn execute(
        &mut self,
        command: &AuthCommand,
        index: Index,
        keys: Keys,
        changes: &mut BTreeMap<Bytes, Change>,
    ) -> Result<String, ApiError> {
        let Some(op) = &command.op else {
            return Ok(String::new());
        };
        let mut touched = Touched::default();
        let state = Arc::make_mut(&mut self.state);
        let token = state.execute(op, index, &mut touched, &mut self.news)?;
        for name in &touched.users {
            let record = state.user(name).map(encode);
            changes.insert(keys.with_rest(USER, name.as_bytes()), change(record));
        }
        for name in &touched.roles {
            let record = state.role(name).map(encode);
            changes.insert(keys.with_rest(ROLE, name.as_bytes()), change(record));
        }
        if touched.config {
            let mut record = codec::record(9);
            record.put_u8(u8::from(state.is_enabled()));
            record.put_u64_le(state.revision());
            changes.insert(keys.first(AUTH), Change::Put(record.freeze()));
        }
        self.changed |= touched != Touched::default();
        Ok(token)
    }
}

fn change(record: Option<Bytes>) -> Change {
    record.map_or(Change::Delete, Change::Put)
}

fn encode(message: &impl Message) -> Bytes {
    let mut record = codec::record(message.encoded_len());
    record.put_slice(&message.encode_to_vec());
    record.freeze()
}

fn decode_config(record: Bytes) -> Result<(bool, u64), EngineError> {
    let mut fields = Fields::of(record)?;
    let enabled = fields.u8()? != 0;
    Ok((enabled, fields.u64()?))
}

fn name_in(key: &[u8]) -> Result<String, EngineError> {
    let name = std::str::from_utf8(&key[PREFIX..]);
    let name = name.map_err(|_| damaged("the name of a user or role is no text"))?;
    Ok(name.to_owned())
}
