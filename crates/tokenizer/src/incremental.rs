//! Decoding a growing sequence, token by token.

use crate::{Result, Tokenizer};

/// Tokens kept as context when decided text is let go: what a decoder does at the start of a text
/// (strip a space, say) must not happen in its middle.
const CONTEXT_TOKENS: usize = 4;

/// Decided text is let go when this many tokens have gathered.
const WINDOW_TOKENS: usize = 12;

/// Bytes of a character that may still be missing, each perhaps shown as a replacement character.
const UNDECIDED_CHARS_MAX: usize = 3;

/// Gives the text that each further token adds, holding back characters whose bytes are incomplete.
///
/// Keeps its state apart from the tokenizer, so that a scheduler can own thousands.
#[derive(Clone, Debug, Default)]
pub struct IncrementalDecoder {
    /// The last tokens.
    window: Vec<u32>,
    /// Bytes of the window's text that were given out, or precede the text asked for.
    emitted: usize,
}

impl IncrementalDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the text that `token` decides to `text`.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) -> Result<()> {
        self.window.push(token);
        let decoded = tokenizer.decode(&self.window)?;
        let decided = decided(&decoded);
        if let Some(new) = decided.get(self.emitted..) {
            text.push_str(new);
            self.emitted = decided.len();
        }
        if self.window.len() >= WINDOW_TOKENS {
            self.forget(tokenizer, decoded.len() - decided.len())?;
        }
        Ok(())
    }

    /// Drops tokens from the front; `undecided` bytes of text have not been given out.
    fn forget(&mut self, tokenizer: &Tokenizer, undecided: usize) -> Result<()> {
        self.window.drain(..self.window.len() - CONTEXT_TOKENS);
        let decoded = tokenizer.decode(&self.window)?;
        self.emitted = decoded.len().saturating_sub(undecided);
        Ok(())
    }
}

/// `text` without the replacement characters at its end that further bytes may complete.
fn decided(text: &str) -> &str {
    let mut end = text;
    for _ in 0..UNDECIDED_CHARS_MAX {
        match end.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(shorter) => end = shorter,
            None => break,
        }
    }
    end
}
