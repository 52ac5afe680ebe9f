//! Which tokens of a chat the assistant says: what it is trained on.
//!
//! Templates do not mark it, so that it is found by rendering again: what stands behind the generation prompt,
//! up to where a change of the message's end first shows, and the special token that ends the turn.

use std::ops::Range;

use crate::{Chat, Error, Message, Result, Tokenizer};

/// A whole chat as the model was trained on it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// For each token, whether it is the assistant's: one that the model has to write itself.
    pub is_said: Vec<bool>,
}

/// The role whose messages are learnt.
const ASSISTANT: &str = "assistant";
/// A private character, which stands in no template and no reasonable message.
const MARK: &str = "\u{e000}";

impl Tokenizer {
    /// The tokens of a chat without tools, with those marked that the assistant says.
    ///
    /// A chat is rendered twice for each of its assistant's messages; `rendered_bytes_max` bounds the text that
    /// this makes.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`]; [`Error::Template`] for messages that the template refuses, and for a chat that is
    /// too long for `rendered_bytes_max`.
    pub fn encode_said(&self, messages: &[Message], rendered_bytes_max: usize) -> Result<Said> {
        let whole = self.render_chat(&Chat::new(messages, false))?;
        let turns = messages.iter().filter(|message| message.role == ASSISTANT).count();
        if whole.len().saturating_mul(2 * turns) > rendered_bytes_max {
            let (bytes, detail) = (whole.len(), "which is too long to be trained on as one chat");
            return Err(Error::Template(format!(
                "the chat has {bytes} bytes and {turns} assistant messages, {detail}"
            )));
        }
        let mut spans = Vec::with_capacity(turns);
        for (index, message) in messages.iter().enumerate() {
            if message.role == ASSISTANT {
                spans.push(self.span(messages, index, &whole));
            }
        }
        let encoding = self.encoding(&whole)?;
        let (tokens, places) = (encoding.get_ids().to_vec(), encoding.get_offsets());
        let mut is_said: Vec<bool> = places
            .iter()
            .map(|place| spans.iter().any(|span| position(*place, span) == Position::Within))
            .collect();
        for span in &spans {
            let behind = places.iter().position(|place| position(*place, span) == Position::Behind);
            if let Some(first) = behind
                && let Some(last) = self.end_of_turn(&tokens[first..], &whole, &places[first..])
            {
                is_said[first..=first + last].fill(true);
            }
        }
        Ok(Said { tokens, is_said })
    }

    /// The bytes of `whole` that the assistant says in one message, without the end of the turn.
    fn span(&self, messages: &[Message], index: usize, whole: &str) -> Range<usize> {
        let marked = |content: String| {
            let mut messages = messages.to_vec();
            messages[index].content = content;
            let text = self.render_chat(&Chat::new(&messages, false)).ok()?;
            Some(common_prefix(whole, &text))
        };
        let content = &messages[index].content;
        // Where the model begins to speak; some templates write more there than they keep of earlier turns.
        let prompt = self.render_chat(&Chat::new(&messages[..index], true)).ok();
        let start = prompt
            .filter(|prompt| whole.starts_with(prompt.as_str()))
            .map(|prompt| prompt.len())
            .or_else(|| marked(format!("{MARK}{content}")));
        let end = marked(format!("{content}{MARK}"));
        let (start, end) = (start.unwrap_or(whole.len()), end.unwrap_or(0));
        start..end.max(start)
    }

    /// The place of the special token that ends a turn, where nothing but blanks stands before it.
    fn end_of_turn(&self, tokens: &[u32], whole: &str, places: &[(usize, usize)]) -> Option<usize> {
        for (index, (token, &(start, end))) in tokens.iter().zip(places).enumerate() {
            if self.is_special(*token) {
                return Some(index);
            }
            if !whole.get(start..end).is_some_and(|text| text.trim().is_empty()) {
                return None;
            }
        }
        None
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Position {
    Before,
    Within,
    Behind,
}

/// Where a token stands. Some tokenizers take blanks off its place: of blanks alone, their end is left.
fn position((start, end): (usize, usize), span: &Range<usize>) -> Position {
    let (is_before, is_behind) = if start == end {
        (end <= span.start, end > span.end)
    } else {
        (end <= span.start, start >= span.end)
    };
    if is_before {
        Position::Before
    } else if is_behind {
        Position::Behind
    } else {
        Position::Within
    }
}

/// Bytes that two texts begin with alike, up to a whole character.
fn common_prefix(one: &str, other: &str) -> usize {
    let mut characters = one.char_indices().zip(other.chars());
    let differs = characters.find(|((_, one), other)| one != other);
    differs.map_or_else(|| one.len().min(other.len()), |((at, _), _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_placed_by_what_is_left_of_them() {
        let span = 5..8;
        for (place, expected) in [
            ((3, 5), Position::Before),
            ((5, 5), Position::Before),
            ((4, 6), Position::Within),
            ((6, 6), Position::Within),
            ((8, 8), Position::Within),
            ((7, 9), Position::Within),
            ((8, 9), Position::Behind),
            ((9, 9), Position::Behind),
        ] {
            assert_eq!(position(place, &span), expected, "{place:?}");
        }
    }

    #[test]
    fn prefix_ends_between_characters() {
        assert_eq!(common_prefix("aé", "aè"), 1);
        assert_eq!(common_prefix("abc", "ab"), 2);
        assert_eq!(common_prefix("", "ab"), 0);
    }
}
