//! Whether the gradient of a custom loss is the one of its values.

use super::{
    CustomLoss,
    array::Array,
    evaluate::{differentiated, failed, guarded, number},
    inputs,
};
use crate::{Datum, Result};

/// Largest step of the finite differences, in relation to a logprob of size 1.
const STEP: f64 = 1e-5;

/// How a gradient compares with finite differences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientCheck {
    /// The largest difference, in relation to the larger of 1 and both gradients.
    pub error: f64,
    /// Where it is: the datum.
    pub datum: usize,
    /// Where it is: the place among the datum's logprobs.
    pub place: usize,
    /// The gradient there.
    pub gradient: f64,
    /// The finite difference there, `(loss(x + h) - loss(x - h)) / 2h`.
    pub difference: f64,
    /// Numbers that were compared.
    pub compared: usize,
}

impl GradientCheck {
    /// Whether nothing differs by more; 1e-6 is what smooth losses keep.
    pub fn is_within(&self, tolerance: f64) -> bool {
        self.error <= tolerance
    }
}

/// Compares the gradient of a loss with finite differences, logprob by logprob.
///
/// The loss is computed twice for each of them. At kinks (`abs` at 0, `clamp` at a bound, ties of `max`) both differ although nothing is wrong.
///
/// # Errors
/// What [`super::evaluate`] fails with.
pub fn check_gradients(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Vec<f64>],
) -> Result<GradientCheck> {
    check_arrays(loss, data, &inputs::shaped(data, logprobs)?)
}

pub(super) fn check_arrays(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Array],
) -> Result<GradientCheck> {
    let gradients = guarded(|| differentiated(loss, data, logprobs))?.gradients;
    let mut worst = GradientCheck {
        error: 0.0,
        datum: 0,
        place: 0,
        gradient: 0.0,
        difference: 0.0,
        compared: 0,
    };
    for (datum, gradient) in gradients.iter().enumerate() {
        for (place, gradient) in gradient.iter().copied().enumerate() {
            let difference = guarded(|| difference(loss, data, logprobs, (datum, place)))?;
            let scale = gradient.abs().max(difference.abs()).max(1.0);
            let error = (gradient - difference).abs() / scale;
            worst.compared += 1;
            if error > worst.error || worst.compared == 1 {
                worst = GradientCheck { error, datum, place, gradient, difference, ..worst };
            }
        }
    }
    Ok(worst)
}

fn difference(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Array],
    (datum, place): (usize, usize),
) -> Result<f64> {
    let step = STEP * logprobs[datum].data()[place].abs().max(1.0);
    let moved = |by: f64| {
        let mut moved = logprobs.to_vec();
        let mut values = moved[datum].data().to_vec();
        values[place] += by;
        moved[datum] = Array::new(moved[datum].shape().to_vec(), values).map_err(failed)?;
        number(loss, data, &moved)
    };
    Ok((moved(step)? - moved(-step)?) / (2.0 * step))
}
