//! Draws tokens from a sampler.

use bytes::Bytes;
use prost::Message as _;
use tinsmith_engine::{Backend, Output, SampleJob, StopReason, Work};
use tinsmith_store::Digest;
use tinsmith_types::{
    proto::{
        self,
        pack::{pack_f32, pack_i32},
    },
    queued::QueuedRequest,
    sampling::{self, SampleRequest},
};

use crate::{
    convert,
    worker::{Sample, Worker, server_failure, user_failure},
};

/// Starts a sample, or fails it. False: its engine is full, or there is no room for its sampler yet.
pub(crate) fn start<B: Backend>(worker: &mut Worker<B>, sample: &Sample) -> bool {
    let request_id = sample.request_id.clone();
    let QueuedRequest::Sample(request) = &sample.request else {
        let failure = server_failure("only samples run on a sampler".to_owned());
        worker.complete_sample(request_id, Err(failure));
        return true;
    };
    // Cancelled meanwhile: its future has ended.
    if !worker.store.wants_sample(&request_id) {
        return true;
    }
    if !worker.has_sampler_room(Some(&sample.id)) {
        return false;
    }
    let prepared = worker
        .ensure_sampler(&sample.tenant, &sample.id)
        .and_then(|sampler| Ok((sampler, job(request).map_err(user_failure)?)));
    match prepared {
        Ok((sampler, job)) => {
            let work = Work::Sample { sampler: sampler.key, job };
            worker.submit_sample(sample.id.clone(), sampler.model, request_id, work)
        }
        Err(failure) => {
            worker.complete_sample(request_id, Err(failure));
            true
        }
    }
}

fn job(request: &SampleRequest) -> Result<SampleJob, String> {
    let params = &request.sampling_params;
    Ok(SampleJob {
        prompt: convert::prompt(&request.prompt)?,
        num_samples: request.num_samples as usize,
        max_tokens: params.max_tokens.map(|max_tokens| max_tokens as usize),
        seed: params.seed,
        temperature: convert::float(params.temperature),
        top_k: usize::try_from(params.top_k).ok().filter(|top_k| *top_k > 0),
        top_p: convert::float(params.top_p),
        stop: match &params.stop {
            None => tinsmith_engine::Stop::Default,
            Some(sampling::Stop::Text(text)) => tinsmith_engine::Stop::Strings(vec![text.clone()]),
            Some(sampling::Stop::Texts(texts)) => tinsmith_engine::Stop::Strings(texts.clone()),
            Some(sampling::Stop::Tokens(tokens)) => {
                tinsmith_engine::Stop::Tokens(convert::ids("sampling_params.stop", tokens)?)
            }
        },
        prompt_logprobs: request.prompt_logprobs,
    })
}

/// Protobuf. Nothing replays a sample, so that there is no digest.
pub(crate) fn result(output: Output) -> (Bytes, Option<Digest>) {
    let Output::Sample(output) = output else { return (Bytes::new(), None) };
    let sequences = output.sequences.into_iter().map(|sequence| proto::SampledSequence {
        stop_reason: match sequence.stop_reason {
            StopReason::Stop => proto::StopReason::Stop.into(),
            StopReason::Length => proto::StopReason::Length.into(),
        },
        tokens: tokens(&sequence.tokens),
        logprobs: Some(pack_f32(&sequence.logprobs)),
        topk_sampled_logprobs: None,
    });
    let response = proto::SampleResponse {
        sequences: sequences.collect(),
        prompt_logprobs: output.prompt_logprobs.as_deref().map(pack_f32),
        topk_prompt_logprobs: None,
        prompt_cache_hit_tokens: i32::try_from(output.prompt_cache_hit_tokens).unwrap_or(i32::MAX),
        target_prompt_logprobs: None,
        prompt_alt_tokens: None,
    };
    (Bytes::from(response.encode_to_vec()), None)
}

/// Token ids travel as i32; vocabularies are far smaller.
fn tokens(tokens: &[u32]) -> Bytes {
    pack_i32(&tokens.iter().map(|token| token.cast_signed()).collect::<Vec<_>>())
}
