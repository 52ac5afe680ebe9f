//! Losses that users write: in Rust, run here or on the server, with regularizers beside them.
//!
//! Values are [`Var`]s, which remember how they were computed. On the client their numbers are known and a loss may
//! look at them; a loss for the server is traced instead ([`Expression`]) and sent as data.

mod array;
mod check;
mod evaluate;
mod expression;
mod gradient;
mod handle;
mod inputs;
mod op;
pub mod regularizers;
mod remote;
mod surrogate;
mod tape;
mod var;
mod wire;

use self::tape::Operand;
use crate::{Datum, Result};

pub use self::{
    check::{GradientCheck, check_gradients},
    evaluate::{Evaluated, evaluate},
    expression::{Expression, Inputs},
    handle::LossHandle,
    remote::RegularizedOutput,
    var::{Term, Var},
};

/// A loss that is computed on the client.
///
/// A closure `|data: &[Datum], logprobs: &[Var]| -> Result<LossValue>` is one. It is called once a batch.
///
/// ```
/// use tinsmith::{Datum, custom::{LossValue, Var, check_gradients}};
///
/// // The first text is liked better than the second.
/// let preference = |_: &[Datum], logprobs: &[Var]| {
///     let margin = logprobs[0].sum() - logprobs[1].sum();
///     let loss = -(&margin * 0.1).log_sigmoid();
///     Ok(LossValue::new(loss).metric("margin:mean", &margin))
/// };
/// let text = |tokens: &[u32]| Datum::next_token(&tokens[..2], &tokens[1..], &[1.0, 1.0]);
/// let data = [text(&[1, 2, 3])?, text(&[1, 4, 5])?];
/// let check = check_gradients(&preference, &data, &[vec![-0.5, -1.0], vec![-2.0, -0.25]])?;
/// assert!(check.is_within(1e-6));
/// # Ok::<(), tinsmith::Error>(())
/// ```
pub trait CustomLoss: Send + Sync {
    /// The loss of a batch: `logprobs[i]`, of the shape of the `target_tokens` of `data[i]`, are the model's
    /// log-probabilities of these targets.
    ///
    /// # Errors
    /// Whatever the loss finds wrong; the training client cannot go on after it.
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue>;

    /// The handle, if this is one: the server may run it.
    #[doc(hidden)]
    fn handle(&self) -> Option<&LossHandle> {
        None
    }
}

impl<F> CustomLoss for F
where
    F: Fn(&[Datum], &[Var]) -> Result<LossValue> + Send + Sync,
{
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        self(data, logprobs)
    }
}

impl<L: CustomLoss + ?Sized> CustomLoss for std::sync::Arc<L> {
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        (**self).compute(data, logprobs)
    }

    fn handle(&self) -> Option<&LossHandle> {
        (**self).handle()
    }
}

/// A loss and the metrics beside it.
#[derive(Clone, Debug)]
pub struct LossValue {
    loss: Var,
    metrics: Vec<(String, Operand)>,
}

impl LossValue {
    /// A loss, which has to be a scalar.
    #[must_use]
    pub fn new(loss: Var) -> Self {
        Self { loss, metrics: Vec::new() }
    }

    /// With a metric: a scalar, or a number. Its name is given back as it is; names `name:reduction` combine with the
    /// server's. A loss for the server calls its metrics `custom/name:sum` or `custom/name:mean`.
    #[must_use]
    pub fn metric<'a>(mut self, name: impl Into<String>, value: impl Into<Term<'a>>) -> Self {
        let value = self.loss.operand(value);
        self.metrics.push((name.into(), value));
        self
    }

    /// The loss.
    pub fn loss(&self) -> &Var {
        &self.loss
    }

    /// Names and numbers of the metrics, in order.
    fn numbers(&self) -> impl Iterator<Item = (&str, f64)> {
        self.metrics.iter().map(|(name, value)| {
            let number = match value {
                Operand::Number(number) => *number,
                Operand::Node(place) => Var::new(self.loss.tape(), *place).item(),
            };
            (name.as_str(), number)
        })
    }
}

impl From<Var> for LossValue {
    fn from(loss: Var) -> Self {
        Self::new(loss)
    }
}

#[cfg(test)]
mod tests;
