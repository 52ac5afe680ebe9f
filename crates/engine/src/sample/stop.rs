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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens of one to three letters, some the beginnings of others.
    const TEXTS: [&str; 8] = ["a", "b", "ab", "ba", "aab", "é", "éa", "🦀"];

    fn tokenizer() -> Tokenizer {
        let vocab: serde_json::Map<_, _> =
            (0..).zip(TEXTS).map(|(id, text)| (text.to_owned(), id.into())).collect();
        let file = serde_json::json!({
            "version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
        });
        Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn text(tokens: &[u32]) -> String {
        tokens.iter().map(|token| TEXTS[*token as usize]).collect()
    }

    proptest! {
        /// The end is the first token whose text completes a stop text, whatever the borders.
        #[test]
        fn strings_match_as_in_the_whole_text(
            prompt in prop::collection::vec(0u32..8, 1..6),
            tokens in prop::collection::vec(0u32..8, 1..40),
            strings in prop::collection::vec("[abé🦀]{1,6}", 1..3),
        ) {
            let tokenizer = tokenizer();
            let rule = StopRule::new(Stop::Strings(strings.clone()), &[]);
            let mut watch = StopWatch::new(&rule, &prompt, Some(&tokenizer)).unwrap();
            let end = tokens
                .iter()
                .position(|token| watch.push(&rule, *token, Some(&tokenizer)).unwrap());
            let expected = (0..tokens.len()).find(|&last| {
                strings.iter().any(|string| text(&tokens[..=last]).contains(string.as_str()))
            });
            prop_assert_eq!(end, expected);
        }
    }
}
