//! The MVCC store.
