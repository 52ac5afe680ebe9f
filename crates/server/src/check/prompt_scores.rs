//! Checks of what a sample asks to know beside its tokens: logprobs of the prompt, of likely tokens, of
//! given ones.

use tinsmith_types::{
    sampling::SampleRequest,
    tensor::{DataType, TensorData, Values},
};

use crate::check::{Fault, datums::tokens, ensure, sample::Limits};

/// Checks everything that is scored, for a prompt of so many tokens.
pub(crate) fn check(limits: &Limits, request: &SampleRequest, prompt: usize) -> Result<(), Fault> {
    let lists = [
        ("topk_prompt_logprobs", request.topk_prompt_logprobs),
        ("topk_sample_logprobs", request.topk_sample_logprobs),
        ("prompt_alt_tokens_k", request.prompt_alt_tokens_k),
    ];
    let most = limits.topk_max.min(limits.vocab_size);
    for (name, k) in lists {
        ensure(k <= most, || format!("{name} is {k}; it must be from 0 to {most}"))?;
    }
    last_n(request, prompt)?;
    if let Some(targets) = &request.target_prompt_logprobs {
        targets_fit(limits, targets, prompt)?;
    }
    let scores_prompt = request.prompt_logprobs
        || request.topk_prompt_logprobs > 0
        || request.prompt_alt_tokens_k > 0
        || request.target_prompt_logprobs.is_some();
    ensure(request.sampling_params.max_tokens != Some(0) || scores_prompt, || {
        "sampling_params.max_tokens must be at least 1 where nothing of the prompt is asked for"
            .to_owned()
    })?;
    size(limits, request, prompt)
}

fn last_n(request: &SampleRequest, prompt: usize) -> Result<(), Fault> {
    let Some(last_n) = request.prompt_logprobs_last_n else { return Ok(()) };
    ensure(request.prompt_logprobs, || {
        "prompt_logprobs_last_n is given without prompt_logprobs; it says how many of them are \
         wanted"
            .to_owned()
    })?;
    let most = prompt - 1;
    let fits = last_n >= 1 && usize::try_from(last_n).is_ok_and(|last_n| last_n <= most);
    ensure(fits, || {
        format!(
            "prompt_logprobs_last_n is {last_n}; it must be from 1 to {most}, one less than the \
             prompt's {prompt} tokens"
        )
    })
}

/// Checks a matrix of token ids, `[prompt - 1, k]`, -1 where none is given.
fn targets_fit(limits: &Limits, tensor: &TensorData, prompt: usize) -> Result<(), Fault> {
    const NAME: &str = "target_prompt_logprobs";
    let Values::Int64(ids) = &tensor.data else {
        return Err(Fault(format!("{NAME} has the dtype float32; token ids are int64")));
    };
    debug_assert_eq!(tensor.dtype, DataType::Int64, "the values have the type");
    let rows = prompt - 1;
    let columns = match tensor.shape.as_deref() {
        Some(&[given, columns]) if usize::try_from(given) == Ok(rows) && columns >= 1 => {
            usize::try_from(columns).unwrap_or(usize::MAX)
        }
        shape => {
            return Err(Fault(format!(
                "{NAME} has the shape {}; expected is [{rows}, K] with K of at least 1, as the \
                 prompt has {prompt} tokens",
                shape.map_or_else(|| "null".to_owned(), |shape| format!("{shape:?}"))
            )));
        }
    };
    match (&tensor.sparse_crow_indices, &tensor.sparse_col_indices) {
        (None, None) => {
            let cells = rows.checked_mul(columns);
            ensure(cells == Some(ids.len()), || {
                let found = ids.len();
                format!("{NAME}.data has {found} values; its shape says {rows} times {columns}")
            })?;
        }
        (Some(crow), Some(col)) => sparse(crow, col, (rows, columns, ids.len()))?,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Fault(format!(
                "{NAME} has one of sparse_crow_indices and sparse_col_indices, and needs both"
            )));
        }
    }
    ensure(ids.iter().any(|&id| id != -1), || format!("{NAME} names no token id"))?;
    // A cell of -1 asks for nothing.
    let place = format!("{NAME}.data");
    tokens(limits.vocab_size, &place, ids.iter().map(|&id| if id == -1 { 0 } else { id }))
}

/// Checks the indices of a sparse matrix with so many rows, columns and values.
fn sparse(
    crow: &[i64],
    col: &[i64],
    (rows, columns, values): (usize, usize, usize),
) -> Result<(), Fault> {
    let place = "target_prompt_logprobs.sparse_crow_indices";
    let starts: Option<Vec<usize>> =
        crow.iter().map(|&start| usize::try_from(start).ok()).collect();
    let starts = starts.filter(|starts| {
        starts.len() == rows + 1 && starts[0] == 0 && starts.is_sorted() && starts[rows] == values
    });
    let starts = starts.ok_or_else(|| {
        Fault(format!(
            "{place} is not {} numbers that rise from 0 to the number of values, {values}",
            rows + 1
        ))
    })?;
    let place = "target_prompt_logprobs.sparse_col_indices";
    ensure(col.len() == values, || {
        format!("{place} has {} entries for {values} values", col.len())
    })?;
    for row in starts.windows(2) {
        let row = &col[row[0]..row[1]];
        let inside = row.iter().all(|&column| usize::try_from(column).is_ok_and(|c| c < columns));
        ensure(inside && row.is_sorted_by(|a, b| a < b), || {
            format!("{place} must rise within each row and be below the {columns} columns")
        })?;
    }
    Ok(())
}

/// Refuses results that are too large to be kept.
fn size(limits: &Limits, request: &SampleRequest, prompt: usize) -> Result<(), Fault> {
    let drawn = request
        .sampling_params
        .max_tokens
        .map_or(limits.context - prompt, |max| usize::try_from(max).unwrap_or(usize::MAX));
    let samples = usize::try_from(request.num_samples).unwrap_or(usize::MAX);
    let width = |k: u32| usize::try_from(k).unwrap_or(usize::MAX);
    let targets = request.target_prompt_logprobs.as_ref().map_or(0, |targets| targets.data.len());
    let counts = [
        ("topk_prompt_logprobs", prompt.saturating_mul(width(request.topk_prompt_logprobs))),
        ("prompt_alt_tokens_k", prompt.saturating_mul(width(request.prompt_alt_tokens_k))),
        ("target_prompt_logprobs", targets),
        (
            "topk_sample_logprobs",
            samples.saturating_mul(drawn).saturating_mul(width(request.topk_sample_logprobs)),
        ),
    ];
    let total = counts.iter().fold(0_usize, |sum, (_, count)| sum.saturating_add(*count));
    let (name, count) = counts.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default();
    ensure(total <= limits.logprobs_max, || {
        format!(
            "{name} asks for {count} logprobs, of {total} in all; at most {} are given in one \
             result",
            limits.logprobs_max
        )
    })
}
