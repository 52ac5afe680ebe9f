//! A loss: a checked graph, ready to be evaluated on one datum after the other.

use std::panic::{self, AssertUnwindSafe};

use crate::{
    Dtype, Error, Limits, Result, Tensor,
    error::Fallible,
    ops::{self, Call},
    tape::{Tape, Var},
    value::Value,
    wire::{self, Argument, Kind, Node},
};

/// Inputs of a loss, the logprobs included.
const INPUTS_MAX: usize = 16;
/// Characters of an input's name.
const INPUT_NAME_MAX: usize = 64;
/// Metrics of a loss.
const METRICS_MAX: usize = 64;
/// Characters of a metric's name, without prefix and reduction.
const METRIC_NAME_MAX: usize = 64;

/// A loss that somebody sent.
#[derive(Debug)]
pub struct Loss {
    inputs: Vec<Input>,
    steps: Vec<Step>,
    /// Place of the node that is the loss.
    loss: usize,
    metrics: Vec<Metric>,
}

/// Name, reduction, and the place of the node that gives the value.
type Metric = (String, Reduction, usize);

/// An input of a loss.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Input {
    /// `logprobs` for the first, else the name of a datum's input.
    pub name: String,
    /// 0: a scalar, 1: `[T]`, 2: `[T, K]`.
    pub rank: u8,
}

/// How a metric's values of several datums become one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reduction {
    /// They are added.
    Sum,
    /// They are averaged, each datum counting the same.
    Mean,
}

/// What a loss is on one datum.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// The loss.
    pub loss: f64,
    /// In the order of [`Loss::metrics`].
    pub metrics: Vec<f64>,
    /// `dloss/dlogprob`, in the layout of the logprobs.
    pub gradient: Vec<f64>,
}

#[derive(Debug)]
enum Step {
    Input,
    Call { node: String, target: String, op: &'static ops::Op, slots: Vec<Argument> },
    Output,
}

impl Loss {
    /// Checks a graph, `{"format": 1, "nodes": […]}`, and its declared inputs.
    ///
    /// # Errors
    /// Whatever is not allowed, by place and name.
    pub fn new(inputs: Vec<Input>, graph: &serde_json::Value, limits: &Limits) -> Result<Self> {
        check_inputs(&inputs)?;
        let nodes = wire::nodes(graph, limits)?;
        let mut steps = Vec::with_capacity(nodes.len());
        let mut placeholders = Vec::new();
        for (place, node) in nodes.iter().enumerate() {
            let refused = |message| Error::Graph(format!("graph: nodes[{place}]: {message}"));
            steps.push(match node.kind {
                Kind::Placeholder => {
                    if !node.arguments.is_empty() {
                        return Err(refused(format!("the input {} has a default", node.target)));
                    }
                    placeholders.push(node.target.as_str());
                    Step::Input
                }
                Kind::Function | Kind::Method => call(node).map_err(refused)?,
                Kind::Output if place + 1 == nodes.len() => Step::Output,
                Kind::Output => return Err(refused("an output that is not the last node".into())),
            });
        }
        let declared: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        if placeholders != declared {
            return Err(Error::Graph(format!(
                "the graph takes ({}) but the inputs are ({})",
                placeholders.join(", "),
                declared.join(", ")
            )));
        }
        let Some(output) = nodes.last().filter(|node| node.kind == Kind::Output) else {
            return Err(Error::Graph("graph: has no output".to_owned()));
        };
        let (loss, metrics) = output_of(output)
            .map_err(|message| Error::Graph(format!("graph: output: {message}")))?;
        Ok(Self { inputs, steps, loss, metrics })
    }

    /// The inputs in order, `logprobs` first.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The metrics' names, `custom/<name>:<reduction>`, in the order of [`Evaluated::metrics`].
    pub fn metrics(&self) -> impl Iterator<Item = (&str, Reduction)> {
        self.metrics.iter().map(|(name, reduction, _)| (name.as_str(), *reduction))
    }

    /// Loss, metrics and gradient of one datum, from the values of the inputs in order.
    ///
    /// # Errors
    /// Inputs of other ranks, an operation that fails on them, a loss that is no scalar or does not depend
    /// on the logprobs, and what goes beyond the limits.
    pub fn evaluate(&self, inputs: &[Tensor], limits: &Limits) -> Result<Evaluated> {
        self.check_ranks(inputs)?;
        // Whoever sends a graph chooses what meets what: a mistake of the interpreter must cost that loss alone.
        let evaluated = panic::catch_unwind(AssertUnwindSafe(|| self.interpret(inputs, limits)));
        let failed = |_| Err(Error::Output("the interpreter failed on this datum".to_owned()));
        evaluated.unwrap_or_else(failed)
    }

    fn interpret(&self, inputs: &[Tensor], limits: &Limits) -> Result<Evaluated> {
        let mut tape = Tape::new(*limits);
        let mut values: Vec<Value> = Vec::with_capacity(self.steps.len());
        let mut given = inputs.iter();
        let mut logprobs = None;
        for step in &self.steps {
            values.push(match step {
                Step::Input => {
                    let Some(tensor) = given.next() else { break };
                    let var = input(&mut tape, tensor, logprobs.is_none())?;
                    logprobs.get_or_insert_with(|| var.clone());
                    Value::Tensor(var)
                }
                Step::Call { node, target, op, slots } => {
                    let slots = slots.iter().map(|slot| Value::resolve(slot, &values)).collect();
                    (op.run)(&mut Call { tape: &mut tape, slots }).map_err(|message| {
                        Error::Node { node: node.clone(), target: target.clone(), message }
                    })?
                }
                Step::Output => Value::None,
            });
        }
        let metrics = self.metrics.iter().map(|(name, _, place)| metric(name, &values[*place]));
        let metrics = metrics.collect::<Result<_>>()?;
        let loss = scalar(&values[self.loss])?;
        let gradient = logprobs.and_then(|logprobs| tape.gradient(&loss, &logprobs));
        let gradient = gradient.ok_or_else(|| {
            Error::Output(
                "the loss does not depend on logprobs in a way that can be differentiated".into(),
            )
        })?;
        Ok(Evaluated { loss: loss.data()[0], metrics, gradient })
    }

