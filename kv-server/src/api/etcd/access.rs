//! What a caller may do, as this member knows it when the call comes. Commands are judged again where they are applied.

use std::sync::Arc;

use super::{EtcdApi, Replica, View};
use crate::ApiError;
use crate::auth::{AuthState, Identity};
use crate::pb::command;

/// Who calls, and by what that was decided; nothing while authentication is not enabled.
#[derive(Clone, Default)]
pub(super) struct Access {
    state: Option<Arc<AuthState>>,
    who: Option<Identity>,
}

impl Access {
    /// Refuses what `rule` refuses.
    pub(super) fn check(
        &self,
        rule: impl FnOnce(&AuthState, Option<&Identity>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        match &self.state {
            Some(state) => rule(state, self.who.as_ref()),
            None => Ok(()),
        }
    }

    /// Refuses who is nobody.
    pub(super) fn known(&self) -> Result<(), ApiError> {
        self.check(AuthState::check_known)
    }

    /// Refuses who is not root.
    pub(super) fn root(&self) -> Result<(), ApiError> {
        self.check(AuthState::check_root)
    }

    /// True when no permission is looked at.
    pub(super) fn is_free(&self) -> bool {
        self.root().is_ok()
    }

    /// True when that is the user.
    pub(super) fn is(&self, user: &str) -> bool {
        self.who
            .as_ref()
            .is_some_and(|who| who.user.as_ref() == user)
    }

    /// True when the user holds the role.
    pub(super) fn holds(&self, role: &str) -> bool {
        let (Some(state), Some(who)) = (&self.state, &self.who) else {
            return false;
        };
        state.has_role(&who.user, role)
    }

    /// As a command carries it.
    pub(super) fn caller(&self) -> command::Caller {
        Identity::caller(self.who.as_ref())
    }
}

impl<R: Replica, V: View> EtcdApi<R, V> {
    /// Finds out who calls. Refuses a token that is not known.
    pub(super) async fn access(&self) -> Result<Access, ApiError> {
        if !self.view.auth_enabled() {
            return Ok(Access::default());
        }
        let authenticator = self.authenticator()?;
        let applied = || self.replica.status().applied.0;
        let (caller, patience) = (&self.caller, self.options.request_timeout());
        authenticator
            .catch_up(caller, &self.view.auth(), applied, patience)
            .await;
        let state = self.view.auth();
        let who = authenticator.identify_now(caller, &state)?;
        Ok(Access {
            state: Some(state),
            who,
        })
    }

    /// Refuses an answer that was read while users or roles changed, as etcd does.
    pub(super) fn still(&self, access: &Access) -> Result<(), ApiError> {
        let (Some(_), Some(who)) = (&access.state, &access.who) else {
            return Ok(());
        };
        match self.view.auth().revision() == who.revision {
            true => Ok(()),
            false => Err(ApiError::AuthOldRevision),
        }
    }

    /// Whoever renews a lease keeps its keys, so has to be allowed to write them.
    pub(super) async fn may_write_lease(&self, access: &Access, id: i64) -> Result<(), ApiError> {
        access.known()?;
        if access.is_free() {
            return Ok(());
        }
        let view = Arc::clone(&self.view);
        let keys = self.scans.run(move || view.lease_keys(id)).await?;
        access.check(|state, who| {
            let mut keys = keys.iter();
            keys.try_for_each(|key| state.check_write(who, key, &[]))
        })?;
        self.still(access)
    }

    /// Whoever lists leases has to be allowed to read the keys of all of them.
    pub(super) async fn may_list_leases(&self, access: &Access) -> Result<(), ApiError> {
        access.known()?;
        let (Some(state), false) = (access.state.clone(), access.is_free()) else {
            return Ok(());
        };
        let (view, who) = (Arc::clone(&self.view), access.who.clone());
        let check = move || {
            for id in view.leases() {
                for key in view.lease_keys(id)? {
                    state.check_read(who.as_ref(), &key, &[])?;
                }
            }
            Ok(())
        };
        self.scans.run(check).await?;
        self.still(access)
    }
}
