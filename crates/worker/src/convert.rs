//! The one bridge between wire types, which are permissive and stay, and the engine's, which are strict.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tinsmith_engine::{Array, Backend, PromptTargets};
use tinsmith_store::{BlobId, CheckpointKind, Digest, NewCheckpoint};
use tinsmith_types::{
    ids::ModelId,
    model_input::{Chunk, ModelInput},
    proto::{
        self, Dtype,
        layout::Layout,
        pack::{unpack_f32, unpack_i32, unpack_i64},
    },
    tensor::{TensorData, Values},
};

use crate::worker::Worker;

/// blake3, of an encoding whose version stands in front.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"result.1\n");
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

pub(crate) fn json(value: &serde_json::Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// The wire carries numbers as f64; the engine computes with f32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounds, as every client that sends f32 expects"
)]
pub(crate) fn float(value: f64) -> f32 {
    value as f32
}

/// The tokens of an input; only text can be computed on.
pub(crate) fn tokens(chunks: &[proto::Chunk]) -> Result<Vec<u32>, String> {
    let mut tokens = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        match &chunk.chunk {
            Some(proto::chunk::Chunk::EncodedText(text)) => {
                let place = format!("model_input[{index}].tokens");
                let text = unpack_i32(&text.tokens).map_err(|error| format!("{place}: {error}"))?;
                tokens.extend(ids(&place, &text)?);
            }
            Some(proto::chunk::Chunk::Image(_) | proto::chunk::Chunk::Dmel(_)) | None => {
                return Err(format!("model_input[{index}]: only encoded_text is supported"));
            }
        }
    }
    Ok(tokens)
}

/// The tokens of a prompt.
pub(crate) fn prompt(input: &ModelInput) -> Result<Vec<u32>, String> {
    let mut tokens = Vec::new();
    for (index, chunk) in input.chunks.iter().enumerate() {
        let Chunk::EncodedText { tokens: text } = chunk else {
            return Err(format!("prompt.chunks[{index}]: only encoded_text is supported"));
        };
        tokens.extend(ids(&format!("prompt.chunks[{index}].tokens"), text)?);
    }
    Ok(tokens)
}

/// Token ids to score along a prompt of so many tokens; what is asked for was checked when it came in.
pub(crate) fn prompt_targets(
    tensor: &TensorData,
    prompt_tokens: usize,
) -> Result<PromptTargets, String> {
    let fault = |what: &str| format!("target_prompt_logprobs: {what}");
    let Values::Int64(ids) = &tensor.data else { return Err(fault("dtype must be int64")) };
    let Some(&[_, columns]) = tensor.shape.as_deref() else {
        return Err(fault("the shape must be [prompt tokens - 1, K]"));
    };
    let columns = usize::try_from(columns).map_err(|_| fault("the shape is negative"))?;
    let places = |name: &str, indices: &[i64]| -> Result<Vec<usize>, String> {
        let place = |&index: &i64| usize::try_from(index).ok();
        let places: Option<_> = indices.iter().map(place).collect();
        places.ok_or_else(|| fault(&format!("{name} has a negative entry")))
    };
    let (rows, column_of) = match (&tensor.sparse_crow_indices, &tensor.sparse_col_indices) {
        (Some(crow), Some(col)) => {
            (places("sparse_crow_indices", crow)?, Some(places("sparse_col_indices", col)?))
        }
        _ => ((0..prompt_tokens).map(|row| row * columns).collect(), None),
    };
    let id = |&id: &i64| match id {
        -1 => Ok(None),
        id => u32::try_from(id).map(Some).map_err(|_| fault(&format!("{id} is no token id"))),
    };
    let ids = ids.iter().map(id).collect::<Result<_, _>>()?;
    Ok(PromptTargets { rows, ids, columns, column_of })
}

/// Token ids out of signed numbers.
pub(crate) fn ids<T>(name: &str, values: &[T]) -> Result<Vec<u32>, String>
where
    T: Copy + std::fmt::Display + TryInto<u32>,
{
    let id = |(index, value): (usize, &T)| {
        (*value).try_into().map_err(|_| format!("{name}[{index}]: {value} is no token id"))
    };
    values.iter().enumerate().map(id).collect()
}

