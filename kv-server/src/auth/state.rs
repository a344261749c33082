//! Users, roles and permissions, as applied state has them: how each command changes them, and what they allow.
//!
//! Deterministic: no clock, no hashing, no randomness. The checks, their order and their errors are etcd's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use raft_log::Index;
use tonic::Code;

use super::ranges::KeySet;
use super::{Identity, passwords};
use crate::ApiError;
use crate::pb::authpb::{Permission, Role, User, permission::Type};
use crate::pb::command::{AssignToken, auth_command::Op};
use crate::pb::etcdserverpb as pb;

/// The user who must hold [`ROOT_ROLE`] while authentication is enabled.
const ROOT_USER: &str = "root";
/// Whoever holds it may do everything.
const ROOT_ROLE: &str = "root";

/// The longest name of a user or role in bytes; it is a key of the engine, which bounds them.
const NAME_BYTES_MAX: usize = 32_000;

/// What the roles of a user come to.
#[derive(Debug)]
struct Permissions {
    read: KeySet,
    write: KeySet,
}

/// A user, and what the roles allow, computed when it is first asked for.
#[derive(Debug)]
struct Known {
    record: User,
    permissions: OnceLock<Permissions>,
}

impl Known {
    fn new(record: User) -> Arc<Self> {
        let permissions = OnceLock::new();
        Arc::new(Self {
            record,
            permissions,
        })
    }

    fn has(&self, role: &str) -> bool {
        self.record.roles.iter().any(|held| held == role)
    }
}

/// Users, roles and whether they count. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AuthState {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, Arc<Known>>,
    roles: BTreeMap<String, Arc<Role>>,
}

/// As etcd's new store.
impl Default for AuthState {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

/// Records that a command changed: to be written, or removed where the state has none any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) users: BTreeSet<String>,
    pub(crate) roles: BTreeSet<String>,
    /// Whether it is enabled, or the revision.
    pub(crate) config: bool,
}

/// What a command means for tokens that members keep in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenNews {
    /// A user has this token from now on.
    Assigned { token: String, user: String },
    /// Tokens of this user count no more.
    Invalidated(String),
    /// None counts any more.
    Cleared,
}

impl AuthState {
    /// The state that records describe.
    pub(crate) fn restore(
        config: Option<(bool, u64)>,
        users: impl IntoIterator<Item = (String, User)>,
        roles: impl IntoIterator<Item = (String, Role)>,
    ) -> Self {
        let mut state = Self::default();
        if let Some((enabled, revision)) = config {
            (state.enabled, state.revision) = (enabled, revision);
        }
        let users = users.into_iter();
        state.users = users.map(|(name, user)| (name, Known::new(user))).collect();
        let roles = roles.into_iter();
        state.roles = roles.map(|(name, role)| (name, Arc::new(role))).collect();
        state
    }

