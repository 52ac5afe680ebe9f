//! Losses that run on the server: traced once, sent as data.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    CustomLoss, LossValue, Var,
    evaluate::{failed, guarded},
    inputs,
    tape::{Mode, Node, Operand, Tape},
    wire,
};
use crate::{CustomInput, Datum, Error, Result};

/// Inputs of a loss, the logprobs included: the API's limit.
const INPUTS_MAX: usize = 16;
/// Characters of a name: the API's limit.
const NAME_MAX: usize = 64;

/// A loss as data: what a closure does with the inputs of one datum, written down once.
///
/// The losses of the datums of a batch are added up. The same expression runs on the server (see
/// `ServiceClient::create_custom_loss`) and here, as a [`CustomLoss`].
///
/// ```
/// use tinsmith::custom::{Expression, LossValue};
///
/// let loss = Expression::trace("clipped", [("logprobs", 1), ("sampled", 1), ("advantages", 1)], |inputs| {
///     let ratio = (inputs.logprobs() - inputs.get("sampled")).exp();
///     let advantages = inputs.get("advantages");
///     let clipped = ratio.clamp(0.8, 1.2) * &advantages;
///     let surrogate = (&ratio * &advantages).minimum(&clipped);
///     Ok(LossValue::new(-surrogate.sum()).metric("custom/ratio:mean", &ratio.mean()))
/// })?;
/// assert_eq!(loss.inputs()[2].name, "advantages");
/// # Ok::<(), tinsmith::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Expression {
    name: String,
    inputs: Vec<CustomInput>,
    nodes: Vec<Node>,
    /// Place of the node that is the loss.
    pub(super) loss: usize,
    /// Name and place.
    metrics: Vec<(String, usize)>,
}

/// The inputs of one datum while a loss is traced.
#[derive(Debug)]
pub struct Inputs {
    values: Vec<(String, Var)>,
    logprobs: Var,
}

impl Inputs {
    /// The model's log-probabilities of the datum's targets.
    pub fn logprobs(&self) -> Var {
        self.logprobs.clone()
    }

    /// The input of this name; one that was not declared makes the trace fail.
    pub fn get(&self, name: &str) -> Var {
        let found = self.values.iter().find(|(known, _)| known == name);
        found.map_or_else(
            || {
                let names: Vec<&str> = self.values.iter().map(|(name, _)| name.as_str()).collect();
                let names = names.join(", ");
                self.logprobs.tape().fail(&format!("there is no input {name:?}, only {names}"));
                self.logprobs()
            },
            |(_, value)| value.clone(),
        )
    }
}

