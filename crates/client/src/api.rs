//! The requests as they are, one method each: for those who want to number and combine them by themselves.

use std::{marker::PhantomData, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tinsmith_types::{
    futures::UntypedFuture,
    ids::RequestId,
    training::{
        CreateModelRequest, CreateModelResponse, GetInfoRequest, GetInfoResponse, OptimStepRequest,
        OptimStepResponse, UnloadModelRequest, UnloadModelResponse,
    },
    weights::{
        LoadWeightsRequest, LoadWeightsResponse, SaveWeightsExternalRequest,
        SaveWeightsExternalResponse, SaveWeightsForSamplerRequest, SaveWeightsForSamplerResponse,
        SaveWeightsRequest, SaveWeightsResponse,
    },
};

use crate::{
    Config, Error, PollOptions, Result,
    http::{Call, Http, Pool, parse},
    poll::{Answer, Wanted},
};

/// The requests as they are.
///
/// ```no_run
/// use tinsmith::{Config, PollOptions, api::Api, wire::SaveWeightsRequest};
///
/// # async fn run() -> tinsmith::Result<()> {
/// let api = Api::connect(Config::new("http://127.0.0.1:8000"))?;
/// let request = SaveWeightsRequest {
///     model_id: "run-123".into(),
///     seq_id: None,
///     path: Some("checkpoint-001".to_owned()),
///     ttl_seconds: None,
///     overwrite: false,
///     user_metadata: None,
/// };
/// let saved = api.save_weights(&request).await?.wait("SaveWeights", &PollOptions::default()).await?;
/// println!("{}", saved.path);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Api {
    http: Http,
}

macro_rules! queued {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// The server cannot be reached, or refuses.
        pub async fn $name(&self, request: &$request) -> Result<Queued<$answer>> {
            self.submit(stringify!($name), request, Pool::Training).await
        }
    )*};
}

impl Api {
    /// Sends nothing yet.
    ///
    /// # Errors
    ///
    /// A configuration that cannot be used.
    pub fn connect(config: Config) -> Result<Self> {
        Ok(Self { http: Http::new(config)? })
    }

    pub(crate) fn of(http: Http) -> Self {
        Self { http }
    }

    queued! {
        /// `POST create_model`.
        create_model(CreateModelRequest) -> CreateModelResponse;
        /// `POST optim_step`.
        optim_step(OptimStepRequest) -> OptimStepResponse;
        /// `POST save_weights`: a checkpoint to resume from.
        save_weights(SaveWeightsRequest) -> SaveWeightsResponse;
        /// `POST save_weights_for_sampler`: weights to sample from.
        save_weights_for_sampler(SaveWeightsForSamplerRequest) -> SaveWeightsForSamplerResponse;
        /// `POST save_weights_external`: an adapter in the layout of others.
        save_weights_external(SaveWeightsExternalRequest) -> SaveWeightsExternalResponse;
        /// `POST load_weights`.
        load_weights(LoadWeightsRequest) -> LoadWeightsResponse;
        /// `POST unload_model`.
        unload_model(UnloadModelRequest) -> UnloadModelResponse;
    }

    /// `POST get_info`.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or refuses.
    pub async fn get_info(&self, request: &GetInfoRequest) -> Result<GetInfoResponse> {
        self.http.send_json(&Call::post("get_info", request)?.pool(Pool::Training)).await
    }

    /// `POST retrieve_future` until the result is there, with any result type of JSON.
    ///
    /// # Errors
    ///
    /// The request failed, or its result did not come in time.
    pub async fn retrieve<T: DeserializeOwned>(
        &self,
        request_id: &str,
        options: &PollOptions,
    ) -> Result<T> {
        let request_id = RequestId::from(request_id);
        self.http.result(&request_id, Wanted::json(""), options).await?.json()
    }

    pub(crate) async fn submit<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        pool: Pool,
    ) -> Result<Queued<T>> {
        let call = Call::post(path, request)?.pool(pool);
        let submitted = Submitted::send(&self.http, &call).await?;
        Ok(Queued { http: self.http.clone(), submitted, result: PhantomData })
    }
}

/// A request that was sent, and whose result is `T`.
#[derive(Debug)]
pub struct Queued<T> {
    http: Http,
    submitted: Submitted,
    result: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Queued<T> {
    /// What to poll for; none where the answer was the result itself.
    pub fn request_id(&self) -> Option<&str> {
        match &self.submitted.answer {
            SubmittedAnswer::Pending(future) => Some(future.request_id.as_str()),
            SubmittedAnswer::Ready(_) => None,
        }
    }

    /// Waits for the result. `request_type` goes into a header, such as `SaveWeights`.
    ///
    /// # Errors
    ///
    /// The request failed, or its result did not come in time.
    pub async fn wait(self, request_type: &'static str, options: &PollOptions) -> Result<T> {
        self.submitted.result(&self.http, Wanted::json(request_type), options).await?.json()
    }
}

/// The answer to a request that may be queued.
#[derive(Debug)]
pub(crate) struct Submitted {
    answer: SubmittedAnswer,
    pub(crate) roundtrip: Duration,
}

#[derive(Debug)]
enum SubmittedAnswer {
    Pending(UntypedFuture),
    /// The result at once.
    Ready(Answer),
}

impl Submitted {
    pub(crate) async fn send(http: &Http, call: &Call) -> Result<Self> {
        let start = http.clock().now();
        let reply = http.send(call).await?;
        let roundtrip = http.clock().now().saturating_duration_since(start);
        let value: Value = parse(&reply.bytes)?;
        if !value.is_object() {
            let excerpt: String = value.to_string().chars().take(200).collect();
            return Err(Error::response(format!(
                "`{}` was answered with neither a request_id nor a result: {excerpt}",
                call.path
            )));
        }
        let answer = match value.get("request_id") {
            Some(_) => SubmittedAnswer::Pending(parse(&reply.bytes)?),
            None => SubmittedAnswer::Ready(Answer::Json(reply.bytes)),
        };
        if let SubmittedAnswer::Pending(future) = &answer {
            let (request_id, endpoint) = (&future.request_id, &call.path);
            tracing::debug!(
                target: "tinsmith::operation", phase = "submitted", %request_id, endpoint, ?roundtrip,
            );
        }
        Ok(Self { answer, roundtrip })
    }

    /// The request that was queued.
    pub(crate) fn future(&self) -> Option<&UntypedFuture> {
        match &self.answer {
            SubmittedAnswer::Pending(future) => Some(future),
            SubmittedAnswer::Ready(_) => None,
        }
    }

    pub(crate) async fn result(
        self,
        http: &Http,
        wanted: Wanted,
        options: &PollOptions,
    ) -> Result<Answer> {
        match self.answer {
            SubmittedAnswer::Pending(future) => {
                let wanted = Wanted { roundtrip: self.roundtrip, ..wanted };
                http.result(&future.request_id, wanted, options).await
            }
            SubmittedAnswer::Ready(answer) => Ok(answer),
        }
    }
}
