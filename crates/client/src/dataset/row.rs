//! What one row of a file says, and the datum that it becomes.

use tinsmith_tokenizer::Tokenizer;

use crate::{
    Datum, Error, Keep, PreferencePair, Result,
    chat::{Conversation, TrainOn, refused},
};

/// One row.
#[derive(Clone, Debug)]
pub enum Row {
    /// Something to learn.
    Example(Example),
    /// Two answers, of which one is preferred.
    Preference {
        /// The preferred one.
        chosen: Example,
        /// The other.
        rejected: Example,
    },
}

/// Something to learn.
#[derive(Clone, Debug)]
pub enum Example {
    /// `messages`: what is learnt of them is chosen by [`DatumOptions::train_on`].
    Conversation(Conversation),
    /// `prompt` of messages and what follows them, the last message of which is learnt.
    Answer(Conversation),
    /// `prompt` and `completion`, plain texts: the completion is learnt, with the end of a text.
    Completion {
        /// What is given.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// `text`: all of it is learnt, with the end of a text.
    Text(String),
}

/// What is done with an example that is longer than the model's context.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TooLong {
    /// An error says how long it is.
    #[default]
    Refuse,
    /// It is left out.
    Skip,
    /// It is cut; it is left out if nothing to learn is left of it.
    Truncate(Keep),
}

/// How rows become datums.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DatumOptions {
    /// What is learnt of conversations.
    pub train_on: TrainOn,
    /// Most tokens of input of one datum; no limit where not set.
    pub tokens_max: Option<usize>,
    /// What is done with longer ones.
    pub too_long: TooLong,
}

impl Row {
    /// Its datum; none where it is left out.
    ///
    /// # Errors
    ///
    /// A preference, which [`Row::pair`] is for; what [`Example::datum`] refuses.
    pub fn datum(&self, tokenizer: &Tokenizer, options: &DatumOptions) -> Result<Option<Datum>> {
        match self {
            Self::Example(example) => example.datum(tokenizer, options),
            Self::Preference { .. } => Err(Error::validation(
                "a row with `chosen` and `rejected` is a pair, not one example",
            )),
        }
    }

    /// Its two datums; none where one of them is left out.
    ///
    /// # Errors
    ///
    /// A row without preference; what [`Example::datum`] refuses.
    pub fn pair(
        &self,
        tokenizer: &Tokenizer,
        options: &DatumOptions,
    ) -> Result<Option<PreferencePair>> {
        let Self::Preference { chosen, rejected } = self else {
            return Err(Error::validation("a pair needs a row with `chosen` and `rejected`"));
        };
        let chosen = chosen.datum(tokenizer, options)?;
        let rejected = rejected.datum(tokenizer, options)?;
        Ok(chosen.zip(rejected).map(|(chosen, rejected)| PreferencePair { chosen, rejected }))
    }
}

impl Example {
    /// Its datum; none where it is left out.
    ///
    /// # Errors
    ///
    /// Messages that the chat template refuses, nothing to learn, too many tokens.
    pub fn datum(&self, tokenizer: &Tokenizer, options: &DatumOptions) -> Result<Option<Datum>> {
        let datum = self.whole(tokenizer, options.train_on)?;
        let length = datum.model_input().length()?;
        let Some(tokens_max) = options.tokens_max.filter(|max| length > *max) else {
            return Ok(Some(datum));
        };
        match options.too_long {
            TooLong::Refuse => {
                let message = format!("an example has {length} tokens; at most {tokens_max} fit");
                Err(Error::validation(message))
            }
            TooLong::Skip => Ok(None),
            TooLong::Truncate(keep) => {
                let cut = datum.truncated(tokens_max, keep)?;
                Ok((cut.trained_tokens() > 0).then_some(cut))
            }
        }
    }

    fn whole(&self, tokenizer: &Tokenizer, train_on: TrainOn) -> Result<Datum> {
        let encode = |text: &str, is_start: bool| tokenizer.encode(text, is_start).map_err(refused);
        match self {
            Self::Conversation(conversation) => conversation.datum(tokenizer, train_on),
            Self::Answer(conversation) => {
                conversation.datum(tokenizer, TrainOn::LastAssistantMessage)
            }
            Self::Completion { prompt, completion } => {
                let mut completion = encode(completion, false)?;
                completion.extend(tokenizer.end_token());
                Datum::completion(&encode(prompt, true)?, &completion)
            }
            Self::Text(text) => {
                let mut tokens = encode(text, true)?;
                tokens.extend(tokenizer.end_token());
                Datum::text(&tokens)
            }
        }
    }
}
