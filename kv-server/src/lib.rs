//! The MVCC store, the engines under it, and the etcd v3 front end.
pub mod api;
pub mod engine;
pub mod error;
pub mod lease;
pub mod mvcc;
pub mod node;
pub mod pb;
pub mod server;
pub mod watch;

pub use error::ApiError;
