//! Numbers that look random and are the same in every run.

/// How much longer than usual to look for faults.
#[expect(clippy::disallowed_methods, reason = "how long a test takes is no setting")]
pub(crate) fn times() -> usize {
    std::env::var("FUZZ_TIMES").map_or(1, |times| times.parse().unwrap())
}

/// Splitmix64.
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by a text, so that a new test does not change what others see.
    pub(crate) fn new(seed: &str) -> Self {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(seed.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        usize::try_from(bits % bound.max(1) as u64).unwrap()
    }

    /// Up to `count` of them, in their order.
    pub(crate) fn some<T>(&mut self, mut all: Vec<T>, count: usize) -> Vec<T> {
        while all.len() > count {
            all.remove(self.below(all.len()));
        }
        all
    }
}
