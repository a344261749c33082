//! The Auth service's calls: passwords are hashed and verified here, so that the log carries hashes only; users and roles
//! are read linearizably; all changes are commands.

use std::sync::Arc;

use super::access::Access;
use super::{CommandResult, EtcdApi, Op, Replica, View, mismatch};
use crate::ApiError;
use crate::api::{Api, AuthApi};
use crate::auth::{
    AuthState, Authenticator, Caller, Tokens, check_given, draw_prefix, has_no_password,
};
use crate::pb::command::{AssignToken, AuthCommand, auth_command::Op as AuthOp};
use crate::pb::etcdserverpb as pb;
use tonic::Code;

/// How often a password is verified again because users or roles changed meanwhile.
const LOGIN_TRIES_MAX: u32 = 5;

type Header = Option<pb::ResponseHeader>;

impl<R: Replica, V: View> EtcdApi<R, V> {
    pub(super) fn authenticator(&self) -> Result<&Arc<Authenticator>, ApiError> {
        let authenticator = self.authenticator.as_ref();
        authenticator.ok_or(ApiError::NotImplemented("authentication"))
    }

    async fn propose_auth(&self, op: AuthOp) -> Result<pb::AuthenticateResponse, ApiError> {
        let command = AuthCommand { op: Some(op) };
        match self.propose(Op::Auth(command)).await? {
            CommandResult::Auth(mut response) => {
                self.complete(&mut response.header);
                Ok(response)
            }
            other => Err(mismatch(&other)),
        }
    }

    /// Proposes what only root may change.
    pub(super) async fn change_auth(&self, op: AuthOp) -> Result<Header, ApiError> {
        self.authenticator()?;
        self.access().await?.root()?;
        Ok(self.propose_auth(op).await?.header)
    }

    async fn fresh_access(&self) -> Result<Access, ApiError> {
        self.linearizable().await?;
        self.access().await
    }

    /// Users and roles, for root.
    pub(super) async fn auth_for_root(&self) -> Result<Arc<AuthState>, ApiError> {
        self.fresh_access().await?.root()?;
        Ok(self.view.auth())
    }

    pub(super) async fn status_of_auth(&self) -> Result<pb::AuthStatusResponse, ApiError> {
        let state = self.auth_for_root().await?;
        Ok(pb::AuthStatusResponse {
            header: self.header(),
            enabled: state.is_enabled(),
            auth_revision: state.revision(),
        })
    }

    /// Everybody may look at themselves.
    pub(super) async fn show_user(&self, name: &str) -> Result<pb::AuthUserGetResponse, ApiError> {
        let access = self.fresh_access().await?;
        if !access.is(name) {
            access.root()?;
        }
        let state = self.view.auth();
        let user = state.user(name).ok_or(ApiError::UserNotFound)?;
        Ok(pb::AuthUserGetResponse {
            header: self.header(),
            roles: user.roles.clone(),
        })
    }

    /// Everybody may look at the roles that they hold.
    pub(super) async fn show_role(&self, name: &str) -> Result<pb::AuthRoleGetResponse, ApiError> {
        let access = self.fresh_access().await?;
        if !access.holds(name) {
            access.root()?;
        }
        let permissions = self.view.auth().permissions_of(name);
        Ok(pb::AuthRoleGetResponse {
            header: self.header(),
            perm: permissions.ok_or(ApiError::RoleNotFound)?,
        })
    }

    /// The hash of a new password. Who may not set one is refused before any work is done for it. A hash that comes
    /// without a password is taken as it is.
    async fn hashed(&self, password: String, given: String) -> Result<String, ApiError> {
        self.access().await?.root()?;
        if password.is_empty() && !given.is_empty() {
            check_given(&given)?;
            return Ok(given);
        }
        self.authenticator()?.passwords().hash(password).await
    }

