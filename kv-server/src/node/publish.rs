//! Tells all members what this one is called and where it serves clients: one entry in the log, proposed until it is
//! applied. On a thread of its own, because without a leader that takes as long as it takes.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use multiraft::{HostError, HostHandle};
use prost::Message;
use tracing::{info, warn};

use super::DATA_GROUP;
use crate::mvcc::KvStateMachine;
use crate::pb::command::{Command, PublishMember, command::Op};

/// The pause after a try that failed at once; without a leader a try itself takes seconds.
const PAUSE: Duration = Duration::from_millis(200);

/// The thread. It ends when the record is applied, or the host stops.
pub(super) struct Publisher(JoinHandle<()>);

impl Publisher {
    pub(super) fn start(
        handle: HostHandle<KvStateMachine>,
        row: PublishMember,
        done: Sender<()>,
    ) -> io::Result<Self> {
        std::thread::Builder::new()
            .name("flotilla-publish".to_owned())
            .spawn(move || {
                if publish(&handle, row) {
                    // Whoever asked may not wait any more.
                    let _ = done.send(());
                }
            })
            .map(Self)
    }

    /// Waits for the end; call it after the host was stopped.
    pub(super) fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the thread that publishes panicked");
        }
    }
}

/// False when the host stopped before.
fn publish(handle: &HostHandle<KvStateMachine>, row: PublishMember) -> bool {
    let urls = row.client_urls.join(",");
    let op = Some(Op::PublishMember(row));
    let payload = bytes::Bytes::from(Command { op }.encode_to_vec());
    loop {
        let (sender, receiver) = channel();
        // The receiver lives until the answer is there.
        let reply = Box::new(move |output| drop(sender.send(output)));
        handle.propose(DATA_GROUP, payload.clone(), reply);
        match receiver.recv() {
            Ok(Ok(_)) => {
                info!(urls, "published the client URLs of this member");
                return true;
            }
            Ok(Err(HostError::Stopped)) | Err(_) => return false,
            // Published twice is published.
            Ok(Err(error)) => {
                warn!(%error, "the client URLs of this member are not published yet");
                std::thread::park_timeout(PAUSE);
            }
        }
    }
}
