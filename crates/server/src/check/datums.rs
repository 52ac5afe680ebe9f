//! Checks of the datums of a `forward` or `forward_backward` request, before they cost a step.

use tinsmith_types::{
    proto::{
        Chunk, Datum, Dtype, ForwardBackwardRequest, Tensor, chunk, loss_config_value,
        pack::{unpack_f32, unpack_i32, unpack_i64},
        tensor::Encoding,
    },
    training::LossConfigValue,
};

use crate::check::{Fault, ensure};

/// What a batch may be at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Token ids are below this.
    pub(crate) vocab_size: u32,
    /// Tokens of one datum.
    pub(crate) context: usize,
    /// Datums of a batch.
    pub(crate) datums_max: usize,
    /// Tokens of a batch.
    pub(crate) tokens_max: usize,
}

/// A loss, and the arrays that it reads besides `target_tokens`, one number a token each.
struct Loss {
    name: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
}

/// The losses that this server has.
const LOSSES: [Loss; 2] = [
    Loss { name: "cross_entropy", required: &[], optional: &["weights"] },
    Loss { name: "importance_sampling", required: &["logprobs", "advantages"], optional: &[] },
];

/// Checks a whole request; the fault names its place.
pub(crate) fn batch(limits: &Limits, request: &ForwardBackwardRequest) -> Result<(), Fault> {
    let loss = loss(&request.loss_fn)?;
    settings(request)?;
    ensure(!request.data.is_empty(), || "data is empty".to_owned())?;
    ensure(request.data.len() <= limits.datums_max, || {
        format!("data has {} datums; at most {} are taken", request.data.len(), limits.datums_max)
    })?;
    let mut tokens = 0;
    for (index, each) in request.data.iter().enumerate() {
        tokens += datum(limits, loss, &format!("data[{index}]"), each)?;
        ensure(tokens <= limits.tokens_max, || {
            format!("data has more than {} tokens in all", limits.tokens_max)
        })?;
    }
    Ok(())
}

fn loss(name: &str) -> Result<&'static Loss, Fault> {
    LOSSES.iter().find(|loss| loss.name == name).ok_or_else(|| {
        let known: Vec<&str> = LOSSES.iter().map(|loss| loss.name).collect();
        Fault(format!("loss_fn {name:?} is unknown; known: {}", known.join(", ")))
    })
}

fn settings(request: &ForwardBackwardRequest) -> Result<(), Fault> {
    for (key, value) in request.loss_config() {
        if let LossConfigValue::Number(number) = value {
            ensure(number.is_finite(), || format!("loss_fn_config.{key} is {number}"))?;
        }
    }
    // Numbers stand in both maps, and the second one is read: they must not differ.
    for (key, number) in &request.loss_fn_config {
        let second = request.loss_fn_config_v2.get(key).and_then(|value| value.value.as_ref());
        let differs = match second {
            Some(loss_config_value::Value::Number(other)) => other.to_bits() != number.to_bits(),
            Some(loss_config_value::Value::Text(_)) => true,
            None => !request.loss_fn_config_v2.is_empty(),
        };
        ensure(!differs, || format!("loss_fn_config.{key} and loss_fn_config_v2.{key} differ"))?;
    }
    Ok(())
}

/// Checks one datum and returns its tokens.
fn datum(limits: &Limits, loss: &Loss, place: &str, datum: &Datum) -> Result<usize, Fault> {
    let length = model_input(limits, place, &datum.model_input)?;
    targets(limits, place, datum, length)?;
    for name in loss.required {
        let tensor = datum.loss_fn_inputs.get(*name).ok_or_else(|| {
            Fault(format!("{place}.loss_fn_inputs.{name} is missing; {} needs it", loss.name))
        })?;
        numbers(&format!("{place}.loss_fn_inputs.{name}"), tensor, length)?;
    }
    for name in loss.optional {
        if let Some(tensor) = datum.loss_fn_inputs.get(*name) {
            numbers(&format!("{place}.loss_fn_inputs.{name}"), tensor, length)?;
        }
    }
    Ok(length)
}

