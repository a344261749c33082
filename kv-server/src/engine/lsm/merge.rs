//! Several ordered sources of versions as one ordered walk over the newest version of each key.
//!
//! There are few sources, one for each memtable and each run of tables, so the least head is looked for among all of them.

use bytes::Bytes;

use crate::engine::{EngineError, Pair};

/// One version of a key; a missing value is a removal.
pub(super) struct Version {
    pub(super) user: Bytes,
    pub(super) sequence: u64,
    pub(super) value: Option<Bytes>,
}

impl Version {
    /// By key, then the newest first.
    fn is_before(&self, other: &Self) -> bool {
        (&self.user, other.sequence) < (&other.user, self.sequence)
    }
}

/// Versions by key, then the newest first.
pub(super) type Source<'a> = Box<dyn Iterator<Item = Result<Version, EngineError>> + Send + 'a>;

struct Head<'a> {
    version: Version,
    rest: Source<'a>,
}

/// The newest pairs of all sources, in key order.
pub(super) struct Merge<'a> {
    /// Not begun: opening one may read the disk.
    fresh: Vec<Source<'a>>,
    heads: Vec<Head<'a>>,
}

impl<'a> Merge<'a> {
    pub(super) fn new(sources: Vec<Source<'a>>) -> Self {
        Self {
            heads: Vec::with_capacity(sources.len()),
            fresh: sources,
        }
    }

    fn begin(&mut self) -> Result<(), EngineError> {
        for mut rest in self.fresh.drain(..) {
            if let Some(version) = rest.next().transpose()? {
                self.heads.push(Head { version, rest });
            }
        }
        Ok(())
    }

    /// The newest version of the next key.
    fn take(&mut self) -> Result<Option<Version>, EngineError> {
        self.begin()?;
        let mut heads = self.heads.iter().enumerate();
        let Some((mut least, mut first)) = heads.next() else {
            return Ok(None);
        };
        for (at, head) in heads {
            if head.version.is_before(&first.version) {
                (least, first) = (at, head);
            }
        }
        let taken = self.advance(least)?;
        // Whatever follows of this key is older.
        let mut at = 0;
        while let Some(head) = self.heads.get(at) {
            if head.version.user != taken.user {
                at += 1;
                continue;
            }
            drop(self.advance(at)?);
        }
        Ok(Some(taken))
    }

    /// Takes the head of a source, and the source away when it has ended.
    fn advance(&mut self, at: usize) -> Result<Version, EngineError> {
        let head = &mut self.heads[at];
        Ok(match head.rest.next().transpose()? {
            Some(next) => std::mem::replace(&mut head.version, next),
            None => self.heads.swap_remove(at).version,
        })
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Pair, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.take() {
                Ok(Some(Version {
                    user,
                    value: Some(value),
                    ..
                })) => return Some(Ok((user, value))),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => {
                    self.heads.clear();
                    self.fresh.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(versions: &[(&str, u64, Option<&str>)]) -> Source<'static> {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let versions: Vec<_> = versions
            .iter()
            .map(|(user, sequence, value)| {
                Ok(Version {
                    user: bytes(user),
                    sequence: *sequence,
                    value: value.map(bytes),
                })
            })
            .collect();
        Box::new(versions.into_iter())
    }

    #[test]
    fn newest_version_of_each_key_wins_and_removals_hide_older_ones() {
        let sources = vec![
            source(&[("b", 9, None), ("c", 8, Some("c8")), ("c", 7, Some("c7"))]),
            source(&[("a", 3, Some("a3")), ("b", 4, Some("b4")), ("d", 5, None)]),
            source(&[("a", 1, None), ("c", 2, None), ("d", 1, Some("d1"))]),
            source(&[]),
        ];
        let pairs: Vec<Pair> = Merge::new(sources).map(Result::unwrap).collect();
        assert_eq!(
            pairs,
            [("a".into(), "a3".into()), ("c".into(), "c8".into())]
        );
    }

    #[test]
    fn failed_source_ends_the_walk() {
        let failing: Source<'_> = Box::new(
            source(&[("a", 1, Some("a"))])
                .chain([Err(EngineError::new("read a range", "it is damaged"))]),
        );
        let mut merge = Merge::new(vec![failing, source(&[("b", 1, Some("b"))])]);
        assert!(merge.next().unwrap().is_err());
        assert!(merge.next().is_none());
    }
}
