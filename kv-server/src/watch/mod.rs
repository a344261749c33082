//! Who sees which events, when.