fn model_input(limits: &Limits, place: &str, chunks: &[Chunk]) -> Result<usize, Fault> {
    let mut length = 0;
    for (index, each) in chunks.iter().enumerate() {
        let place = format!("{place}.model_input.chunks[{index}]");
        let kind = match &each.chunk {
            Some(chunk::Chunk::EncodedText(text)) => {
                let ids = unpack_i32(&text.tokens).map_err(|error| at(&place, &error))?;
                tokens(limits.vocab_size, &format!("{place}.tokens"), ids.iter().copied())?;
                length += ids.len();
                continue;
            }
            Some(chunk::Chunk::Image(_)) => "an image",
            Some(chunk::Chunk::Dmel(_)) => "audio",
            None => "of an unknown kind",
        };
        return Err(Fault(format!("{place} is {kind}; this server's models read text only")));
    }
    ensure(length > 0, || format!("{place}.model_input has no tokens"))?;
    ensure(length <= limits.context, || {
        format!(
            "{place}.model_input has {length} tokens; a datum of this model may have {}",
            limits.context
        )
    })?;
    Ok(length)
}

fn targets(limits: &Limits, place: &str, datum: &Datum, length: usize) -> Result<(), Fault> {
    let place = format!("{place}.loss_fn_inputs.target_tokens");
    let tensor = datum
        .loss_fn_inputs
        .get("target_tokens")
        .ok_or_else(|| Fault(format!("{place} is missing")))?;
    let bytes = dense(&place, tensor, length)?;
    ensure(tensor.dtype() == Dtype::Int64, || format!("{place} has another dtype than int64"))?;
    let ids = unpack_i64(bytes).map_err(|error| at(&place, &error))?;
    ensure(ids.len() == length, || values_missing(&place, ids.len(), length))?;
    tokens(limits.vocab_size, &place, ids.iter().copied())
}

/// Checks an array of one number a token; whole numbers will do where they are the same in f32.
fn numbers(place: &str, tensor: &Tensor, length: usize) -> Result<(), Fault> {
    let bytes = dense(place, tensor, length)?;
    let (found, wrong) = match tensor.dtype() {
        Dtype::Float32 => {
            let values = unpack_f32(bytes).map_err(|error| at(place, &error))?;
            let wrong = values.iter().position(|value| !value.is_finite());
            (values.len(), wrong.map(|index| format!("{place}[{index}] is {}", values[index])))
        }
        Dtype::Int64 => {
            let values = unpack_i64(bytes).map_err(|error| at(place, &error))?;
            let wrong = values.iter().position(|value| value.unsigned_abs() > F32_WHOLE_MAX);
            let message = |index: usize| {
                format!("{place}[{index}] is {}, too large to be exact in float32", values[index])
            };
            (values.len(), wrong.map(message))
        }
        Dtype::Unspecified | Dtype::Int32 | Dtype::Bfloat16 => {
            return Err(Fault(format!("{place} has another dtype than float32 or int64")));
        }
    };
    ensure(found == length, || values_missing(place, found, length))?;
    wrong.map_or(Ok(()), |message| Err(Fault(message)))
}

/// All whole numbers up to this are the same in f32.
const F32_WHOLE_MAX: u64 = 1 << f32::MANTISSA_DIGITS;

/// The bytes of a dense array of one value a token.
fn dense<'a>(place: &str, tensor: &'a Tensor, length: usize) -> Result<&'a [u8], Fault> {
    let bytes = match &tensor.encoding {
        Some(Encoding::Dense(bytes)) => bytes,
        Some(Encoding::SparseCsr(_)) => {
            return Err(Fault(format!("{place} is sparse; this server takes one value a token")));
        }
        None => return Err(Fault(format!("{place} has no data"))),
    };
    let expected = i64::try_from(length).unwrap_or(i64::MAX);
    ensure(tensor.shape == [expected], || {
        format!(
            "{place} has the shape {:?}; expected is [{length}], as the datum's model_input has \
             {length} tokens",
            tensor.shape
        )
    })?;
    Ok(bytes)
}

/// Checks that all ids are in the vocabulary.
pub(crate) fn tokens(
    vocab_size: u32,
    place: &str,
    ids: impl Iterator<Item = impl Into<i64>>,
) -> Result<(), Fault> {
    let mut ids = ids.map(Into::into).enumerate();
    match ids.find(|(_, id)| !(0..i64::from(vocab_size)).contains(id)) {
        Some((index, id)) => Err(Fault(format!(
            "{place}[{index}] is the token {id}, which is out of the vocabulary of {vocab_size}"
        ))),
        None => Ok(()),
    }
}

fn values_missing(place: &str, found: usize, length: usize) -> String {
    format!("{place} has {found} values; its shape says {length}")
}

fn at(place: &str, error: &tinsmith_types::Error) -> Fault {
    Fault(format!("{place}: failed to {error}"))
}
