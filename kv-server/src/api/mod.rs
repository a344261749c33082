//! What a front end can ask, as a trait.
