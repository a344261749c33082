//! The Auth service over an [`Api`]: it translates and counts, as the others do.

use tonic::Request;

use super::grpc::{Answer, Call, Front};
use crate::api::Api;
use crate::pb::etcdserverpb as pb;

#[tonic::async_trait]
impl<A: Api> pb::auth_server::Auth for Front<A> {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Answer<pb::AuthEnableResponse> {
        let (api, request) = self.admit(Call::AuthEnable, request)?;
        self.calls
            .done(Call::AuthEnable, api.auth_enable(request).await)
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Answer<pb::AuthDisableResponse> {
        let (api, request) = self.admit(Call::AuthDisable, request)?;
        self.calls
            .done(Call::AuthDisable, api.auth_disable(request).await)
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Answer<pb::AuthStatusResponse> {
        let (api, request) = self.admit(Call::AuthStatus, request)?;
        self.calls
            .done(Call::AuthStatus, api.auth_status(request).await)
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Answer<pb::AuthenticateResponse> {
        let (api, request) = self.admit(Call::Authenticate, request)?;
        self.calls
            .done(Call::Authenticate, api.authenticate(request).await)
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Answer<pb::AuthUserAddResponse> {
        let (api, request) = self.admit(Call::UserAdd, request)?;
        self.calls.done(Call::UserAdd, api.user_add(request).await)
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Answer<pb::AuthUserGetResponse> {
        let (api, request) = self.admit(Call::UserGet, request)?;
        self.calls.done(Call::UserGet, api.user_get(request).await)
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Answer<pb::AuthUserListResponse> {
        let (api, request) = self.admit(Call::UserList, request)?;
        self.calls
            .done(Call::UserList, api.user_list(request).await)
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Answer<pb::AuthUserDeleteResponse> {
        let (api, request) = self.admit(Call::UserDelete, request)?;
        self.calls
            .done(Call::UserDelete, api.user_delete(request).await)
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Answer<pb::AuthUserChangePasswordResponse> {
        let (api, request) = self.admit(Call::UserChangePassword, request)?;
        self.calls.done(
            Call::UserChangePassword,
            api.user_change_password(request).await,
        )
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Answer<pb::AuthUserGrantRoleResponse> {
        let (api, request) = self.admit(Call::UserGrantRole, request)?;
        self.calls
            .done(Call::UserGrantRole, api.user_grant_role(request).await)
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Answer<pb::AuthUserRevokeRoleResponse> {
        let (api, request) = self.admit(Call::UserRevokeRole, request)?;
        self.calls
            .done(Call::UserRevokeRole, api.user_revoke_role(request).await)
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Answer<pb::AuthRoleAddResponse> {
        let (api, request) = self.admit(Call::RoleAdd, request)?;
        self.calls.done(Call::RoleAdd, api.role_add(request).await)
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Answer<pb::AuthRoleGetResponse> {
        let (api, request) = self.admit(Call::RoleGet, request)?;
        self.calls.done(Call::RoleGet, api.role_get(request).await)
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Answer<pb::AuthRoleListResponse> {
        let (api, request) = self.admit(Call::RoleList, request)?;
        self.calls
            .done(Call::RoleList, api.role_list(request).await)
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Answer<pb::AuthRoleDeleteResponse> {
        let (api, request) = self.admit(Call::RoleDelete, request)?;
        self.calls
            .done(Call::RoleDelete, api.role_delete(request).await)
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Answer<pb::AuthRoleGrantPermissionResponse> {
        let (api, request) = self.admit(Call::RoleGrantPermission, request)?;
        self.calls.done(
            Call::RoleGrantPermission,
            api.role_grant_permission(request).await,
        )
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Answer<pb::AuthRoleRevokePermissionResponse> {
        let (api, request) = self.admit(Call::RoleRevokePermission, request)?;
        self.calls.done(
            Call::RoleRevokePermission,
            api.role_revoke_permission(request).await,
        )
    }
}
