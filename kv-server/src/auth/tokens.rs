//! Simple tokens: a random word and the index of the log entry by which every member learned of it.
//!
//! They are kept in memory by each member, and nothing of them is applied state: a member that starts, or takes up a
//! snapshot, knows none, and clients log in again. Each use at a member gives a token its full time there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Tokens that a member keeps; past it the one that ends first goes, and its client logs in again.
const TOKENS_MAX: usize = 65_536;
/// etcd's default of what a token lives unused.
pub const TTL_DEFAULT: Duration = Duration::from_secs(300);

/// Hears of tokens, in the order of the log. Called by the applying thread: it must not block.
pub trait TokenSink: Send + Sync {
    /// A user has a token from now on.
    fn assigned(&self, token: &str, user: &str);

    /// Tokens of a user count no more.
    fn invalidated(&self, user: &str);

    /// None counts any more.
    fn cleared(&self);
}

/// What is known of one token.
struct Entry {
    user: Arc<str>,
    ends: Instant,
    /// Tells tokens apart that end together.
    number: u64,
}

#[derive(Default)]
struct Table {
    tokens: BTreeMap<Arc<str>, Entry>,
    /// The same tokens, by when they end.
    ends: BTreeMap<(Instant, u64), Arc<str>>,
    next: u64,
}

impl Table {
    fn remove(&mut self, token: &str) {
        if let Some(entry) = self.tokens.remove(token) {
            self.ends.remove(&(entry.ends, entry.number));
        }
    }

    fn insert(&mut self, token: Arc<str>, user: Arc<str>, ends: Instant) {
        let number = self.next;
        self.next += 1;
        self.ends.insert((ends, number), Arc::clone(&token));
        self.tokens.insert(token, Entry { user, ends, number });
    }

    fn forget_ended(&mut self, now: Instant, tokens_max: usize) {
        while let Some(((ends, _), token)) = self.ends.first_key_value() {
            if *ends > now && self.tokens.len() <= tokens_max {
                return;
            }
            let token = Arc::clone(token);
            self.remove(&token);
        }
    }
}

/// The tokens that a member knows.
pub struct TokenTable {
    table: Mutex<Table>,
    ttl_ms: AtomicU64,
    /// Tokens of entries up to here are none: see [`Self::begin_after`].
    floor: AtomicU64,
    tokens_max: usize,
}

impl Default for TokenTable {
    fn default() -> Self {
        Self::with_room_for(TOKENS_MAX)
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable").finish_non_exhaustive()
    }
}

impl TokenTable {
    fn with_room_for(tokens_max: usize) -> Self {
        Self {
            table: Mutex::default(),
            ttl_ms: AtomicU64::new(300_000),
            floor: AtomicU64::new(0),
            tokens_max,
        }
    }

    /// Says how long a token lives unused; [`TTL_DEFAULT`] unless this is called.
    pub fn keep_for(&self, ttl: Duration) {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.ttl_ms.store(ttl_ms, Ordering::Relaxed);
    }

    /// Forgets what entries up to this index say. They are of former runs, and are applied again when a member starts:
    /// tokens that ended long ago would come to life.
    pub fn begin_after(&self, index: u64) {
        self.floor.store(index, Ordering::Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self, now: Instant) -> Instant {
        now + Duration::from_millis(self.ttl_ms.load(Ordering::Relaxed))
    }

    /// Whose token it is; it lives for its full time from now on.
    #[must_use]
    pub fn user(&self, token: &str) -> Option<Arc<str>> {
        self.user_at(token, Instant::now())
    }

    fn user_at(&self, token: &str, now: Instant) -> Option<Arc<str>> {
        let mut table = self.table();
        table.forget_ended(now, self.tokens_max);
        let (known, entry) = table.tokens.remove_entry(token)?;
        table.ends.remove(&(entry.ends, entry.number));
        let user = Arc::clone(&entry.user);
        table.insert(known, entry.user, self.ends(now));
        Some(user)
    }

    fn assigned_at(&self, token: &str, user: &str, now: Instant) {
        if index_of(token).is_some_and(|index| index <= self.floor.load(Ordering::Relaxed)) {
            return;
        }
        let mut table = self.table();
        table.remove(token);
        table.insert(token.into(), user.into(), self.ends(now));
        table.forget_ended(now, self.tokens_max);
    }
}

impl TokenSink for TokenTable {
    fn assigned(&self, token: &str, user: &str) {
        self.assigned_at(token, user, Instant::now());
    }

    fn invalidated(&self, user: &str) {
        let mut table = self.table();
        let of_user = table
            .tokens
            .iter()
            .filter(|(_, entry)| entry.user.as_ref() == user);
        let gone: Vec<_> = of_user.map(|(token, _)| Arc::clone(token)).collect();
        for token in gone {
            table.remove(&token);
        }
    }

    fn cleared(&self) {
        let mut table = self.table();
        table.tokens.clear();
        table.ends.clear();
    }
}

/// The index of the entry that assigned a token; none for what no member made.
pub(super) fn index_of(token: &str) -> Option<u64> {
    let (prefix, index) = token.split_once('.')?;
    if prefix.is_empty() || index.contains('.') {
        return None;
    }
    index.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ends_when_it_is_not_used_and_lives_on_when_it_is() {
        let tokens = TokenTable::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        tokens.keep_for(Duration::from_secs(10));
        tokens.assigned_at("a.1", "alice", begun);
        tokens.assigned_at("b.2", "bob", begun);
        for n in 1..4 {
            let user = tokens.user_at("a.1", at(6 * n));
            assert_eq!(user.as_deref(), Some("alice"));
        }
        assert_eq!(tokens.user_at("b.2", at(18)), None);
        assert_eq!(tokens.user_at("a.1", at(29)), None);
        assert!(tokens.table().ends.is_empty());
    }

    #[test]
    fn tokens_of_a_user_end_together_and_all_with_authentication() {
        let tokens = TokenTable::default();
        for (token, user) in [("a.1", "alice"), ("a.2", "alice"), ("b.3", "bob")] {
            tokens.assigned(token, user);
        }
        tokens.invalidated("alice");
        assert_eq!((tokens.user("a.1"), tokens.user("a.2")), (None, None));
        assert_eq!(tokens.user("b.3").as_deref(), Some("bob"));
        tokens.cleared();
        assert_eq!(tokens.user("b.3"), None);
    }

    #[test]
    fn token_that_ends_first_goes_when_there_is_no_room() {
        let tokens = TokenTable::with_room_for(2);
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        tokens.assigned_at("a.1", "alice", begun);
        tokens.assigned_at("b.2", "bob", at(1));
        assert!(tokens.user_at("a.1", at(2)).is_some(), "now it ends last");
        tokens.assigned_at("c.3", "carol", at(3));
        assert_eq!(tokens.user_at("b.2", at(3)), None);
        assert!(tokens.user_at("a.1", at(3)).is_some());
        assert!(tokens.user_at("c.3", at(3)).is_some());
    }

    #[test]
    fn tokens_of_former_runs_stay_forgotten() {
        let tokens = TokenTable::default();
        tokens.begin_after(7);
        tokens.assigned("a.7", "alice");
        tokens.assigned("a.8", "alice");
        assert_eq!(tokens.user("a.7"), None);
        assert!(tokens.user("a.8").is_some());
    }

    #[test]
    fn index_is_read_off_what_members_make_only() {
        assert_eq!(index_of("abc.17"), Some(17));
        for bad in ["", "abc", ".1", "abc.", "abc.x", "abc.1.2", "abc.-1"] {
            assert_eq!(index_of(bad), None, "{bad}");
        }
    }
}
