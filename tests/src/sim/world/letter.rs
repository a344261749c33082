//! What members send each other.

use std::hash::Hash;
use std::mem::discriminant;

use multiraft::forward::ForwardMessage;
use raft_node::core::{Body, Message};

use super::snapshots::Frame;

/// One message, of whatever kind.
#[derive(Clone)]
pub(super) enum Letter {
    Raft(Message),
    /// About clients' work.
    Forward(ForwardMessage),
    /// A part of a snapshot, or what is said about one.
    Snapshot(Frame),
}

/// What tells messages apart in a trace.
pub(super) fn kind(letter: &Letter) -> impl Hash + use<> {
    match letter {
        Letter::Raft(message) => (
            message.term.0,
            Some(discriminant(&message.body)),
            None,
            None,
        ),
        Letter::Forward(message) => (0, None, Some(discriminant(message)), None),
        Letter::Snapshot(frame) => (0, None, None, Some(frame.id())),
    }
}

/// A message for the reader of a story.
pub(super) fn brief(letter: &Letter) -> String {
    let message = match letter {
        Letter::Raft(message) => message,
        Letter::Forward(ForwardMessage::Propose {
            boot,
            sequence,
            attempt,
            payload,
        }) => {
            return format!(
                "forwards command {boot}/{sequence}, attempt {attempt}, {} bytes",
                payload.len()
            );
        }
        Letter::Forward(message) => return format!("{message:?}"),
        Letter::Snapshot(frame) => return format!("{frame}"),
    };
    let term = message.term.0;
    match &message.body {
        Body::Append {
            prev_index,
            entries,
            commit,
            ..
        } => format!(
            "append after {prev_index}, {} entries, commit {commit}, term {term}",
            entries.len()
        ),
        body => format!("{body:?}, term {term}"),
    }
}
