//! Passwords: hashed and verified with bcrypt, on a few threads of their own behind a bounded queue. A hash takes some
//! fifty milliseconds on purpose; whoever finds the queue full is refused, so that logins cannot starve anything else.

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tonic::Code;

use crate::ApiError;
use crate::api::ScanPool;

/// Passwords that are hashed at a time.
const THREADS: usize = 2;
/// Passwords that wait for their turn: at etcd's cost about as many as two threads hash until a client gives up.
const QUEUED_MAX: usize = 64;
/// What bcrypt takes of a password; a longer one is refused rather than cut.
const PASSWORD_BYTES_MAX: usize = 72;
/// etcd's bounds of the cost, which are bcrypt's.
pub const COST_MIN: u32 = 4;
/// The highest cost.
pub const COST_MAX: u32 = 31;
/// etcd's cost.
pub const COST_DEFAULT: u32 = 10;
/// The highest cost of a hash that a client made: verifying one takes a thread for some seconds.
const COST_GIVEN_MAX: u32 = 16;

/// Hashes and verifies.
pub struct Passwords {
    pool: ScanPool,
    cost: u32,
    /// Verified against where there is no such user, so that the time taken does not tell.
    nobody: Arc<str>,
}

impl Passwords {
    /// Starts the threads. Hashes are made at `cost`.
    ///
    /// # Errors
    /// Threads cannot be started; the operating system gives no randomness.
    pub fn start(cost: u32) -> io::Result<Self> {
        assert!(
            (COST_MIN..=COST_MAX).contains(&cost),
            "the cost was validated with the configuration"
        );
        // Of a password that is as unknown as any; only the cost of it matters.
        let nobody = bcrypt::hash_with_salt(b"", COST_MIN, [0; 16]).map_err(io::Error::other)?;
        let nobody = nobody
            .to_string()
            .replacen("$04$", &format!("${cost:02}$"), 1);
        Ok(Self {
            pool: ScanPool::start_named("flotilla-hash", THREADS, QUEUED_MAX)?,
            cost,
            nobody: nobody.into(),
        })
    }

    /// Runs what takes long as well, in turn with the rest.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.pool.run(work).await
    }

    /// The hash of a password, as commands carry it.
    pub async fn hash(&self, password: String) -> Result<String, ApiError> {
        if password.len() > PASSWORD_BYTES_MAX {
            let text = format!(
                "bcrypt: password length exceeds {PASSWORD_BYTES_MAX} bytes; found {}",
                password.len()
            );
            return Err(ApiError::Other(Code::InvalidArgument, text));
        }
        let cost = self.cost;
        self.pool
            .run(move || {
                let hash = bcrypt::hash(password.as_bytes(), cost).map_err(|error| {
                    let text = format!("flotilla: the password cannot be hashed: {error}");
                    ApiError::Other(Code::Internal, text)
                })?;
                Ok(encode(hash.as_bytes()))
            })
            .await
    }

    /// True when the password is that of the hash. Without a hash it takes as long, and is false.
    pub async fn verify(&self, password: String, hash: Option<Bytes>) -> Result<bool, ApiError> {
        let nobody = Arc::clone(&self.nobody);
        self.pool
            .run(move || {
                let is_known = hash.is_some();
                let hash = hash.unwrap_or_else(|| Bytes::copy_from_slice(nobody.as_bytes()));
                let hash = std::str::from_utf8(&hash).unwrap_or_default();
                // What is no hash is nobody's password.
                let is_right = bcrypt::verify(password.as_bytes(), hash).unwrap_or(false);
                Ok(is_known && is_right)
            })
            .await
    }
}

fn encode(hash: &[u8]) -> String {
    STANDARD.encode(hash)
}

/// The hash that a command carries.
pub(super) fn decode(hashed: &str) -> Option<Bytes> {
    let hash = STANDARD.decode(hashed).ok()?;
    (!hash.is_empty()).then(|| hash.into())
}

