//! Who may do what: users, roles and permissions; passwords and tokens.
//!
//! [`AuthState`] is applied state, kept by `mvcc::auth` and changed by commands; permissions of a command are checked where
//! it is applied, against the state at that point of the log. [`Authenticator`] is the front end's side: it says who a
//! request comes from. Passwords are hashed before a command is proposed, and never enter the log.
//!
//! It opens no socket, and deliberately knows nothing of TLS: a listener that verified a certificate says its common name
//! with the connection.

mod check;
mod identity;
mod jwt;
mod passwords;
mod ranges;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use tokio::time::sleep;
use tonic::Code;

use crate::ApiError;

pub(crate) use check::check_op;
pub use check::{check_delete, check_put, check_range, check_txn};
pub use identity::{Caller, Identity};
pub use jwt::{Jwt, JwtOptions};
pub(crate) use passwords::check_given;
pub use passwords::{COST_DEFAULT, COST_MAX, COST_MIN, Passwords};
pub use ranges::KeySet;
pub use state::AuthState;
pub(crate) use state::{TokenNews, Touched, has_no_password};
pub use tokens::{TTL_DEFAULT, TokenSink, TokenTable};

/// How often it is looked whether a member that lags has applied the entry of a token.
const TOKEN_POLL: Duration = Duration::from_millis(10);
/// Letters of a token before its index, as etcd's.
const TOKEN_LETTERS: usize = 16;
const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// What tokens are.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Words that members remember. The table is the one that the state machine tells of tokens.
    Simple(Arc<TokenTable>),
    /// Signed by the member that checked the password.
    Jwt(Arc<Jwt>),
}

/// Says who a request comes from.
pub struct Authenticator {
    tokens: Tokens,
    passwords: Arc<Passwords>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// What a token says at first sight.
enum Sight {
    Known(Identity),
    /// Known once the entry of this index is applied, if at all.
    After(u64),
    Invalid,
}

impl Authenticator {
    /// Knows users by these tokens, and hashes passwords at this cost, from [`COST_MIN`] to [`COST_MAX`].
    ///
    /// # Errors
    /// Threads that hash cannot be started.
    pub fn start(tokens: Tokens, cost: u32) -> io::Result<Self> {
        let passwords = Arc::new(Passwords::start(cost)?);
        Ok(Self { tokens, passwords })
    }

    /// Knows users by other tokens, with the same threads that hash.
    #[must_use]
    pub fn beside(&self, tokens: Tokens) -> Self {
        let passwords = Arc::clone(&self.passwords);
        Self { tokens, passwords }
    }

    /// Hashes and verifies.
    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// The tokens.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn look(&self, token: &str, state: &AuthState) -> Sight {
        match &self.tokens {
            Tokens::Simple(table) => match (table.user(token), tokens::index_of(token)) {
                (Some(user), _) => Sight::Known(Identity {
                    user,
                    revision: state.revision(),
                }),
                (None, Some(index)) => Sight::After(index),
                (None, None) => Sight::Invalid,
            },
            Tokens::Jwt(jwt) => jwt.verify(token).map_or(Sight::Invalid, Sight::Known),
        }
    }

    /// Who that is, if the caller says so at all. A token counts before a certificate, as in etcd.
    ///
    /// # Errors
    /// A token that is not known, or counts no more.
    pub fn identify_now(
        &self,
        caller: &Caller,
        state: &AuthState,
    ) -> Result<Option<Identity>, ApiError> {
        if !state.is_enabled() {
            return Ok(None);
        }
        match &caller.token {
            Some(token) => match self.look(token, state) {
                Sight::Known(identity) => Ok(Some(identity)),
                Sight::After(_) | Sight::Invalid => Err(ApiError::InvalidAuthToken),
            },
            None => Ok(caller.common_name.as_ref().map(|name| Identity {
                user: Arc::clone(name),
                revision: state.revision(),
            })),
        }
    }

    /// Waits until this member has applied what made a token, for at most about `patience`: then
    /// [`Self::identify_now`] knows all that is to be known of it.
    pub async fn catch_up(
        &self,
        caller: &Caller,
        state: &AuthState,
        applied: impl Fn() -> u64,
        patience: Duration,
    ) {
        let Some(token) = caller.token.as_ref().filter(|_| state.is_enabled()) else {
            return;
        };
        let mut polls = patience.as_millis() / TOKEN_POLL.as_millis();
        // Looked at in this order: what was applied by then is in the table.
        while let (true, Sight::After(index)) = (polls > 0, self.look(token, state)) {
            if applied() >= index {
                return;
            }
            polls -= 1;
            sleep(TOKEN_POLL).await;
        }
    }
}

/// The random part of a token.
pub(crate) fn draw_prefix() -> Result<String, ApiError> {
    let failed = |error: <SysRng as TryRng>::Error| {
        let text = format!("flotilla: no randomness for a token: {error}");
        ApiError::Other(Code::Internal, text)
    };
    let mut prefix = String::with_capacity(TOKEN_LETTERS);
    while prefix.len() < TOKEN_LETTERS {
        for byte in SysRng.try_next_u64().map_err(failed)?.to_le_bytes() {
            // Without the last few values no letter is likelier than another.
            let letter = LETTERS.get(usize::from(byte & 0x3f));
            if let Some(letter) = letter.filter(|_| prefix.len() < TOKEN_LETTERS) {
                prefix.push(char::from(*letter));
            }
        }
    }
    Ok(prefix)
}
