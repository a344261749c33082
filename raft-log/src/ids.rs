//! The identifiers of the field as types of their own, so that a term is never passed for an index.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The zero value: for an index and a term, "before the first".
            pub const ZERO: Self = Self(0);
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, $format), self.0)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// One consensus group. The default data group is 1; 0 is reserved for the meta group.
    GroupId, "g", "{}"
);
id!(
    /// A member of a group, which is etcd's member id.
    NodeId, "n", "{:x}"
);
id!(
    /// One data directory, drawn at random when it is created.
    StoreId, "s", "{:016x}"
);
id!(
    /// A Raft term.
    Term, "", "{}"
);
id!(
    /// The position of an entry in its group's log; the first entry has index 1.
    Index, "", "{}"
);

impl Index {
    /// What no entry has: nothing could follow it.
    pub const MAX: Self = Self(u64::MAX);

    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; saturates at zero.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}