/// The token ids of a tensor, row after row; 0 where a sparse one lists none.
pub(crate) fn token_ids(name: &str, tensor: &proto::Tensor) -> Result<Vec<u32>, String> {
    if tensor.dtype() != Dtype::Int64 {
        return Err(format!("loss_fn_inputs.{name}: dtype must be int64"));
    }
    let place = |error| format!("loss_fn_inputs.{name}: {error}");
    let stored = unpack_i64(tensor.stored()).map_err(place)?;
    expand(name, tensor, ids(name, &stored)?, 0)
}

/// The numbers of a tensor, rounded to f32, row after row; 0 where a sparse one lists none.
pub(crate) fn floats(name: &str, tensor: &proto::Tensor) -> Result<Vec<f32>, String> {
    let place = |error| format!("loss_fn_inputs.{name}: {error}");
    let stored = match tensor.dtype() {
        Dtype::Float32 => unpack_f32(tensor.stored()).map_err(place)?,
        #[expect(clippy::cast_precision_loss, reason = "whole numbers given for weights are small")]
        Dtype::Int64 => {
            let whole = unpack_i64(tensor.stored()).map_err(place)?;
            whole.into_iter().map(|value| value as f32).collect()
        }
        Dtype::Unspecified | Dtype::Int32 | Dtype::Bfloat16 => {
            return Err(format!("loss_fn_inputs.{name}: dtype must be float32 or int64"));
        }
    };
    expand(name, tensor, stored, 0.0)
}

/// A tensor of any shape; 0 where a sparse one lists nothing.
pub(crate) fn array(name: &str, tensor: &proto::Tensor) -> Result<Array, String> {
    let place = |error| format!("loss_fn_inputs.{name}: {error}");
    let whole = tensor.dtype() == Dtype::Int64;
    #[expect(clippy::cast_precision_loss, reason = "larger ones were refused at the door")]
    let values: Vec<f64> = if whole {
        let values = unpack_i64(tensor.stored()).map_err(place)?;
        expand(name, tensor, values, 0)?.into_iter().map(|value| value as f64).collect()
    } else {
        floats(name, tensor)?.into_iter().map(f64::from).collect()
    };
    let shape = tensor.layout().map_err(place)?.shape;
    Ok(Array { whole, shape, values: Arc::new(values) })
}

/// 1 where a sparse tensor lists a value, 0 elsewhere; `None` for a dense one.
pub(crate) fn listed(tensor: &proto::Tensor) -> Option<Vec<f32>> {
    let layout = tensor.layout().ok().filter(Layout::is_sparse)?;
    Some(layout.expand(vec![1.0; layout.stored()], 0.0))
}

/// All values of a tensor whose size was checked at the door.
fn expand<T: Copy>(
    name: &str,
    tensor: &proto::Tensor,
    stored: Vec<T>,
    elsewhere: T,
) -> Result<Vec<T>, String> {
    let layout = tensor.layout().map_err(|error| format!("loss_fn_inputs.{name}: {error}"))?;
    if layout.stored() != stored.len() {
        let (found, expected) = (stored.len(), layout.stored());
        return Err(format!("loss_fn_inputs.{name}: has {found} values in place of {expected}"));
    }
    Ok(layout.expand(stored, elsewhere))
}

/// Checkpoints' metadata is text; other JSON is kept as it is written.
fn text((name, value): (&String, &serde_json::Value)) -> (String, String) {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    (name.clone(), text)
}

/// A checkpoint to be made visible; the name of its files is filled in once they are durable.
pub(crate) fn checkpoint<B: Backend>(
    worker: &Worker<B>,
    id: &ModelId,
    kind: CheckpointKind,
    name: String,
    ttl_seconds: Option<i64>,
    user_metadata: Option<&BTreeMap<String, serde_json::Value>>,
) -> NewCheckpoint {
    let ttl = ttl_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    NewCheckpoint {
        model_id: id.clone(),
        kind,
        name,
        blob: BlobId(String::new()),
        size_bytes: 0,
        expires_at: ttl.and_then(|ttl| worker.clock.now().checked_add(ttl).ok()),
        user_metadata: user_metadata.into_iter().flatten().map(text).collect(),
        overwrite: false,
    }
}