    /// True while every call needs a user.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Counts the changes, from 1 on.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The record of a user.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|known| &known.record)
    }

    /// The record of a role.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(Arc::as_ref)
    }

    /// Names of all users, in order.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// Names of all roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The permissions that a role is shown to have: root's are not written down.
    #[must_use]
    pub fn permissions_of(&self, role: &str) -> Option<Vec<Permission>> {
        let role = self.role(role)?;
        if role.name == ROOT_ROLE {
            return Some(vec![Permission {
                perm_type: Type::Readwrite.into(),
                key: Bytes::new(),
                range_end: Bytes::from_static(&[0]),
            }]);
        }
        Some(role.key_permission.clone())
    }

    /// True when the user exists and holds the role.
    #[must_use]
    pub fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user).is_some_and(|known| known.has(role))
    }

    /// Refuses who is not known.
    pub fn check_known(&self, who: Option<&Identity>) -> Result<(), ApiError> {
        if !self.enabled {
            return Ok(());
        }
        let who = who.ok_or(ApiError::UserEmpty)?;
        match self.users.contains_key(who.user.as_ref()) {
            true => Ok(()),
            false => Err(ApiError::PermissionDenied),
        }
    }

    /// Refuses who does not hold the role of root. As in etcd the revision does not matter.
    pub fn check_root(&self, who: Option<&Identity>) -> Result<(), ApiError> {
        if !self.enabled {
            return Ok(());
        }
        let who = who
            .filter(|who| !who.user.is_empty())
            .ok_or(ApiError::UserEmpty)?;
        match self.has_role(&who.user, ROOT_ROLE) {
            true => Ok(()),
            false => Err(ApiError::PermissionDenied),
        }
    }

    /// Refuses who may not read all of a key or range, or is known by an older revision.
    pub fn check_read(
        &self,
        who: Option<&Identity>,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), ApiError> {
        self.check_keys(who, |permissions| permissions.read.covers(key, range_end))
    }

    /// Refuses who may not write all of a key or range, or is known by an older revision.
    pub fn check_write(
        &self,
        who: Option<&Identity>,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), ApiError> {
        self.check_keys(who, |permissions| permissions.write.covers(key, range_end))
    }

    fn check_keys(
        &self,
        who: Option<&Identity>,
        covers: impl Fn(&Permissions) -> bool,
    ) -> Result<(), ApiError> {
        if !self.enabled {
            return Ok(());
        }
        let who = who.ok_or(ApiError::UserEmpty)?;
        if who.revision < self.revision {
            return Err(ApiError::AuthOldRevision);
        }
        let known = self.users.get(who.user.as_ref());
        let known = known.ok_or(ApiError::PermissionDenied)?;
        if known.has(ROOT_ROLE) || covers(self.permissions(known)) {
            return Ok(());
        }
        Err(ApiError::PermissionDenied)
    }

    fn permissions<'a>(&self, known: &'a Known) -> &'a Permissions {
        known.permissions.get_or_init(|| {
            let roles = known.record.roles.iter();
            let held: Vec<_> = roles
                .filter_map(|role| self.roles.get(role))
                .flat_map(|role| &role.key_permission)
                .collect();
            let of = |kind: Type| {
                let counts = |held: &&&Permission| {
                    [i32::from(kind), Type::Readwrite.into()].contains(&held.perm_type)
                };
                let held = held.iter().filter(counts);
                KeySet::of(held.map(|held| (&held.key, &held.range_end)))
            };
            Permissions {
                read: of(Type::Read),
                write: of(Type::Write),
            }
        })
    }

    /// Executes one command, the `index`-th of the log. What it changed is added to `touched`, what tokens are concerned to
    /// `news`; the token is that of who asked for one. An error has changed nothing.
    pub(crate) fn execute(
        &mut self,
        op: &Op,
        index: Index,
        touched: &mut Touched,
        news: &mut Vec<TokenNews>,
    ) -> Result<String, ApiError> {
        match op {
            Op::Enable(_) => self.enable(touched)?,
            Op::Disable(_) => self.disable(touched, news),
            Op::AssignToken(request) => return self.assign_token(request, index, news),
            Op::UserAdd(request) => self.add_user(request, touched)?,
            Op::UserDelete(request) => self.delete_user(&request.name, touched, news)?,
            Op::UserChangePassword(request) => self.change_password(request, touched, news)?,
            Op::UserGrantRole(request) => self.grant_role(request, touched)?,
            Op::UserRevokeRole(request) => self.revoke_role(request, touched)?,
            Op::RoleAdd(request) => self.add_role(&request.name, touched)?,
            Op::RoleDelete(request) => self.delete_role(&request.role, touched)?,
            Op::RoleGrantPermission(request) => self.grant_permission(request, touched)?,
            Op::RoleRevokePermission(request) => self.revoke_permission(request, touched)?,
        }
        Ok(String::new())
    }

    fn bump(&mut self, touched: &mut Touched) {
        self.revision += 1;
        touched.config = true;
    }

    fn put_user(&mut self, name: &str, record: User, touched: &mut Touched) {
        self.users.insert(name.to_owned(), Known::new(record));
        touched.users.insert(name.to_owned());
    }

    fn put_role(&mut self, name: &str, record: Role, touched: &mut Touched) {
        self.roles.insert(name.to_owned(), Arc::new(record));
        touched.roles.insert(name.to_owned());
        // What its holders may do is to be computed anew.
        for known in self.users.values_mut().filter(|known| known.has(name)) {
            *known = Known::new(known.record.clone());
        }
    }

    fn enable(&mut self, touched: &mut Touched) -> Result<(), ApiError> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT_USER);
        let root = root.ok_or(ApiError::RootUserNotExist)?;
        if !root.has(ROOT_ROLE) {
            return Err(ApiError::RootRoleNotExist);
        }
        self.enabled = true;
        touched.config = true;
        Ok(())
    }

    fn disable(&mut self, touched: &mut Touched, news: &mut Vec<TokenNews>) {
        if self.enabled {
            self.enabled = false;
            self.bump(touched);
            news.push(TokenNews::Cleared);
        }
    }

    /// A password that was checked against another state is no proof any more; etcd checks it once more as well, after it
    /// made the token.
    fn assign_token(
        &self,
        request: &AssignToken,
        index: Index,
        news: &mut Vec<TokenNews>,
    ) -> Result<String, ApiError> {
        if !self.enabled {
            return Err(ApiError::AuthNotEnabled);
        }
        let user = self.user(&request.user).ok_or(ApiError::AuthFailed)?;
        if has_no_password(user) {
            return Err(ApiError::AuthFailed);
        }
        if request.revision != self.revision {
            return Err(ApiError::AuthOldRevision);
        }
        let token = format!("{}.{index}", request.prefix);
        news.push(TokenNews::Assigned {
            token: token.clone(),
            user: request.user.clone(),
        });
        Ok(token)
    }

    fn add_user(
        &mut self,
        request: &pb::AuthUserAddRequest,
        touched: &mut Touched,
    ) -> Result<(), ApiError> {
        if request.name.is_empty() {
            return Err(ApiError::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(ApiError::UserAlreadyExists);
        }
        check_length(&request.name)?;
        let options = request.options.unwrap_or_default();
        let password = match options.no_password {
            true => Bytes::new(),
            false => decoded(&request.hashed_password)?,
        };
        let record = User {
            name: request.name.clone().into(),
            password,
            roles: Vec::new(),
            options: Some(options),
        };
        self.put_user(&request.name, record, touched);
        self.bump(touched);
        Ok(())
    }

    fn delete_user(
        &mut self,
        name: &str,
        touched: &mut Touched,
        news: &mut Vec<TokenNews>,
    ) -> Result<(), ApiError> {
        if self.enabled && name == ROOT_USER {
            return Err(ApiError::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(ApiError::UserNotFound)?;
        touched.users.insert(name.to_owned());
        self.bump(touched);
        news.push(TokenNews::Invalidated(name.to_owned()));
        Ok(())
    }

    fn change_password(
        &mut self,
        request: &pb::AuthUserChangePasswordRequest,
        touched: &mut Touched,
        news: &mut Vec<TokenNews>,
    ) -> Result<(), ApiError> {
        let user = self.user(&request.name).ok_or(ApiError::UserNotFound)?;
        let has_none = has_no_password(user) || request.hashed_password.is_empty();
        let password = match has_none {
            true => Bytes::new(),
            false => decoded(&request.hashed_password)?,
        };
        let record = User {
            password,
            ..user.clone()
        };
        self.put_user(&request.name, record, touched);
        self.bump(touched);
        news.push(TokenNews::Invalidated(request.name.clone()));
        Ok(())
    }

    fn grant_role(
        &mut self,
        request: &pb::AuthUserGrantRoleRequest,
        touched: &mut Touched,
    ) -> Result<(), ApiError> {
        let user = self.user(&request.user).ok_or(ApiError::UserNotFound)?;
        if request.role != ROOT_ROLE && !self.roles.contains_key(&request.role) {
            return Err(ApiError::RoleNotFound);
        }
        let Err(at) = user.roles.binary_search(&request.role) else {
            return Ok(());
        };
        let mut record = user.clone();
        record.roles.insert(at, request.role.clone());
        self.put_user(&request.user, record, touched);
        self.bump(touched);
        Ok(())
    }

    fn revoke_role(
        &mut self,
        request: &pb::AuthUserRevokeRoleRequest,
        touched: &mut Touched,
    ) -> Result<(), ApiError> {
        if self.enabled && request.name == ROOT_USER && request.role == ROOT_ROLE {
            return Err(ApiError::InvalidAuthManagement);
        }
        let user = self.user(&request.name).ok_or(ApiError::UserNotFound)?;
        let at = user.roles.iter().position(|role| *role == request.role);
        let at = at.ok_or(ApiError::RoleNotGranted)?;
        let mut record = user.clone();
        record.roles.remove(at);
        self.put_user(&request.name, record, touched);
        self.bump(touched);
        Ok(())
    }

    fn add_role(&mut self, name: &str, touched: &mut Touched) -> Result<(), ApiError> {
        if name.is_empty() {
            return Err(ApiError::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(ApiError::RoleAlreadyExists);
        }
        check_length(name)?;
        let record = Role {
            name: Bytes::copy_from_slice(name.as_bytes()),
            key_permission: Vec::new(),
        };
        self.put_role(name, record, touched);
        self.bump(touched);
        Ok(())
    }

    fn delete_role(&mut self, name: &str, touched: &mut Touched) -> Result<(), ApiError> {
        if self.enabled && name == ROOT_ROLE {
            return Err(ApiError::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(ApiError::RoleNotFound)?;
        touched.roles.insert(name.to_owned());
        let holders: Vec<_> = self
            .users
            .values()
            .filter(|known| known.has(name))
            .cloned()
            .collect();
        for known in holders {
            let mut record = known.record.clone();
            record.roles.retain(|role| role != name);
            let user = String::from_utf8_lossy(&record.name).into_owned();
            self.put_user(&user, record, touched);
        }
        self.bump(touched);
        Ok(())
    }

    fn grant_permission(
        &mut self,
        request: &pb::AuthRoleGrantPermissionRequest,
        touched: &mut Touched,
    ) -> Result<(), ApiError> {
        let granted = request.perm.as_ref();
        let granted = granted.ok_or(ApiError::PermissionNotGiven)?;
        let is_range = match granted.range_end.as_ref() {
            [] | [0] => true,
            end => granted.key.as_ref() < end,
        };
        if granted.key.is_empty() || !is_range {
            return Err(ApiError::InvalidAuthManagement);
        }
        let role = self.role(&request.name).ok_or(ApiError::RoleNotFound)?;
        let mut record = role.clone();
        let at = |held: &Permission| (held.key.clone(), held.range_end.clone());
        let held = &mut record.key_permission;
        match held.binary_search_by_key(&at(granted), at) {
            Ok(found) => held[found] = granted.clone(),
            Err(next) => held.insert(next, granted.clone()),
        }
        self.put_role(&request.name, record, touched);
        self.bump(touched);
        Ok(())
    }

    fn revoke_permission(
        &mut self,
        request: &pb::AuthRoleRevokePermissionRequest,
        touched: &mut Touched,
    ) -> Result<(), ApiError> {
        let role = self.role(&request.role).ok_or(ApiError::RoleNotFound)?;
        let mut record = role.clone();
        let stays =
            |held: &Permission| held.key != request.key || held.range_end != request.range_end;
        record.key_permission.retain(stays);
        if record.key_permission.len() == role.key_permission.len() {
            return Err(ApiError::PermissionNotGranted);
        }
        self.put_role(&request.role, record, touched);
        self.bump(touched);
        Ok(())
    }
}

fn check_length(name: &str) -> Result<(), ApiError> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let found = name.len();
    let text =
        format!("flotilla: the name has {found} bytes, at most {NAME_BYTES_MAX} are allowed");
    Err(ApiError::Other(Code::InvalidArgument, text))
}

/// Users without a password are known by their certificates only.
pub(crate) fn has_no_password(user: &User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

/// The hash in a command, as etcd writes it.
fn decoded(hashed: &str) -> Result<Bytes, ApiError> {
    passwords::decode(hashed).ok_or_else(|| {
        let text = "flotilla: the command has no hash of a password";
        ApiError::Other(Code::InvalidArgument, text.to_owned())
    })
}
