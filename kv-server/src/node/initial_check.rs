//! Whether a member that starts has the state that the others have, before it serves anybody.
//!
//! It asks for a comparison, as the leader does now and then, and the leader for what came of it. Where nobody can say, it goes
//! on, as etcd does with members that do not answer.
#![expect(
    clippy::disallowed_methods,
    reason = "a start that waits for others has to end some time"
)]

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use prost::Message;
use raft_log::Index;
use tracing::{info, warn};

use super::{DATA_GROUP, Node, NodeError};
use crate::lease::{decode_answer, encode_call};
use crate::pb::command::{CheckState, Command, command::Op};
use crate::pb::etcdserverpb::{AlarmMember, AlarmType};
use crate::pb::peer::{StateVerdict, lease_call};
use crate::upkeep::Verdict;

/// How long hashes are waited for. Large stores take their time.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a majority is waited for once a hash differs: who is missing may be down.
const PATIENCE_IN_DOUBT: Duration = Duration::from_secs(15);
/// How often all are asked: hashes that were told to a leader before this one are lost.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

impl Node {
    /// Blocks until it is known whether this member's state is the majority's; call it once there is a leader. A member that
    /// is alone, or new, has nothing to compare.
    ///
    /// # Errors
    /// [`NodeError::Inconsistent`] when it is not, or when the states differ and no majority has one.
    pub fn check_initial_state(&self) -> Result<(), NodeError> {
        let status = self.handle.status(DATA_GROUP).unwrap_or_default();
        let members = status.voters.len() + status.learners.len();
        if members < 2 || self.identity.boot <= 1 {
            info!("initial corruption check: there is nothing to compare");
            return Ok(());
        }
        info!("starting initial corruption check");
        let member = self.identity.member;
        let begun = Instant::now();
        // One that was found wrong before takes the leader's state first.
        let found_wrong = AlarmMember {
            member_id: member.0,
            alarm: AlarmType::Corrupt.into(),
        };
        while self.keyspace.store.alarm(found_wrong) == Some(true) && begun.elapsed() < PATIENCE {
            std::thread::park_timeout(PAUSE);
        }
        let (mut compared, mut differs) = (None::<Instant>, None::<Instant>);
        while begun.elapsed() < PATIENCE {
            if compared.is_none_or(|at| at.elapsed() >= COMPARE_EVERY) {
                compared = Some(Instant::now());
                self.compare();
            }
            match self.ask_verdict(status.applied) {
                Verdict::Right => {
                    info!("initial corruption checking passed; no corruption");
                    return Ok(());
                }
                Verdict::Wrong => return Err(NodeError::Inconsistent { member }),
                Verdict::Differs => {
                    let since = differs.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE_IN_DOUBT {
                        return Err(NodeError::Inconsistent { member });
                    }
                }
                Verdict::Unknown => {}
            }
            std::thread::park_timeout(PAUSE);
        }
        warn!(
            "initial corruption check: no other member has told its hash in time; going on without"
        );
        Ok(())
    }

    /// Has all members hash their state.
    fn compare(&self) {
        let op = Some(Op::CheckState(CheckState {}));
        let (sender, receiver) = channel();
        // The receiver lives until the answer is there.
        let reply = Box::new(move |outcome| drop(sender.send(outcome)));
        let payload = Command { op }.encode_to_vec().into();
        self.handle.propose(DATA_GROUP, payload, reply);
        if let Ok(Err(error)) = receiver.recv() {
            warn!(%error, "initial corruption check: the states are not compared now; it is tried again");
        }
    }

    /// What the leader makes of this member's state above an index.
    fn ask_verdict(&self, above: Index) -> Verdict {
        let wanted = StateVerdict {
            member: self.identity.member.0,
            above: above.0,
        };
        let (sender, receiver) = channel();
        let reply = Box::new(move |answer| drop(sender.send(answer)));
        let call = encode_call(lease_call::Op::StateVerdict(wanted));
        self.handle.call_leader(DATA_GROUP, call, reply);
        let answer = receiver.recv().ok().and_then(Result::ok);
        let answer = answer.and_then(decode_answer);
        answer.map_or(Verdict::Unknown, Verdict::from_number)
    }
}