    fn check_ranks(&self, inputs: &[Tensor]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            let (given, wanted) = (inputs.len(), self.inputs.len());
            return Err(Error::Input(format!("{given} inputs for a loss that takes {wanted}")));
        }
        for (declared, tensor) in self.inputs.iter().zip(inputs) {
            if tensor.shape.len() != usize::from(declared.rank) {
                return Err(Error::Input(format!(
                    "{} has the shape {:?}, but the loss declared it with rank {}",
                    declared.name, tensor.shape, declared.rank
                )));
            }
        }
        Ok(())
    }
}

fn check_inputs(inputs: &[Input]) -> Result<()> {
    let refused = |message: String| Err(Error::Graph(format!("inputs: {message}")));
    let Some(first) = inputs.first() else {
        return refused("there are none; the first is logprobs".to_owned());
    };
    if first.name != "logprobs" || first.rank == 0 {
        return refused("the first must be logprobs, of rank 1 or 2".to_owned());
    }
    if inputs.len() > INPUTS_MAX {
        return refused(format!("there are {}; the limit is {INPUTS_MAX}", inputs.len()));
    }
    for (place, input) in inputs.iter().enumerate() {
        let mut letters = input.name.bytes();
        let named = letters.next().is_some_and(|first| first == b'_' || first.is_ascii_lowercase())
            && letters.all(|c| c == b'_' || c.is_ascii_lowercase() || c.is_ascii_digit())
            && input.name.len() <= INPUT_NAME_MAX;
        if !named {
            return refused(format!(
                "{:?} is not a name of at most {INPUT_NAME_MAX} lowercase letters, digits and underscores",
                input.name
            ));
        }
        if input.rank > 2 {
            return refused(format!(
                "{} has rank {}; 0, 1 and 2 are known",
                input.name, input.rank
            ));
        }
        if inputs[..place].iter().any(|other| other.name == input.name) {
            return refused(format!("{} is there twice", input.name));
        }
    }
    Ok(())
}

fn call(node: &Node) -> Fallible<Step> {
    let op = ops::find(node)?;
    let slots = ops::bind(op, node).map_err(|message| format!("{}: {message}", node.target))?;
    Ok(Step::Call { node: node.name.clone(), target: node.target.clone(), op, slots })
}

/// The places of the loss and of the metrics.
fn output_of(node: &Node) -> Fallible<(usize, Vec<Metric>)> {
    let parts = match node.arguments.as_slice() {
        [Argument::Tuple(parts) | Argument::List(parts)] => parts.as_slice(),
        _ => &[],
    };
    let [Argument::Node(loss), Argument::Dict(entries)] = parts else {
        return Err("a loss must return (loss, metrics), a tensor and a dict of tensors".to_owned());
    };
    if entries.len() > METRICS_MAX {
        return Err(format!("{} metrics; the limit is {METRICS_MAX}", entries.len()));
    }
    let mut metrics = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        let Some(reduction) = reduction(name) else {
            return Err(format!(
                "the metric {name:?} is not called custom/<name>:sum or custom/<name>:mean, the name \
                 being 1 to {METRIC_NAME_MAX} of a-z 0-9 _ . / -"
            ));
        };
        let Argument::Node(place) = value else {
            return Err(format!("the metric {name:?} is not the value of a node"));
        };
        metrics.push((name.clone(), reduction, *place));
    }
    Ok((*loss, metrics))
}

fn reduction(metric: &str) -> Option<Reduction> {
    let (name, reduction) = metric.strip_prefix("custom/")?.rsplit_once(':')?;
    let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_./-".contains(&c);
    if name.is_empty() || name.len() > METRIC_NAME_MAX || !name.bytes().all(letters) {
        return None;
    }
    match reduction {
        "sum" => Some(Reduction::Sum),
        "mean" => Some(Reduction::Mean),
        _ => None,
    }
}

/// The value of an input; the first is what the gradient is taken with respect to.
fn input(tape: &mut Tape, tensor: &Tensor, first: bool) -> Result<Var> {
    let var = if first {
        tape.leaf(tensor.clone())
    } else {
        tape.constant(tensor.dtype, tensor.shape.clone(), tensor.data.to_vec())
    };
    var.map_err(Error::Input)
}

fn metric(name: &str, value: &Value) -> Result<f64> {
    value.to_f64().map_err(|message| Error::Output(format!("the metric {name}: {message}")))
}

fn scalar(value: &Value) -> Result<Var> {
    let Value::Tensor(var) = value else {
        return Err(Error::Output(format!("the loss is {}, not a tensor", value.kind())));
    };
    if var.rank() != 0 {
        let shape = var.shape();
        return Err(Error::Output(format!("the loss has the shape {shape:?}, and not one number")));
    }
    if var.dtype() == Dtype::Bool || !var.dtype().is_float() {
        return Err(Error::Output(format!("the loss is of type {}", var.dtype())));
    }
    Ok(var.clone())
}
