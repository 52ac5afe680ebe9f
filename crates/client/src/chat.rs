//! Conversations: as prompts for the sampler, and as datums for the trainer, with the same tokens.
//!
//! The model's own chat template writes them. What the model has to write itself is found by rendering again, in
//! the tokenizer's crate.

use std::{fmt, str::FromStr};

use tinsmith_tokenizer::{Chat, ChatEnd, Message, Tokenizer, Value};
use tinsmith_types::sampling::Stop;

use crate::{Datum, Error, ModelInput, PreferencePair, Result};

/// Most text that is rendered to find what is learnt of one conversation.
const RENDERED_BYTES_MAX: usize = 256 << 20;

const ASSISTANT: &str = "assistant";

/// Which part of a conversation is learnt. What a template writes around a message is not, but for the end of its turn.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TrainOn {
    /// The last message of the assistant.
    LastAssistantMessage,
    /// Every message of the assistant after the last one of the user: an answer with its calls of tools.
    LastAssistantTurn,
    /// Every message of the assistant.
    #[default]
    AllAssistantMessages,
    /// Every message.
    AllMessages,
    /// Every message of the user and the system.
    AllUserAndSystemMessages,
    /// Messages that have `"trainable": true`.
    Customized,
    /// Every token, of templates too.
    AllTokens,
}

const MODES: [(&str, TrainOn); 7] = [
    ("last_assistant_message", TrainOn::LastAssistantMessage),
    ("last_assistant_turn", TrainOn::LastAssistantTurn),
    ("all_assistant_messages", TrainOn::AllAssistantMessages),
    ("all_messages", TrainOn::AllMessages),
    ("all_user_and_system_messages", TrainOn::AllUserAndSystemMessages),
    ("customized", TrainOn::Customized),
    ("all_tokens", TrainOn::AllTokens),
];

impl FromStr for TrainOn {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = MODES.iter().find(|(known, _)| *known == name);
        found.map(|(_, mode)| *mode).ok_or_else(|| {
            let known: Vec<&str> = MODES.iter().map(|(known, _)| *known).collect();
            Error::validation(format!(
                "{name:?} is nothing to train on; there are: {}",
                known.join(", ")
            ))
        })
    }
}

impl fmt::Display for TrainOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = MODES.iter().find(|(_, mode)| mode == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

/// Messages, in order, and what else a chat template may ask for.
///
/// ```no_run
/// use tinsmith::{Conversation, TrainOn, load_tokenizer};
///
/// let tokenizer = load_tokenizer("models/nano")?;
/// let question = Conversation::new().system("Be brief.").user("What is tin?");
/// let prompt = question.prompt(&tokenizer)?;
/// let datum = question.assistant("A metal.").datum(&tokenizer, TrainOn::LastAssistantMessage)?;
/// assert!(datum.model_input().to_ints()?.starts_with(&prompt.to_ints()?));
/// # Ok::<(), tinsmith::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    chat: Chat,
}

impl Conversation {
    /// No message yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages with all that they may have beside `role` and `content`, such as `tool_calls`.
    ///
    /// # Errors
    ///
    /// No messages, or one without a role.
    pub fn from_values(messages: Vec<Value>) -> Result<Self> {
        if messages.is_empty() {
            return Err(Error::validation("a conversation has no messages"));
        }
        if let Some(index) = messages.iter().position(|message| role(message).is_none()) {
            let expected = "an object with `role` and `content`";
            return Err(Error::validation(format!(
                "message {index} has no `role`; expected is {expected}"
            )));
        }
        Ok(Self { chat: Chat { messages, ..Chat::default() } })
    }

    /// The same with a message of any role at its end.
    #[must_use]
    pub fn push(mut self, role: &str, content: impl Into<String>) -> Self {
        self.chat.messages.extend(Chat::new(&[Message::new(role, content)], false).messages);
        self
    }

