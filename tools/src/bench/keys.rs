//! Keys by number, and which number is next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, distr::Distribution as _};
use rand_distr::Zipf;

use super::args::{Distribution, LoadArgs};

/// A prime: multiplied by it, ranks of a key space that is no multiple of it are spread over all of it, each to a place of its own.
const SPREAD: u128 = 2_654_435_761;

/// A key's text: the prefix, and decimal digits, filled up with zeros on the left.
#[derive(Clone)]
pub(super) struct KeyText {
    prefix: Bytes,
    size: usize,
}

impl KeyText {
    pub(super) fn new(args: &LoadArgs) -> Self {
        Self {
            prefix: args.prefix.clone().into(),
            size: args.key_size,
        }
    }

    pub(super) fn key(&self, mut number: u64) -> Bytes {
        let mut text = vec![b'0'; self.size];
        let (prefix, digits) = text.split_at_mut(self.prefix.len());
        prefix.copy_from_slice(&self.prefix);
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        text.into()
    }

    /// The first key, or what would be.
    pub(super) fn begin(&self) -> Bytes {
        self.prefix.clone()
    }

    /// The end of the range of all keys with the prefix; `\0`, which is all keys, if there is none behind it.
    pub(super) fn end(&self) -> Bytes {
        let mut end = self.prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end.into();
            }
        }
        Bytes::from_static(b"\0")
    }
}

/// Chooses keys.
pub(super) enum Chooser {
    Uniform { keys: u64 },
    Zipf { keys: u64, ranks: Zipf<f64> },
    Sequential { keys: u64, next: Arc<AtomicU64> },
}

impl Chooser {
    /// `next` is shared by all who take turns.
    pub(super) fn new(args: &LoadArgs, next: Arc<AtomicU64>) -> Self {
        let keys = args.key_space;
        match args.distribution {
            Distribution::Uniform => Self::Uniform { keys },
            Distribution::Zipf => Self::Zipf {
                keys,
                ranks: Zipf::new(keys as f64, args.zipf_exponent)
                    .expect("flags are checked: there is a key, and the exponent is a number"),
            },
            Distribution::Sequential => Self::Sequential { keys, next },
        }
    }

    pub(super) fn next(&self, rng: &mut SmallRng) -> u64 {
        match self {
            Self::Uniform { keys } => rng.random_range(0..*keys),
            Self::Zipf { keys, ranks } => {
                // Ranks begin at 1.
                let rank = (ranks.sample(rng) as u64).clamp(1, *keys) - 1;
                let number = u128::from(rank) * SPREAD % u128::from(*keys);
                u64::try_from(number).expect("it is less than the number of keys")
            }
            Self::Sequential { keys, next } => next.fetch_add(1, Ordering::Relaxed) % keys,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;

    use super::*;
    use crate::bench::args::Kind;

    fn args(distribution: Distribution) -> LoadArgs {
        LoadArgs {
            distribution,
            key_space: 1_000,
            ..LoadArgs::defaults(Kind::Put)
        }
    }

    fn drawn(distribution: Distribution) -> BTreeMap<u64, u32> {
        let chooser = Chooser::new(&args(distribution), Arc::default());
        let mut rng = SmallRng::seed_from_u64(3);
        let mut counts = BTreeMap::new();
        for _ in 0..100_000 {
            *counts.entry(chooser.next(&mut rng)).or_default() += 1;
        }
        counts
    }

    #[test]
    fn key_any_number_is_padded_and_ordered() {
        let text = KeyText::new(&args(Distribution::Uniform));
        assert_eq!(text.key(1_234), "bench/0000001234");
        assert!(text.key(9) < text.key(10));
        assert_eq!(text.begin(), "bench/");
        assert_eq!(text.end(), "bench0");
    }

    #[test]
    fn uniform_and_sequential_reach_every_key_alike() {
        let uniform = drawn(Distribution::Uniform);
        assert_eq!(uniform.len(), 1_000);
        assert!(uniform.values().all(|count| (40..=200).contains(count)));
        let sequential = drawn(Distribution::Sequential);
        assert!(sequential.len() == 1_000 && sequential.values().all(|count| *count == 100));
    }

    #[test]
    fn zipf_draws_few_keys_most_of_the_time_and_stays_within_the_key_space() {
        let zipf = drawn(Distribution::Zipf);
        assert!(zipf.keys().all(|key| *key < 1_000));
        let mut counts: Vec<u32> = zipf.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // With exponent 0.99 over 1,000 keys the first has about an eighth of all, the first ten about 38 %.
        assert!((10_000..=16_000).contains(&counts[0]), "{}", counts[0]);
        let ten: u32 = counts[..10].iter().sum();
        assert!((34_000..=44_000).contains(&ten), "{ten}");
    }
}
