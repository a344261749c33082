//! The jitter of elections: splitmix64, from a seed that the caller gives.

/// A sequence that depends on its seed alone.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `[0, bound)`; the bias is far below what jitter needs.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a range has at least one number");
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
