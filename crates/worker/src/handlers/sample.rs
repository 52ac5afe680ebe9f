//! Draws tokens from a sampler.

use bytes::Bytes;
use prost::Message as _;
use tinsmith_engine::{
    Backend, Drawn, Output, PromptTargets, SampleJob, Sequence, StopReason, Work,
};
use tinsmith_store::{Digest, Effect, RecordedSample, SampleUsage};
use tinsmith_types::{
    ids::SamplingSessionId,
    proto::{
        self, Dtype,
        pack::{pack_f32, pack_i32, pack_i64},
        tensor::Encoding,
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
            let recorded = request.record_stability_info.then(|| job.prompt.clone());
            let work = Work::Sample { sampler: sampler.key, job };
            worker.submit_sample(sample.id.clone(), sampler.model, request_id, work, recorded)
        }
        Err(failure) => {
            worker.complete_sample(request_id, Err(failure));
            true
        }
    }
}

fn job(request: &SampleRequest) -> Result<SampleJob, String> {
    let params = &request.sampling_params;
    let prompt = convert::prompt(&request.prompt)?;
    let targets = request.target_prompt_logprobs.as_ref();
    let targets =
        targets.map(|tensor| convert::prompt_targets(tensor, prompt.len())).transpose()?;
    Ok(SampleJob {
        prompt,
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
        prompt_logprobs_last_n: request.prompt_logprobs_last_n.map(|last_n| last_n as usize),
        topk_prompt_logprobs: request.topk_prompt_logprobs as usize,
        topk_sample_logprobs: request.topk_sample_logprobs as usize,
        target_prompt_logprobs: targets,
        prompt_alt_tokens: request.prompt_alt_tokens_k as usize,
    })
}

/// What it counts for in the ledger, and what training may refer to later: given the sampler and the prompt,
/// what was drawn is recorded.
pub(crate) fn effect(output: &Output, recorded: Option<(SamplingSessionId, Vec<u32>)>) -> Effect {
    let Output::Sample(output) = output else { return Effect::None };
    let cached = output.prompt_cache_hit_tokens as u64;
    let usage = SampleUsage {
        prefill: (output.prompt_tokens as u64).saturating_sub(cached),
        prefill_cached: cached,
        sampled: output.sequences.iter().map(|sequence| sequence.tokens.len() as u64).sum(),
    };
    let drawn = |each: &Sequence| (each.tokens.clone(), each.logprobs.clone());
    let recorded = recorded.map(|(sampler, prompt)| {
        let sequences = output.sequences.iter().map(drawn).collect();
        Box::new(RecordedSample { sampler, prompt, sequences })
    });
    Effect::Sampled(usage, recorded)
}

/// Protobuf. Nothing replays a sample, so that there is no digest.
pub(crate) fn result(output: Output) -> (Bytes, Option<Digest>) {
    let Output::Sample(output) = output else { return (Bytes::new(), None) };
    let prompt = output.prompt_tokens;
    let sequences = output.sequences.into_iter().map(|sequence| proto::SampledSequence {
        stop_reason: match sequence.stop_reason {
            StopReason::Stop => proto::StopReason::Stop.into(),
            StopReason::Length => proto::StopReason::Length.into(),
        },
        tokens: pack_i32(&signed(sequence.tokens.iter().copied())),
        logprobs: Some(pack_f32(&sequence.logprobs)),
        topk_sampled_logprobs: sequence.topk_logprobs.map(|top| topk(&top, sequence.tokens.len())),
    });
    let response = proto::SampleResponse {
        sequences: sequences.collect(),
        prompt_logprobs: output.prompt_logprobs.as_deref().map(pack_f32),
        topk_prompt_logprobs: output.topk_prompt_logprobs.map(|top| topk(&top, prompt)),
        prompt_cache_hit_tokens: i32::try_from(output.prompt_cache_hit_tokens).unwrap_or(i32::MAX),
        target_prompt_logprobs: output
            .target_prompt_logprobs
            .map(|(targets, logprobs)| target_logprobs(&targets, &logprobs)),
        prompt_alt_tokens: output.prompt_alt_tokens.map(|drawn| alternatives(&drawn, prompt - 1)),
    };
    (Bytes::from(response.encode_to_vec()), None)
}

fn topk(top: &[Drawn], rows: usize) -> proto::TopkLogprobs {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    proto::TopkLogprobs {
        token_ids: pack_i32(&signed(top.iter().map(|each| each.token))),
        logprobs: pack_f32(&logprobs(top)),
        k: count(top.len().checked_div(rows).unwrap_or(0)),
        length: count(rows),
    }
}

/// A tensor in the shape and layout of the request's.
fn target_logprobs(targets: &PromptTargets, logprobs: &[f32]) -> proto::Tensor {
    let shape = vec![extent(targets.rows.len() - 1), extent(targets.columns)];
    let indices = |all: &[usize]| pack_i64(&all.iter().copied().map(extent).collect::<Vec<_>>());
    let values = pack_f32(logprobs);
    let encoding = match &targets.column_of {
        None => Encoding::Dense(values),
        Some(columns) => Encoding::SparseCsr(proto::SparseCsr {
            values,
            crow_indices: indices(&targets.rows),
            col_indices: indices(columns),
        }),
    };
    proto::Tensor { encoding: Some(encoding), dtype: Dtype::Float32.into(), shape }
}

fn alternatives(drawn: &[Drawn], rows: usize) -> proto::PromptAltTokens {
    let shape = vec![extent(rows), extent(drawn.len().checked_div(rows).unwrap_or(0))];
    let ids: Vec<i64> = drawn.iter().map(|each| each.token.into()).collect();
    let tensor = |bytes: Bytes, dtype: Dtype| proto::Tensor {
        encoding: Some(Encoding::Dense(bytes)),
        dtype: dtype.into(),
        shape: shape.clone(),
    };
    proto::PromptAltTokens {
        tokens: Some(tensor(pack_i64(&ids), Dtype::Int64)),
        logprobs: Some(tensor(pack_f32(&logprobs(drawn)), Dtype::Float32)),
    }
}

fn logprobs(drawn: &[Drawn]) -> Vec<f32> {
    drawn.iter().map(|each| each.logprob).collect()
}

/// Token ids travel as i32; vocabularies are far smaller.
fn signed(tokens: impl Iterator<Item = u32>) -> Vec<i32> {
    tokens.map(u32::cast_signed).collect()
}

fn extent(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
