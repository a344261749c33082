//! What an engine holds, before any keyspace of it is opened.

use std::collections::BTreeMap;
use std::ops::Bound;

use raft_log::GroupId;
use raft_node::Applied;

use super::codec::{self, Meta};
use crate::engine::{Engine, EngineError};

/// What an engine holds.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Where the state of each group stands.
    pub applied: BTreeMap<GroupId, Applied>,
}

impl Survey {
    /// Looks at every group of an engine.
    ///
    /// # Errors
    /// The engine's, and a record that cannot be decoded.
    pub fn of(engine: &dyn Engine) -> Result<Self, EngineError> {
        let snapshot = engine.snapshot();
        let mut survey = Self::default();
        let (from, to) = codec::metas();
        for pair in snapshot.range(Bound::Included(&from), Bound::Excluded(&to)) {
            let (key, record) = pair?;
            let (group, meta) = (codec::group_of(&key)?, Meta::decode(record)?);
            survey.applied.insert(
                group,
                Applied {
                    index: meta.index,
                    term: meta.term,
                    membership: meta.membership,
                },
            );
        }
        Ok(survey)
    }

    /// Where a group's state stands; nowhere when there is none.
    #[must_use]
    pub fn applied(&self, group: GroupId) -> Applied {
        self.applied.get(&group).cloned().unwrap_or_default()
    }
}
