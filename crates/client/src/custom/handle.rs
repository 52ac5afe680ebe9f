//! Custom losses that a session knows.

use std::sync::Arc;

use super::{CustomLoss, Expression, LossValue, Var, evaluate::failed};
use crate::{CustomInput, Datum, Loss, Result};

/// A loss that `ServiceClient::create_custom_loss` gave to the server, for the clients of its session.
///
/// Where the server does not run losses itself, the handle stands for the same loss on the client.
#[derive(Clone, Debug)]
pub struct LossHandle {
    pub(super) expression: Arc<Expression>,
    pub(super) session_id: String,
    pub(super) loss_id: Option<String>,
}

impl LossHandle {
    /// What people call it.
    pub fn name(&self) -> &str {
        self.expression.name()
    }

    /// What it reads, `logprobs` first.
    pub fn inputs(&self) -> &[CustomInput] {
        self.expression.inputs()
    }

    /// The session whose clients may use it.
    pub fn session_id(&self) -> &str {
        &self.session_id
    }

    /// The server's name for it; `None` where it runs on the client.
    pub fn loss_id(&self) -> Option<&str> {
        self.loss_id.as_deref()
    }

    /// The loss itself.
    pub fn expression(&self) -> &Expression {
        &self.expression
    }

    /// The same loss, to be run on the client.
    #[must_use]
    pub fn on_client(mut self) -> Self {
        self.loss_id = None;
        self
    }
}

impl CustomLoss for LossHandle {
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        self.expression.compute(data, logprobs)
    }

    fn handle(&self) -> Option<&LossHandle> {
        Some(self)
    }
}

impl Loss {
    /// A custom loss that the server runs, as a loss of `forward` and `forward_backward`.
    ///
    /// # Errors
    /// The server runs no losses: the handle is for `forward_backward_custom` alone.
    pub fn custom(handle: &LossHandle) -> Result<Self> {
        let Some(loss_id) = handle.loss_id() else {
            return Err(failed(format!(
                "{:?} does not run on the server; use forward_backward_custom",
                handle.name()
            )));
        };
        Ok(Self::custom_by_id(loss_id, handle.inputs()[1..].to_vec()))
    }
}
