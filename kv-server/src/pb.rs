//! The generated messages and services: etcd v3's, the gRPC health protocol, and our durable commands.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto files and etcd's documentation describe it"
)]

use std::fmt;

/// etcd's users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// etcd's key-value types.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// etcd's requests, responses and services.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// etcd's Lock service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// etcd's Election service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// The gRPC health checking protocol.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// What log entries hold.
pub mod command {
    tonic::include_proto!("flotilla");
}

/// As deep as its package, for the names of other packages in it.
mod flotilla {
    /// What members ask of each other.
    pub mod peer {
        tonic::include_proto!("flotilla.peer");
    }
}
pub use flotilla::peer;

/// The .proto files as compiled: an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Shows a message without the fields that must not be shown.
macro_rules! show_only {
    ($($message:ty { $($field:ident),* })*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($field), &self.$field))*
                    .finish_non_exhaustive()
            }
        }
    )*};
}

show_only! {
    authpb::User { name, roles, options }
    etcdserverpb::AuthenticateRequest { name }
    etcdserverpb::AuthenticateResponse { header }
    etcdserverpb::AuthUserAddRequest { name, options }
    etcdserverpb::AuthUserChangePasswordRequest { name }
    command::AssignToken { user, revision }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown_wherever_they_are() {
        let secret = || "SECRET".to_owned();
        let add = etcdserverpb::AuthUserAddRequest {
            name: "alice".to_owned(),
            password: secret(),
            options: None,
            hashed_password: secret(),
        };
        let change = etcdserverpb::AuthUserChangePasswordRequest {
            name: "alice".to_owned(),
            password: secret(),
            hashed_password: secret(),
        };
        let assign = command::AssignToken {
            user: "alice".to_owned(),
            prefix: secret(),
            revision: 1,
        };
        let (name, password) = ("alice".to_owned(), secret());
        let login = etcdserverpb::AuthenticateRequest { name, password };
        let user = authpb::User {
            name: "alice".into(),
            password: secret().into(),
            ..authpb::User::default()
        };
        let op = |op| command::Command {
            op: Some(command::command::Op::Auth(command::AuthCommand {
                op: Some(op),
            })),
        };
        use command::auth_command::Op;
        let shown = [
            format!("{:?}", op(Op::UserAdd(add))),
            format!("{:?}", op(Op::UserChangePassword(change))),
            format!("{:?}", op(Op::AssignToken(assign))),
            format!("{login:?} {user:?}"),
        ];
        for text in shown {
            assert!(!text.contains("SECRET"), "{text}");
            // As text, and as the bytes of a byte string.
            assert!(text.contains("alice"), "{text}");
        }
        let token = secret();
        let answer = etcdserverpb::AuthenticateResponse {
            header: None,
            token,
        };
        assert!(!format!("{answer:?}").contains("SECRET"));
    }
}
