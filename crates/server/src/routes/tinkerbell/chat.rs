//! Chats into tokens, with the model's own template.

use std::collections::BTreeMap;

use tinsmith_tokenizer::{Message, Tokenizer};
use tinsmith_types::{
    datum::Datum,
    model_input::{Chunk, ModelInput},
    proto,
    tensor::{TensorData, Values},
    tinkerbell::{ChatMessage, Example, TrainRequest},
    training::{ForwardBackwardInput, ForwardBackwardRequest, ForwardRequest},
};

use crate::{
    body::off_thread,
    catalog::ModelEntry,
    check::{Fault, ensure},
    error::{Error, Result},
    state::Shared,
};

/// Who may speak; templates know what to do with these.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// The only loss that needs nothing but tokens.
const CROSS_ENTROPY: &str = "cross_entropy";
/// Warnings in one answer.
const WARNINGS_MAX: usize = 10;

/// A batch in its official form.
pub(super) struct Batch {
    pub(super) request: proto::ForwardBackwardRequest,
    pub(super) warnings: Vec<String>,
}

/// What bounds the work on a batch.
struct Limits {
    datums_max: usize,
    tokens_max: usize,
    datum_tokens_max: usize,
    messages_max: usize,
    rendered_bytes_max: usize,
}

/// A chat's tokens.
struct Tokens {
    /// What the model reads; its targets are those that follow.
    tokens: Vec<u32>,
    /// For each token, whether the assistant says it.
    is_said: Vec<bool>,
}

/// Renders the chats of a batch. Each token that an assistant says weighs as much as any other, all together 1:
/// the loss is their mean.
pub(super) async fn batch(
    app: &Shared,
    model: &ModelEntry,
    request: TrainRequest,
    forward_only: bool,
) -> Result<Batch> {
    let limits = Limits {
        datums_max: app.config.datums_max,
        tokens_max: app.config.datum_tokens_max,
        datum_tokens_max: model.training_context,
        messages_max: app.config.chat_messages_max,
        rendered_bytes_max: app.config.chat_rendered_bytes_max,
    };
    let tokenizer = model.tokenizer.clone();
    // Rendering is slow enough never to be done where it would hold up other connections.
    off_thread(usize::MAX, move || convert(&limits, tokenizer.as_deref(), request, forward_only))
        .await?
}

fn convert(
    limits: &Limits,
    tokenizer: Option<&Tokenizer>,
    request: TrainRequest,
    forward_only: bool,
) -> Result<Batch> {
    let loss_fn = request.loss_fn.unwrap_or_else(|| CROSS_ENTROPY.to_owned());
    let count = request.data.len();
    let invalid = |fault: Fault| fault.into_error("invalid_data");
    ensure(count <= limits.datums_max, || {
        format!("data has {count} examples; at most {} are taken", limits.datums_max)
    })
    .map_err(invalid)?;
    let (mut datums, mut chats, mut warnings, mut tokens) = (vec![], vec![], vec![], 0_usize);
    for (index, example) in request.data.into_iter().enumerate() {
        let place = format!("data[{index}]");
        match example {
            Example::Datum(datum) => datums.push(datum),
            Example::Chat(messages) => {
                ensure(loss_fn == CROSS_ENTROPY, || {
                    format!(
                        "{place} is a chat, and loss_fn {loss_fn:?} reads arrays that a chat does not have: send \
                         datums with model_input and loss_fn_inputs, or use {CROSS_ENTROPY}"
                    )
                })
                .map_err(invalid)?;
                let chat = chat(limits, tokenizer, &place, &messages)?;
                tokens += chat.tokens.len();
                ensure(tokens <= limits.tokens_max, || {
                    format!("data has more than {} tokens in all", limits.tokens_max)
                })
                .map_err(invalid)?;
                if !chat.is_said.contains(&true) && warnings.len() < WARNINGS_MAX {
                    warnings.push(format!(
                        "{place} has no assistant message: nothing is learnt from it"
                    ));
                }
                chats.push((datums.len(), chat));
                datums.push(Datum {
                    model_input: ModelInput::default(),
                    loss_fn_inputs: BTreeMap::default(),
                });
            }
        }
    }
    let said = chats.iter().flat_map(|(_, chat)| &chat.is_said[1..]).filter(|said| **said).count();
    for (index, chat) in &chats {
        datums[*index] = datum(chat, said);
    }
    let input =
        ForwardBackwardInput { data: datums, loss_fn, loss_fn_config: request.loss_fn_config };
    let (model_id, seq_id) = (request.model_id, None);
    let request = if forward_only {
        ForwardRequest { forward_input: input, model_id, seq_id }.try_into()
    } else {
        ForwardBackwardRequest { forward_backward_input: input, model_id, seq_id }.try_into()
    };
    Ok(Batch { request: request?, warnings })
}