    /// The same with what the system says at its end.
    #[must_use]
    pub fn system(self, content: impl Into<String>) -> Self {
        self.push("system", content)
    }

    /// The same with what the user says at its end.
    #[must_use]
    pub fn user(self, content: impl Into<String>) -> Self {
        self.push("user", content)
    }

    /// The same with what the assistant says at its end.
    #[must_use]
    pub fn assistant(self, content: impl Into<String>) -> Self {
        self.push(ASSISTANT, content)
    }

    /// The same with the JSON schemas of functions that may be called.
    #[must_use]
    pub fn with_tools(mut self, tools: Vec<Value>) -> Self {
        self.chat.tools = Some(tools);
        self
    }

    /// The same with something else that the template knows, such as `enable_thinking`.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.chat.variables.insert(name.into(), value.into());
        self
    }

    /// The messages.
    pub fn messages(&self) -> &[Value] {
        &self.chat.messages
    }

    /// The same with the messages of another at its end.
    #[must_use]
    pub fn followed_by(mut self, other: &Self) -> Self {
        self.chat.messages.extend(other.chat.messages.iter().cloned());
        self
    }

    /// What the sampler is given: all of it, up to where the assistant begins to speak.
    ///
    /// # Errors
    ///
    /// A model without chat template, messages that it refuses.
    pub fn prompt(&self, tokenizer: &Tokenizer) -> Result<ModelInput> {
        Ok(ModelInput::from_ints(self.prompt_tokens(tokenizer, self.chat.messages.len())?))
    }

    /// The tokens of the first messages, up to where the assistant begins to speak.
    fn prompt_tokens(&self, tokenizer: &Tokenizer, messages: usize) -> Result<Vec<u32>> {
        let messages = self.chat.messages[..messages].to_vec();
        let chat = Chat { messages, end: ChatEnd::Prompt, ..self.chat.clone() };
        tokenizer.encode_chat(&chat).map_err(refused)
    }

    /// What the trainer is given: all of it, of which a part is learnt.
    ///
    /// It begins with exactly the tokens of [`Conversation::prompt`] of the messages before the first that is learnt,
    /// wherever the template writes a message's beginning alike in both.
    ///
    /// # Errors
    ///
    /// A model without chat template, messages that it refuses; nothing to learn.
    pub fn datum(&self, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Datum> {
        let (tokens, weights) = self.weighted(tokenizer, train_on)?;
        if !weights.iter().skip(1).any(|weight| *weight > 0.0) {
            return Err(Error::validation(format!(
                "a conversation has nothing to learn of its {train_on}"
            )));
        }
        Datum::weighted(&tokens, &weights)
    }

    /// All tokens, and 1 for those that are learnt.
    fn weighted(&self, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<(Vec<u32>, Vec<f32>)> {
        if train_on == TrainOn::AllTokens {
            let chat = Chat { end: ChatEnd::Whole, ..self.chat.clone() };
            let tokens = tokenizer.encode_chat(&chat).map_err(refused)?;
            let weights = vec![1.0; tokens.len()];
            return Ok((tokens, weights));
        }
        let learnt = self.learnt(train_on);
        let is_learnt = |index: usize, _: &str| learnt[index];
        let said = tokenizer.encode_learnt(&self.chat, is_learnt, RENDERED_BYTES_MAX);
        let said = said.map_err(refused)?;
        let weights = said.is_said.iter().map(|is_said| f32::from(u8::from(*is_said)));
        Ok((said.tokens, weights.collect()))
    }

    /// For each message, whether it is learnt.
    fn learnt(&self, train_on: TrainOn) -> Vec<bool> {
        let messages = &self.chat.messages;
        let roles: Vec<String> =
            messages.iter().map(|message| role(message).unwrap_or_default()).collect();
        let last_of = |wanted: &str| roles.iter().rposition(|role| role == wanted);
        let (last, user) = (last_of(ASSISTANT), last_of("user"));
        let is_learnt = |(index, role): (usize, &String)| match train_on {
            TrainOn::LastAssistantMessage => Some(index) == last,
            TrainOn::LastAssistantTurn => role == ASSISTANT && Some(index) > user,
            TrainOn::AllAssistantMessages => role == ASSISTANT,
            TrainOn::AllMessages | TrainOn::AllTokens => true,
            TrainOn::AllUserAndSystemMessages => role == "user" || role == "system",
            TrainOn::Customized => {
                messages[index].get_attr("trainable").is_ok_and(|trainable| trainable.is_true())
            }
        };
        roles.iter().enumerate().map(is_learnt).collect()
    }

    /// One datum for each message of the assistant, as it was when it was the last one: what the sampler was given then,
    /// and what was answered. For templates that write earlier turns in another way, such as without their thoughts.
    ///
    /// # Errors
    ///
    /// As [`Conversation::datum`].
    pub fn datums(&self, tokenizer: &Tokenizer) -> Result<Vec<Datum>> {
        let answers = self.learnt(TrainOn::AllAssistantMessages);
        let answers = answers.iter().enumerate().filter(|(_, is_answer)| **is_answer);
        let datum = |(index, _)| {
            let messages = self.chat.messages[..=index].to_vec();
            let until = Self { chat: Chat { messages, ..self.chat.clone() } };
            until.datum(tokenizer, TrainOn::LastAssistantMessage)
        };
        answers.map(datum).collect()
    }

    /// Two answers to it, of which one is preferred.
    ///
    /// # Errors
    ///
    /// As [`Conversation::datum`].
    pub fn preference(
        &self,
        tokenizer: &Tokenizer,
        chosen: &str,
        rejected: &str,
    ) -> Result<PreferencePair> {
        let answered = |answer: &str| {
            let whole = self.clone().assistant(answer);
            whole.datum(tokenizer, TrainOn::LastAssistantMessage)
        };
        Ok(PreferencePair { chosen: answered(chosen)?, rejected: answered(rejected)? })
    }

    /// The same with what a sampler answered at its end, without the tokens that end a turn.
    ///
    /// # Errors
    ///
    /// Tokens that the tokenizer refuses.
    pub fn answered(self, tokenizer: &Tokenizer, tokens: &[u32]) -> Result<Self> {
        let is_end = |token: &&u32| tokenizer.is_special(**token);
        let ends = tokens.iter().rev().take_while(is_end).count();
        let text = tokenizer.decode(&tokens[..tokens.len() - ends]).map_err(refused)?;
        Ok(self.assistant(text))
    }

    /// What a sampler has to stop at: the special token that the template ends the assistant's turn with.
    ///
    /// # Errors
    ///
    /// A model without chat template; a template that ends turns without a special token.
    pub fn stop(tokenizer: &Tokenizer) -> Result<Stop> {
        let (tokens, weights) =
            Self::new().user("a").assistant("b").weighted(tokenizer, TrainOn::default())?;
        let last = tokens.iter().zip(&weights).rfind(|(_, weight)| **weight > 0.0);
        let last = last.map(|(token, _)| *token).filter(|token| tokenizer.is_special(*token));
        let token = last.and_then(|token| i32::try_from(token).ok());
        let token = token.ok_or_else(|| {
            Error::validation(
                "the chat template ends a turn without a special token: stop at a text instead",
            )
        })?;
        Ok(Stop::Tokens(vec![token]))
    }
}

impl FromIterator<Message> for Conversation {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        let messages: Vec<Message> = messages.into_iter().collect();
        Self { chat: Chat::new(&messages, false) }
    }
}

fn role(message: &Value) -> Option<String> {
    message.get_attr("role").ok()?.as_str().map(str::to_owned)
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
pub(crate) fn refused(error: tinsmith_tokenizer::Error) -> Error {
    Error::validation(error.to_string())
}

#[cfg(test)]
mod tests;
