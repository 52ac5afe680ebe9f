//! Whether a batch is what a loss reads, before it leaves the client.

use tinsmith_types::{
    tensor::{DataType, Values},
    training::LossConfigValue,
};

use crate::{Datum, Error, Loss, Result, TensorData, datum::TARGETS};

use super::{
    LOSS_ID, LossFn,
    table::{NAMES, SPECS, Spec},
};

const LOW: &str = "clip_low_threshold";
const HIGH: &str = "clip_high_threshold";

impl Loss {
    /// Whether the settings are the loss's own, and every datum has what it reads: names, types, shapes, finite
    /// numbers. Arrays that only other losses read are let through; servers do not look at them.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong: which datum, which input, and what was expected.
    pub fn check(&self, data: &[Datum]) -> Result<()> {
        if data.is_empty() {
            return Err(Error::validation("data is empty: a batch needs at least one datum"));
        }
        let spec = SPECS.iter().find(|spec| &spec.name == self.function());
        if let Some(spec) = spec {
            self.check_settings(spec)?;
        }
        for (index, datum) in data.iter().enumerate() {
            let place = format!("data[{index}]");
            if datum.model_input().chunks().iter().all(|chunk| chunk.length().is_ok_and(|n| n == 0))
            {
                return Err(Error::validation(format!("{place}.model_input has no tokens")));
            }
            if let Some(spec) = spec {
                self.check_datum(spec, &place, datum)?;
            }
        }
        Ok(())
    }

    fn check_settings(&self, spec: &Spec) -> Result<()> {
        if *self.function() == LossFn::Custom {
            return match self.config().get(LOSS_ID) {
                Some(LossConfigValue::Text(_)) if self.config().len() == 1 => Ok(()),
                Some(_) | None => Err(Error::validation(
                    "the loss custom has one setting, loss_id: create the loss first",
                )),
            };
        }
        for (name, value) in self.config() {
            if !spec.settings.iter().any(|(known, _)| known == name) {
                let known: Vec<&str> = spec.settings.iter().map(|(known, _)| *known).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let message = format!("{name} is no setting of the loss {}", self.name());
                return Err(Error::validation(format!("{message}; it has: {known}")));
            }
            match value {
                LossConfigValue::Number(number) if number.is_finite() => {}
                LossConfigValue::Number(number) => {
                    return Err(Error::validation(format!(
                        "{name} of the loss {} is {number}",
                        self.name()
                    )));
                }
                LossConfigValue::Text(text) => {
                    let message = format!("{name} of the loss {} is {text:?}", self.name());
                    return Err(Error::validation(format!("{message}; a number is expected")));
                }
            }
        }
        if let [Some(LossConfigValue::Number(low)), Some(LossConfigValue::Number(high))] =
            [LOW, HIGH].map(|name| self.config().get(name))
            && low > high
        {
            return Err(Error::validation(format!(
                "{LOW} is {low}, above {HIGH}, which is {high}"
            )));
        }
        Ok(())
    }

    fn check_datum(&self, spec: &Spec, place: &str, datum: &Datum) -> Result<()> {
        let inputs = format!("{place}.loss_fn_inputs");
        // Without the length of a picture, the targets are believed.
        let length = datum.model_input().length().ok();
        let missing = |name: &str| {
            let message = format!("{inputs}.{name} is missing; the loss {} needs it", self.name());
            let given: Vec<&str> = datum.loss_fn_inputs().keys().map(String::as_str).collect();
            let given = if given.is_empty() { "none".to_owned() } else { given.join(", ") };
            Error::validation(format!("{message}. The datum has: {given}"))
        };
        let targets = datum.input(TARGETS).ok_or_else(|| missing(TARGETS))?;
        check_targets(spec, &format!("{inputs}.{TARGETS}"), targets, length)?;
        for name in spec.required {
            if datum.input(name).is_none() {
                return Err(missing(name));
            }
        }
        if let Some(custom) = &self.custom_inputs {
            for input in custom {
                let tensor = datum.input(&input.name).ok_or_else(|| missing(&input.name))?;
                if tensor.shape().len() != input.rank {
                    let (name, shape, rank) = (&input.name, tensor.shape(), input.rank);
                    let message = format!("{inputs}.{name} has the shape {shape:?}");
                    return Err(Error::validation(format!(
                        "{message}; expected are {rank} dimensions"
                    )));
                }
            }
            return Ok(());
        }
        if *self.function() == LossFn::Custom {
            return Ok(());
        }
        for (name, tensor) in datum.loss_fn_inputs() {
            let is_read =
                |name: &str| spec.required.contains(&name) || spec.optional.contains(&name);
            if is_read(name) {
                check_numbers(&format!("{inputs}.{name}"), tensor, targets.shape())?;
            } else if name != TARGETS && !NAMES.contains(&name.as_str()) {
                return Err(self.unknown(spec, &inputs, name));
            }
        }
        check_bounds(&inputs, datum)?;
        if *self.function() == LossFn::Gspo {
            check_mask(&inputs, datum)?;
        }
        if spec.provenance && datum.provenance().is_none() {
            let message = format!("{place} has no provenance; the loss {} needs it", self.name());
            return Err(Error::validation(format!(
                "{message}: Datum::with_provenance says where tokens come from"
            )));
        }
        Ok(())
    }

