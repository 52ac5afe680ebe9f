//! Custom losses with a server: computed on the client between two passes, or run by the server.

use std::sync::{Arc, Mutex, PoisonError};

use tinsmith_types::custom_losses::{
    CreateCustomLossRequest, CreateCustomLossResponse, CustomLossInput,
};

use super::{
    CustomLoss, Expression, LossHandle,
    evaluate::failed,
    regularizers::{CustomLossOutput, Regularized},
    surrogate::{self, Surrogate},
};
use crate::{
    ApiFuture, Datum, ForwardBackwardOutput, Loss, Result, ServiceClient, TrainingClient,
    api::Submitted,
    http::{Call, Pool},
    poll::Wanted,
};

impl TrainingClient {
    /// Gradient of a loss that you write: a closure over the logprobs of each datum's targets, an [`Expression`], a
    /// [`LossHandle`], or any of them with regularizers.
    ///
    /// The loss is computed here between a pass for the logprobs and one for the gradient; both are numbered at once,
    /// so that an `optim_step` can be called right after. What the server runs itself takes one pass. The metrics are
    /// the server's and the loss's own; `loss:sum` is the loss, `surrogate_loss:sum` the server's.
    ///
    /// # Errors
    /// A loss that fails, panics, or is not finite. The second pass is then never sent, and every later call of this
    /// training client fails with [`crate::Error::Broken`].
    pub fn forward_backward_custom(
        &self,
        data: Vec<Datum>,
        loss: impl CustomLoss + 'static,
    ) -> ApiFuture<ForwardBackwardOutput> {
        match self.checked(&data, &loss) {
            Err(error) => self.http().start(async { Err(error) }),
            Ok((_, Some(on_server))) => self.forward_backward(data, on_server),
            Ok((forward, None)) => self.surrogate(data, forward, loss),
        }
    }

    /// [`Self::forward_backward_custom`] with regularizers, and what each of them contributed.
    ///
    /// # Errors
    /// As [`Self::forward_backward_custom`].
    pub fn forward_backward_regularized(
        &self,
        data: Vec<Datum>,
        loss: Regularized,
    ) -> ApiFuture<RegularizedOutput> {
        let breakdown = Arc::new(Mutex::new(CustomLossOutput::default()));
        let kept = Arc::clone(&breakdown);
        let loss = move |data: &[Datum], logprobs: &[super::Var]| {
            let (value, output) = loss.composed(data, logprobs)?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = output;
            Ok(value)
        };
        self.forward_backward_custom(data, loss).map(move |output| {
            let loss = breakdown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            RegularizedOutput { output, loss }
        })
    }

    /// What the first pass sends, or the loss that the server runs.
    fn checked(
        &self,
        data: &[Datum],
        loss: &impl CustomLoss,
    ) -> Result<(Vec<Datum>, Option<Loss>)> {
        let Some(handle) = loss.handle() else { return Ok((surrogate::forward(data)?, None)) };
        let session_id = self.session_id().as_str();
        if handle.session_id != session_id {
            return Err(failed(format!(
                "{:?} was created in session {}; only clients of that session can use it, not of {session_id}",
                handle.name(),
                handle.session_id
            )));
        }
        handle.expression.check(data)?;
        match handle.loss_id {
            Some(_) => Ok((Vec::new(), Some(Loss::custom(handle)?))),
            None => Ok((surrogate::forward(data)?, None)),
        }
    }

    fn surrogate(
        &self,
        data: Vec<Datum>,
        forward: Vec<Datum>,
        loss: impl CustomLoss + 'static,
    ) -> ApiFuture<ForwardBackwardOutput> {
        let first = forward.clone();
        let between = move |output: ForwardBackwardOutput| {
            let mut surrogate = Surrogate::new(&loss, &data, forward, &output.outputs)?;
            Ok((std::mem::take(&mut surrogate.data), surrogate))
        };
        self.two_passes(first, Loss::cross_entropy(), between).map(|(mut output, surrogate)| {
            output.metrics = surrogate.metrics(output.metrics);
            output
        })
    }
}

/// What `forward_backward_regularized` gives.
#[derive(Clone, Debug, PartialEq)]
pub struct RegularizedOutput {
    /// What [`TrainingClient::forward_backward_custom`] gives.
    pub output: ForwardBackwardOutput,
    /// What the loss was made of.
    pub loss: CustomLossOutput,
}

impl ServiceClient {
    /// Gives a loss to the server, for [`TrainingClient::forward_backward_custom`] of this session's clients: it then
    /// runs there, in one pass. Where the server does not offer that, the handle runs on the client.
    ///
    /// # Errors
    /// The server refuses the loss: it uses too much, or too many were created.
    pub fn create_custom_loss(&self, loss: Expression) -> ApiFuture<LossHandle> {
        let session = Arc::clone(self.session());
        let http = session.http.clone();
        let poll = http.config.poll_options().clone();
        // Numbered in the order of the calls.
        let number = session.next_loss();
        http.clone().start(async move {
            let session_id = session.id.clone();
            let mut handle = LossHandle {
                expression: Arc::new(loss),
                session_id: session_id.to_string(),
                loss_id: None,
            };
            if http.server().await?.config.custom_loss_server_side != Some(true) {
                return Ok(handle);
            }
            let inputs = handle.inputs().iter().map(|input| CustomLossInput {
                name: input.name.clone(),
                rank: u8::try_from(input.rank).unwrap_or(u8::MAX),
            });
            let request = CreateCustomLossRequest {
                session_id,
                custom_loss_seq_id: number,
                name: handle.name().to_owned(),
                inputs: inputs.collect(),
                graph: handle.expression.graph(),
            };
            let call = Call::post("create_custom_loss", &request)?.pool(Pool::Training);
            let submitted = Submitted::send(&http, &call).await?;
            let wanted = Wanted::json("CreateCustomLoss");
            let created: CreateCustomLossResponse =
                submitted.result(&http, wanted, &poll).await?.json()?;
            handle.loss_id = Some(created.loss_id.to_string());
            Ok(handle)
        })
    }
}