impl Expression {
    /// Writes down what `loss` does. The inputs are named with their ranks, `logprobs` first; the others are loss
    /// inputs of the datums. Metrics are called `custom/name:sum` or `custom/name:mean`.
    ///
    /// # Errors
    /// Inputs or metrics that the API does not take, and a loss that fails, panics, looks at values (which are not
    /// there yet) or is no scalar.
    pub fn trace<'a>(
        name: impl Into<String>,
        inputs: impl IntoIterator<Item = (&'a str, usize)>,
        loss: impl FnOnce(&Inputs) -> Result<LossValue>,
    ) -> Result<Self> {
        let inputs: Vec<CustomInput> = inputs
            .into_iter()
            .map(|(name, rank)| CustomInput { name: name.to_owned(), rank })
            .collect();
        check_inputs(&inputs)?;
        let tape = Tape::new(Mode::Traced);
        let values: Vec<(String, Var)> =
            inputs.iter().map(|input| (input.name.clone(), tape.input(input.rank))).collect();
        let logprobs = values[0].1.clone();
        let value = guarded(|| loss(&Inputs { values, logprobs }))?;
        if let Some(message) = tape.error() {
            return Err(failed(message));
        }
        if !Rc::ptr_eq(value.loss.tape(), &tape) {
            return Err(failed("it gave a value of another calculation"));
        }
        if value.loss.rank() != 0 {
            let rank = value.loss.rank();
            return Err(failed(format!(
                "it has {rank} dimensions and must be one number: use sum() or mean()"
            )));
        }
        let metrics = metrics_of(&tape, &value)?;
        let loss = value.loss.place();
        Ok(Self { name: name.into(), inputs, nodes: tape.nodes(), loss, metrics })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it reads, `logprobs` first.
    pub fn inputs(&self) -> &[CustomInput] {
        &self.inputs
    }

    /// The names of its metrics.
    pub fn metrics(&self) -> impl Iterator<Item = &str> {
        self.metrics.iter().map(|(name, _)| name.as_str())
    }

    /// The graph as the API takes it: `{"format": 1, "nodes": […]}`.
    pub fn graph(&self) -> serde_json::Value {
        wire::graph(&self.inputs, &self.nodes, self.loss, &self.metrics)
    }

    /// Checks that each datum has what the loss reads, in its rank, as the server will.
    ///
    /// # Errors
    /// The first that is missing or has another rank, by datum and name.
    pub fn check(&self, data: &[Datum]) -> Result<()> {
        for (place, datum) in data.iter().enumerate() {
            for (at, input) in self.inputs.iter().enumerate() {
                let name = if at == 0 { "target_tokens" } else { input.name.as_str() };
                let array = inputs::input(datum, name)
                    .map_err(|error| failed(format!("datum {place}: {}", message_of(&error))))?;
                if array.rank() != input.rank {
                    return Err(failed(format!(
                        "datum {place}: {name} has the shape {:?}, but {:?} declares {} with rank {}",
                        array.shape(),
                        self.name,
                        input.name,
                        input.rank
                    )));
                }
            }
        }
        Ok(())
    }

    /// Runs the steps on the values of one datum.
    pub(super) fn replay(&self, datum: &Datum, logprobs: &Var) -> Result<Vec<Var>> {
        let mut values: Vec<Var> = Vec::with_capacity(self.nodes.len());
        for (place, node) in self.nodes.iter().enumerate() {
            let value = match self.inputs.get(place) {
                Some(_) if place == 0 => logprobs.clone(),
                Some(input) => logprobs.input(datum, &input.name)?,
                None => {
                    let moved = |arg: &Operand| match arg {
                        Operand::Number(number) => Operand::Number(*number),
                        Operand::Node(place) => Operand::Node(values[*place].place()),
                    };
                    let args = node.args.iter().map(moved).collect();
                    logprobs.tape().push(node.op.clone(), args)
                }
            };
            values.push(value);
        }
        Ok(values)
    }
}

impl CustomLoss for Expression {
    /// The datums' losses added up, and their metrics added or averaged as their names say.
    fn compute(&self, data: &[Datum], logprobs: &[Var]) -> Result<LossValue> {
        self.check(data)?;
        let mut total: Option<Var> = None;
        let mut metrics: BTreeMap<&str, f64> = BTreeMap::new();
        for (datum, logprobs) in data.iter().zip(logprobs) {
            let values = self.replay(datum, logprobs)?;
            let loss = values[self.loss].clone();
            total = Some(match total {
                Some(total) => total + loss,
                None => loss,
            });
            for (name, place) in &self.metrics {
                *metrics.entry(name).or_default() += values[*place].item();
            }
        }
        let Some(total) = total else { return Err(failed("there are no datums")) };
        let mut value = LossValue::new(total);
        for (name, sum) in metrics {
            let is_mean = name.ends_with(":mean");
            let divisor = if is_mean { super::op::count(data.len()) } else { 1.0 };
            value = value.metric(name, sum / divisor);
        }
        Ok(value)
    }
}

/// Without the words that every error of its kind begins with.
fn message_of(error: &Error) -> String {
    let text = error.to_string();
    text.strip_prefix("check the arguments: ").map_or_else(|| text.clone(), ToOwned::to_owned)
}

fn check_inputs(inputs: &[CustomInput]) -> Result<()> {
    let first = inputs.first();
    if first.is_none_or(|first| first.name != "logprobs" || first.rank == 0) {
        return Err(failed("its first input must be (\"logprobs\", 1), or 2 for candidates"));
    }
    if inputs.len() > INPUTS_MAX {
        return Err(failed(format!("it has {} inputs; the limit is {INPUTS_MAX}", inputs.len())));
    }
    for (place, input) in inputs.iter().enumerate() {
        let mut letters = input.name.bytes();
        let is_name =
            letters.next().is_some_and(|first| first == b'_' || first.is_ascii_lowercase())
                && letters.all(|c| c == b'_' || c.is_ascii_lowercase() || c.is_ascii_digit())
                && input.name.len() <= NAME_MAX;
        if !is_name {
            return Err(failed(format!(
                "the input {:?} must be called by at most {NAME_MAX} lowercase letters, digits and underscores",
                input.name
            )));
        }
        if input.rank > 2 {
            return Err(failed(format!(
                "the input {} has rank {}; 0, 1 and 2 are possible",
                input.name, input.rank
            )));
        }
        if inputs[..place].iter().any(|other| other.name == input.name) {
            return Err(failed(format!("the input {} is there twice", input.name)));
        }
    }
    Ok(())
}

/// The metrics' names and nodes, checked as the server will.
fn metrics_of(tape: &Rc<Tape>, value: &LossValue) -> Result<Vec<(String, usize)>> {
    let mut metrics: Vec<(String, usize)> = Vec::new();
    for (name, operand) in &value.metrics {
        if !is_metric(name) {
            return Err(failed(format!(
                "the metric {name:?} must be called custom/<name>:sum or custom/<name>:mean, the name being 1 to \
                 {NAME_MAX} of a-z 0-9 _ . / -"
            )));
        }
        let Operand::Node(place) = operand else {
            return Err(failed(format!(
                "the metric {name:?} is a plain number, not a value of the loss"
            )));
        };
        if tape.rank(*place) != 0 {
            return Err(failed(format!(
                "the metric {name:?} must be one number: use sum() or mean()"
            )));
        }
        if metrics.iter().any(|(other, _)| other == name) {
            return Err(failed(format!("the metric {name:?} is there twice")));
        }
        metrics.push((name.clone(), *place));
    }
    Ok(metrics)
}

fn is_metric(metric: &str) -> bool {
    let Some((name, reduction)) =
        metric.strip_prefix("custom/").and_then(|rest| rest.rsplit_once(':'))
    else {
        return false;
    };
    let is_letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_./-".contains(&c);
    matches!(reduction, "sum" | "mean")
        && (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(is_letter)
}