/// Refuses what is no hash of bcrypt, or one that takes too long to verify.
pub(crate) fn check_given(hashed: &str) -> Result<(), ApiError> {
    let refused = |found: &str| {
        let text = format!(
            "flotilla: hashedPassword has to be the base64 of a bcrypt hash of a cost from {COST_MIN} to {COST_GIVEN_MAX}; \
             found {found}"
        );
        ApiError::Other(Code::InvalidArgument, text)
    };
    let hash = decode(hashed).ok_or_else(|| refused("no base64"))?;
    let hash = std::str::from_utf8(&hash).map_err(|_| refused("bytes that are no text"))?;
    let parts: bcrypt::HashParts = hash.parse().map_err(|_| refused("no such hash"))?;
    let cost = parts.get_cost();
    if (COST_MIN..=COST_GIVEN_MAX).contains(&cost) {
        return Ok(());
    }
    Err(refused(&format!("a cost of {cost}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `secret`, made by etcd.
    const OF_ETCD: &str = "$2a$04$";

    #[tokio::test]
    async fn password_is_right_for_its_own_hash_only() {
        let passwords = Passwords::start(COST_MIN).unwrap();
        let hashed = passwords.hash("secret".to_owned()).await.unwrap();
        check_given(&hashed).unwrap();
        let hash = decode(&hashed);
        let right = passwords.verify("secret".to_owned(), hash.clone()).await;
        assert_eq!(right, Ok(true));
        let wrong = passwords.verify("Secret".to_owned(), hash.clone()).await;
        assert_eq!(wrong, Ok(false));
        // Go's bcrypt writes another prefix for the same.
        let text = String::from_utf8(hash.unwrap().to_vec()).unwrap();
        let as_go = text.replacen("$2b$04$", OF_ETCD, 1);
        assert!(as_go.starts_with(OF_ETCD), "{text}");
        let right = passwords.verify("secret".to_owned(), Some(as_go.into()));
        assert_eq!(right.await, Ok(true));
        assert_eq!(passwords.verify(String::new(), None).await, Ok(false));
        let garbage = Some(Bytes::from_static(b"\xff"));
        assert_eq!(passwords.verify(String::new(), garbage).await, Ok(false));
    }

    #[tokio::test]
    async fn hash_for_nobody_is_one_of_the_same_cost() {
        let passwords = Passwords::start(5).unwrap();
        let parts: bcrypt::HashParts = passwords.nobody.parse().unwrap();
        assert_eq!(parts.get_cost(), 5);
        assert!(
            bcrypt::verify(b"x", &passwords.nobody).is_ok(),
            "it takes its time"
        );
    }

    #[tokio::test]
    async fn password_that_bcrypt_would_cut_is_refused() {
        let passwords = Passwords::start(COST_MIN).unwrap();
        assert!(passwords.hash("x".repeat(72)).await.is_ok());
        let refused = passwords.hash("x".repeat(73)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn logins_past_the_queue_are_refused() {
        let passwords = Passwords::start(8).unwrap();
        let hash = decode(&passwords.hash("secret".to_owned()).await.unwrap());
        let logins = (0..THREADS + QUEUED_MAX + 40)
            .map(|_| passwords.verify("secret".to_owned(), hash.clone()));
        let mut set: Vec<_> = logins.map(Box::pin).collect();
        let mut outcomes = Vec::new();
        // All are queued, or refused, before the first is waited for.
        for login in &mut set {
            outcomes.push(poll_once(login.as_mut()).await);
        }
        let refused = outcomes
            .iter()
            .filter(|outcome| **outcome == Some(Err(ApiError::TooManyRequests)));
        assert!(refused.count() > 0);
        for (login, outcome) in set.into_iter().zip(outcomes) {
            if outcome.is_none() {
                assert_eq!(login.await, Ok(true));
            }
        }
    }

    async fn poll_once<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match future.as_mut().poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[test]
    fn given_hashes_are_checked() {
        let of_cost = |cost: &str| {
            let hash = bcrypt::hash_with_salt(b"x", 4, [1; 16])
                .unwrap()
                .to_string();
            encode(hash.replacen("$04$", &format!("${cost}$"), 1).as_bytes())
        };
        assert!(check_given(&of_cost("04")).is_ok());
        assert!(check_given(&of_cost("16")).is_ok());
        for bad in [
            "",
            "!",
            &encode(b"secret"),
            &encode(b"\xff\xfe"),
            &of_cost("17"),
            &of_cost("31"),
        ] {
            let refused = check_given(bad).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad}");
        }
    }
}
