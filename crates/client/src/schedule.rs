//! Learning rates over the steps of a run.
//!
//! All are a peak times a factor in `0..=1`: it rises during warmup, and then follows the shape. A new shape is a
//! variant of [`Shape`], an arm of `factor` and a name in `SHAPES`.

use std::{f64::consts::PI, fmt, str::FromStr};

use crate::{Error, Result};

/// How a learning rate goes from its peak to its floor. With N steps after the warmup, the t-th of them has the
/// progress p = t / N.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// 1.
    Constant,
    /// 1 − p.
    Linear,
    /// ½ (1 + cos πp), without restarts (Loshchilov and Hutter 2017, arXiv 1608.03983).
    Cosine,
    /// (1 − p) to a power.
    Polynomial {
        /// 1 is [`Shape::Linear`].
        power: f64,
    },
    /// 1, and over the last share of the steps linearly to 0: warmup, stable, decay (Hu et al. 2024, arXiv 2404.06395).
    Wsd {
        /// Which part of the N steps decays, in `0..=1`.
        decay: f64,
    },
    /// √(W / (W + t)) with W steps of warmup, at least 1 (Vaswani et al. 2017, arXiv 1706.03762, section 5.3). Knows no end.
    InverseSquareRoot,
    /// From 1 to the floor by the same ratio each step; the floor must not be 0.
    Exponential,
}

/// Names on command lines, with what they stand for.
const SHAPES: [(&str, Shape); 7] = [
    ("constant", Shape::Constant),
    ("linear", Shape::Linear),
    ("cosine", Shape::Cosine),
    ("polynomial", Shape::Polynomial { power: 2.0 }),
    ("wsd", Shape::Wsd { decay: 0.1 }),
    ("inverse_sqrt", Shape::InverseSquareRoot),
    ("exponential", Shape::Exponential),
];

impl FromStr for Shape {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = SHAPES.iter().find(|(known, _)| *known == name);
        found.map(|(_, shape)| *shape).ok_or_else(|| {
            let known: Vec<&str> = SHAPES.iter().map(|(known, _)| *known).collect();
            Error::validation(format!("{name:?} is no schedule; there are: {}", known.join(", ")))
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Polynomial { .. } => "polynomial",
            Self::Wsd { .. } => "wsd",
            Self::InverseSquareRoot => "inverse_sqrt",
            Self::Exponential => "exponential",
        })
    }
}

/// A learning rate for each step.
///
/// ```
/// use tinsmith::{Schedule, Shape};
///
/// let schedule = Schedule::new(Shape::Linear, 1e-3, 100)?.warmup(10)?.floor(1e-4)?;
/// assert_eq!(schedule.at(9), 1e-3);
/// assert_eq!(schedule.at(100), 1e-4);
/// # Ok::<(), tinsmith::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    shape: Shape,
    peak: f64,
    steps: u64,
    warmup_steps: u64,
    /// Of the peak.
    floor: f64,
}

impl Schedule {
    /// A schedule of `steps` steps, warmup included, that begins at its peak and ends at 0.
    ///
    /// # Errors
    ///
    /// A peak that is no finite number of at least 0, no steps, a shape that makes no sense.
    pub fn new(shape: Shape, peak: f64, steps: u64) -> Result<Self> {
        if !peak.is_finite() || peak < 0.0 {
            let message = format!("the learning rate {peak} is not a finite number of at least 0");
            return Err(Error::validation(message));
        }
        if steps == 0 {
            return Err(Error::validation("a schedule needs at least one step"));
        }
        let is_sound = match shape {
            Shape::Polynomial { power } => power.is_finite() && power > 0.0,
            Shape::Wsd { decay } => (0.0..=1.0).contains(&decay),
            Shape::Constant
            | Shape::Linear
            | Shape::Cosine
            | Shape::InverseSquareRoot
            | Shape::Exponential => true,
        };
        if !is_sound {
            return Err(Error::validation(format!("the schedule {shape:?} makes no sense")));
        }
        // An exponential one never gets to 0.
        let floor = if shape == Shape::Exponential { EXPONENTIAL_FLOOR } else { 0.0 };
        Ok(Self { shape, peak, steps, warmup_steps: 0, floor })
    }

    /// A rate that stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Schedule::new`].
    pub fn constant(rate: f64) -> Result<Self> {
        Self::new(Shape::Constant, rate, u64::MAX)
    }

    /// The same with its first steps rising linearly: step `t` of `warmup_steps` has (t + 1) / `warmup_steps` of the peak.
    ///
    /// # Errors
    ///
    /// More than all steps.
    pub fn warmup(mut self, warmup_steps: u64) -> Result<Self> {
        if warmup_steps > self.steps {
            let steps = self.steps;
            let message = format!("{warmup_steps} steps of warmup are more than all {steps}");
            return Err(Error::validation(message));
        }
        self.warmup_steps = warmup_steps;
        Ok(self)
    }

