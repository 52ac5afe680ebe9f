//! The vector paths of x86-64.

use std::arch::x86_64::*;

use crate::lanes::{Kernel, Lanes};

/// Two AVX2 registers; lanes 0 to 7 in the first.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn call_avx2<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}

/// Folds eight lanes, halves first, with `combine` on the narrow registers.
macro_rules! fold {
    ($wide:expr, $combine:ident, $combine_one:ident) => {{
        let wide = $wide;
        let four = $combine(_mm256_castps256_ps128(wide), _mm256_extractf128_ps::<1>(wide));
        let two = $combine(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($combine_one(two, _mm_shuffle_ps::<1>(two, two)))
    }};
}

impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) {
        call_avx2(kernel);
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm256_set1_ps(value), _mm256_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const f32) -> (Self, Self) {
        let first = _mm256_loadu_si256(from.cast());
        let second = _mm256_loadu_si256(from.add(8).cast());
        let high = _mm256_set1_epi32(!0xffff);
        (
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(first)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(second)),
            ),
            Self(
                _mm256_castsi256_ps(_mm256_and_si256(first, high)),
                _mm256_castsi256_ps(_mm256_and_si256(second, high)),
            ),
        )
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self.0);
        _mm256_storeu_ps(to.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(
            _mm256_fmadd_ps(self.0, factor.0, addend.0),
            _mm256_fmadd_ps(self.1, factor.1, addend.1),
        )
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        let bias = _mm256_set1_epi32(127);
        let first = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias);
        let second = _mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias);
        Self(
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(first)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(second)),
        )
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        let first = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0);
        let second = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, bound.1);
        Self(
            _mm256_blendv_ps(otherwise.0, then.0, first),
            _mm256_blendv_ps(otherwise.1, then.1, second),
        )
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        fold!(_mm256_add_ps(self.0, self.1), _mm_add_ps, _mm_add_ss)
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        fold!(_mm256_max_ps(self.0, self.1), _mm_max_ps, _mm_max_ss)
    }
}

/// One AVX-512 register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

#[inline(never)]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn call_avx512<K: Kernel>(kernel: K) {
    kernel.run::<Avx512>();
}

/// The two halves of an AVX-512 register.
macro_rules! halves {
    ($wide:expr) => {{
        let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd($wide));
        (_mm512_castps512_ps256($wide), _mm256_castpd_ps(upper))
    }};
}

impl Lanes for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) {
        call_avx512(kernel);
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm512_set1_ps(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const f32) -> (Self, Self) {
        let words = _mm512_loadu_si512(from.cast());
        let high = _mm512_and_si512(words, _mm512_set1_epi32(!0xffff));
        (Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))), Self(_mm512_castsi512_ps(high)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Self(_mm512_sqrt_ps(self.0))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(_mm512_roundscale_ps::<NEAREST>(self.0))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
    }
    #[inline(always)]
    unsafe fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
        Self(_mm512_mask_blend_ps(mask, otherwise.0, then.0))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let (lower, upper) = halves!(self.0);
        fold!(_mm256_add_ps(lower, upper), _mm_add_ps, _mm_add_ss)
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        let (lower, upper) = halves!(self.0);
        fold!(_mm256_max_ps(lower, upper), _mm_max_ps, _mm_max_ss)
    }
}
