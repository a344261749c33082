//! Commands and reads that a member passes on to the leader for its clients.

mod origin;

pub use origin::{OPEN_SEQUENCES_MAX, Origin};
