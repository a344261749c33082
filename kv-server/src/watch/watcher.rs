//! One watcher: what it wants, and where it stands.

use std::sync::Arc;

use bytes::Bytes;

use super::index::{Index, Token};
use crate::error::ApiError;
use crate::mvcc::EventKind;
use crate::pb::etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType};

/// Where a range of keys ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// Before this key.
    Before(Bytes),
    /// Nowhere.
    Open,
}

impl End {
    pub(super) fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Open => true,
        }
    }
}

/// A key, or keys in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyRange {
    Point(Bytes),
    Range(Bytes, End),
}

impl KeyRange {
    /// As etcd reads it: no key means the smallest one, no end the key alone, a zero byte no end.
    fn of(key: Bytes, end: Bytes) -> Result<Self, Refused> {
        let key = if key.is_empty() {
            Bytes::from_static(&[0])
        } else {
            key
        };
        match end.as_ref() {
            [] => Ok(Self::Point(key)),
            [0] => Ok(Self::Range(key, End::Open)),
            _ if key >= end => Err("mvcc: watcher range is empty".to_owned()),
            _ => Ok(Self::Range(key, End::Before(end))),
        }
    }

    /// As a request would name it.
    pub(super) fn named(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Point(point) => (point, b""),
            Self::Range(start, End::Before(end)) => (start, end),
            Self::Range(start, End::Open) => (start, b"\0"),
        }
    }

    #[cfg(test)]
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Point(point) => point == key,
            Self::Range(start, end) => start.as_ref() <= key && end.is_after(key),
        }
    }
}

/// Why a watcher is not created, in etcd's words.
pub(super) type Refused = String;

/// Which cursor a watcher follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// That of the stream.
    Main,
    /// That of those who catch up.
    Catching,
    /// None: it waits for its turn to catch up.
    Waiting,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) id: i64,
    pub(super) range: KeyRange,
    /// Who created it; nobody while authentication is not enabled.
    pub(super) user: Option<Arc<str>>,
    /// Nothing below this revision is for it.
    pub(super) from: i64,
    /// It must not hear of progress below this revision: a client that resumes behind a report would else see what is
    /// not for it, or what it has seen.
    pub(super) report_from: i64,
    no_put: bool,
    no_delete: bool,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
    pub(super) notify: bool,
    /// It got no events since the last look.
    pub(super) quiet: bool,
    pub(super) place: Place,
    /// Where the batch of this number has its matches.
    pub(super) matches: (u64, usize),
}

impl Watcher {
    /// What a request asks for; id, place and first revision are the stream's to set.
    pub(super) fn of(request: WatchCreateRequest) -> Result<Self, Refused> {
        if request.start_revision < 0 {
            return Err(ApiError::Compacted.to_string());
        }
        let filters = |wanted: FilterType| request.filters.contains(&(wanted as i32));
        Ok(Self {
            id: request.watch_id,
            user: None,
            from: request.start_revision,
            report_from: request.start_revision,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            notify: request.progress_notify,
            quiet: true,
            place: Place::Waiting,
            matches: (0, 0),
            range: KeyRange::of(request.key, request.range_end)?,
        })
    }

    pub(super) fn wants(&self, revision: i64, kind: EventKind) -> bool {
        let filtered = match kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        revision >= self.from && !filtered
    }
}

/// Watchers that share a cursor.
#[derive(Debug)]
pub(super) struct Cohort {
    /// The next revision to look at.
    pub(super) cursor: i64,
    pub(super) index: Index,
}

impl Cohort {
    pub(super) fn at(cursor: i64) -> Self {
        Self {
            cursor,
            index: Index::default(),
        }
    }

    pub(super) fn insert(&mut self, watcher: &Watcher, token: Token) {
        self.index.insert(&watcher.range, token);
    }
}
