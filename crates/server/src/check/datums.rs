//! Checks of the datums of a `forward` or `forward_backward` request, before they cost a step.

use tinsmith_graph::Input;
use tinsmith_types::{
    proto::{
        Chunk, Datum, Dtype, ForwardBackwardRequest, Tensor, chunk,
        layout::Layout,
        loss_config_value,
        pack::{unpack_f32, unpack_i32, unpack_i64},
    },
    training::LossConfigValue,
};

use crate::check::{Fault, custom_loss, ensure, provenance};

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
    /// Values of `target_tokens` of a batch, those that a sparse tensor does not list included.
    pub(crate) cells_max: usize,
}

/// A loss, and the arrays that it reads besides `target_tokens`, each of its shape.
struct Loss {
    name: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
    /// What `loss_fn_config` may set; all numbers.
    settings: &'static [&'static str],
    /// Whether `target_tokens` may have several candidates a token.
    candidates: bool,
}

/// What the losses on sampled tokens read.
const SAMPLED: &[&str] = &["logprobs", "advantages"];
/// Bounds of a ratio: settings, and arrays in their place.
const BOUNDS: &[&str] = &["clip_low_threshold", "clip_high_threshold"];

/// The losses that this server has.
const LOSSES: [Loss; 8] = [
    Loss {
        name: "cross_entropy",
        required: &[],
        optional: &["weights"],
        settings: &[],
        candidates: true,
    },
    Loss {
        name: "importance_sampling",
        required: SAMPLED,
        optional: &[],
        settings: &[],
        candidates: false,
    },
    Loss { name: "ppo", required: SAMPLED, optional: BOUNDS, settings: BOUNDS, candidates: false },
    Loss {
        name: "cispo",
        required: SAMPLED,
        optional: BOUNDS,
        settings: BOUNDS,
        candidates: false,
    },
    Loss { name: "dro", required: SAMPLED, optional: &[], settings: &["beta"], candidates: false },
    Loss {
        name: "gspo",
        required: SAMPLED,
        optional: &["clip_low_threshold", "clip_high_threshold", "sequence_ratio_mask"],
        settings: BOUNDS,
        candidates: false,
    },
    // The logprobs are looked up.
    Loss {
        name: provenance::LOSS,
        required: &["advantages"],
        optional: &[],
        settings: &["kl_coeff", "clip_high_threshold"],
        candidates: false,
    },
    Loss {
        name: custom_loss::NAME,
        required: &[],
        optional: &[],
        settings: &[custom_loss::LOSS_ID],
        candidates: true,
    },
];

/// The names of all losses.
pub(crate) fn names() -> Vec<&'static str> {
    LOSSES.iter().map(|loss| loss.name).collect()
}

/// Checks a whole request, with the inputs of its custom loss if that is what it asks for; the fault names
/// its place.
pub(crate) fn batch(
    limits: &Limits,
    custom: Option<&[Input]>,
    request: &ForwardBackwardRequest,
) -> Result<(), Fault> {
    let loss = loss(&request.loss_fn)?;
    if custom.is_none() {
        settings(loss, request)?;
    }
    ensure(!request.data.is_empty(), || "data is empty".to_owned())?;
    ensure(request.data.len() <= limits.datums_max, || {
        format!("data has {} datums; at most {} are taken", request.data.len(), limits.datums_max)
    })?;
    let (mut tokens, mut cells) = (0_usize, 0_usize);
    for (index, each) in request.data.iter().enumerate() {
        let place = format!("data[{index}]");
        let shape = datum(limits, loss, &place, each)?;
        if let Some(inputs) = custom {
            cells = cells.saturating_add(custom_loss::datum(inputs, &place, each)?);
        }
        tokens += shape.tokens;
        ensure(tokens <= limits.tokens_max, || {
            format!("data has more than {} tokens in all", limits.tokens_max)
        })?;
        cells = cells.saturating_add(shape.tokens.saturating_mul(shape.candidates));
        ensure(cells <= limits.cells_max, || {
            format!(
                "{place}.loss_fn_inputs.target_tokens: the data has more than {} target_tokens in all, those \
                 that sparse tensors do not list included; send it in parts",
                limits.cells_max
            )
        })?;
    }
    Ok(())
}

fn loss(name: &str) -> Result<&'static Loss, Fault> {
    LOSSES
        .iter()
        .find(|loss| loss.name == name)
        .ok_or_else(|| Fault(format!("loss_fn {name:?} is unknown; known: {}", names().join(", "))))
}

