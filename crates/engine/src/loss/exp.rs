//! The exponential of the ratios: the platform's may differ in its last bit from machine to machine.

/// No ratio of probabilities that means anything is outside `exp(±EXPONENT_MAX)`; metrics stay finite.
const EXPONENT_MAX: f64 = 700.0;
/// Natural logarithm of two: its first bits, so that small multiples are exact, and the rest.
const LN_2: [f64; 2] = [f64::from_bits(0x3fe6_2e42_fee0_0000), 1.908_214_929_270_587_7e-10];
/// 1/13!, 1/12!, … 1/1!, 1/0!: enough of the series for an argument below `ln(2) / 2`.
const SERIES: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// `e^x`, within two units of the last place, the same bits everywhere; `x` is clamped to ±700.
pub(super) fn exp(x: f64) -> f64 {
    let x = x.clamp(-EXPONENT_MAX, EXPONENT_MAX);
    let power = (x * std::f64::consts::LOG2_E).round_ties_even();
    let rest = (-power).mul_add(LN_2[1], (-power).mul_add(LN_2[0], x));
    let series = SERIES.iter().fold(0.0, |sum: f64, factor| sum.mul_add(rest, *factor));
    #[expect(clippy::cast_possible_truncation, reason = "whole, and at most 1010 either way")]
    let exponent = 1023 + power as i64;
    series * f64::from_bits(exponent.unsigned_abs() << (f64::MANTISSA_DIGITS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_platforms() {
        let mut worst: f64 = 0.0;
        for step in -200_000..=200_000 {
            let x = f64::from(step) * 0.003_499_1;
            worst = worst.max((exp(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::EPSILON, "{worst}");
    }

    #[test]
    fn borders() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(1e-15) > 1.0 && exp(-1e-15) < 1.0);
        assert_eq!(exp(f64::INFINITY), exp(700.0));
        assert_eq!(exp(-1e300), exp(-700.0));
        assert!(exp(700.0).is_finite() && exp(-700.0) > 0.0);
        assert!(exp(f64::NAN).is_nan());
    }
}
