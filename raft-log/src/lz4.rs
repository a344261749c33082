//! What is known of every LZ4 block, before it is read.

/// What a byte of a block stands for at most: one of a length adds as much.
pub(crate) const LZ4_RATIO_MAX: usize = 255;
