//! The MVCC store, the engines under it, and the etcd v3 front end.
pub mod engine;
pub mod error;
pub mod mvcc;
pub mod pb;

pub use error::ApiError;
