//! What a leader believes of one member.

use std::collections::VecDeque;

use crate::Index;

/// How entries are sent to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Where the logs agree is not known: one message at a time.
    Probe {
        /// A message is on its way.
        paused: bool,
    },
    /// The logs agree: messages follow each other without waiting.
    Replicate,
    /// The member needs entries that the log no longer holds, and a snapshot instead.
    Snapshot {
        /// When it was asked for, or somebody last heard of its transfer, in ticks of this leader's lead.
        since: u64,
    },
}

/// Invariant: `matched < next`; `matched` never decreases while the term and the member's log last.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    matched: Index,
    next: Index,
    pub(super) mode: Mode,
    /// The last index and the bytes of each message on its way, ascending.
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
    /// The commit index last sent along.
    pub(super) sent_commit: Index,
    /// The newest read round that the member answered.
    pub(super) acked_round: u64,
    /// When the member last answered, in ticks of this leader's lead.
    pub(super) heard_at: u64,
    /// Entries are being fetched for it.
    pub(super) fetching: bool,
    /// The member's log that all of this is about.
    incarnation: u64,
    /// The leader's last index when it first saw that log.
    first_seen_at: Index,
    /// All was sent and not all acknowledged: an empty append will tell whether something was lost.
    pub(super) verify: bool,
}

impl Progress {
    /// `now` counts as heard: a member has one election timeout to answer for the first time.
    pub(super) fn new(next: Index, now: u64) -> Self {
        Self {
            matched: Index::ZERO,
            next,
            mode: Mode::Probe { paused: false },
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            sent_commit: Index::ZERO,
            acked_round: 0,
            heard_at: now,
            fetching: false,
            incarnation: 0,
            first_seen_at: next.prev(),
            verify: false,
        }
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(super) fn first_seen_at(&self) -> Index {
        self.first_seen_at
    }

    /// The member has another log than before, of which nothing is known. The leader's ends at `last`.
    pub(super) fn begin_anew(&mut self, incarnation: u64, last: Index) {
        assert!(incarnation > self.incarnation, "incarnations go forward");
        *self = Self {
            acked_round: self.acked_round,
            incarnation,
            ..Self::new(last.next(), self.heard_at)
        };
    }

    pub(super) fn matched(&self) -> Index {
        self.matched
    }

    pub(super) fn next(&self) -> Index {
        self.next
    }

    /// Entries up to `last` left, `bytes` of them.
    pub(super) fn sent(&mut self, last: Index, bytes: usize) {
        match &mut self.mode {
            Mode::Probe { paused } => *paused = true,
            Mode::Replicate => {
                if last >= self.next {
                    assert!(
                        self.inflight.back().is_none_or(|(index, _)| *index < last),
                        "messages in flight ascend"
                    );
                    self.inflight.push_back((last, bytes));
                    self.inflight_bytes += bytes;
                    self.set_next(last.next());
                }
            }
            Mode::Snapshot { .. } => {
                unreachable!("nothing is appended while a snapshot is needed")
            }
        }
    }

    /// True when no further message may leave now.
    pub(super) fn is_full(&self, messages_max: usize, bytes_max: usize) -> bool {
        match self.mode {
            Mode::Probe { paused } => paused,
            Mode::Replicate => {
                self.inflight.len() >= messages_max || self.inflight_bytes >= bytes_max
            }
            Mode::Snapshot { .. } => true,
        }
    }

    /// The member has everything up to `matched`, and our log begins after `base`. Returns true when that is news.
    pub(super) fn acked(&mut self, matched: Index, base: Index) -> bool {
        while self
            .inflight
            .front()
            .is_some_and(|(index, _)| *index <= matched)
        {
            let (_, bytes) = self.inflight.pop_front().expect("the front was just seen");
            assert!(bytes <= self.inflight_bytes, "bytes in flight were counted");
            self.inflight_bytes -= bytes;
        }
        let news = matched > self.matched;
        self.matched = self.matched.max(matched);
        if matched >= self.next {
            self.next = matched.next();
        }
        // One that waits for a snapshot goes on as soon as its log meets ours, whatever snapshot it took up.
        let stays = matches!(self.mode, Mode::Snapshot { .. }) && self.matched < base;
        if self.mode != Mode::Replicate && !stays {
            self.enter(Mode::Replicate);
            self.next = self.matched.next();
        }
        self.check();
        news
    }

    /// The member refused what followed `rejected`; the logs may agree at `retry_from`. Returns false when the answer
    /// is older than what is known.
    pub(super) fn rejected(&mut self, rejected: Index, retry_from: Index) -> bool {
        match self.mode {
            Mode::Replicate => {
                if rejected <= self.matched {
                    return false;
                }
                self.enter(Mode::Probe { paused: false });
                self.next = self.matched.next();
            }
            Mode::Probe { .. } => {
                if rejected != self.next.prev() {
                    return false;
                }
                self.enter(Mode::Probe { paused: false });
                self.next = retry_from.next().min(rejected).max(self.matched.next());
            }
            Mode::Snapshot { .. } => return false,
        }
        self.check();
        true
    }

    /// Something that was sent may be lost: find out where the logs agree.
    pub(super) fn probe(&mut self) {
        if matches!(self.mode, Mode::Snapshot { .. }) {
            // Entries are of no use to it; who sends the snapshot says what becomes of that.
            return;
        }
        if self.mode == Mode::Replicate {
            self.next = self.matched.next();
        }
        self.enter(Mode::Probe { paused: false });
        self.check();
    }

    /// A sign of life of a member that has not acknowledged everything up to `last`: a probe may be sent again, and
    /// what was sent is verified, in case it was lost.
    pub(super) fn alive(&mut self, last: Index, is_full: bool) {
        match &mut self.mode {
            Mode::Probe { paused } => *paused = false,
            Mode::Replicate if self.matched < last && is_full => self.probe(),
            Mode::Replicate => self.verify = self.matched < last && self.next > last,
            Mode::Snapshot { .. } => {}
        }
    }

    /// Nothing is sent until a snapshot was taken up, or its transfer is over or not heard of for too long.
    pub(super) fn needs_snapshot(&mut self, now: u64) {
        self.enter(Mode::Snapshot { since: now });
    }

    /// Nothing is sent until the member gives a sign of life.
    pub(super) fn pause(&mut self) {
        self.enter(Mode::Probe { paused: true });
    }

    /// The transfer of the snapshot goes on.
    pub(super) fn snapshot_moves(&mut self, now: u64) {
        if let Mode::Snapshot { since } = &mut self.mode {
            *since = now;
        }
    }

    /// The member has taken up a snapshot of `index`: what follows it is sent.
    pub(super) fn snapshot_taken(&mut self, index: Index) {
        if matches!(self.mode, Mode::Snapshot { .. }) {
            self.enter(Mode::Probe { paused: false });
            self.next = index.max(self.matched).next();
            self.check();
        }
    }

    /// The transfer came to nothing. The next try waits for a sign of life.
    pub(super) fn snapshot_failed(&mut self) {
        if matches!(self.mode, Mode::Snapshot { .. }) {
            self.pause();
        }
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.inflight.clear();
        self.inflight_bytes = 0;
        self.fetching = false;
        self.verify = false;
    }

    fn set_next(&mut self, next: Index) {
        self.next = next;
        self.check();
    }

    fn check(&self) {
        assert!(
            self.matched < self.next,
            "matched {} is not below next {}",
            self.matched,
            self.next
        );
    }
}
