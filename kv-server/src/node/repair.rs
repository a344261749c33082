//! A member of a cluster whose log lost what it may have acknowledged: it begins the log anew, guarded, and its peers give
//! back what is missing. A member alone refuses instead, as nobody could.
//!
//! What is known here decides only whether there is anybody; `raft_log::log::renewal` keeps what may be kept, and refuses
//! where term and vote are not known; the core does not vote with such a log before it has caught up.

use std::sync::Arc;

use raft_log::log::renewal::{Renewal, open_or_renew, renew};
use raft_log::log::salvage::Covered;
use raft_log::snapshot::Catalog;
use raft_log::vfs::SharedVfs;
use raft_log::{Base, GroupId, Log, Record, SnapshotRef, WriteBatch};
use raft_node::Applied;
use raft_node::core::Membership;
use raft_node::driver::OpenError;
use raft_node::driver::repair::{covered, newest_membership};
use tracing::{error, info, warn};

use super::engine::survey_at_start;
use super::keyspace::Beginning;
use super::{DATA_GROUP, Identity, NodeConfig, NodeError, PeerBook, log_options};
use crate::mvcc::Survey;

/// Opens the log, or the one that takes its place.
pub(super) fn open_log(
    vfs: &SharedVfs,
    config: &NodeConfig,
    identity: &Identity,
    peers: &PeerBook,
) -> Result<Log, NodeError> {
    if peers.ids().len() < 2 {
        return open(vfs, config, identity);
    }
    let survey = || survey_at_start(&config.data_dir.join("engine"));
    let repair = Repair {
        vfs,
        config,
        identity,
        peers,
        survey: &survey,
    };
    let options = log_options(config, identity.store);
    let opened = open_or_renew(vfs, &options, &repair.has_snapshot(), &|group, base| {
        repair.state_of(group, base)
    })?;
    if let Some((cause, renewal)) = opened.anew {
        report(&cause, &renewal);
    }
    info!(recovery = %opened.report, "log opened");
    Ok(opened.log)
}

/// Sees to it that the log reaches what the engine has applied durably of each group, and gives back the one to go on with.
pub(super) fn reach(
    vfs: &SharedVfs,
    config: &NodeConfig,
    identity: &Identity,
    peers: &PeerBook,
    log: Log,
    survey: &Survey,
) -> Result<Log, NodeError> {
    let repair = Repair {
        vfs,
        config,
        identity,
        peers,
        survey: &|| Ok(survey.clone()),
    };
    let mut lost = None;
    for group in log.groups() {
        let (Some(info), applied) = (log.group(group), survey.applied(group)) else {
            continue;
        };
        if applied.index <= info.last_index {
            continue;
        }
        let cause = OpenError::LogEndsBelowApplied {
            group,
            last: info.last_index,
            applied: applied.index,
        };
        let beginning = repair.beginning(group);
        let first = beginning.map_or_else(|| peers.first(), |beginning| beginning.first);
        if !is_alone(&newest_membership(&info.base, &applied, &first), identity) {
            lost = Some(cause);
            continue;
        }
        if !config.accept_suspect_tail {
            return Err(cause.into());
        }
        warn!(%cause, "told to accept it: the log begins behind what was applied");
        restart(&log, group, info.base, &applied, &first)?;
    }
    let Some(cause) = lost else {
        return Ok(log);
    };
    log.close()?;
    drop(log);
    let options = log_options(config, identity.store);
    let renewal = renew(vfs, &options, &repair.has_snapshot(), &|group, base| {
        repair.state_of(group, base)
    })?;
    report(&cause, &renewal);
    open(vfs, config, identity)
}

fn open(vfs: &SharedVfs, config: &NodeConfig, identity: &Identity) -> Result<Log, NodeError> {
    let (log, recovery) = Log::open(Arc::clone(vfs), log_options(config, identity.store))?;
    info!(%recovery, "log opened");
    Ok(log)
}

/// What a new log needs to know of this member.
struct Repair<'a> {
    vfs: &'a SharedVfs,
    config: &'a NodeConfig,
    identity: &'a Identity,
    peers: &'a PeerBook,
    /// What the engine holds, or why that cannot be told.
    survey: &'a dyn Fn() -> Result<Survey, String>,
}

impl Repair<'_> {
    fn has_snapshot(&self) -> impl Fn(GroupId, &SnapshotRef) -> bool + use<> {
        let dir = self.config.data_dir.join("snap");
        let catalog = Catalog::new(Arc::clone(self.vfs), dir, Some(self.identity.store));
        move |group, snapshot| catalog.verify(group, snapshot).is_ok()
    }

    /// Where the log begins at the latest, if this member has peers that can repair it.
    fn state_of(&self, group: GroupId, base: &Base) -> Result<Option<Covered>, String> {
        let survey = (self.survey)()?;
        let beginning = self.beginning(group);
        let Some(Beginning { first, .. }) =
            beginning.filter(|beginning| beginning.creation == base.creation)
        else {
            return Ok(None);
        };
        let applied = survey.applied(group);
        if is_alone(&newest_membership(base, &applied, &first), self.identity) {
            return Err("this member is the only voter, so nobody can repair it".to_owned());
        }
        Ok(Some(covered(base, &applied, &first)))
    }

    /// With what a group began.
    fn beginning(&self, group: GroupId) -> Option<Beginning> {
        if group != DATA_GROUP {
            return self.peers.beginning(group);
        }
        Some(Beginning {
            creation: self.peers.creation().unwrap_or(self.identity.cluster),
            first: self.peers.first(),
        })
    }
}

/// Loudly: somebody should look after the disk.
fn report(cause: &dyn std::error::Error, renewal: &Renewal) {
    error!(
        %cause,
        moved_to = %renewal.evidence.display(),
        "the log lost what may have been acknowledged: it was begun anew, and its peers give back what is missing; this \
         member does not vote until they have"
    );
    for damage in &renewal.report.damage {
        warn!(%damage, "damage in the log that was moved");
    }
    for told in &renewal.report.groups {
        let reason = told
            .reason
            .as_deref()
            .unwrap_or("nothing is known to be lost");
        warn!(
            group = %told.group, base = %told.base, last = %told.last, known = %told.known, reason,
            "kept of the log"
        );
    }
}

/// Lets the log of a member alone begin where its state ends, with nothing in it.
fn restart(
    log: &Log,
    group: GroupId,
    base: Base,
    applied: &Applied,
    first: &Membership,
) -> Result<(), NodeError> {
    let state = covered(&base, applied, first);
    let mut batch = WriteBatch::new();
    batch.push(
        group,
        Record::Compact(Base {
            index: state.index,
            term: state.term,
            creation: base.creation,
            membership: state.membership.unwrap_or(base.membership),
        }),
    );
    Ok(log.write(batch)?)
}

fn is_alone(membership: &Membership, identity: &Identity) -> bool {
    membership.is_sole_voter(identity.member)
}