    fn unknown(&self, spec: &Spec, inputs: &str, name: &str) -> Error {
        let reads: Vec<&str> = [&[TARGETS], spec.required, spec.optional].concat();
        let nearest = reads.iter().find(|read| is_near(read, name));
        let hint = nearest.map_or_else(String::new, |read| format!(" (is it {read}?)"));
        let message = format!("{inputs}.{name} is not read by the loss {}{hint}", self.name());
        Error::validation(format!("{message}; it reads: {}", reads.join(", ")))
    }
}

fn check_targets(
    spec: &Spec,
    place: &str,
    targets: &TensorData,
    length: Option<usize>,
) -> Result<()> {
    let rows = length.map_or_else(|| "n".to_owned(), |length| length.to_string());
    let fits = |found: usize| length.is_none_or(|length| found == length);
    let is_shaped = match *targets.shape() {
        [found] => fits(found),
        [found, candidates] => fits(found) && candidates > 0 && spec.candidates,
        _ => false,
    };
    if !is_shaped {
        let or = if spec.candidates { format!(" or [{rows}, K]") } else { String::new() };
        let message =
            format!("{place} has the shape {:?}; expected is [{rows}]{or}", targets.shape());
        return Err(Error::validation(format!("{message}, as model_input has {rows} tokens")));
    }
    let Values::Int64(ids) = targets.values() else {
        return Err(Error::validation(format!("{place} is float32; expected is int64, token ids")));
    };
    match ids.iter().position(|id| u32::try_from(*id).is_err()) {
        Some(at) => {
            Err(Error::validation(format!("{place}[{at}] is {}; expected is a token id", ids[at])))
        }
        None => Ok(()),
    }
}

fn check_numbers(place: &str, tensor: &TensorData, targets: &[usize]) -> Result<()> {
    let expected = match *targets {
        // One candidate a token may be said in either way.
        [rows, 1] => tensor.shape() == [rows] || tensor.shape() == [rows, 1],
        [rows] => tensor.shape() == [rows] || tensor.shape() == [rows, 1],
        _ => tensor.shape() == targets,
    };
    if !expected {
        let message = format!("{place} has the shape {:?}", tensor.shape());
        return Err(Error::validation(format!(
            "{message}; expected is {targets:?}, that of target_tokens"
        )));
    }
    let Values::Float32(values) = tensor.values() else {
        debug_assert_eq!(tensor.dtype(), DataType::Int64);
        return Err(Error::validation(format!("{place} is int64; expected is float32")));
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::validation(format!(
            "{place}[{at}] is {}; expected is a finite number",
            values[at]
        ))),
        None => Ok(()),
    }
}

/// Bounds for each token must not cross.
fn check_bounds(inputs: &str, datum: &Datum) -> Result<()> {
    let [Some(low), Some(high)] =
        [LOW, HIGH].map(|name| datum.input(name).and_then(TensorData::as_f32))
    else {
        return Ok(());
    };
    match low.iter().zip(high).position(|(low, high)| low > high) {
        Some(at) => {
            let message = format!("{inputs}.{LOW}[{at}] is {}", low[at]);
            Err(Error::validation(format!("{message}, above {HIGH}[{at}], which is {}", high[at])))
        }
        None => Ok(()),
    }
}

fn check_mask(inputs: &str, datum: &Datum) -> Result<()> {
    let name = "sequence_ratio_mask";
    let Some(mask) = datum.input(name).and_then(TensorData::as_f32) else { return Ok(()) };
    if let Some(at) = mask.iter().position(|value| *value < 0.0) {
        let message = format!("{inputs}.{name}[{at}] is {}", mask[at]);
        return Err(Error::validation(format!("{message}; expected are numbers of at least 0")));
    }
    let advantages = datum.input("advantages").and_then(TensorData::as_f32).unwrap_or_default();
    if mask.iter().all(|value| *value == 0.0) && advantages.iter().any(|value| *value != 0.0) {
        return Err(Error::validation(format!(
            "{inputs}.{name} is 0 everywhere; the ratio is of no token"
        )));
    }
    Ok(())
}

/// Whether one name is the other but for a letter or two, or an ending.
fn is_near(one: &str, other: &str) -> bool {
    const DIFFERENT_MAX: usize = 2;
    one.starts_with(other) || other.starts_with(one) || distance(one, other) <= DIFFERENT_MAX
}

/// How many letters have to be put in, taken out or changed to make one text the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
