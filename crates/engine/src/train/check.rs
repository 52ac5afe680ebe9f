//! What training work must look like before it is queued.

use crate::{
    Datum, Error, Result,
    loss::{Chosen, Fill, Loss, Rule, Term, Terms},
};

/// What a datum may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) vocab_size: usize,
    /// The model's context.
    pub(crate) positions_max: usize,
    /// The longest datum whose activations fit.
    pub(crate) tokens_max: usize,
}

/// Refuses datums that cannot be computed, and names the place.
pub(crate) fn check_datums(loss: &Chosen, datums: &[Datum], limits: &Limits) -> Result<()> {
    if datums.is_empty() {
        return Err(Error::user("the data is empty; give at least one datum"));
    }
    for (index, datum) in datums.iter().enumerate() {
        check_tokens(datum, limits)
            .and_then(|()| match loss {
                Chosen::Named { loss, options } => {
                    check_inputs(loss, datum)?;
                    check_terms(loss, options, datum)
                }
                Chosen::Custom(loss) => loss.check(datum),
            })
            .map_err(|problem| Error::user(format!("datum {index}: {problem}")))?;
    }
    Ok(())
}

/// Refuses numbers that do not go together, token by token.
fn check_terms(loss: &Loss, options: &[f64], datum: &Datum) -> Result<(), String> {
    let columns = loss.columns(datum);
    let mut inputs = Vec::new();
    for index in 0..datum.targets.len() {
        loss.fill(&columns, index, options, &mut inputs);
        let term = Term { logprob: 0.0, inputs: &inputs, options };
        if let Some(problem) = (loss.problem)(&term) {
            return Err(format!("token {}: {problem}", index / datum.per_row));
        }
    }
    match &loss.rule {
        Rule::Token(_) => Ok(()),
        Rule::Datum(rule) => {
            (rule.problem)(&Terms::new(loss, options, datum, None)).map_or(Ok(()), Err)
        }
    }
}

/// Refuses tokens and targets that no loss can be computed of.
fn check_tokens(datum: &Datum, limits: &Limits) -> Result<(), String> {
    let tokens = datum.tokens.len();
    if tokens == 0 {
        return Err("model_input has no tokens".to_owned());
    }
    if tokens > limits.positions_max {
        let context = limits.positions_max;
        return Err(format!("{tokens} tokens do not fit the model's context of {context}"));
    }
    if tokens > limits.tokens_max {
        let most = limits.tokens_max;
        return Err(format!("{tokens} tokens do not fit this server's memory; {most} do"));
    }
    check_ids("model_input", &datum.tokens, limits.vocab_size)?;
    if datum.per_row == 0 {
        return Err("target_tokens has no candidates".to_owned());
    }
    let cells = tokens * datum.per_row;
    check_length("target_tokens", datum.targets.len(), cells, tokens)?;
    check_ids("target_tokens", &datum.targets, limits.vocab_size)
}

/// Refuses inputs that the loss cannot be computed of.
fn check_inputs(loss: &Loss, datum: &Datum) -> Result<(), String> {
    if datum.per_row > 1 && !loss.candidates {
        return Err(format!("{} takes one target a token, not {}", loss.name, datum.per_row));
    }
    let (tokens, cells) = (datum.tokens.len(), datum.targets.len());
    for input in loss.inputs {
        match datum.values.get(input.name) {
            Some(values) => {
                check_length(input.name, values.len(), cells, tokens)?;
                if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                    return Err(format!("{}[{at}] = {} is not finite", input.name, values[at]));
                }
            }
            None if input.fill != Fill::Required => {}
            None => return Err(format!("{} needs {:?} in loss_fn_inputs", loss.name, input.name)),
        }
    }
    Ok(())
}

/// Refuses tokens that the model does not have.
pub(crate) fn check_ids(name: &str, ids: &[u32], vocab_size: usize) -> Result<(), String> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        Some(at) => {
            let id = ids[at];
            Err(format!("{name}[{at}] = {id} is outside the vocabulary of {vocab_size} tokens"))
        }
        None => Ok(()),
    }
}

fn check_length(name: &str, length: usize, cells: usize, tokens: usize) -> Result<(), String> {
    if length == cells {
        return Ok(());
    }
    Err(format!("{name} has {length} values where {tokens} tokens of model_input need {cells}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LIMITS: Limits = Limits { vocab_size: 10, positions_max: 8, tokens_max: 6 };

    fn datum(tokens: usize) -> Datum {
        Datum {
            tokens: vec![1; tokens],
            targets: vec![2; tokens],
            per_row: 1,
            values: BTreeMap::new(),
            arrays: Vec::new(),
        }
    }

    fn check(loss: &str, datum: &Datum, expected: &str) {
        let loss = Chosen::new(loss.into(), &BTreeMap::new()).unwrap();
        let message = match check_datums(&loss, std::slice::from_ref(datum), &LIMITS) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(message, expected);
    }

    #[test]
    fn messages_name_the_place() {
        let good = datum(3);
        let with = |name: &str, values: &[f32]| Datum {
            values: BTreeMap::from([(name.to_owned(), values.to_vec())]),
            ..good.clone()
        };
        check("cross_entropy", &good, "ok");
        check("cross_entropy", &with("weights", &[1.0, -1.0, 0.0]), "ok");
        check("cross_entropy", &with("unknown", &[f32::NAN]), "ok");
        check("cross_entropy", &datum(0), "datum 0: model_input has no tokens");
        check(
            "cross_entropy",
            &datum(7),
            "datum 0: 7 tokens do not fit this server's memory; 6 do",
        );
        check("cross_entropy", &datum(9), "datum 0: 9 tokens do not fit the model's context of 8");
        check(
            "cross_entropy",
            &Datum { targets: vec![1, 2, 10], ..good.clone() },
            "datum 0: target_tokens[2] = 10 is outside the vocabulary of 10 tokens",
        );
        check(
            "cross_entropy",
            &Datum { targets: vec![1, 2], ..good.clone() },
            "datum 0: target_tokens has 2 values where 3 tokens of model_input need 3",
        );
        check(
            "cross_entropy",
            &with("weights", &[1.0, f32::NAN, 0.0]),
            "datum 0: weights[1] = NaN is not finite",
        );
        check(
            "importance_sampling",
            &with("logprobs", &[0.0; 3]),
            "datum 0: importance_sampling needs \"advantages\" in loss_fn_inputs",
        );
        check(
            "importance_sampling",
            &Datum { per_row: 2, targets: vec![0; 6], ..good.clone() },
            "datum 0: importance_sampling takes one target a token, not 2",
        );
    }

    #[test]
    fn bounds_are_compared_token_by_token() {
        let mut datum = datum(3);
        for (name, values) in [
            ("logprobs", [-1.0; 3]),
            ("advantages", [1.0; 3]),
            ("clip_low_threshold", [0.5, 1.2, 1.25]),
        ] {
            datum.values.insert(name.to_owned(), values.to_vec());
        }
        check("cispo", &datum, "ok");
        check(
            "ppo",
            &datum,
            "datum 0: token 1: clip_low_threshold = 1.2000000476837158 is above \
             clip_high_threshold = 1.2",
        );
        datum.values.insert("clip_high_threshold".to_owned(), vec![1.25; 3]);
        check("ppo", &datum, "ok");
    }
}
