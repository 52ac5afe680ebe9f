//! Samplers, and samples that nothing has drawn: tokens 10, 11, 12 and so on, as many as were asked for.

use serde_json::{Value, json};
use tinsmith_types::{
    proto::{
        self, PromptAltTokens, SampledSequence, StopReason, Tensor, TopkLogprobs,
        pack::{pack_f32, pack_i32},
    },
    sampling::SampleRequest,
};

use super::{
    Answered, Reply, Seen, World, known_model, known_path, required, required_number,
    results::Outcome,
};

/// Tokens where the request does not say how many.
const TOKENS: i32 = 16;
/// Tokens of a sequence, and sequences of a sample.
const TOKENS_MAX: i32 = 1 << 20;
const SEQUENCES_MAX: u32 = 4096;

impl World {
    pub(super) fn create_sampling_session(&mut self, seen: &Seen) -> Answered {
        let session = required(seen, "session_id")?;
        let number = required_number(seen, "sampling_session_seq_id")?;
        let base_model = match (seen.text("base_model"), seen.text("model_path")) {
            (Some(model), None) => known_model(model)?.to_owned(),
            (None, Some(path)) => {
                let run = known_path(path)?.run;
                self.runs.get(run.as_str()).cloned().unwrap_or_default().base_model
            }
            (Some(_), Some(_)) | (None, None) => {
                let message = "wants either `base_model` or `model_path`";
                return Err(Reply::refused(400, message));
            }
        };
        let id = format!("{session}:sample:{number}");
        let model_path = &seen.body["model_path"];
        let info = json!({ "sampler_id": id, "base_model": base_model, "model_path": model_path });
        self.samplers.insert(id.clone(), info);
        Ok(Reply::json(json!({ "type": "create_sampling_session", "sampling_session_id": id })))
    }

    pub(super) fn join_sampling_session(&mut self, seen: &Seen) -> Answered {
        let sampler = required(seen, "sampling_session_id")?;
        let clones = self.clones.entry(sampler.to_owned()).or_default();
        *clones += 1;
        Ok(Reply::json(json!({ "type": "join_sampling_session", "client_counter": *clones })))
    }

    pub(super) fn asample(&mut self, seen: &Seen) -> Answered {
        let read = serde_json::from_value::<SampleRequest>(seen.body.clone());
        let request = read.map_err(|error| Reply::refused(422, error.to_string()))?;
        let Some(sampler) = request.sampling_session_id.as_ref().map(|id| id.0.clone()) else {
            return Err(Reply::refused(400, "wants a `sampling_session_id`"));
        };
        if !self.samplers.contains_key(&sampler) {
            return Err(Reply::refused(404, format!("there is no sampler `{sampler}`")));
        }
        if request.num_samples == 0 || request.num_samples > SEQUENCES_MAX {
            return Err(Reply::refused(400, "`num_samples` is out of range"));
        }
        let seq_id = request.seq_id.map_or(0, |seq_id| seq_id.0);
        let request_id = format!("{sampler}:{seq_id}");
        if let Some(again) = self.results.again(&request_id) {
            return Ok(again);
        }
        let sequences: Vec<String> =
            (0..request.num_samples).map(|i| format!("{request_id}:{i}")).collect();
        self.results.note_sample(&sampler, seq_id, &request_id);
        let future = json!({ "request_id": request_id, "sample_sequence_ids": sequences });
        let outcome = Outcome::Sample(Box::new(response(&request, length(&seen.body)?)));
        Ok(self.results.queue("asample", future, outcome))
    }
}

/// Tokens of the prompt.
fn length(body: &Value) -> Result<usize, Reply> {
    let chunks = body["prompt"]["chunks"].as_array().map_or(&[][..], |chunks| &chunks[..]);
    let tokens = chunks.iter().map(|chunk| match chunk["tokens"].as_array() {
        Some(tokens) => tokens.len(),
        None => {
            chunk["expected_tokens"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1)
        }
    });
    match tokens.sum() {
        0 => Err(Reply::refused(400, "the prompt is empty")),
        length => Ok(length),
    }
}

