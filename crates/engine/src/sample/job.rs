//! One sampling job and its sequences.

use tinsmith_backend::{
    Draw,
    philox::{philox4x32_10, uniform_f64},
};

use super::{
    StopSource,
    stop::{StopRule, StopWatch},
};
use crate::{
    Error, Failure, Output, Result, SampleJob, SampleOutput, SamplerKey, Sequence, StopReason,
    Ticket,
};

/// Sets the counters of draws apart from those of an adapter's first values.
const DRAW_STREAM: u32 = u32::from_be_bytes(*b"draw");

/// The lowest temperature beside 0. Below, logits divided by it would overflow f32, and already here the
/// best token has all the probability unless another's logit is within a thousandth.
const TEMPERATURE_MIN: f32 = 1e-4;

/// A job from submission to its output.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) ticket: Ticket,
    pub(crate) sampler: SamplerKey,
    pub(crate) prompt: Vec<u32>,
    max_tokens: usize,
    seed: u64,
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    rule: StopRule,
    /// By sample index.
    samples: Vec<Sample>,
    num_unfinished: usize,
    /// Whether every sample goes its own way; before, sample 0 computes the prompt for all.
    pub(crate) forked: bool,
    /// `[prompt]`, if asked for.
    prompt_logprobs: Option<Vec<f32>>,
    /// Prompt tokens whose logprobs are known; the first has none.
    pub(crate) num_scored: usize,
    /// Prompt tokens that were found in the prefix cache; known with the first step.
    cache_hit_tokens: Option<usize>,
}

#[derive(Clone, Debug)]
struct Sample {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    watch: StopWatch,
    stop_reason: Option<StopReason>,
}

impl Job {
    pub(crate) fn new(
        ticket: Ticket,
        sampler: SamplerKey,
        request: SampleJob,
        max_tokens: usize,
        stops: &StopSource,
    ) -> Result<Self> {
        let seed =
            request.seed.ok_or_else(|| Error::internal("a sampling job came without a seed"))?;
        let rule = StopRule::new(request.stop, &stops.end_tokens);
        let watch = StopWatch::new(&rule, &request.prompt, stops.tokenizer.as_deref())
            .map_err(|error| Error::internal(error.to_string()))?;
        let sample = Sample { tokens: Vec::new(), logprobs: Vec::new(), watch, stop_reason: None };
        Ok(Self {
            ticket,
            sampler,
            prompt_logprobs: request.prompt_logprobs.then(|| vec![f32::NAN; request.prompt.len()]),
            prompt: request.prompt,
            max_tokens,
            seed,
            temperature: match request.temperature {
                0.0 => 0.0,
                temperature => temperature.max(TEMPERATURE_MIN),
            },
            top_k: request.top_k,
            top_p: request.top_p,
            rule,
            samples: vec![sample; request.num_samples],
            num_unfinished: request.num_samples,
            forked: false,
            num_scored: 1,
            cache_hit_tokens: None,
        })
    }

    pub(crate) fn num_samples(&self) -> usize {
        self.samples.len()
    }

    pub(crate) fn num_unfinished(&self) -> usize {
        self.num_unfinished
    }

    /// Whether tokens are to be drawn at all.
    pub(crate) fn draws(&self) -> bool {
        self.max_tokens > 0
    }

    /// How many of the prompt's first tokens nobody needs the rows of: a row scores the token after it, and the
    /// last one is drawn from.
    pub(crate) fn reusable(&self) -> usize {
        match self.prompt_logprobs {
            Some(_) => self.num_scored - 1,
            None => self.prompt.len() - 1,
        }
    }

    /// Takes note of where the first step begins. Gives the tokens before it, the first time.
    pub(crate) fn begin(&mut self, position: usize) -> usize {
        if self.cache_hit_tokens.is_some() {
            return 0;
        }
        self.cache_hit_tokens = Some(position);
        position
    }