fn settings(loss: &Loss, request: &ForwardBackwardRequest) -> Result<(), Fault> {
    let config = request.loss_config();
    for (key, value) in &config {
        ensure(loss.settings.contains(&key.as_str()), || {
            let known = if loss.settings.is_empty() {
                "it has none".to_owned()
            } else {
                format!("known: {}", loss.settings.join(", "))
            };
            format!("loss_fn_config.{key} is no setting of {}; {known}", loss.name)
        })?;
        match value {
            LossConfigValue::Number(number) => {
                ensure(number.is_finite(), || format!("loss_fn_config.{key} is {number}"))?;
            }
            LossConfigValue::Text(text) => {
                return Err(Fault(format!("loss_fn_config.{key} is {text:?}, not a number")));
            }
        }
    }
    if let [Some(LossConfigValue::Number(low)), Some(LossConfigValue::Number(high))] =
        [BOUNDS[0], BOUNDS[1]].map(|key| config.get(key))
    {
        ensure(low <= high, || {
            format!("loss_fn_config.{} is {low}, above {}, which is {high}", BOUNDS[0], BOUNDS[1])
        })?;
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

/// The extents of a datum's arrays.
#[derive(Clone, Copy)]
struct Extents {
    tokens: usize,
    /// Of each token.
    candidates: usize,
}

/// Checks one datum and returns its extents.
fn datum(limits: &Limits, loss: &Loss, place: &str, datum: &Datum) -> Result<Extents, Fault> {
    let tokens = model_input(limits, place, &datum.model_input)?;
    let shape = Extents { tokens, candidates: targets(limits, loss, place, datum, tokens)? };
    for name in loss.required {
        let tensor = datum.loss_fn_inputs.get(*name).ok_or_else(|| {
            Fault(format!("{place}.loss_fn_inputs.{name} is missing; {} needs it", loss.name))
        })?;
        numbers(&format!("{place}.loss_fn_inputs.{name}"), tensor, shape)?;
    }
    for name in loss.optional {
        if let Some(tensor) = datum.loss_fn_inputs.get(*name) {
            numbers(&format!("{place}.loss_fn_inputs.{name}"), tensor, shape)?;
        }
    }
    Ok(shape)
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

/// Checks the targets of a datum of `tokens` tokens and returns the number of candidates a token.
fn targets(
    limits: &Limits,
    loss: &Loss,
    place: &str,
    datum: &Datum,
    tokens: usize,
) -> Result<usize, Fault> {
    let place = format!("{place}.loss_fn_inputs.target_tokens");
    let tensor = datum
        .loss_fn_inputs
        .get("target_tokens")
        .ok_or_else(|| Fault(format!("{place} is missing")))?;
    let candidates = match extents(&tensor.shape).as_deref() {
        Some([rows]) if *rows == tokens => 1,
        Some([rows, candidates]) if *rows == tokens && *candidates > 0 && loss.candidates => {
            *candidates
        }
        Some(_) | None => {
            let or = if loss.candidates { format!(" or [{tokens}, K]") } else { String::new() };
            return Err(shape(&place, tensor, tokens, &format!("[{tokens}]{or}")));
        }
    };
    let layout = layout(&place, tensor)?;
    ensure(tensor.dtype() == Dtype::Int64, || format!("{place} has another dtype than int64"))?;
    let ids = unpack_i64(tensor.stored()).map_err(|error| at(&place, &error))?;
    ensure(ids.len() == layout.stored(), || values_missing(&place, ids.len(), &layout))?;
    self::tokens(limits.vocab_size, &place, ids.iter().copied())?;
    Ok(candidates)
}

/// Checks an array of one number a target; whole numbers will do where they are the same in f32.
fn numbers(place: &str, tensor: &Tensor, target: Extents) -> Result<(), Fault> {
    let Extents { tokens, candidates } = target;
    // One candidate a token may be said in either way.
    let fits = match extents(&tensor.shape).as_deref() {
        Some([rows]) => *rows == tokens && candidates == 1,
        Some([rows, columns]) => *rows == tokens && *columns == candidates,
        Some(_) | None => false,
    };
    if !fits {
        let columns = if candidates == 1 { String::new() } else { format!(", {candidates}") };
        return Err(shape(place, tensor, tokens, &format!("[{tokens}{columns}]")));
    }
    let layout = layout(place, tensor)?;
    let (found, wrong) = match tensor.dtype() {
        Dtype::Float32 => {
            let values = unpack_f32(tensor.stored()).map_err(|error| at(place, &error))?;
            let wrong = values.iter().position(|value| !value.is_finite());
            (values.len(), wrong.map(|index| format!("{place}[{index}] is {}", values[index])))
        }
        Dtype::Int64 => {
            let values = unpack_i64(tensor.stored()).map_err(|error| at(place, &error))?;
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
    ensure(found == layout.stored(), || values_missing(place, found, &layout))?;
    wrong.map_or(Ok(()), |message| Err(Fault(message)))
}

/// All whole numbers up to this are the same in f32.
const F32_WHOLE_MAX: u64 = 1 << f32::MANTISSA_DIGITS;

fn extents(shape: &[i64]) -> Option<Vec<usize>> {
    shape.iter().map(|extent| usize::try_from(*extent).ok()).collect()
}

fn shape(place: &str, tensor: &Tensor, tokens: usize, expected: &str) -> Fault {
    Fault(format!(
        "{place} has the shape {:?}; expected is {expected}, as the datum's model_input has {tokens} \
         tokens",
        tensor.shape
    ))
}

/// Where the values lie; there must be some, or a sparse tensor that lists none.
fn layout(place: &str, tensor: &Tensor) -> Result<Layout, Fault> {
    ensure(tensor.encoding.is_some(), || format!("{place} has no data"))?;
    tensor.layout().map_err(|error| at(place, &error))
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

fn values_missing(place: &str, found: usize, layout: &Layout) -> String {
    let stored = layout.stored();
    if layout.is_sparse() {
        return format!("{place} has {found} values for {stored} sparse_col_indices");
    }
    format!("{place} has {found} values; its shape says {stored}")
}

fn at(place: &str, error: &tinsmith_types::Error) -> Fault {
    Fault(format!("{place}: failed to {error}"))
}
