//! A custom loss on given logprobs: its value, its metrics and its gradient.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    rc::Rc,
};

use super::{
    CustomLoss, LossValue, Var,
    array::Array,
    gradient, inputs,
    tape::{Mode, Tape},
};
use crate::{Datum, Error, Result};

/// What a custom loss is on a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// The loss.
    pub loss: f64,
    /// The metrics that the loss gives, by name.
    pub metrics: BTreeMap<String, f64>,
    /// `dloss / dlogprob`: for each datum its numbers, row after row, in the shape of its logprobs.
    pub gradients: Vec<Vec<f64>>,
}

/// Computes a loss and its gradient on logprobs that are already there: what `forward_backward_custom` does between
/// its two passes, without a server. `logprobs[i]` are those of `data[i]`.
///
/// # Errors
/// A loss that fails, panics, is no scalar or not finite, or whose gradient is not finite or does not exist.
pub fn evaluate(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Vec<f64>],
) -> Result<Evaluated> {
    let arrays = inputs::shaped(data, logprobs)?;
    guarded(|| differentiated(loss, data, &arrays))
}

/// Loss, metrics and gradients.
pub(super) fn differentiated(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Array],
) -> Result<Evaluated> {
    let (value, logprobs) = computed(loss, data, logprobs)?;
    let tape = value.loss().tape();
    if !gradient::depends(value.loss(), &logprobs) {
        return Err(failed(
            "the loss does not depend on the logprobs in a way that can be differentiated",
        ));
    }
    let gradients: Vec<Vec<f64>> =
        value.loss().gradient(&logprobs).iter().map(Var::to_vec).collect();
    let metrics = value.numbers().map(|(name, number)| (name.to_owned(), number)).collect();
    if let Some(message) = tape.error() {
        return Err(failed(message));
    }
    for (datum, gradient) in gradients.iter().enumerate() {
        if let Some(place) = gradient.iter().position(|number| !number.is_finite()) {
            let number = gradient[place];
            return Err(failed(format!(
                "its gradient is {number} at datum {datum}, logprob {place}; clamp what is divided by, or what \
                 goes into exp and log"
            )));
        }
    }
    Ok(Evaluated { loss: value.loss().item(), metrics, gradients })
}

/// The loss alone.
pub(super) fn number(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Array],
) -> Result<f64> {
    Ok(computed(loss, data, logprobs)?.0.loss().item())
}

/// The loss, and the variables that it is differentiated by.
fn computed(
    loss: &(impl CustomLoss + ?Sized),
    data: &[Datum],
    logprobs: &[Array],
) -> Result<(LossValue, Vec<Var>)> {
    if data.is_empty() || data.len() != logprobs.len() {
        let (datums, logprobs) = (data.len(), logprobs.len());
        return Err(failed(format!("{datums} datums with the logprobs of {logprobs}")));
    }
    let tape = Tape::new(Mode::Eager);
    let logprobs: Vec<Var> = logprobs.iter().map(|values| tape.leaf(values.clone())).collect();
    let value = loss.compute(data, &logprobs)?;
    if let Some(message) = tape.error() {
        return Err(failed(message));
    }
    if !Rc::ptr_eq(value.loss().tape(), &tape) {
        return Err(failed("it gave a value of another calculation"));
    }
    let shape = value.loss().shape();
    if !shape.is_empty() {
        return Err(failed(format!(
            "it has the shape {shape:?} and must be one number: use sum() or mean()"
        )));
    }
    let number = value.loss().item();
    if !number.is_finite() {
        return Err(failed(format!("it is {number}")));
    }
    Ok((value, logprobs))
}

/// A loss that panics costs that call alone.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(failed(format!("it panicked: {}", message_of(&*panic)))))
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

pub(super) fn failed(message: impl std::fmt::Display) -> Error {
    Error::Validation { message: format!("custom loss: {message}") }
}
