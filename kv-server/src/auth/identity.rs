//! Who asks: what a client brings, and whom that makes it.

use std::fmt;
use std::sync::Arc;

use crate::pb::command;

/// What a request brings to say who sent it. Nothing of it is verified yet but the name of a certificate.
#[derive(Clone, Default)]
pub struct Caller {
    /// The token in the request's metadata.
    pub token: Option<Arc<str>>,
    /// The common name of the client's certificate, which the listener verified.
    pub common_name: Option<Arc<str>>,
}

/// Tokens are not shown: who has one is the user.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("has_token", &self.token.is_some())
            .field("common_name", &self.common_name)
            .finish()
    }
}

/// A user that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name.
    pub user: Arc<str>,
    /// The revision of users and roles as of which it is known.
    pub revision: u64,
}

impl Identity {
    /// As a command carries it; nobody is known by an empty name.
    #[must_use]
    pub fn of(caller: &command::Caller) -> Option<Self> {
        (caller.revision > 0).then(|| Self {
            user: caller.user.as_str().into(),
            revision: caller.revision,
        })
    }

    /// The caller that a command carries.
    #[must_use]
    pub fn caller(who: Option<&Self>) -> command::Caller {
        who.map_or_else(command::Caller::default, |who| command::Caller {
            user: who.user.to_string(),
            revision: who.revision,
        })
    }
}
