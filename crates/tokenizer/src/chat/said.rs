//! Which tokens of a chat the assistant says: what it is trained on.
//!
//! Templates do not mark it, so that it is found by rendering again: what stands behind the generation prompt,
//! up to where a change of the message's end first shows, and the special token that ends the turn.

use std::ops::Range;

use minijinja::Value;

use super::with;
use crate::{Chat, ChatEnd, Error, Message, Result, Tokenizer};

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

/// What is said in one message.
struct Span {
    /// Of the whole chat's text.
    bytes: Range<usize>,
    /// Whether it begins where the model is prompted to speak.
    is_prompted: bool,
    /// Whether it has the end of the turn in it.
    is_closed: bool,
}

/// Token ids, and the bytes of the text that each stands for.
type Placed = (Vec<u32>, Vec<(usize, usize)>);

impl Tokenizer {
    /// The tokens of a chat without tools, with those marked that the assistant says.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_learnt`].
    pub fn encode_said(&self, messages: &[Message], rendered_bytes_max: usize) -> Result<Said> {
        let chat = Chat::new(messages, false);
        self.encode_learnt(&chat, |_, role| role == ASSISTANT, rendered_bytes_max)
    }

    /// The tokens of a whole chat, with those marked that are said in the messages that `is_learnt` chooses by their
    /// place and role. Where the assistant begins to speak, the tokens before are those of the prompt that ends
    /// there: [`Tokenizer::encode_chat`] of the messages before, wherever a template keeps to what it wrote.
    ///
    /// A chat is rendered twice for each message that is learnt; `rendered_bytes_max` bounds the text that this makes.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`]; [`Error::Template`] for messages that the template refuses, and for a chat that is
    /// too long for `rendered_bytes_max`.
    pub fn encode_learnt(
        &self,
        chat: &Chat,
        is_learnt: impl Fn(usize, &str) -> bool,
        rendered_bytes_max: usize,
    ) -> Result<Said> {
        let chat = Chat { end: ChatEnd::Whole, ..chat.clone() };
        let whole = self.render_chat(&chat)?;
        let learnt: Vec<(usize, String)> = chat.messages.iter().map(role).enumerate().collect();
        let learnt: Vec<_> =
            learnt.into_iter().filter(|(index, role)| is_learnt(*index, role)).collect();
        if whole.len().saturating_mul(2 * learnt.len()) > rendered_bytes_max {
            let (bytes, turns) = (whole.len(), learnt.len());
            let detail = "which is too long to be trained on as one chat";
            return Err(Error::Template(format!(
                "the chat has {bytes} bytes and {turns} messages to learn, {detail}"
            )));
        }
        let (mut spans, mut cuts) = (Vec::with_capacity(learnt.len()), Vec::new());
        for (index, role) in &learnt {
            let span = self.span(&chat, *index, role == ASSISTANT, &whole);
            cuts.extend(span.is_prompted.then_some(span.bytes.start));
            spans.push(span);
        }
        let (tokens, places) = self.placed(&whole, &cuts)?;
        let mut is_said: Vec<bool> = places
            .iter()
            .map(|place| spans.iter().any(|span| position(*place, &span.bytes) == Position::Within))
            .collect();
        for span in spans.iter().filter(|span| !span.is_closed) {
            let is_behind =
                |place: &(usize, usize)| position(*place, &span.bytes) == Position::Behind;
            let behind = places.iter().position(is_behind);
            if let Some(first) = behind
                && let Some(last) = self.end_of_turn(&tokens[first..], &whole, &places[first..])
            {
                is_said[first..=first + last].fill(true);
            }
        }
        Ok(Said { tokens, is_said })
    }

    /// What of `whole` is said in one message.
    fn span(&self, chat: &Chat, index: usize, is_assistant: bool, whole: &str) -> Span {
        let until = |count: usize, end: ChatEnd| {
            let messages = chat.messages[..count].to_vec();
            self.render_chat(&Chat { messages, end, ..chat.clone() }).ok()
        };
        let message = &chat.messages[index];
        let content = message.get_attr("content").ok();
        let content = content.as_ref().and_then(Value::as_str);
        let marked = |content: String| {
            let mut messages = chat.messages.clone();
            messages[index] = with(message, "content", content.into()).ok()?;
            let text = self.render_chat(&Chat { messages, ..chat.clone() }).ok()?;
            Some(common_prefix(whole, &text))
        };
        // Where the model begins to speak; some templates write more there than they keep of earlier turns.
        let prompt = is_assistant.then(|| until(index, ChatEnd::Prompt)).flatten();
        let prompt = prompt.filter(|prompt| whole.starts_with(prompt.as_str()));
        let start = prompt.as_ref().map(String::len);
        let start = start.or_else(|| marked(format!("{MARK}{}", content?)));
        let calls = message.get_attr("tool_calls").ok();
        // Calls are written behind the content: all up to the next message is said.
        let is_closed = content.is_none() || calls.is_some_and(|calls| calls.is_true());
        let end = if is_closed {
            let text = until(index + 1, ChatEnd::Whole);
            text.map(|text| whole[..common_prefix(whole, &text)].trim_end().len())
        } else {
            marked(format!("{}{MARK}", content.unwrap_or_default()))
        };
        let (start, end) = (start.unwrap_or(whole.len()), end.unwrap_or(0));
        Span { bytes: start..end.max(start), is_prompted: prompt.is_some(), is_closed }
    }

    /// The tokens of a text, which begin with those of the text before each of `cuts`, ascending: a token that would
    /// reach over one gives way to two, if the text stays the same.
    fn placed(&self, whole: &str, cuts: &[usize]) -> Result<Placed> {
        let encoded = |from: usize, to: usize| -> Result<Placed> {
            let encoding = self.encoding(&whole[from..to])?;
            let places = encoding.get_offsets().iter();
            let places = places.map(|(start, end)| (from + start, from + end)).collect();
            Ok((encoding.get_ids().to_vec(), places))
        };
        let (mut tokens, mut places) = encoded(0, whole.len())?;
        // All up to the last place where tokens had to give way.
        let (mut bytes, mut count) = (0, 0);
        for cut in cuts {
            let (before, before_places) = encoded(bytes, *cut)?;
            if tokens[count..].starts_with(&before) {
                continue;
            }
            let (behind, behind_places) = encoded(*cut, whole.len())?;
            let parted = [&tokens[..count], &before, &behind].concat();
            // Some tokenizers put a blank before every text.
            if self.decode(&parted)? != self.decode(&tokens)? {
                continue;
            }
            places = [&places[..count], &before_places, &behind_places].concat();
            (tokens, bytes, count) = (parted, *cut, count + before.len());
        }
        Ok((tokens, places))
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

fn role(message: &Value) -> String {
    let role = message.get_attr("role").ok();
    role.and_then(|role| role.as_str().map(str::to_owned)).unwrap_or_default()
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
