//! What members say to each other about work that one does for another's clients.

use bytes::Bytes;
use raft_log::Index;

/// One message. It may be lost, doubled or late, as any message of a peer.
///
/// `boot` and the numbers are the asking member's, and come back as they were sent; an answer to an earlier run of that
/// member is of no use to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardMessage {
    /// Propose this command. There is no answer when it was proposed: the asking member sees it when it applies it.
    Propose {
        /// The asking member's run.
        boot: u64,
        /// Which of its commands.
        sequence: u64,
        /// Counts how often that command was sent.
        attempt: u32,
        /// The command, with its [`super::Origin`].
        payload: Bytes,
    },
    /// That attempt was not proposed, and never will be by who received it.
    NotProposed {
        /// As in `Propose`.
        boot: u64,
        /// As in `Propose`.
        sequence: u64,
        /// As in `Propose`.
        attempt: u32,
    },
    /// Do something that may be done twice.
    Ask {
        /// The asking member's run.
        boot: u64,
        /// Which of its questions.
        id: u64,
        /// What to do.
        question: Question,
    },
    /// The answer.
    Answer {
        /// As in `Ask`.
        boot: u64,
        /// As in `Ask`.
        id: u64,
        /// The answer; none from a member that does not lead.
        answer: Option<Answer>,
    },
}

impl ForwardMessage {
    /// The bytes that it counts for in budgets, without a fixed part.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Propose { payload, .. } => payload.len(),
            Self::Ask {
                question: Question::Call(payload),
                ..
            } => payload.len(),
            Self::Answer {
                answer: Some(Answer::Call(payload)),
                ..
            } => payload.len(),
            Self::NotProposed { .. } | Self::Ask { .. } | Self::Answer { .. } => 0,
        }
    }
}

/// What a leader is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Up to which index local state must have applied, so that a read of it is linearizable.
    Read,
    /// Something that the state machine's owner understands: see [`super::Calls`].
    Call(Bytes),
}

/// What a leader answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The index, confirmed by a round of the group.
    Read(Index),
    /// What [`super::Calls`] gave.
    Call(Bytes),
}
