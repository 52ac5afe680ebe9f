//! The Tinkerbell dialect: chats instead of datums, no sessions and no numbers, every operation with an endpoint
//! that waits and one that does not.
//!
//! Nothing is done here: a body is made into an official one and handed to the official handler. Paths that both
//! share are told apart by the body ([`Operation::is_ours`]).

use axum::{
    extract::{FromRequest, State},
    handler::Handler,
    http::{HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use tinsmith_types::{futures::UntypedFuture, ids::TenantId, tinkerbell::Shape};

use crate::{
    body::{AlreadyRead, Plain, off_thread},
    error::Result,
    negotiate,
    state::{Shared, Stopping, Tenant},
};

mod answer;
mod chat;
mod official;
mod prefer;
mod sample;
mod service;

pub(crate) use answer::{Found, kept, official_id, retrieve};
use prefer::Prefer;
pub(crate) use sample::Drawing;
pub(crate) use service::{favicon, loss_functions, register_custom_loss};

/// What can be asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Operation {
    Forward,
    ForwardBackward,
    OptimStep,
    AddLora,
    RemoveLora,
    LoadWeights,
    SaveWeights,
    SaveWeightsForSampler,
    Sample,
}

/// How it is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Face {
    /// With the result.
    Sync,
    /// At once, with the id of what is to come.
    Async,
}

/// A request on its way through here.
struct Call {
    app: Shared,
    tenant: TenantId,
    parts: Parts,
    stopping: Option<Stopping>,
}

/// An endpoint of this dialect only.
pub(crate) fn own(operation: Operation, face: Face) -> MethodRouter<Shared> {
    on(
        MethodFilter::POST,
        move |State(app): State<Shared>, Tenant(tenant): Tenant, parts: Parts, body: Plain| {
            let call = Call::new(app, tenant, parts);
            async move { call.run(operation, face, body).await }
        },
    )
}

/// An old name of an endpoint that does not wait.
pub(crate) fn legacy(operation: Operation) -> MethodRouter<Shared> {
    on(
        MethodFilter::POST,
        move |State(app): State<Shared>, Tenant(tenant): Tenant, parts: Parts, body: Plain| {
            metrics::counter!(
                "tinsmith_legacy_requests_total", "route" => parts.uri.path().to_owned()
            )
            .increment(1);
            let call = Call::new(app, tenant, parts);
            async move {
                let mut response = call.run(operation, Face::Async, body).await;
                let headers = response.headers_mut();
                headers.insert("deprecation", HeaderValue::from_static(DEPRECATED_AT));
                let successor = format!("<{}>; rel=\"successor-version\"", operation.path());
                if let Ok(successor) = HeaderValue::from_str(&successor) {
                    headers.insert(header::LINK, successor);
                }
                response
            }
        },
    )
}

/// An endpoint of both: official bodies go to `official` as they are.
pub(crate) fn shared<H: Handler<T, Shared>, T: 'static>(
    operation: Operation,
    official: H,
) -> MethodRouter<Shared> {
    on(
        MethodFilter::POST,
        move |State(app): State<Shared>,
              Tenant(tenant): Tenant,
              request: axum::extract::Request| {
            let official = official.clone();
            async move {
                let (parts, body) = request.into_parts();
                let mut request = axum::extract::Request::from_parts(parts.clone(), body);
                let call = Call::new(app, tenant, parts);
                if !negotiate::sends_protobuf(request.headers()) {
                    let read = Plain::from_request(request, &call.app).await;
                    match read {
                        Ok(body) if is_ours(operation, &body).await => {
                            return call.run(operation, operation.face_where_shared(), body).await;
                        }
                        read => request = call.request(read),
                    }
                }
                let response = official.call(request, call.app.clone()).await;
                call.as_preferred(response).await
            }
        },
    )
}

/// When the old names were given up.
const DEPRECATED_AT: &str = "@1795219200";

async fn is_ours(operation: Operation, body: &Plain) -> bool {
    let bytes = body.bytes.clone();
    let shape = off_thread(bytes.len(), move || serde_json::from_slice::<Shape>(&bytes).ok()).await;
    shape.is_ok_and(|shape| shape.is_some_and(|shape| operation.is_ours(&shape)))
}

impl Operation {
    /// Whether a body on a shared path is this dialect's.
    ///
    /// Official bodies name their batch, and their place in the run's order, or the session that the run is
    /// for; SDKs up to 0.12 send no `type`, and nulls.
    fn is_ours(self, shape: &Shape) -> bool {
        match self {
            Self::Forward | Self::ForwardBackward => {
                let is_official = shape.forward_input || shape.forward_backward_input;
                shape.data && !is_official && !shape.seq_id
            }
            Self::OptimStep
            | Self::LoadWeights
            | Self::SaveWeights
            | Self::SaveWeightsForSampler => {
                let is_official = shape.seq_id || shape.kind || shape.session_id;
                shape.model_id && !is_official
            }
            Self::Sample => {
                let is_official = shape.sampling_session_id || shape.kind;
                !is_official && (shape.model_id || shape.messages || shape.plain_prompt)
            }
            Self::AddLora | Self::RemoveLora => true,
        }
    }