    /// The same ending at `rate`, from which the shape is scaled up.
    ///
    /// # Errors
    ///
    /// A rate below 0 or above the peak; 0 for an exponential one.
    pub fn floor(mut self, rate: f64) -> Result<Self> {
        let is_possible = self.shape != Shape::Exponential || rate > 0.0;
        if !(0.0..=self.peak).contains(&rate) || !is_possible || self.peak == 0.0 {
            let peak = self.peak;
            return Err(Error::validation(format!(
                "the schedule cannot go from {peak} down to {rate}"
            )));
        }
        self.floor = rate / self.peak;
        Ok(self)
    }

    /// How many steps it has.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The learning rate of a step, counted from 0. Behind its end it stays as it ended.
    pub fn at(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    /// [`Schedule::at`] of the peak, in `0..=1`.
    #[expect(clippy::cast_precision_loss, reason = "no run has 2^52 steps")]
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let after = step - self.warmup_steps;
        let all = (self.steps - self.warmup_steps).max(1);
        let progress = (after.min(all) as f64) / all as f64;
        let shape = match self.shape {
            Shape::Constant => return 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            Shape::Polynomial { power } => (1.0 - progress).powf(power),
            Shape::Wsd { decay } if decay > 0.0 => ((1.0 - progress) / decay).min(1.0),
            Shape::Wsd { .. } => 1.0,
            Shape::InverseSquareRoot => {
                let warmup = self.warmup_steps.max(1) as f64;
                (warmup / (warmup + after as f64)).sqrt()
            }
            Shape::Exponential => return self.floor.powf(progress),
        };
        self.floor + (1.0 - self.floor) * shape
    }
}

/// What an exponential schedule ends at if nothing else is said, of the peak.
const EXPONENTIAL_FLOOR: f64 = 0.01;

#[cfg(test)]
mod tests {
    use std::f64::consts::FRAC_1_SQRT_2;

    use proptest::prelude::*;

    use super::*;

    fn schedule(name: &str, steps: u64) -> Schedule {
        Schedule::new(name.parse().unwrap(), 1.0, steps).unwrap()
    }

    #[test]
    fn shapes_are_their_formulas() {
        for (name, expected) in [
            ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
            ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
            ("cosine", [1.0, 0.853_553, 0.5, 0.146_447, 0.0]),
            ("polynomial", [1.0, 0.5625, 0.25, 0.0625, 0.0]),
            ("inverse_sqrt", [1.0, FRAC_1_SQRT_2, 0.577_35, 0.5, 0.447_214]),
            ("exponential", [1.0, 0.316_228, 0.1, 0.031_623, 0.01]),
        ] {
            let schedule = schedule(name, 4);
            for (step, expected) in (0..).zip(expected) {
                let found = schedule.at(step);
                assert!((found - expected).abs() < 1e-6, "{name} {step}: {found}");
            }
        }
        let wsd = Schedule::new(Shape::Wsd { decay: 0.5 }, 2.0, 8).unwrap();
        let rates: Vec<f64> = (0..=8).map(|step| wsd.at(step)).collect();
        assert_eq!(rates, [2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
    }

    #[test]
    fn warmup_rises_to_the_peak_and_the_floor_is_not_left() {
        let schedule = schedule("linear", 6).warmup(2).unwrap().floor(0.2).unwrap();
        let rates: Vec<f64> =
            (0..8).map(|step| (schedule.at(step) * 10.0).round() / 10.0).collect();
        assert_eq!(rates, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]);
        assert_eq!(Schedule::constant(3e-4).unwrap().at(123_456), 3e-4);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = "sideways".parse::<Shape>().unwrap_err().to_string();
        assert!(message.ends_with(
            "\"sideways\" is no schedule; there are: constant, linear, cosine, polynomial, wsd, \
             inverse_sqrt, exponential"
        ));
        assert!(Schedule::new(Shape::Linear, f64::NAN, 1).is_err());
        assert!(Schedule::new(Shape::Linear, 1.0, 0).is_err());
        assert!(Schedule::new(Shape::Wsd { decay: 1.5 }, 1.0, 1).is_err());
        assert!(schedule("linear", 3).warmup(4).is_err());
        assert!(schedule("linear", 3).floor(2.0).is_err());
        assert!(schedule("exponential", 3).floor(0.0).is_err());
        for (name, shape) in SHAPES {
            assert_eq!(shape.to_string(), name);
        }
    }

    proptest! {
        /// Between the floor and the peak, and after the warmup never up again.
        #[test]
        fn rates_stay_in_bounds_and_fall(
            shape in 0..SHAPES.len(),
            steps in 1..50_u64,
            warmup in 0..50_u64,
            floor in 0.001..1.0_f64,
        ) {
            let warmup = warmup.min(steps);
            let schedule = Schedule::new(SHAPES[shape].1, 2.0, steps).unwrap();
            let schedule = schedule.warmup(warmup).unwrap().floor(2.0 * floor).unwrap();
            for step in 0..steps + 3 {
                let factor = schedule.factor(step);
                prop_assert!(factor > 0.0 && factor <= 1.0 + 1e-12, "{step}: {factor}");
                if step > warmup {
                    prop_assert!(factor <= schedule.factor(step - 1) + 1e-12);
                    prop_assert!(factor >= floor - 1e-12);
                } else if step > 0 && step < warmup {
                    prop_assert!(factor > schedule.factor(step - 1));
                }
            }
        }
    }
}
