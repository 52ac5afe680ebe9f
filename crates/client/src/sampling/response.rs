//! What sampling gives.

use prost::Message as _;
use tinsmith_types::{ids::SequenceId, proto, sampling as wire};

pub use tinsmith_types::sampling::TopkRow;

use crate::{Error, Result, StopReason, TensorData, poll::Answer};

/// What sampling gives.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleResponse {
    /// One for each of `num_samples`.
    pub sequences: Vec<SampledSequence>,
    /// One for each prompt token, the first is `None`, if asked for.
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
    /// One row for each prompt token, in descending order, if asked for.
    pub topk_prompt_logprobs: Option<Vec<TopkRow>>,
    /// In the shape and layout of the request's, if asked for.
    pub target_prompt_logprobs: Option<TensorData>,
    /// Tokens drawn beside the prompt's, if asked for.
    pub prompt_alt_tokens: Option<PromptAltTokens>,
    /// Prompt tokens that the server took from its cache.
    pub prompt_cache_hit_tokens: u32,
}

/// Tokens drawn beside the prompt's: row `i` stands for prompt position `i + 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptAltTokens {
    /// int64 `[prompt - 1, k]`.
    pub tokens: TensorData,
    /// float32 `[prompt - 1, k]`.
    pub logprobs: TensorData,
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
    /// One row for each token, if asked for.
    pub topk_logprobs: Option<Vec<TopkRow>>,
    /// What provenance spans name it by.
    pub sequence_id: Option<String>,
}

impl SampleResponse {
    pub(super) fn of(answer: Answer, ids: Option<&[SequenceId]>) -> Result<Self> {
        let (response, cached) = match answer {
            Answer::Protobuf(bytes) => {
                let response = proto::SampleResponse::decode(bytes).map_err(Error::response)?;
                let cached = u32::try_from(response.prompt_cache_hit_tokens).unwrap_or(0);
                (wire::SampleResponse::try_from(&response)?, cached)
            }
            answer @ Answer::Json(_) => (answer.json()?, 0),
        };
        if let Some(ids) = ids.filter(|ids| ids.len() != response.sequences.len()) {
            let (got, asked) = (response.sequences.len(), ids.len());
            return Err(Error::response(format!("{got} sequences where {asked} were asked for")));
        }
        let sequences = response.sequences.into_iter().enumerate().map(|(i, sequence)| {
            let tokens = sequence.tokens.into_iter().map(u32::try_from);
            let tokens: Result<Vec<u32>, _> = tokens.collect();
            Ok(SampledSequence {
                tokens: tokens.map_err(|_| Error::response("a negative token id"))?,
                logprobs: sequence.logprobs.unwrap_or_default(),
                stop_reason: sequence.stop_reason,
                topk_logprobs: sequence.topk_logprobs,
                sequence_id: ids.map(|ids| ids[i].to_string()),
            })
        });
        let alternatives = response.prompt_alt_tokens.map(|drawn| {
            Ok::<_, Error>(PromptAltTokens {
                tokens: drawn.tokens.try_into().map_err(Error::response)?,
                logprobs: drawn.logprobs.try_into().map_err(Error::response)?,
            })
        });
        let targets = response.target_prompt_logprobs.map(TryInto::try_into).transpose();
        Ok(Self {
            sequences: sequences.collect::<Result<_>>()?,
            prompt_logprobs: response.prompt_logprobs,
            topk_prompt_logprobs: response.topk_prompt_logprobs,
            target_prompt_logprobs: targets.map_err(Error::response)?,
            prompt_alt_tokens: alternatives.transpose()?,
            prompt_cache_hit_tokens: cached,
        })
    }
}
