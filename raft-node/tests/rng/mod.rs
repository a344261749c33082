//! The random numbers of the tests: xorshift, from a seed that the test prints. Not the core's own generator, so that
//! a test's choices never follow the core's jitter.

pub(crate) struct Rng(u64);

impl Rng {
    /// Nearby seeds give unlike sequences.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