    pub(super) async fn add_user(
        &self,
        request: pb::AuthUserAddRequest,
    ) -> Result<Header, ApiError> {
        let hashed_password = match request.options.is_some_and(|options| options.no_password) {
            true => String::new(),
            false => {
                self.hashed(request.password, request.hashed_password)
                    .await?
            }
        };
        let request = pb::AuthUserAddRequest {
            name: request.name,
            password: String::new(),
            options: request.options,
            hashed_password,
        };
        self.change_auth(AuthOp::UserAdd(request)).await
    }

    pub(super) async fn change_password(
        &self,
        request: pb::AuthUserChangePasswordRequest,
    ) -> Result<Header, ApiError> {
        // As etcd: who has got no password cannot log in, not even with none.
        let has_none = request.password.is_empty() && request.hashed_password.is_empty();
        let hashed_password = match has_none {
            true => String::new(),
            false => {
                self.hashed(request.password, request.hashed_password)
                    .await?
            }
        };
        let request = pb::AuthUserChangePasswordRequest {
            hashed_password,
            name: request.name,
            password: String::new(),
        };
        self.change_auth(AuthOp::UserChangePassword(request)).await
    }

    /// Verifies a password, and makes a token: by the log, so that every member learns of it, or signed, so that none has
    /// to. A password that was verified against users or roles that have changed since proves nothing, and is verified
    /// again.
    pub(super) async fn log_in(
        &self,
        request: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, ApiError> {
        let authenticator = self.authenticator()?;
        let pb::AuthenticateRequest { name, password } = request;
        for _ in 0..LOGIN_TRIES_MAX {
            self.linearizable().await?;
            let state = self.view.auth();
            if !state.is_enabled() {
                return Err(ApiError::AuthNotEnabled);
            }
            let user = state.user(&name);
            if user.is_some_and(has_no_password) {
                // As etcd, which has no code for it.
                let text = "auth: authentication failed, password was given for no password user";
                return Err(ApiError::Other(Code::Unknown, text.to_owned()));
            }
            let hash = user.map(|user| user.password.clone());
            let verified = authenticator.passwords().verify(password.clone(), hash);
            if !verified.await? {
                tracing::info!(user = name, "refused a login");
                return Err(ApiError::AuthFailed);
            }
            let revision = state.revision();
            if let Tokens::Jwt(jwt) = authenticator.tokens() {
                let (jwt, user) = (jwt.clone(), name.clone());
                let signed = authenticator
                    .passwords()
                    .run(move || jwt.sign(&user, revision));
                return Ok(pb::AuthenticateResponse {
                    token: signed.await?,
                    header: self.header(),
                });
            }
            let assign = AssignToken {
                user: name.clone(),
                prefix: draw_prefix()?,
                revision,
            };
            match self
                .nobody()
                .propose_auth(AuthOp::AssignToken(assign))
                .await
            {
                Err(ApiError::AuthOldRevision) => {}
                outcome => return outcome,
            }
        }
        Err(ApiError::AuthOldRevision)
    }

    /// For what is asked by who has no token yet, or one that counts no more.
    fn nobody(&self) -> Self {
        self.called_by(Caller::default())
    }
}

impl<R: Replica, V: View> AuthApi for EtcdApi<R, V> {
    async fn auth_enable(
        &self,
        _request: pb::AuthEnableRequest,
    ) -> Result<pb::AuthEnableResponse, ApiError> {
        let op = AuthOp::Enable(pb::AuthEnableRequest {});
        let header = self.change_auth(op).await?;
        Ok(pb::AuthEnableResponse { header })
    }

    async fn auth_disable(
        &self,
        _request: pb::AuthDisableRequest,
    ) -> Result<pb::AuthDisableResponse, ApiError> {
        let op = AuthOp::Disable(pb::AuthDisableRequest {});
        let header = self.change_auth(op).await?;
        Ok(pb::AuthDisableResponse { header })
    }

    async fn auth_status(
        &self,
        _request: pb::AuthStatusRequest,
    ) -> Result<pb::AuthStatusResponse, ApiError> {
        self.status_of_auth().await
    }

    async fn authenticate(
        &self,
        request: pb::AuthenticateRequest,
    ) -> Result<pb::AuthenticateResponse, ApiError> {
        self.log_in(request).await
    }

