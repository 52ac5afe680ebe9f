//! Checks of one sample request against the model that it samples from.

use tinsmith_types::{
    model_input::Chunk,
    sampling::{SampleRequest, SamplingParams, Stop},
};

use crate::{
    check::{datums::tokens, prompt_scores, rounded},
    error::{Error, Result},
};

/// What a sample may ask for at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Token ids are below this.
    pub(crate) vocab_size: u32,
    /// Tokens of prompt and continuation together.
    pub(crate) context: usize,
    pub(crate) num_samples_max: u32,
    pub(crate) stops_max: usize,
    /// Tokens that are listed or drawn at one position.
    pub(crate) topk_max: u32,
    /// Logprobs in one result beside those of the prompt's and the drawn tokens themselves.
    pub(crate) logprobs_max: usize,
}

/// Checks a whole request.
///
/// # Errors
/// A 400 that names what is wrong or not supported.
pub(crate) fn sample(limits: &Limits, request: &SampleRequest) -> Result<()> {
    one_source(request)?;
    let samples = 1..=limits.num_samples_max;
    if !samples.contains(&request.num_samples) {
        return invalid(format!(
            "num_samples is {}; it must be from 1 to {}",
            request.num_samples, limits.num_samples_max
        ));
    }
    let prompt = prompt(limits, &request.prompt.chunks)?;
    params(limits, &request.sampling_params)?;
    fits_context(limits, prompt, request.sampling_params.max_tokens)?;
    prompt_scores::check(limits, request, prompt)
        .map_err(|fault| fault.into_error("invalid_sample"))
}

fn fits_context(limits: &Limits, prompt: usize, max_tokens: Option<u32>) -> Result<()> {
    // Without a number the continuation takes what is left, which must be something.
    let wanted = max_tokens.map_or(1, |max| usize::try_from(max).unwrap_or(usize::MAX));
    if prompt.saturating_add(wanted) > limits.context {
        // Programs match this text to end their episodes: it is the hosted service's, word for word.
        let detail = format!(
            "Prompt length plus max_tokens exceeds the model's context window: {prompt} prompt \
             tokens + {wanted} max_tokens > {}.",
            limits.context
        );
        return Err(Error::invalid("context_exceeded", detail));
    }
    Ok(())
}

/// Refuses what would else be silently left out: a sampler has its weights.
fn one_source(request: &SampleRequest) -> Result<()> {
    let other = request.base_model.is_some() || request.model_path.is_some();
    if other && request.sampling_session_id.is_some() {
        let detail = "wants either sampling_session_id, or base_model or model_path";
        return Err(Error::invalid("invalid_sample", detail));
    }
    Ok(())
}

/// Checks the prompt and returns its tokens.
fn prompt(limits: &Limits, chunks: &[Chunk]) -> Result<usize> {
    let mut length = 0;
    for (index, chunk) in chunks.iter().enumerate() {
        let place = format!("prompt.chunks[{index}]");
        let kind = match chunk {
            Chunk::EncodedText { tokens: ids } => {
                tokens(limits.vocab_size, &format!("{place}.tokens"), ids.iter().copied())
                    .map_err(|fault| fault.into_error("invalid_sample"))?;
                length += ids.len();
                continue;
            }
            Chunk::Image { .. } | Chunk::ImageAssetPointer { .. } => "an image",
            Chunk::Dmel { .. } => "audio",
        };
        let detail = format!("{place} is {kind}; this server's models read text only");
        return Err(Error::invalid("unsupported", detail));
    }
    if length == 0 {
        return invalid("prompt has no tokens".to_owned());
    }
    Ok(length)
}

fn params(limits: &Limits, params: &SamplingParams) -> Result<()> {
    let (temperature, top_p) = (rounded(params.temperature), rounded(params.top_p));
    if !(temperature.is_finite() && temperature >= 0.0) {
        return invalid(format!(
            "sampling_params.temperature is {}; it must be 0 (greedy) or more",
            params.temperature
        ));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return invalid(format!(
            "sampling_params.top_p is {}; it must be above 0 and at most 1",
            params.top_p
        ));
    }
    if params.top_k != -1 && params.top_k < 1 {
        return invalid(format!(
            "sampling_params.top_k is {}; it must be -1 (off) or at least 1",
            params.top_k
        ));
    }
    params.stop.as_ref().map_or(Ok(()), |stop| stops(limits, stop))
}

/// Longest stop string, in bytes.
const STOP_BYTES_MAX: usize = 1000;

fn stops(limits: &Limits, stop: &Stop) -> Result<()> {
    let (count, texts): (usize, &[String]) = match stop {
        Stop::Text(text) => (1, std::slice::from_ref(text)),
        Stop::Texts(texts) => (texts.len(), texts),
        Stop::Tokens(ids) => {
            tokens(limits.vocab_size, "sampling_params.stop", ids.iter().copied())
                .map_err(|fault| fault.into_error("invalid_sample"))?;
            (ids.len(), &[])
        }
    };
    if count > limits.stops_max {
        return invalid(format!(
            "sampling_params.stop has {count} entries; at most {} are taken",
            limits.stops_max
        ));
    }
    if texts.iter().any(|text| text.is_empty() || text.len() > STOP_BYTES_MAX) {
        return invalid(format!(
            "sampling_params.stop has an entry that is empty or longer than {STOP_BYTES_MAX} bytes"
        ));
    }
    Ok(())
}

fn invalid<T>(detail: String) -> Result<T> {
    Err(Error::invalid("invalid_sample", detail))
}
