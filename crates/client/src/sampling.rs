//! Draws tokens from a fixed set of weights.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use prost::Message as _;
use tinsmith_types::{
    futures::UntypedFuture,
    ids::{SamplingSessionId, SeqId},
    model_input::{Chunk, ModelInput},
    proto,
    sampling::{SampleRequest, SampleResponse, SamplingParams, StopReason},
};

use crate::{ApiFuture, Error, Result, http::Answer, model_input::signed, service::Session};

/// Samples of a sample that the server has forgotten are asked for again this often.
const RESUBMITS_MAX: u32 = 5;

/// A sampler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SamplingClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Arc<Session>,
    id: SamplingSessionId,
    next: AtomicI64,
}

/// What sampling gives.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleResult {
    /// One for each of `num_samples`.
    pub sequences: Vec<SampledSequence>,
    /// One for each prompt token, the first is `None`, if asked for.
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledSequence {
    /// Without the prompt; with the stop token that ended it.
    pub tokens: Vec<u32>,
    /// One for each token.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub stop_reason: StopReason,
}

impl SamplingClient {
    pub(crate) fn new(session: Arc<Session>, id: SamplingSessionId) -> Self {
        Self { inner: Arc::new(Inner { session, id, next: AtomicI64::new(0) }) }
    }

    /// Draws `num_samples` continuations of a prompt.
    pub fn sample(
        &self,
        prompt: &[u32],
        num_samples: u32,
        params: SamplingParams,
    ) -> ApiFuture<SampleResult> {
        self.run(prompt, num_samples, params, false)
    }

    /// The logprob of each token of a text after those before it; the first is `None`.
    pub fn compute_logprobs(&self, tokens: &[u32]) -> ApiFuture<Vec<Option<f32>>> {
        let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
        let sample = self.run(tokens, 1, params, true);
        ApiFuture::start(async move {
            sample.await?.prompt_logprobs.ok_or_else(|| Error::Response {
                message: "no prompt_logprobs though they were asked for".to_owned(),
            })
        })
    }

    fn run(
        &self,
        prompt: &[u32],
        num_samples: u32,
        params: SamplingParams,
        prompt_logprobs: bool,
    ) -> ApiFuture<SampleResult> {
        let inner = Arc::clone(&self.inner);
        let prompt = signed(prompt);
        ApiFuture::start(async move {
            let mut request = SampleRequest {
                sampling_session_id: Some(inner.id.clone()),
                seq_id: None,
                base_model: None,
                model_path: None,
                num_samples,
                prompt: ModelInput { chunks: vec![Chunk::EncodedText { tokens: prompt? }] },
                sampling_params: params,
                prompt_logprobs,
                topk_prompt_logprobs: 0,
                topk_sample_logprobs: 0,
                target_prompt_logprobs: None,
                prompt_alt_tokens_k: 0,
                prompt_logprobs_last_n: None,
                record_stability_info: false,
            };
            for _ in 0..RESUBMITS_MAX {
                request.seq_id = Some(SeqId(inner.next.fetch_add(1, Ordering::Relaxed)));
                match inner.attempt(&request).await {
                    // The server has started anew: samples live in its memory only.
                    Err(Error::Expired { request_id }) => {
                        tracing::debug!(request.id = request_id, "sampling again");
                    }
                    done => return done,
                }
            }
            inner.attempt(&request).await
        })
    }
}

impl Inner {
    async fn attempt(&self, request: &SampleRequest) -> Result<SampleResult> {
        let http = &self.session.http;
        let future: UntypedFuture = http.post("asample", request).await?;
        let response: SampleResponse = match http.result(&future, true).await? {
            Answer::Protobuf(bytes) => {
                let response = proto::SampleResponse::decode(bytes)
                    .map_err(|error| Error::Response { message: error.to_string() })?;
                (&response).try_into()?
            }
            answer @ Answer::Json(_) => answer.json()?,
        };
        let sequences = response.sequences.into_iter().map(|sequence| {
            let tokens: Result<Vec<u32>, _> =
                sequence.tokens.into_iter().map(u32::try_from).collect();
            Ok(SampledSequence {
                tokens: tokens
                    .map_err(|_| Error::Response { message: "a negative token id".to_owned() })?,
                logprobs: sequence.logprobs.unwrap_or_default(),
                stop_reason: sequence.stop_reason,
            })
        });
        Ok(SampleResult {
            sequences: sequences.collect::<Result<_>>()?,
            prompt_logprobs: response.prompt_logprobs,
        })
    }
}
