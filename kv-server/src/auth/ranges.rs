//! Sets of keys: what the permissions of a user come to. Ranges of several roles are merged when a set is made, so that a
//! request is within the set exactly if one range holds all of it, however many permissions that range came from.

use bytes::{BufMut, Bytes, BytesMut};

/// Where a range ends. The order is that of the ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Before this key.
    Before(Bytes),
    /// Nowhere.
    Open,
}

/// Keys, as ranges in order.
///
/// Invariant: no two ranges overlap or touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    ranges: Vec<(Bytes, End)>,
}

/// A range as etcd writes it: no end means the key alone, a zero byte no end.
fn range(key: &Bytes, range_end: &Bytes) -> (Bytes, End) {
    let end = match range_end.as_ref() {
        [] => {
            let mut next = BytesMut::with_capacity(key.len() + 1);
            next.put_slice(key);
            next.put_u8(0);
            End::Before(next.freeze())
        }
        [0] => End::Open,
        _ => End::Before(range_end.clone()),
    };
    (key.clone(), end)
}

impl KeySet {
    /// The union of keys and ranges, each with its end as etcd writes it.
    pub fn of<'a>(permitted: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let permitted = permitted.into_iter().map(|(key, end)| range(key, end));
        let mut sorted: Vec<_> = permitted
            .filter(|(key, end)| End::Before(key.clone()) < *end)
            .collect();
        sorted.sort_unstable();
        let mut ranges: Vec<(Bytes, End)> = Vec::with_capacity(sorted.len());
        for (start, end) in sorted {
            match ranges.last_mut() {
                Some((_, last)) if End::Before(start.clone()) <= *last => {
                    if end > *last {
                        *last = end;
                    }
                }
                _ => ranges.push((start, end)),
            }
        }
        Self { ranges }
    }

    /// True when the set has the key, or all keys of the range. A range that ends before it begins names no key; it is
    /// allowed to whoever may name its beginning.
    #[must_use]
    pub fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self
            .ranges
            .partition_point(|(start, _)| start.as_ref() <= key);
        let Some((_, end)) = after.checked_sub(1).map(|at| &self.ranges[at]) else {
            return false;
        };
        match (end, range_end) {
            (End::Open, _) => true,
            (End::Before(_), [0]) => false,
            (End::Before(end), []) => key < end.as_ref(),
            (End::Before(end), wanted) => key < end.as_ref() && wanted <= end.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(&'static str, &'static str)]) -> KeySet {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|(key, end)| (Bytes::from(*key), Bytes::from(*end)))
            .collect();
        KeySet::of(ranges.iter().map(|(key, end)| (key, end)))
    }

    #[test]
    fn permission_on_one_key_covers_that_key_and_nothing_beyond() {
        let one = set(&[("a", "")]);
        assert!(one.covers(b"a", b""));
        assert!(one.covers(b"a", b"a\0"), "the same key, as a range");
        for (key, end) in [("a", "b"), ("a", "\0"), ("a\0", ""), ("b", ""), ("", "")] {
            assert!(
                !one.covers(key.as_bytes(), end.as_bytes()),
                "{key:?} {end:?}"
            );
        }
    }

    #[test]
    fn ranges_that_touch_are_one_and_those_with_a_gap_are_not() {
        let touching = set(&[("b", "c"), ("a", "b"), ("c", ""), ("c\0", "d")]);
        assert!(touching.covers(b"a", b"d"));
        assert!(!touching.covers(b"a", b"d\0"));
        let gap = set(&[("a", "b"), ("b\0", "c")]);
        assert!(!gap.covers(b"a", b"c"));
        assert!(gap.covers(b"bb", b"c"));
    }

    #[test]
    fn open_end_is_covered_by_an_open_end_only() {
        let open = set(&[("m", "\0")]);
        assert!(open.covers(b"m", b"\0"));
        assert!(open.covers(b"z", b"\0"));
        assert!(!open.covers(b"l", b"\0"));
        assert!(!set(&[("a", "z")]).covers(b"b", b"\0"));
        assert!(set(&[("\0", "\0")]).covers(b"\0", b"\0"), "all keys");
    }

    #[test]
    fn range_that_ends_before_it_begins_adds_nothing() {
        let none = set(&[("b", "a"), ("c", "c")]);
        assert!(!none.covers(b"a", b""));
        assert!(!none.covers(b"b", b""));
        assert!(!none.covers(b"c", b""));
    }

    /// Short keys over an alphabet that has both ends of a byte.
    fn key() -> impl Strategy<Value = Bytes> {
        let letter = prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xff)];
        proptest::collection::vec(letter, 1..3).prop_map(Bytes::from)
    }

    fn end() -> impl Strategy<Value = Bytes> {
        prop_oneof![2 => Just(Bytes::new()), 1 => Just(Bytes::from_static(&[0])), 4 => key()]
    }

    fn holds(key: &Bytes, end: &Bytes, sought: &[u8]) -> bool {
        match end.as_ref() {
            [] => key == sought,
            [0] => key.as_ref() <= sought,
            end => key.as_ref() <= sought && sought < end,
        }
    }

    /// All keys of up to three letters: the gaps between shorter ones, and what lies beyond them, are among these.
    fn universe() -> Vec<Vec<u8>> {
        let letters = [0_u8, b'a', b'b', 0xff];
        let mut keys: Vec<Vec<u8>> = vec![vec![]];
        for from in [0, 1, 5] {
            for at in from..keys.len() {
                for letter in letters {
                    let mut next = keys[at].clone();
                    next.push(letter);
                    keys.push(next);
                }
            }
        }
        keys.remove(0);
        keys.sort();
        keys.dedup();
        keys
    }

    proptest! {
        /// Against the plain check: a point is in the set if some permission holds it; a range if every key of it is, and
        /// an open one only if somebody may see what lies behind all keys.
        #[test]
        fn set_covers_what_its_permissions_hold(
            permitted in proptest::collection::vec((key(), end()), 0..6),
            asked in proptest::collection::vec((key(), end()), 1..20),
        ) {
            let set = KeySet::of(permitted.iter().map(|(key, end)| (key, end)));
            let is_held = |sought: &[u8]| permitted.iter().any(|(key, end)| holds(key, end, sought));
            let keys = universe();
            for (key, end) in asked {
                let is_open = end.as_ref() == [0];
                let is_backwards = !end.is_empty() && !is_open && end <= key;
                let expected = if end.is_empty() || is_backwards {
                    is_held(&key)
                } else {
                    let beyond = [0xff; 8];
                    keys.iter().filter(|sought| holds(&key, &end, sought)).all(|sought| is_held(sought))
                        && (!is_open || is_held(&beyond))
                };
                prop_assert_eq!(set.covers(&key, &end), expected, "{:?} {:?} in {:?}", key, end, &set);
            }
        }
    }
}
