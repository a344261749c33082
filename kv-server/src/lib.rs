//! The MVCC store, the engines under it, and the etcd v3 front end.
pub mod api;
pub mod auth;
pub mod codec;
pub mod engine;
pub mod error;
pub mod lease;
pub mod mvcc;
pub mod node;
pub mod pb;
mod reply;
pub mod server;
#[cfg(feature = "seeded-bugs")]
#[doc(hidden)]
pub mod testing;
#[cfg(not(feature = "seeded-bugs"))]
mod testing;
pub mod upkeep;
pub mod watch;

pub use error::ApiError;
