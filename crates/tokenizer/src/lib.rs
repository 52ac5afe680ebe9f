//! Text to token ids and back: encoding, decoding, chat templates and incremental decoding.
//!
//! Reads the files of a Hugging Face model directory: `tokenizer.json`, and for chats
//! `chat_template.jinja` or the `chat_template` of `tokenizer_config.json`.

use std::{collections::BTreeSet, fmt, io, path::Path, path::PathBuf};

mod chat;
mod incremental;

pub use chat::{Chat, ChatEnd, ChatTemplate, Message, said::Said};
pub use incremental::IncrementalDecoder;
pub use minijinja::Value;

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model directory is missing or cannot be read.
    #[error("read {}: copy the file from the model's repository into this directory", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the model directory does not hold what its name says.
    #[error("parse {}: {detail}; copy the file from the model's repository again", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Text or tokens that the tokenizer refuses.
    #[error("{action} with the tokenizer: {detail}")]
    Convert {
        /// `encode` or `decode`.
        action: &'static str,
        /// Why not.
        detail: String,
    },
    /// A chat was asked for and the model has no template.
    #[error(
        "render a chat: the model directory has neither chat_template.jinja nor a `chat_template` in \
         tokenizer_config.json; add one of them"
    )]
    NoChatTemplate,
    /// The chat template refuses these messages, or is faulty.
    #[error("render the chat template: {0}")]
    Template(String),
}

/// What tokenizer calls answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The tokenizer of one model, with its chat template if it has one.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    chat: Option<ChatTemplate>,
    end_token: Option<u32>,
    /// Tokens that stand for no text, like the end of a turn.
    special: BTreeSet<u32>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes =
            std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let inner = Self::parse(&bytes).map_err(|detail| Error::Parse { path, detail })?;
        let end_token = chat::files::end_token(dir)?.and_then(|text| inner.token_to_id(&text));
        let special = special(&inner);
        Ok(Self { inner, chat: ChatTemplate::open(dir)?, end_token, special })
    }

    /// A tokenizer without chat template from the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let inner = Self::parse(bytes)
            .map_err(|detail| Error::Parse { path: PathBuf::from("tokenizer.json"), detail })?;
        let special = special(&inner);
        Ok(Self { inner, chat: None, end_token: None, special })
    }

    fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
        // Some files carry the limits of the training set they were made on.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        Ok(inner)
    }

    /// The token ids of `text`; `add_special_tokens` puts around it what the model expects there.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, add_special_tokens) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::Convert { action: "encode", detail: error.to_string() }),
        }
    }

    /// The text of `tokens`, special tokens included. Ids without a token give no text.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, false)
            .map_err(|error| Error::Convert { action: "decode", detail: error.to_string() })
    }

    /// The text of `tokens` without the special ones.
    pub fn decode_plain(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, true)
            .map_err(|error| Error::Convert { action: "decode", detail: error.to_string() })
    }

    /// The id of a token that is written exactly so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of `eos_token` in `tokenizer_config.json`. A model's own configuration knows better, if it
    /// says anything.
    pub fn end_token(&self) -> Option<u32> {
        self.end_token
    }

    /// Whether a token is a special one, which text does not contain by itself.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// Tokens that it knows, added ones included. The model's vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The text of a chat as the model was trained on it.
    pub fn render_chat(&self, chat: &Chat) -> Result<String> {
        self.chat.as_ref().ok_or(Error::NoChatTemplate)?.render(chat)
    }

    /// The token ids of [`Tokenizer::render_chat`]. The template writes the special tokens itself.
    pub fn encode_chat(&self, chat: &Chat) -> Result<Vec<u32>> {
        self.encode(&self.render_chat(chat)?, false)
    }

    /// Tokens with their places in the text, in bytes.
    pub(crate) fn encoding(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.inner
            .encode(text, false)
            .map_err(|error| Error::Convert { action: "encode", detail: error.to_string() })
    }
}

fn special(inner: &tokenizers::Tokenizer) -> BTreeSet<u32> {
    let added = inner.get_added_tokens_decoder();
    added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
}
