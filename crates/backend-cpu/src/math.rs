//! Exponential, hyperbolic tangent, logarithm, sine and cosine: our own, so that every CPU gives the
//! same bits.
//!
//! The vector functions are chains of fused multiply-adds. The scalar functions use plain f64
//! arithmetic, which IEEE 754 fixes to the bit, and round once to f32.

use std::f64::consts::{FRAC_2_PI, LN_2, SQRT_2};

use crate::lanes::Lanes;

/// `e^x`, within 1.5 units in the last place; 0 where the result would be subnormal.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then the Taylor polynomial of degree 7, whose remainder
/// is under `r^8 / 8! < 6e-9`. Arguments above 88 are taken as 88.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    const LOWEST: f32 = -87.336_54;
    // The upper part has 9 bits, so that its product with n is exact.
    const LN2_UPPER: f32 = 0.693_359_4;
    const LN2_LOWER: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 1.0 / 2.0, 1.0, 1.0];
    let clamped = L::splat(88.0).min(L::splat(LOWEST).max(x));
    let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(L::splat(-LN2_UPPER), clamped);
    let r = n.mul_add(L::splat(-LN2_LOWER), r);
    let mut sum = L::splat(1.0 / 5040.0);
    for coefficient in TAYLOR {
        sum = sum.mul_add(r, L::splat(coefficient));
    }
    x.select_less(L::splat(LOWEST), L::splat(0.0), sum.mul(n.power_of_two()))
}

/// `tanh x`, within 2 units in the last place, small arguments too.
///
/// Up to 5/8, `x + x³ P(x²)` with the polynomial of degree 5 whose greatest relative error is least
/// (1.6e-10; found by Remez's exchange); beyond, `1 - 2 / (e^2|x| + 1)`, where nothing cancels.
#[inline(always)]
pub(crate) unsafe fn tanh<L: Lanes>(x: L) -> L {
    const FIRST: f32 = 2.142_962e-3;
    const MINIMAX: [f32; 5] =
        [-8.177_398e-3, 2.170_070_3e-2, -5.394_676_3e-2, 0.133_332_06, -0.333_333_3];
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let square = x.mul(x);
    let mut sum = L::splat(FIRST);
    for coefficient in MINIMAX {
        sum = sum.mul_add(square, L::splat(coefficient));
    }
    let near = x.mul(square).mul_add(sum, x);
    let magnitude = x.max(zero.sub(x));
    let exponential = exp(magnitude.add(magnitude));
    let far = one.sub(L::splat(2.0).div(exponential.add(one)));
    let far = x.select_less(zero, zero.sub(far), far);
    magnitude.select_less(L::splat(0.625), near, far)
}

/// Natural logarithm of a positive, normal `x`, rounded once.
///
/// `ln m = 2 artanh((m - 1) / (m + 1))` for `m` in `[sqrt(1/2), sqrt(2))`; the series ends where its
/// terms are under 1e-12.
pub(crate) fn log(x: f32) -> f32 {
    if !(x.is_normal() && x > 0.0) {
        return if x == 0.0 { f32::NEG_INFINITY } else { x };
    }
    let bits = f64::from(x).to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m >= SQRT_2 {
        m /= 2.0;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut series = 0.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * s2 + 1.0 / odd;
    }
    (f64::from(exponent) * LN_2 + 2.0 * s * series) as f32
}

/// Cosine and sine of an f32 angle up to about 1e9, within 1e-8, rounded to f32.
///
/// The quarter turns are taken off in two parts (Cody and Waite 1980), the first short enough that
/// its product is exact; then Taylor series over at most an eighth of a turn.
pub(crate) fn cos_sin(angle: f32) -> (f32, f32) {
    const QUARTER_UPPER: f64 = 1.570_796_310_901_641_8;
    const QUARTER_LOWER: f64 = 1.589_325_477_352_819_6e-8;
    let angle = f64::from(angle);
    let quarters = (angle * FRAC_2_PI).round_ties_even();
    let r = (angle - quarters * QUARTER_UPPER) - quarters * QUARTER_LOWER;
    let r2 = r * r;
    let mut sin = 0.0;
    for degree in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        sin = (1.0 + sin) * -r2 / (degree * (degree - 1.0));
    }
    let sin = r * (1.0 + sin);
    let mut cos = 0.0;
    for degree in [14.0, 12.0, 10.0, 8.0, 6.0, 4.0, 2.0] {
        cos = (1.0 + cos) * -r2 / (degree * (degree - 1.0));
    }
    let cos = 1.0 + cos;
    let (cos, sin) = match (quarters as i64).rem_euclid(4) {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    };
    (cos as f32, sin as f32)
}

