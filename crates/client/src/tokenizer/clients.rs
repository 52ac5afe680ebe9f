//! The tokenizers of clients' models: read at the first call, and kept with the session.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Tokenizer, load_tokenizer};
use crate::{
    ApiFuture, Error, Result, SamplingClient, TrainingClient, chat::refused, session::Session,
};

/// Most tokenizers that one session keeps.
const TOKENIZERS_MAX: usize = 8;

/// Tokenizers by where they are; the oldest gives way.
#[derive(Debug, Default)]
pub(crate) struct Tokenizers {
    kept: Mutex<Vec<(String, Arc<Tokenizer>)>>,
}

impl Tokenizers {
    fn find(&self, id: &str) -> Option<Arc<Tokenizer>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(of, _)| of == id).map(|(_, tokenizer)| Arc::clone(tokenizer))
    }

    fn keep(&self, id: String, tokenizer: &Arc<Tokenizer>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == TOKENIZERS_MAX {
            kept.remove(0);
        }
        kept.push((id, Arc::clone(tokenizer)));
    }
}

/// The tokenizer, from the session or read beside it.
async fn get(session: Arc<Session>, id: String) -> Result<Arc<Tokenizer>> {
    if let Some(tokenizer) = session.tokenizers.find(&id) {
        return Ok(tokenizer);
    }
    let place = id.clone();
    let read = tokio::task::spawn_blocking(move || load_tokenizer(&place)).await;
    let tokenizer = read.map_err(|_| Error::Stopped)??;
    session.tokenizers.keep(id, &tokenizer);
    Ok(tokenizer)
}

impl TrainingClient {
    /// The tokenizer of the run's model, from where the server says it is: [`load_tokenizer`].
    ///
    /// # Errors
    ///
    /// As [`load_tokenizer`].
    pub fn get_tokenizer(&self) -> ApiFuture<Arc<Tokenizer>> {
        let session = Arc::clone(self.session());
        session.http.clone().start(get(session, self.tokenizer_id()))
    }

    /// The token ids of a text, with the special tokens that the model expects around one.
    ///
    /// # Errors
    ///
    /// As [`TrainingClient::get_tokenizer`].
    pub fn encode(&self, text: impl Into<String>) -> ApiFuture<Vec<u32>> {
        let (session, id, text) = (Arc::clone(self.session()), self.tokenizer_id(), text.into());
        session.http.clone().start(async move { encode(&*get(session, id).await?, &text) })
    }

    /// The text of token ids, special tokens included.
    ///
    /// # Errors
    ///
    /// As [`TrainingClient::get_tokenizer`].
    pub fn decode(&self, tokens: impl Into<Vec<u32>>) -> ApiFuture<String> {
        let (session, id, tokens) =
            (Arc::clone(self.session()), self.tokenizer_id(), tokens.into());
        session.http.clone().start(async move { decode(&*get(session, id).await?, &tokens) })
    }
}

impl SamplingClient {
    /// The tokenizer of the model under the weights, from where the server says it is, or by the model's name:
    /// [`load_tokenizer`].
    ///
    /// # Errors
    ///
    /// As [`load_tokenizer`].
    pub fn get_tokenizer(&self) -> ApiFuture<Arc<Tokenizer>> {
        let (session, id) = (Arc::clone(self.session()), self.get_tokenizer_id());
        session.http.clone().start(async move { get(session, id.await?).await })
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    tokenizer.encode(text, true).map_err(refused)
}

fn decode(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String> {
    tokenizer.decode(tokens).map_err(refused)
}
