//! Sixteen floats, at every vector width: what all kernels are written over.
//!
//! A kernel is generic over [`Lanes`] and is instantiated once for each path inside a function with
//! that path's target features. Lane `i` computes the same roundings on every path, so all paths give
//! the same bits. A new path is one more implementation of `Lanes` and one more arm of [`Path`].

use std::fmt;

/// Floats in one vector of every path.
pub(crate) const LANES: usize = 16;

/// The instructions that kernels run on. All of them give the same bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Path {
    /// Plain Rust, any CPU.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
}

impl Path {
    /// Every path, the fastest last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Its instructions, for people.
    pub(crate) fn needs(self) -> &'static str {
        match self {
            Self::Portable => "nothing",
            Self::Avx2 => "AVX2 with FMA",
            Self::Avx512 => "AVX-512F",
        }
    }

    /// Runs a kernel on this path.
    ///
    /// # Safety
    ///
    /// The path is available, and the kernel's own contract holds.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Portable => Portable::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => crate::x86::Avx2::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => crate::x86::Avx512::call(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => Portable::call(kernel),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// A loop over vectors, with its arguments as fields.
///
/// `run` is `#[inline(always)]`, calls no closure with vectors in it, and so is compiled with the
/// features of the path that it is instantiated for.
pub(crate) trait Kernel {
    /// Does the work.
    ///
    /// # Safety
    ///
    /// Pointers reach the elements that the kernel's doc names; nobody else writes them meanwhile.
    unsafe fn run<L: Lanes>(self);
}

/// Sixteen floats.
///
/// Every method is unsafe for the same two reasons: the CPU must have the path's features, and
/// pointers must reach sixteen floats.
pub(crate) trait Lanes: Copy {
    /// Whether there are 32 registers of sixteen floats each.
    const WIDE: bool;

    /// Runs a kernel as a call of its own, so that its code stands once.
    unsafe fn call<K: Kernel>(kernel: K);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen words of two bf16 each, widened: the low halves, then the high ones.
    unsafe fn load_pairs(from: *const f32) -> (Self, Self);
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `if self > other { self } else { other }`: a NaN in `other` stays.
    unsafe fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`: a NaN in `other` stays.
    unsafe fn min(self, other: Self) -> Self;
    /// Nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `2^self` for an integral `self` in `-126..=127`.
    unsafe fn power_of_two(self) -> Self;
    /// `if self < bound { then } else { otherwise }`.
    unsafe fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// The sum of the lanes: halves are added until one is left.
    unsafe fn sum(self) -> f32;
    /// The greatest lane, folded as [`Lanes::sum`] is.
    unsafe fn greatest(self) -> f32;

    /// Loads `count` floats, at most sixteen; the other lanes are `fill`.
    #[inline(always)]
    unsafe fn load_head(from: *const f32, count: usize, fill: f32) -> Self {
        if count >= LANES {
            return Self::load(from);
        }
        let mut lanes = [fill; LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            *lane = *from.add(i);
        }
        Self::load(lanes.as_ptr())
    }

    /// Stores the first `count` floats, at most sixteen.
    #[inline(always)]
    unsafe fn store_head(self, to: *mut f32, count: usize) {
        if count >= LANES {
            return self.store(to);
        }
        let mut lanes = [0.0; LANES];
        self.store(lanes.as_mut_ptr());
        for (i, &lane) in lanes.iter().enumerate().take(count) {
            *to.add(i) = lane;
        }
    }
}

/// Plain Rust; `f32::mul_add` is rounded once on every machine.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

/// Applies an expression to each lane.
macro_rules! each {
    ($i:ident => $value:expr) => {{
        let mut lanes = [0.0f32; LANES];
        for ($i, lane) in lanes.iter_mut().enumerate() {
            *lane = $value;
        }
        Portable(lanes)
    }};
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) {
        kernel.run::<Self>();
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(from.cast::<[f32; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const f32) -> (Self, Self) {
        let words = from.cast::<[u32; LANES]>().read_unaligned();
        (
            each!(i => f32::from_bits(words[i] << 16)),
            each!(i => f32::from_bits(words[i] & 0xffff_0000)),
        )
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; LANES]>().write_unaligned(self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        each!(i => self.0[i] + other.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        each!(i => self.0[i] - other.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        each!(i => self.0[i] * other.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        each!(i => self.0[i] / other.0[i])
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        each!(i => self.0[i].sqrt())
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        each!(i => self.0[i].mul_add(factor.0[i], addend.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        each!(i => if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        each!(i => if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        each!(i => self.0[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        each!(i => f32::from_bits(((self.0[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        each!(i => if self.0[i] < bound.0[i] { then.0[i] } else { otherwise.0[i] })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = self.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        let mut lanes = self.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                let other = lanes[i + width];
                lanes[i] = if lanes[i] > other { lanes[i] } else { other };
            }
        }
        lanes[0]
    }
}