#[cfg(test)]
mod tests {
    use super::{cos_sin, exp, log, tanh};
    use crate::lanes::{LANES, Lanes, Portable};

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        for i in 0..200_000 {
            let x = -87.3 + 0.000_87 * i as f32;
            let mut lanes = [0.0; LANES];
            // SAFETY: `lanes` holds sixteen floats, and the portable path runs anywhere.
            unsafe { exp(Portable::splat(x)).store(lanes.as_mut_ptr()) };
            let want = f64::from(x.min(88.0)).exp();
            let unit = f64::from((want as f32).next_up()) - f64::from(want as f32);
            assert!((f64::from(lanes[0]) - want).abs() <= 1.5 * unit, "{x}: {} {want}", lanes[0]);
        }
    }

    #[test]
    fn exponentials_of_the_ends() {
        for (x, want) in [(0.0, 1.0), (f32::NEG_INFINITY, 0.0), (-88.0, 0.0), (-1e30, 0.0)] {
            let mut lanes = [9.0; LANES];
            // SAFETY: `lanes` holds sixteen floats, and the portable path runs anywhere.
            unsafe { exp(Portable::splat(x)).store(lanes.as_mut_ptr()) };
            assert_eq!(lanes[3].to_bits(), f32::to_bits(want), "{x}");
        }
        let mut lanes = [0.0; LANES];
        // SAFETY: as above.
        unsafe { exp(Portable::splat(f32::NAN)).store(lanes.as_mut_ptr()) };
        assert!(lanes[0].is_nan());
    }

    #[test]
    fn tangents_are_within_two_units_in_the_last_place() {
        let tanh_of = |x: f32| {
            let mut lanes = [0.0; LANES];
            // SAFETY: `lanes` holds sixteen floats, and the portable path runs anywhere.
            unsafe { tanh(Portable::splat(x)).store(lanes.as_mut_ptr()) };
            lanes[5]
        };
        // Every size from subnormal squares to far beyond 1, both sides of where the formula changes.
        let sizes = (0..200_000).map(|i| 1e-30 * 1.000_4_f32.powi(i));
        let around = (0..200_000).map(|i| 0.6 + 2.5e-7 * i as f32);
        for x in sizes.take_while(|&x| x < 1e30).chain(around) {
            let want = f64::from(x).tanh();
            let unit = f64::from((want as f32).next_up()) - f64::from(want as f32);
            let got = tanh_of(x);
            assert!((f64::from(got) - want).abs() <= 2.0 * unit, "{x}: {got} {want}");
            assert!(got <= 1.0 && tanh_of(-x) == -got, "{x}: {got}");
        }
        assert_eq!(tanh_of(0.0), 0.0);
        assert_eq!((tanh_of(f32::INFINITY), tanh_of(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh_of(f32::NAN).is_nan());
    }

    #[test]
    fn logarithms_are_rounded_once() {
        for i in 1..100_000 {
            let x = (i as f32) * 0.731;
            assert!(
                (f64::from(log(x)) - f64::from(x).ln()).abs() <= 1.1e-7 * f64::from(x).ln().abs()
            );
        }
        assert_eq!(log(1.0), 0.0);
    }

    #[test]
    fn turns_are_exact_to_f32_at_a_million_radians() {
        for i in 0..100_000 {
            let angle = i as f32 * 10.37;
            let (cos, sin) = cos_sin(angle);
            assert!((f64::from(cos) - f64::from(angle).cos()).abs() < 7e-8, "{angle}");
            assert!((f64::from(sin) - f64::from(angle).sin()).abs() < 7e-8, "{angle}");
        }
    }
}