fn chat(
    limits: &Limits,
    tokenizer: Option<&Tokenizer>,
    place: &str,
    messages: &[ChatMessage],
) -> Result<Tokens> {
    let tokenizer = tokenizer.ok_or_else(no_tokenizer)?;
    let messages = checked(limits.messages_max, place, messages)?;
    let said = tokenizer
        .encode_said(&messages, limits.rendered_bytes_max)
        .map_err(|error| Error::invalid("invalid_chat", format!("{place}: failed to {error}")))?;
    let tokens = said.tokens.len();
    let fits = (2..=limits.datum_tokens_max.saturating_add(1)).contains(&tokens);
    ensure(fits, || {
        format!(
            "{place} has {tokens} tokens; from 2 to {} can be trained on at once",
            limits.datum_tokens_max.saturating_add(1)
        )
    })
    .map_err(|fault| fault.into_error("invalid_data"))?;
    Ok(Tokens { tokens: said.tokens, is_said: said.is_said })
}

/// Messages as the tokenizer takes them.
pub(super) fn checked(
    messages_max: usize,
    place: &str,
    messages: &[ChatMessage],
) -> Result<Vec<Message>> {
    let invalid = |fault: Fault| fault.into_error("invalid_chat");
    ensure(!messages.is_empty(), || format!("{place} has no messages")).map_err(invalid)?;
    ensure(messages.len() <= messages_max, || {
        format!("{place} has {} messages; at most {messages_max} are taken", messages.len())
    })
    .map_err(invalid)?;
    for (index, message) in messages.iter().enumerate() {
        ensure(ROLES.contains(&message.role.as_str()), || {
            let known = ROLES.join(", ");
            format!("{place}[{index}].role is {:?}; known: {known}", message.role)
        })
        .map_err(invalid)?;
    }
    Ok(messages.iter().map(|message| Message::new(&message.role, &message.content)).collect())
}

pub(super) fn no_tokenizer() -> Error {
    let detail = "the model has no tokenizer here: send tokens instead of texts";
    Error::invalid("no_tokenizer", detail)
}

#[expect(clippy::cast_precision_loss, reason = "tokens of one batch are far fewer")]
fn datum(chat: &Tokens, said: usize) -> Datum {
    let signed = |tokens: &[u32]| tokens.iter().map(|&token| i64::from(token)).collect();
    let (last, targets) = (chat.tokens.len() - 1, &chat.tokens[1..]);
    let shape = vec![i64::try_from(last).unwrap_or(i64::MAX)];
    let weight = 1.0 / said.max(1) as f32;
    let weights = chat.is_said[1..].iter().map(|&said| if said { weight } else { 0.0 }).collect();
    let tokens = chat.tokens[..last].iter().map(|&token| i32::try_from(token).unwrap_or(i32::MAX));
    Datum {
        model_input: ModelInput { chunks: vec![Chunk::EncodedText { tokens: tokens.collect() }] },
        loss_fn_inputs: BTreeMap::from([
            (
                "target_tokens".to_owned(),
                TensorData::dense(Values::Int64(signed(targets)), shape.clone()),
            ),
            ("weights".to_owned(), TensorData::dense(Values::Float32(weights), shape)),
        ]),
    }
}
