//! One sampling job and its sequences.

use std::ops::Range;

use tinsmith_backend::{
    Ask, Draw, Drawn, Query,
    philox::{philox4x32_10, uniform_f64},
};

use super::{
    StopSource,
    scores::PromptScores,
    speculate::Speculation,
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

/// Tokens of a sample whose bookkeeping costs no allocation, once the first is drawn.
const ROOM_TOKENS: usize = 4096;

/// A job from submission to its output.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) ticket: Ticket,
    pub(crate) sampler: SamplerKey,
    pub(crate) prompt: Vec<u32>,
    max_tokens: usize,
    draws: Draws,
    /// Likeliest tokens to list at each drawn position.
    list: usize,
    rule: StopRule,
    /// By sample index.
    samples: Vec<Sample>,
    num_unfinished: usize,
    /// Whether every sample goes its own way; before, sample 0 computes the prompt for all.
    pub(crate) forked: bool,
    scores: PromptScores,
    /// Prompt tokens that were found in the prefix cache; known with the first step.
    cache_hit_tokens: Option<usize>,
}

/// What a job's tokens are drawn by.
#[derive(Debug)]
pub(crate) struct Draws {
    seed: u64,
    pub(crate) temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
}

#[derive(Clone, Debug)]
struct Sample {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    top: Vec<Drawn>,
    watch: StopWatch,
    stop_reason: Option<StopReason>,
    speculation: Speculation,
}

