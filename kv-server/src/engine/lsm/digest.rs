//! Numbers that sort as keys do, so that most comparisons of keys in a memtable look at no key.
//!
//! A search in a memtable compares about thirty keys, each somewhere else in memory. Keys have much in common at their beginning:
//! the space that they lie in (table, group and generation, for the store above), then whatever names of one kind begin
//! with. What the keys of a space had in common in one memtable, they have in common in the next, mostly. So the digest of a key
//! is there the rank of its space, and the bytes that come after what is in common. A key that is not like the others has none.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Bytes of a key that tell its space.
const SPACE_BYTES: usize = 13;
/// Bytes of a rank, before the bytes that tell keys apart.
const RANK_BYTES: usize = size_of::<u32>();

type Space = [u8; SPACE_BYTES];

/// Sorts as its key does, where two keys have one and they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digest(u128);

impl Digest {
    pub(super) const NONE: Self = Self(0);

    /// True when the two tell which key is the greater one.
    pub(super) fn tells(self, other: Self) -> bool {
        self != other && self != Self::NONE && other != Self::NONE
    }
}

/// What the keys of a space begin with.
#[derive(Clone, Debug)]
struct Common {
    /// From one on, in the order of the spaces.
    rank: u32,
    bytes: Bytes,
}

impl Common {
    fn digest(&self, key: &[u8]) -> Digest {
        let Some(rest) = key.strip_prefix(&self.bytes[..]) else {
            return Digest::NONE;
        };
        let mut digest = [0; size_of::<Digest>()];
        let (rank, telling) = digest.split_at_mut(RANK_BYTES);
        rank.copy_from_slice(&self.rank.to_be_bytes());
        // A key that ends here sorts before one that goes on, or has the same digest.
        let bytes = rest.len().min(telling.len());
        telling[..bytes].copy_from_slice(&rest[..bytes]);
        Digest(u128::from_be_bytes(digest))
    }
}

/// What keys begin with, space by space, as it was learned before.
#[derive(Clone, Debug, Default)]
pub(super) struct Spaces(BTreeMap<Space, Common>);

impl Spaces {
    pub(super) fn digest(&self, key: &[u8]) -> Digest {
        let space = key.first_chunk().and_then(|space| self.0.get(space));
        space.map_or(Digest::NONE, |common| common.digest(key))
    }
}

/// Learns what the keys of a memtable begin with.
#[derive(Debug, Default)]
pub(super) struct Lesson(BTreeMap<Space, Bytes>);

impl Lesson {
    pub(super) fn add(&mut self, key: &[u8]) {
        let Some(space) = key.first_chunk() else {
            return;
        };
        match self.0.get_mut(space) {
            None => {
                self.0.insert(*space, Bytes::copy_from_slice(key));
            }
            Some(common) if key.starts_with(common) => {}
            Some(common) => {
                let same = common.iter().zip(key).take_while(|(a, b)| a == b);
                common.truncate(same.count());
            }
        }
    }

    /// What the next memtable begins with.
    pub(super) fn spaces(&self) -> Spaces {
        let ranked = self.0.iter().zip(1..).map(|((space, bytes), rank)| {
            let bytes = bytes.clone();
            (*space, Common { rank, bytes })
        });
        Spaces(ranked.collect())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Few different bytes, so that there are prefixes of others, and equals.
    fn key(rng: &mut StdRng) -> Vec<u8> {
        let spaces: [&[u8]; 5] = [
            b"",
            b"1234567890",
            b"1_group_1_gen",
            b"1_group_1_gfn",
            b"2_group_1_gen",
        ];
        let names: [&[u8]; 3] = [b"", b"/registry/", b"/registry/pods/default/"];
        let mut key = spaces[rng.random_range(0..5)].to_vec();
        key.extend_from_slice(names[rng.random_range(0..3)]);
        let bytes = rng.random_range(0..16);
        key.extend((0..bytes).map(|_| [0, 1, b'a', 0xff][rng.random_range(0..4)]));
        key
    }

    #[test]
    fn digests_that_tell_sort_as_keys_do() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut told = 0;
        for _ in 0..300 {
            let mut lesson = Lesson::default();
            for _ in 0..rng.random_range(0..20) {
                lesson.add(&key(&mut rng));
            }
            let spaces = lesson.spaces();
            for _ in 0..300 {
                let (a, b) = (key(&mut rng), key(&mut rng));
                let (left, right) = (spaces.digest(&a), spaces.digest(&b));
                if left.tells(right) {
                    assert_eq!(left.cmp(&right), a.cmp(&b), "{a:?} {b:?} {spaces:?}");
                    told += 1;
                }
            }
        }
        assert!(told > 10_000, "{told} of 90,000 told the order");
    }

    #[test]
    fn digest_begins_behind_what_is_in_common() {
        let mut lesson = Lesson::default();
        for number in 0..100 {
            lesson.add(format!("1_group_1_gen/registry/pods/{number:012}").as_bytes());
        }
        let spaces = lesson.spaces();
        let digest = |key: &str| spaces.digest(key.as_bytes());
        let (one, two) = (
            "1_group_1_gen/registry/pods/000000000001",
            "1_group_1_gen/registry/pods/000000000002",
        );
        assert!(digest(one).tells(digest(two)) && digest(one) < digest(two));
        for none in [
            "1_group_1_gen/registry/leases/1",
            "1_group_2_gen/registry/pods/000000000001",
            "short",
        ] {
            assert_eq!(digest(none), Digest::NONE);
        }
    }
}
