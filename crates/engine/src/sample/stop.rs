//! When a sampled sequence ends before its length does.

use tinsmith_tokenizer::{IncrementalDecoder, Tokenizer};

use crate::Stop;

/// Tokens of the prompt that a decoder sees first, so that the completion's text begins as it would in the
/// middle of a text.
const CONTEXT_TOKENS: usize = 4;

/// What ends the sequences of one job.
#[derive(Clone, Debug)]
pub(crate) struct StopRule {
    tokens: Vec<u32>,
    strings: Vec<String>,
    /// Bytes of text that may be the beginning of a stop text.
    tail_bytes: usize,
}

impl StopRule {
    /// `end_tokens` are the model's own.
    pub(crate) fn new(stop: Stop, end_tokens: &[u32]) -> Self {
        let own = end_tokens.to_vec();
        let (tokens, strings) = match stop {
            Stop::Default => (own, Vec::new()),
            Stop::Tokens(tokens) if tokens.is_empty() => (Vec::new(), Vec::new()),
            Stop::Tokens(tokens) => ([tokens, own].concat(), Vec::new()),
            Stop::Strings(strings) => (own, strings),
        };
        let longest = strings.iter().map(String::len).max().unwrap_or_default();
        Self { tokens, strings, tail_bytes: longest.saturating_sub(1) }
    }
}

/// Watches one sequence for the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopWatch {
    decoder: IncrementalDecoder,
    /// The end of the text so far.
    tail: String,
}

impl StopWatch {
    /// Before the first token after `prompt`.
    pub(crate) fn new(
        rule: &StopRule,
        prompt: &[u32],
        tokenizer: Option<&Tokenizer>,
    ) -> tinsmith_tokenizer::Result<Self> {
        let mut watch = Self::default();
        if let Some(tokenizer) = tokenizer.filter(|_| !rule.strings.is_empty()) {
            for &token in &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..] {
                watch.decoder.push(tokenizer, token, &mut watch.tail)?;
            }
            watch.tail.clear();
        }
        Ok(watch)
    }

    /// Whether `token` ends the sequence.
    pub(crate) fn push(
        &mut self,
        rule: &StopRule,
        token: u32,
        tokenizer: Option<&Tokenizer>,
    ) -> tinsmith_tokenizer::Result<bool> {
        if rule.tokens.contains(&token) {
            return Ok(true);
        }
        let Some(tokenizer) = tokenizer.filter(|_| !rule.strings.is_empty()) else {
            return Ok(false);
        };
        self.decoder.push(tokenizer, token, &mut self.tail)?;
        if rule.strings.iter().any(|string| self.tail.contains(string.as_str())) {
            return Ok(true);
        }
        let cut = self.tail.len().saturating_sub(rule.tail_bytes);
        self.tail.drain(..self.tail.floor_char_boundary(cut));
        Ok(false)
    }
}
