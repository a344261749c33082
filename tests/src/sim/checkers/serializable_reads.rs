//! Serializable reads are monotonic: what one process answers never gets older.
//!
//! Source: etcd's API guarantees: a serializable read may be stale, but comes from a state that the member went through.
//! A process that starts again may begin with an older state.

use std::collections::BTreeMap;

use super::Verdict;

/// The newest revision that each process has answered with.
#[derive(Debug, Default)]
pub struct SerializableReads(BTreeMap<u64, i64>);

impl SerializableReads {
    /// A read was answered by a member, at a revision.
    ///
    /// # Errors
    /// When an earlier answer was newer.
    pub fn answered(&mut self, node: u64, revision: i64) -> Verdict {
        let newest = self.0.entry(node).or_default();
        if revision < *newest {
            return Err(format!(
                "member {node} answers a read at revision {revision}, after one at {newest}"
            ));
        }
        *newest = revision;
        Ok(())
    }

    /// The process has ended.
    pub fn ended(&mut self, node: u64) {
        self.0.remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_answer_of_one_process_is_refused() {
        let mut checker = SerializableReads::default();
        assert_eq!(checker.answered(1, 8), Ok(()));
        assert_eq!(checker.answered(2, 5), Ok(()));
        assert!(checker.answered(1, 7).is_err());
        checker.ended(1);
        assert_eq!(checker.answered(1, 3), Ok(()));
    }
}
