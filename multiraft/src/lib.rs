//! Many consensus groups on one disk.