    async fn user_add(
        &self,
        request: pb::AuthUserAddRequest,
    ) -> Result<pb::AuthUserAddResponse, ApiError> {
        let header = self.add_user(request).await?;
        Ok(pb::AuthUserAddResponse { header })
    }

    async fn user_get(
        &self,
        request: pb::AuthUserGetRequest,
    ) -> Result<pb::AuthUserGetResponse, ApiError> {
        self.show_user(&request.name).await
    }

    async fn user_list(
        &self,
        _request: pb::AuthUserListRequest,
    ) -> Result<pb::AuthUserListResponse, ApiError> {
        let state = self.auth_for_root().await?;
        Ok(pb::AuthUserListResponse {
            header: self.header(),
            users: state.users().map(str::to_owned).collect(),
        })
    }

    async fn user_delete(
        &self,
        request: pb::AuthUserDeleteRequest,
    ) -> Result<pb::AuthUserDeleteResponse, ApiError> {
        let header = self.change_auth(AuthOp::UserDelete(request)).await?;
        Ok(pb::AuthUserDeleteResponse { header })
    }

    async fn user_change_password(
        &self,
        request: pb::AuthUserChangePasswordRequest,
    ) -> Result<pb::AuthUserChangePasswordResponse, ApiError> {
        let header = self.change_password(request).await?;
        Ok(pb::AuthUserChangePasswordResponse { header })
    }

    async fn user_grant_role(
        &self,
        request: pb::AuthUserGrantRoleRequest,
    ) -> Result<pb::AuthUserGrantRoleResponse, ApiError> {
        let header = self.change_auth(AuthOp::UserGrantRole(request)).await?;
        Ok(pb::AuthUserGrantRoleResponse { header })
    }

    async fn user_revoke_role(
        &self,
        request: pb::AuthUserRevokeRoleRequest,
    ) -> Result<pb::AuthUserRevokeRoleResponse, ApiError> {
        let header = self.change_auth(AuthOp::UserRevokeRole(request)).await?;
        Ok(pb::AuthUserRevokeRoleResponse { header })
    }

    async fn role_add(
        &self,
        request: pb::AuthRoleAddRequest,
    ) -> Result<pb::AuthRoleAddResponse, ApiError> {
        let header = self.change_auth(AuthOp::RoleAdd(request)).await?;
        Ok(pb::AuthRoleAddResponse { header })
    }

    async fn role_get(
        &self,
        request: pb::AuthRoleGetRequest,
    ) -> Result<pb::AuthRoleGetResponse, ApiError> {
        self.show_role(&request.role).await
    }

    async fn role_list(
        &self,
        _request: pb::AuthRoleListRequest,
    ) -> Result<pb::AuthRoleListResponse, ApiError> {
        let state = self.auth_for_root().await?;
        Ok(pb::AuthRoleListResponse {
            header: self.header(),
            roles: state.roles().map(str::to_owned).collect(),
        })
    }

    async fn role_delete(
        &self,
        request: pb::AuthRoleDeleteRequest,
    ) -> Result<pb::AuthRoleDeleteResponse, ApiError> {
        let header = self.change_auth(AuthOp::RoleDelete(request)).await?;
        Ok(pb::AuthRoleDeleteResponse { header })
    }

    async fn role_grant_permission(
        &self,
        request: pb::AuthRoleGrantPermissionRequest,
    ) -> Result<pb::AuthRoleGrantPermissionResponse, ApiError> {
        let header = self
            .change_auth(AuthOp::RoleGrantPermission(request))
            .await?;
        Ok(pb::AuthRoleGrantPermissionResponse { header })
    }

    async fn role_revoke_permission(
        &self,
        request: pb::AuthRoleRevokePermissionRequest,
    ) -> Result<pb::AuthRoleRevokePermissionResponse, ApiError> {
        let header = self
            .change_auth(AuthOp::RoleRevokePermission(request))
            .await?;
        Ok(pb::AuthRoleRevokePermissionResponse { header })
    }
}