    /// What the name of a shared path means in this dialect.
    fn face_where_shared(self) -> Face {
        match self {
            // `asample`
            Self::Sample => Face::Async,
            Self::Forward
            | Self::ForwardBackward
            | Self::OptimStep
            | Self::AddLora
            | Self::RemoveLora
            | Self::LoadWeights
            | Self::SaveWeights
            | Self::SaveWeightsForSampler => Face::Sync,
        }
    }

    /// The endpoint that does not wait.
    fn path(self) -> &'static str {
        match self {
            Self::Forward => "/api/v1/forward_async",
            Self::ForwardBackward => "/api/v1/forward_backward_async",
            Self::OptimStep => "/api/v1/optim_step_async",
            Self::AddLora => "/api/v1/add_lora_async",
            Self::RemoveLora => "/api/v1/remove_lora_async",
            Self::LoadWeights => "/api/v1/load_weights_async",
            Self::SaveWeights => "/api/v1/save_weights_async",
            Self::SaveWeightsForSampler => "/api/v1/save_weights_for_sampler_async",
            Self::Sample => "/api/v1/asample",
        }
    }
}

impl Call {
    fn new(app: Shared, tenant: TenantId, parts: Parts) -> Self {
        let stopping = parts.extensions.get::<Stopping>().cloned();
        Self { app, tenant, parts, stopping }
    }

    /// Submits, and waits for the result where the endpoint or the client wants that.
    async fn run(&self, operation: Operation, face: Face, body: Plain) -> Response {
        let face = match Prefer::read(&self.parts.headers) {
            Prefer::RespondAsync => Face::Async,
            Prefer::Wait(_) => Face::Sync,
            Prefer::Nothing => face,
        };
        let (submitted, warnings) = match official::submit(self, operation, &body).await {
            Ok(submitted) => submitted,
            Err(error) => return error.into_response(),
        };
        // Nothing is held while the result is waited for.
        drop(body);
        let future = match submitted.future().await {
            Ok(future) => future,
            Err(refusal) => return refusal,
        };
        let answered = match face {
            Face::Sync => self.wait_for(&future, &warnings).await,
            Face::Async => answer::submitted(self, &future, &warnings).await,
        };
        answered.unwrap_or_else(IntoResponse::into_response)
    }

    /// An official answer, or what it promises where the client prefers to wait.
    async fn as_preferred(&self, response: Response) -> Response {
        let Prefer::Wait(_) = Prefer::read(&self.parts.headers) else { return response };
        match official::future(response).await {
            Ok(future) => {
                self.wait_for(&future, &[]).await.unwrap_or_else(IntoResponse::into_response)
            }
            Err(refusal) => refusal,
        }
    }

    /// This request with a body that has been read.
    fn request(&self, body: Result<Plain>) -> axum::extract::Request {
        let body = AlreadyRead::new(body);
        let mut request =
            axum::extract::Request::from_parts(self.parts.clone(), axum::body::Body::empty());
        request.extensions_mut().insert(body);
        request
    }

    async fn wait_for(&self, future: &UntypedFuture, warnings: &[String]) -> Result<Response> {
        let wait = match Prefer::read(&self.parts.headers) {
            Prefer::Wait(Some(wait)) => wait.min(self.app.config.sync_wait_max),
            Prefer::Wait(None) | Prefer::RespondAsync | Prefer::Nothing => {
                self.app.config.sync_wait_max
            }
        };
        answer::waited(self, future, wait, warnings).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ours(operation: Operation, body: &str) -> bool {
        operation.is_ours(&serde_json::from_str(body).unwrap())
    }

    #[test]
    fn bodies_are_told_apart() {
        for operation in [Operation::Forward, Operation::ForwardBackward] {
            assert!(is_ours(operation, r#"{"model_id": "m", "data": []}"#));
            assert!(is_ours(operation, r#"{"model_id": "m", "data": [], "forward_input": null}"#));
            assert!(!is_ours(operation, r#"{"model_id": "m", "data": [], "seq_id": 1}"#));
            assert!(!is_ours(operation, r#"{"model_id": "m", "forward_input": {"data": []}}"#));
            assert!(!is_ours(operation, r#"{"model_id": "m", "forward_backward_input": {}}"#));
            assert!(!is_ours(operation, "{}"), "an official mistake");
        }
        for operation in [Operation::OptimStep, Operation::SaveWeights, Operation::LoadWeights] {
            assert!(is_ours(operation, r#"{"model_id": "m", "seq_id": null, "type": null}"#));
            assert!(!is_ours(operation, r#"{"model_id": "m", "seq_id": 1}"#), "SDK 0.3.0");
            assert!(!is_ours(operation, r#"{"model_id": "m", "type": "optim_step"}"#));
            assert!(!is_ours(operation, r#"{"session_id": "s", "model_seq_id": 0}"#));
            assert!(!is_ours(operation, r#"{"path": "p"}"#), "an official mistake");
        }
        assert!(is_ours(Operation::Sample, r#"{"model_id": "m", "prompt": {"chunks": []}}"#));
        assert!(is_ours(Operation::Sample, r#"{"messages": []}"#));
        assert!(is_ours(Operation::Sample, r#"{"prompt": "hello"}"#));
        assert!(!is_ours(Operation::Sample, r#"{"base_model": "b", "prompt": {"chunks": []}}"#));
        assert!(!is_ours(Operation::Sample, r#"{"sampling_session_id": "s", "messages": []}"#));
    }
}