impl Job {
    pub(crate) fn new(
        ticket: Ticket,
        sampler: SamplerKey,
        mut request: SampleJob,
        max_tokens: usize,
        stops: &StopSource,
    ) -> Result<Self> {
        let seed =
            request.seed.ok_or_else(|| Error::internal("a sampling job came without a seed"))?;
        let scores = PromptScores::new(&mut request);
        let rule = StopRule::new(request.stop, &stops.end_tokens);
        let watch = StopWatch::new(&rule, &request.prompt, stops.tokenizer.as_deref())
            .map_err(|error| Error::internal(error.to_string()))?;
        let sample = Sample {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            top: Vec::new(),
            watch,
            stop_reason: None,
            speculation: Speculation::default(),
        };
        Ok(Self {
            ticket,
            sampler,
            scores,
            prompt: request.prompt,
            max_tokens,
            draws: Draws {
                seed,
                temperature: match request.temperature {
                    0.0 => 0.0,
                    temperature => temperature.max(TEMPERATURE_MIN),
                },
                top_k: request.top_k,
                top_p: request.top_p,
            },
            list: request.topk_sample_logprobs,
            rule,
            samples: vec![sample; request.num_samples],
            num_unfinished: request.num_samples,
            forked: false,
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
    /// last one is drawn from. More of them as answers come in.
    pub(crate) fn reusable(&self) -> usize {
        self.scores.next() - 1
    }

    /// Takes note of where the first step begins. Gives the tokens before it, the first time.
    pub(crate) fn begin(&mut self, position: usize) -> usize {
        if self.cache_hit_tokens.is_some() {
            return 0;
        }
        self.cache_hit_tokens = Some(position);
        position
    }

    /// Guesses up to `most` tokens that follow what is known of a sample, never beyond its last one; gives how
    /// many.
    pub(crate) fn guess(&mut self, index: usize, most: usize) -> usize {
        let Sample { tokens, speculation, .. } = &mut self.samples[index];
        // The row of the last token that may be drawn needs none after it.
        let left = (self.max_tokens - tokens.len()).saturating_sub(1);
        speculation.guess(&self.prompt, tokens, most.min(left))
    }

    /// What is known of guessing a sample's tokens.
    pub(crate) fn speculation_mut(&mut self, index: usize) -> &mut Speculation {
        &mut self.samples[index].speculation
    }

    /// Appends tokens `position..position + count` of a sample, prompt and completion, to `tokens`; after those come
    /// the tried ones.
    pub(crate) fn extend(
        &self,
        index: usize,
        (position, count): (usize, usize),
        tokens: &mut Vec<u32>,
    ) {
        let Sample { tokens: drawn, speculation, .. } = &self.samples[index];
        let (prompt, known) = (&self.prompt, self.prompt.len() + drawn.len());
        let tried = &speculation.tried()[..(position + count).saturating_sub(known)];
        let end = position + count - tried.len();
        if position < prompt.len() {
            tokens.extend_from_slice(&prompt[position..end.min(prompt.len())]);
        }
        if end > prompt.len() {
            let first = position.max(prompt.len()) - prompt.len();
            tokens.extend_from_slice(&drawn[first..end - prompt.len()]);
        }
        tokens.extend_from_slice(tried);
    }

    /// Appends what is asked of the row that a sample's next token, or the one `ahead` of it, is drawn from: answered
    /// with [`Self::num_drawn`] tokens.
    pub(crate) fn ask_draw(&self, index: usize, (row, ahead): (usize, usize), asks: &mut Vec<Ask>) {
        let Draws { temperature, top_k, top_p, .. } = self.draws;
        let position = self.prompt.len() + self.samples[index].tokens.len() + ahead;
        let uniform = self.draws.uniform(DRAW_STREAM, index, position);
        let query = Query::Draw(Draw { temperature, top_k, top_p, uniform });
        asks.push(Ask { row, query });
        if self.list > 0 {
            asks.push(Ask { row, query: Query::Top { count: self.list, temperature } });
        }
    }

    /// Tokens that a draw is answered with: the drawn one, then the likeliest.
    pub(crate) fn num_drawn(&self) -> usize {
        1 + self.list
    }

    /// Takes in a drawn token with the likeliest ones. Gives whether the sample is finished.
    pub(crate) fn push(
        &mut self,
        index: usize,
        answers: &[Drawn],
        stops: &StopSource,
    ) -> Result<bool, Failure> {
        if answers.iter().any(|answer| !answer.logprob.is_finite()) {
            return Err(not_finite());
        }
        let (&Drawn { token, logprob }, top) =
            answers.split_first().expect("a draw is answered with a token");
        let sample = &mut self.samples[index];
        if sample.tokens.is_empty() {
            let room = self.max_tokens.min(ROOM_TOKENS);
            sample.tokens.reserve_exact(room);
            sample.logprobs.reserve_exact(room);
            sample.top.reserve_exact(room * self.list);
        }
        sample.tokens.push(token);
        sample.logprobs.push(logprob);
        sample.top.extend_from_slice(top);
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

    /// The prompt positions that the rows `position..position + count` are to score.
    pub(crate) fn unscored(&self, position: usize, count: usize) -> Range<usize> {
        self.scores.unscored(position, count)
    }

    /// Whether anything is asked of a prompt position.
    pub(crate) fn scores(&self, place: usize) -> bool {
        self.scores.wants(place)
    }

    /// Appends what is asked of a prompt position, to be read off `row`.
    pub(crate) fn ask_score(&self, place: usize, row: usize, asks: &mut Vec<Ask>) {
        self.scores.ask(place, (self.prompt[place], row), &self.draws, asks);
    }

    /// Takes in the answers to what was asked of prompt positions.
    pub(crate) fn score(&mut self, places: Range<usize>, answers: &[Drawn]) -> Result<(), Failure> {
        self.scores.take(places, answers)
    }

    /// What the job gave, once no sample is unfinished.
    pub(crate) fn output(self) -> Output {
        let list = self.list;
        let sequence = |sample: Sample| Sequence {
            tokens: sample.tokens,
            logprobs: sample.logprobs,
            topk_logprobs: (list > 0).then_some(sample.top),
            stop_reason: sample.stop_reason.unwrap_or(StopReason::Length),
        };
        let mut output = SampleOutput {
            sequences: self.samples.into_iter().map(sequence).collect(),
            prompt_tokens: self.prompt.len(),
            prompt_logprobs: None,
            topk_prompt_logprobs: None,
            target_prompt_logprobs: None,
            prompt_alt_tokens: None,
            prompt_cache_hit_tokens: self.cache_hit_tokens.unwrap_or(0),
        };
        self.scores.finish(&mut output);
        Output::Sample(output)
    }
}

impl Draws {
    /// The random number that decides one token: a pure function of what is asked, and of nothing else.
    #[expect(clippy::cast_possible_truncation, reason = "the seed's halves; counts are below 2³²")]
    pub(crate) fn uniform(&self, stream: u32, index: usize, position: usize) -> f64 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let words = philox4x32_10([position as u32, index as u32, 0, stream], key);
        uniform_f64(words[0], words[1])
    }
}

pub(crate) fn not_finite() -> Failure {
    let message = "the logits are not finite; the adapter's weights have diverged".to_owned();
    Failure { user: true, message }
}