fn response(request: &SampleRequest, prompt: usize) -> proto::SampleResponse {
    let asked = request
        .sampling_params
        .max_tokens
        .map_or(TOKENS, |tokens| i32::try_from(tokens).unwrap_or(TOKENS_MAX));
    let tokens = asked.clamp(1, TOKENS_MAX);
    let sequence = |i: u32| {
        let first = 10 + i32::try_from(i).unwrap_or_default();
        let drawn: Vec<i32> = (first..).take(usize::try_from(tokens).unwrap_or(1)).collect();
        let k = request.topk_sample_logprobs;
        SampledSequence {
            stop_reason: StopReason::Length.into(),
            logprobs: Some(pack_f32(&vec![-0.5; drawn.len()])),
            topk_sampled_logprobs: (k > 0).then(|| topk(k, drawn.len(), 0)),
            tokens: pack_i32(&drawn),
        }
    };
    let unscored = match request.prompt_logprobs_last_n {
        Some(last) => prompt.saturating_sub(usize::try_from(last).unwrap_or(prompt)).max(1),
        None => 1,
    };
    proto::SampleResponse {
        sequences: (0..request.num_samples).map(sequence).collect(),
        prompt_logprobs: request.prompt_logprobs.then(|| prompt_logprobs(prompt, unscored)),
        topk_prompt_logprobs: (request.topk_prompt_logprobs > 0)
            .then(|| topk(request.topk_prompt_logprobs, prompt, unscored)),
        prompt_cache_hit_tokens: 0,
        target_prompt_logprobs: target(request),
        prompt_alt_tokens: alternatives(request.prompt_alt_tokens_k, prompt),
    }
}

/// NaN, -1, -2, -3 and so on.
fn prompt_logprobs(prompt: usize, unscored: usize) -> bytes::Bytes {
    let (unscored, mut logprob) = (unscored.min(prompt), 0.0);
    let mut logprobs: Vec<f32> = Vec::with_capacity(prompt);
    for position in 0..prompt {
        logprobs.push(if position < unscored { f32::NAN } else { logprob });
        logprob -= 1.0;
    }
    pack_f32(&logprobs)
}

/// Tokens 100, 101 and so on at each position, but for the first ones, which have none.
fn topk(k: u32, length: usize, unscored: usize) -> TopkLogprobs {
    let (mut token_ids, mut logprobs) = (Vec::new(), Vec::new());
    for position in 0..length {
        let mut logprob = 0.0;
        for token in (100..).take(usize::try_from(k).unwrap_or_default()) {
            logprob -= 0.25;
            let none = position < unscored;
            token_ids.push(if none { 0 } else { token });
            logprobs.push(if none { -99_999.0 } else { logprob });
        }
    }
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    TopkLogprobs { token_ids: pack_i32(&token_ids), logprobs: pack_f32(&logprobs), k, length }
}

/// -2 for each token asked about, 0 for the -1 that stand for none.
fn target(request: &SampleRequest) -> Option<Tensor> {
    let asked: Tensor = request.target_prompt_logprobs.clone()?.try_into().ok()?;
    let tokens = proto::pack::unpack_i64(asked.stored()).ok()?;
    let scored: Vec<f32> = tokens.iter().map(|token| if *token < 0 { 0.0 } else { -2.0 }).collect();
    let scored = pack_f32(&scored);
    let encoding = asked.encoding.map(|encoding| match encoding {
        proto::tensor::Encoding::Dense(_) => proto::tensor::Encoding::Dense(scored.clone()),
        proto::tensor::Encoding::SparseCsr(csr) => {
            proto::tensor::Encoding::SparseCsr(proto::SparseCsr { values: scored.clone(), ..csr })
        }
    });
    Some(Tensor { dtype: proto::Dtype::Float32.into(), encoding, ..asked })
}

fn alternatives(k: u32, prompt: usize) -> Option<PromptAltTokens> {
    let (rows, columns) = (prompt.saturating_sub(1), usize::try_from(k).ok()?);
    if columns == 0 {
        return None;
    }
    let shape = vec![i64::try_from(rows).ok()?, i64::from(k)];
    let cells = rows * columns;
    let tokens = Tensor {
        dtype: proto::Dtype::Int32.into(),
        shape: shape.clone(),
        encoding: Some(proto::tensor::Encoding::Dense(pack_i32(&vec![5; cells]))),
    };
    let logprobs = Tensor::dense_f32(&vec![-0.75; cells], shape);
    Some(PromptAltTokens { tokens: Some(tokens), logprobs: Some(logprobs) })
}