    /// Appends tokens `position..position + count` of a sample, prompt and completion, to `tokens`.
    pub(crate) fn extend(
        &self,
        index: usize,
        (position, count): (usize, usize),
        tokens: &mut Vec<u32>,
    ) {
        let (prompt, drawn) = (&self.prompt, &self.samples[index].tokens);
        let end = position + count;
        if position < prompt.len() {
            tokens.extend_from_slice(&prompt[position..end.min(prompt.len())]);
        }
        if end > prompt.len() {
            let first = position.max(prompt.len()) - prompt.len();
            tokens.extend_from_slice(&drawn[first..end - prompt.len()]);
        }
    }

    /// How a sample's next token is drawn.
    pub(crate) fn draw(&self, index: usize) -> Draw {
        let position = self.prompt.len() + self.samples[index].tokens.len();
        Draw {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            uniform: uniform(self.seed, index, position),
        }
    }

    /// Takes in a drawn token. Gives whether the sample is finished.
    pub(crate) fn push(
        &mut self,
        index: usize,
        (token, logprob): (u32, f32),
        stops: &StopSource,
    ) -> Result<bool, Failure> {
        if !logprob.is_finite() {
            return Err(not_finite());
        }
        let sample = &mut self.samples[index];
        sample.tokens.push(token);
        sample.logprobs.push(logprob);
        let tokenizer = stops.tokenizer.as_deref();
        let stopped = sample
            .watch
            .push(&self.rule, token, tokenizer)
            .map_err(|error| Failure { user: false, message: error.to_string() })?;
        let reason = if stopped {
            Some(StopReason::Stop)
        } else if sample.tokens.len() == self.max_tokens {
            Some(StopReason::Length)
        } else {
            None
        };
        sample.stop_reason = reason;
        self.num_unfinished -= usize::from(reason.is_some());
        Ok(reason.is_some())
    }

    /// Ends every sample without a token.
    pub(crate) fn finish_empty(&mut self) {
        for sample in &mut self.samples {
            sample.stop_reason = Some(StopReason::Length);
        }
        self.num_unfinished = 0;
    }

    /// The prompt positions after `computed` tokens and `count` more that are still to be scored.
    pub(crate) fn unscored(&self, position: usize, count: usize) -> std::ops::Range<usize> {
        if self.prompt_logprobs.is_none() {
            return 0..0;
        }
        let end = (position + count + 1).min(self.prompt.len());
        self.num_scored.max(position + 1)..end.max(self.num_scored)
    }

    /// Takes in the logprobs of the prompt's tokens from `self.num_scored` on.
    pub(crate) fn score(&mut self, logprobs: &[f32]) -> Result<(), Failure> {
        if logprobs.iter().any(|logprob| !logprob.is_finite()) {
            return Err(not_finite());
        }
        if let Some(all) = &mut self.prompt_logprobs {
            all[self.num_scored..self.num_scored + logprobs.len()].copy_from_slice(logprobs);
            self.num_scored += logprobs.len();
        }
        Ok(())
    }

    /// What the job gave, once no sample is unfinished.
    pub(crate) fn output(self) -> Output {
        let sequence = |sample: Sample| Sequence {
            tokens: sample.tokens,
            logprobs: sample.logprobs,
            stop_reason: sample.stop_reason.unwrap_or(StopReason::Length),
        };
        Output::Sample(SampleOutput {
            sequences: self.samples.into_iter().map(sequence).collect(),
            prompt_logprobs: self.prompt_logprobs,
            prompt_cache_hit_tokens: self.cache_hit_tokens.unwrap_or(0),
        })
    }
}

fn not_finite() -> Failure {
    let message = "the logits are not finite; the adapter's weights have diverged".to_owned();
    Failure { user: true, message }
}

/// The random number that decides one token: a pure function of what is asked, and of nothing else.
#[expect(clippy::cast_possible_truncation, reason = "the seed's halves; counts are below 2³²")]
fn uniform(seed: u64, index: usize, position: usize) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let words = philox4x32_10([position as u32, index as u32, 0, DRAW_STREAM], key);
    uniform_f64(words[0], words[1])
}
