//! What a job asks to know of its prompt: logprobs of its own tokens, of likely and of given ones, and
//! drawn alternatives. Position `p` is read off the row of the token before it.

use std::ops::Range;

use tinsmith_backend::{Ask, Draw, Drawn, Query};

use super::job::{Draws, not_finite};
use crate::{Failure, PromptTargets, SampleJob, SampleOutput};

/// Sets the counters of alternatives apart from those of the tokens that a job draws.
const ALTERNATIVE_STREAM: u32 = u32::from_be_bytes(*b"altn");

/// What stands where nothing is listed, as the official clients read it.
const NONE: Drawn = Drawn { token: 0, logprob: -99_999.0 };

/// What is asked of a prompt, and what is known so far.
#[derive(Debug)]
pub(crate) struct PromptScores {
    prompt: usize,
    /// The first position whose own token, or likeliest tokens, are wanted.
    first: usize,
    own: Option<Vec<f32>>,
    top_k: usize,
    top: Vec<Drawn>,
    targets: Option<(PromptTargets, Vec<f32>)>,
    alternatives_k: usize,
    alternatives: Vec<Drawn>,
    /// The first position that something is wanted of and not known.
    next: usize,
}

impl PromptScores {
    /// Takes what is asked for out of the request.
    pub(crate) fn new(request: &mut SampleJob) -> Self {
        let prompt = request.prompt.len();
        let (top_k, alternatives_k) = (request.topk_prompt_logprobs, request.prompt_alt_tokens);
        let targets = request.target_prompt_logprobs.take();
        let mut scores = Self {
            prompt,
            first: request.prompt_logprobs_last_n.map_or(1, |last_n| prompt - last_n),
            own: request.prompt_logprobs.then(|| vec![f32::NAN; prompt]),
            top_k,
            top: vec![NONE; prompt * top_k],
            targets: targets.map(|targets| {
                let logprobs = vec![0.0; targets.ids.len()];
                (targets, logprobs)
            }),
            alternatives_k,
            alternatives: vec![NONE; (prompt - 1) * alternatives_k],
            next: 1,
        };
        scores.next = scores.wanted_from(1);
        scores
    }

    /// The first position that is still to be scored; the prompt's length if there is none.
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    /// The positions that rows `position..position + count` score and that are not known.
    pub(crate) fn unscored(&self, position: usize, count: usize) -> Range<usize> {
        let skips = position >= self.next && self.next < self.prompt;
        debug_assert!(!skips, "no row that is wanted is left out");
        let end = (position + count + 1).min(self.prompt);
        let start = self.next.max(position + 1);
        start..end.max(start)
    }

    /// Appends what is asked of one position, to be read off `row`.
    pub(crate) fn ask(
        &self,
        place: usize,
        (own, row): (u32, usize),
        draws: &Draws,
        asks: &mut Vec<Ask>,
    ) {
        let mut ask = |query| asks.push(Ask { row, query });
        if place >= self.first {
            if self.own.is_some() {
                ask(Query::Token(own));
            }
            if self.top_k > 0 {
                ask(Query::Top { count: self.top_k, temperature: 1.0 });
            }
        }
        for &id in self.targets_of(place) {
            if let Some(id) = id {
                ask(Query::Token(id));
            }
        }
        for index in 0..self.alternatives_k {
            let uniform = draws.uniform(ALTERNATIVE_STREAM, index, place);
            let temperature = draws.temperature;
            ask(Query::Draw(Draw { temperature, top_k: None, top_p: 1.0, uniform }));
        }
    }

    /// Takes in the answers to what was asked of the positions.
    pub(crate) fn take(
        &mut self,
        places: Range<usize>,
        mut answers: &[Drawn],
    ) -> Result<(), Failure> {
        if answers.iter().any(|answer| !answer.logprob.is_finite()) {
            return Err(not_finite());
        }
        let mut answered =
            |count: usize| answers.split_off(..count).expect("every ask is answered");
        for place in places.clone() {
            if place >= self.first {
                if let Some(own) = &mut self.own {
                    own[place] = answered(1)[0].logprob;
                }
                let top = answered(self.top_k);
                self.top[place * self.top_k..][..self.top_k].copy_from_slice(top);
            }
            if let Some((targets, logprobs)) = &mut self.targets {
                let cells = targets.cells(place - 1);
                for cell in cells.filter(|&cell| targets.ids[cell].is_some()) {
                    logprobs[cell] = answered(1)[0].logprob;
                }
            }
            let k = self.alternatives_k;
            self.alternatives[(place - 1) * k..][..k].copy_from_slice(answered(k));
        }
        self.next = self.wanted_from(places.end.max(self.next));
        Ok(())
    }

    /// Puts what was asked for into the output.
    pub(crate) fn finish(self, output: &mut SampleOutput) {
        output.prompt_logprobs = self.own;
        output.topk_prompt_logprobs = (self.top_k > 0).then_some(self.top);
        output.target_prompt_logprobs = self.targets;
        output.prompt_alt_tokens = (self.alternatives_k > 0).then_some(self.alternatives);
    }

    /// The first position from `place` on that something is wanted of.
    fn wanted_from(&self, place: usize) -> usize {
        (place..self.prompt).find(|&place| self.wants(place)).unwrap_or(self.prompt)
    }

    /// Whether anything is wanted of a position.
    pub(crate) fn wants(&self, place: usize) -> bool {
        let listed = self.own.is_some() || self.top_k > 0;
        (listed && place >= self.first)
            || self.alternatives_k > 0
            || self.targets_of(place).iter().any(Option::is_some)
    }

    fn targets_of(&self, place: usize) -> &[Option<u32>] {
        let Some((targets, _)) = &self.targets else { return &[] };
        &targets.ids[targets.cells(place - 1)]
    }
}
