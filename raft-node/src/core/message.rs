//! What members say to each other.

use crate::{Entry, Index, Term};

/// A message, with the sender's term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's term when it was sent.
    pub term: Term,
    /// Which log it is about ([`super::Incarnation`]): the receiver's, as the leader knows it, in [`Body::Append`],
    /// [`Body::Heartbeat`] and [`Body::GuardEnd`]; the sender's in all others.
    pub incarnation: u64,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A candidate asks for a vote.
    Vote {
        /// The last index of its log.
        last_index: Index,
        /// The term of that entry.
        last_term: Term,
        /// The candidate was told to campaign: who hears a leader answers all the same.
        forced: bool,
    },
    /// A member asks who would vote for it in the term after the message's. Nobody's term changes by it.
    PreVote {
        /// The last index of its log.
        last_index: Index,
        /// The term of that entry.
        last_term: Term,
    },
    /// The answer; it promises nothing. The message's term is the one of who answers.
    PreVoteReply {
        /// The term that was asked for.
        asked: Term,
        /// Whether a vote would be given.
        granted: bool,
    },
    /// The answer.
    VoteReply {
        /// Whether the vote was given; it is durable.
        granted: bool,
    },
    /// A leader sends entries, possibly none.
    Append {
        /// The index before the first entry.
        prev_index: Index,
        /// The term of the entry there.
        prev_term: Term,
        /// Contiguous entries.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// The log agrees with the leader's up to `matched`, durably.
    AppendReply {
        /// The index.
        matched: Index,
    },
    /// The log does not have the entry before the first that was sent.
    AppendReject {
        /// The `prev_index` that did not match.
        rejected: Index,
        /// The highest index at which the logs may still agree.
        hint_index: Index,
        /// The term of the follower's entry there.
        hint_term: Term,
    },
    /// The leader is there.
    Heartbeat {
        /// What the follower may commit: never above what it has acknowledged.
        commit: Index,
        /// The newest read round; a counter private to the leader, never client data.
        round: u64,
    },
    /// The follower is there and in the leader's term.
    HeartbeatReply {
        /// The round of the heartbeat that it answers.
        round: u64,
    },
    /// The leader has nothing to do, and neither has anybody else: no heartbeat follows until there is something.
    Sleep {
        /// The last index of the leader's log; the receiver has acknowledged it, and all of it is committed.
        last_index: Index,
    },
    /// The answer.
    SleepReply {
        /// The member sleeps. Else it has not applied everything, or must not sleep.
        asleep: bool,
    },
    /// A follower whose log lost something asks when it may vote again.
    Guarded,
    /// The answer.
    GuardEnd {
        /// Once its log agrees with the leader's up to here, durably.
        until: Index,
    },
    /// The leader hands over: campaign at once, if this entry is held durably.
    TimeoutNow {
        /// The last index of the leader's log.
        last_index: Index,
        /// The term of that entry.
        last_term: Term,
    },
    /// A member that does not lead asks from which index on a read is linearizable.
    ReadIndex {
        /// The boot number of who asks.
        boot: u64,
        /// A number that it uses once per boot.
        question: u64,
    },
    /// The answer, after a round that began when the question was there.
    ReadIndexReply {
        /// As in the question.
        boot: u64,
        /// As in the question.
        question: u64,
        /// To be applied before the read is served.
        index: Index,
    },
}
