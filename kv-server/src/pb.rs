//! The generated messages and services: etcd v3's, the gRPC health protocol, and our durable commands.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto files and etcd's documentation describe it"
)]

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
