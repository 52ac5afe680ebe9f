//! Training examples: what the model reads, and the arrays that the loss reads beside it.
//!
//! Position `t` of the input predicts row `t` of `target_tokens`: the constructors in `datum/build.rs` shift, so that
//! nobody has to. Names, types and shapes are checked by the loss, in `loss/check.rs`.

use std::collections::BTreeMap;

use tinsmith_types::{
    datum as wire,
    proto::{self, provenance_span},
};

use crate::{Error, LossInputs, ModelInput, Result, TensorData};

mod build;
mod pair;
mod trajectory;

pub use build::Advantages;
pub use pair::PreferencePair;
pub use trajectory::Trajectory;

/// The array that says what each position has to predict.
pub(crate) const TARGETS: &str = "target_tokens";

/// One training example.
///
/// ```
/// use tinsmith::{Datum, Loss};
///
/// let supervised = Datum::completion(&[1, 2], &[3, 4])?;
/// Loss::cross_entropy().check(&[supervised])?;
/// let sampled = Datum::policy(&[1, 2], &[3, 4], &[-0.5, -0.25], 1.0)?;
/// Loss::from("ppo").check(&[sampled])?;
/// # Ok::<(), tinsmith::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    model_input: ModelInput,
    loss_fn_inputs: BTreeMap<String, TensorData>,
    provenance: Option<Provenance>,
}

/// Where the tokens of a datum come from.
#[derive(Clone, Debug, PartialEq)]
struct Provenance {
    model_input: Vec<ProvenanceSpan>,
    targets: Vec<ProvenanceSpan>,
}

/// A run of tokens of an earlier sample.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProvenanceSpan {
    /// Whether the sampler drew them; else they stand in its prompt.
    pub is_sampled: bool,
    /// The sampled sequence.
    pub sequence_id: String,
    /// The first of them within the prompt, or within what was drawn.
    pub offset: usize,
    /// How many there are.
    pub length: usize,
}

/// What is left of a text that is too long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// Its beginning.
    Beginning,
    /// Its end.
    End,
}

impl Datum {
    /// A datum without inputs of a loss, to which [`Datum::with_input`] adds them.
    pub fn new(model_input: impl Into<ModelInput>) -> Self {
        Self { model_input: model_input.into(), loss_fn_inputs: BTreeMap::new(), provenance: None }
    }

    /// The same with one array for the loss, by the name that the loss knows it by.
    #[must_use]
    pub fn with_input(mut self, name: impl Into<String>, tensor: impl Into<TensorData>) -> Self {
        self.loss_fn_inputs.insert(name.into(), tensor.into());
        self
    }

    /// The same without one array.
    #[must_use]
    pub fn without_input(mut self, name: &str) -> Self {
        self.loss_fn_inputs.remove(name);
        self
    }

    /// The same with all that a loss reads.
    ///
    /// # Errors
    ///
    /// Arrays that are not as long as the input.
    pub fn with_inputs(mut self, inputs: impl Into<LossInputs>) -> Result<Self> {
        let LossInputs { arrays, spans } = inputs.into();
        let length = self.model_input.length()?;
        for (name, tensor) in arrays {
            if tensor.shape().first() != Some(&length) {
                let (shape, tokens) = (tensor.shape(), "tokens");
                let message = format!("{name} has the shape {shape:?} for {length} {tokens}");
                return Err(Error::validation(message));
            }
            self.loss_fn_inputs.insert(name.to_owned(), tensor);
        }
        match spans {
            Some((model_input, targets)) => self.with_provenance(model_input, targets),
            None => Ok(self),
        }
    }

    /// The same with where each token of the input, and of `target_tokens`, comes from.
    ///
    /// # Errors
    ///
    /// Spans that do not cover all of them, each once; a span without a sequence.
    pub fn with_provenance(
        mut self,
        model_input: Vec<ProvenanceSpan>,
        targets: Vec<ProvenanceSpan>,
    ) -> Result<Self> {
        let length = self.model_input.length()?;
        let rows = self.loss_fn_inputs.get(TARGETS).and_then(|tensor| tensor.shape().first());
        for (what, spans, expected) in [
            ("model_input", &model_input, Some(length)),
            (TARGETS, &targets, rows.copied().or(Some(length))),
        ] {
            let covered: usize = spans.iter().map(|span| span.length).sum();
            if Some(covered) != expected {
                let tokens = expected.unwrap_or(length);
                let message = format!("the provenance of {what} covers {covered} of {tokens}");
                return Err(Error::validation(format!(
                    "{message} tokens; its spans must tile them"
                )));
            }
            if spans.iter().any(|span| span.sequence_id.is_empty()) {
                return Err(Error::validation(format!(
                    "a span of the provenance of {what} has no sequence_id"
                )));
            }
        }
        self.provenance = Some(Provenance { model_input, targets });
        Ok(self)
    }

    /// What the model reads.
    pub fn model_input(&self) -> &ModelInput {
        &self.model_input
    }

    /// The arrays that the loss reads, by name.
    pub fn loss_fn_inputs(&self) -> &BTreeMap<String, TensorData> {
        &self.loss_fn_inputs
    }

    /// One of the arrays.
    pub fn input(&self, name: &str) -> Option<&TensorData> {
        self.loss_fn_inputs.get(name)
    }

    /// Where the tokens of the input and of `target_tokens` come from.
    pub fn provenance(&self) -> Option<(&[ProvenanceSpan], &[ProvenanceSpan])> {
        self.provenance.as_ref().map(|of| (&*of.model_input, &*of.targets))
    }

    /// How many of its targets have a weight or an advantage; all of them where it has neither array. A datum
    /// that trains nothing costs as much as one that does.
    pub fn trained_tokens(&self) -> usize {
        let tensor = self.input("weights").or_else(|| self.input("advantages"));
        match tensor.map(TensorData::values) {
            Some(tinsmith_types::tensor::Values::Float32(values)) => {
                values.iter().filter(|value| **value != 0.0).count()
            }
            Some(tinsmith_types::tensor::Values::Int64(values)) => {
                values.iter().filter(|value| **value != 0).count()
            }
            None => self.input(TARGETS).map_or(0, TensorData::len),
        }
    }

    /// The same with at most `tokens_max` tokens of input. Arrays and provenance are cut with it.
    ///
    /// # Errors
    ///
    /// A picture whose length is not known; no token left.
    pub fn truncated(&self, tokens_max: usize, keep: Keep) -> Result<Self> {
        let length = self.model_input.length()?;
        if length <= tokens_max {
            return Ok(self.clone());
        }
        let model_input = self.model_input.cut(tokens_max, keep == Keep::End)?;
        let left = model_input.length()?;
        if left == 0 {
            return Err(Error::validation(format!("nothing of a datum fits {tokens_max} tokens")));
        }
        let (from, to) = match keep {
            Keep::Beginning => (0, left),
            Keep::End => (length - left, length),
        };
        let cut = |(name, tensor): (&String, &TensorData)| {
            let is_aligned = tensor.shape().first() == Some(&length);
            (name.clone(), if is_aligned { tensor.rows(from, to) } else { tensor.clone() })
        };
        let provenance = self.provenance.as_ref().map(|provenance| Provenance {
            model_input: cut_spans(&provenance.model_input, from, to),
            targets: cut_spans(&provenance.targets, from, to),
        });
        let loss_fn_inputs = self.loss_fn_inputs.iter().map(cut).collect();
        Ok(Self { model_input, loss_fn_inputs, provenance })
    }

    /// What it takes in a request, nearly, in bytes: batches are cut by it.
    pub fn estimated_bytes(&self) -> usize {
        let inputs: usize = self.loss_fn_inputs.values().map(TensorData::bytes).sum();
        self.model_input.training_bytes() + inputs
    }

    /// Its wire form.
    pub(crate) fn into_proto(self) -> Result<proto::Datum> {
        let inputs = self.loss_fn_inputs.into_iter();
        let inputs = inputs.map(|(name, tensor)| (name, tensor.to_proto()));
        let (input_spans, target_spans) =
            self.provenance.map(|of| (of.model_input, of.targets)).unwrap_or_default();
        Ok(proto::Datum {
            model_input: self.model_input.into_proto()?,
            loss_fn_inputs: inputs.collect(),
            model_input_spans: input_spans.into_iter().map(ProvenanceSpan::wire).collect(),
            loss_fn_input_spans: target_spans.into_iter().map(ProvenanceSpan::wire).collect(),
        })
    }

    /// Its form for servers that do not read protobuf.
    ///
    /// # Errors
    ///
    /// Provenance, which JSON has no place for.
    pub fn json(self) -> Result<wire::Datum> {
        if self.provenance.is_some() {
            return Err(Error::validation(
                "provenance cannot be sent to a server that does not read protobuf",
            ));
        }
        let inputs = self.loss_fn_inputs.into_iter();
        Ok(wire::Datum {
            model_input: self.model_input.json()?,
            loss_fn_inputs: inputs.map(|(name, tensor)| (name, tensor.into())).collect(),
        })
    }
}

impl ProvenanceSpan {
    /// Tokens of the prompt of a sampled sequence.
    pub fn prompt(sequence_id: impl Into<String>, offset: usize, length: usize) -> Self {
        Self { is_sampled: false, sequence_id: sequence_id.into(), offset, length }
    }

    /// Tokens that a sampled sequence drew.
    pub fn sampled(sequence_id: impl Into<String>, offset: usize, length: usize) -> Self {
        Self { is_sampled: true, sequence_id: sequence_id.into(), offset, length }
    }

    fn wire(self) -> proto::ProvenanceSpan {
        let wide = |value| i64::try_from(value).expect("no text has 2^63 tokens");
        let (sequence_id, offset, length) =
            (self.sequence_id, wide(self.offset), wide(self.length));
        let span = if self.is_sampled {
            let span = proto::SampledProvenanceSpan { sequence_id, offset, length };
            provenance_span::Span::SampledTokens(span)
        } else {
            let span = proto::PromptProvenanceSpan { sequence_id, offset, length };
            provenance_span::Span::PromptTokens(span)
        };
        proto::ProvenanceSpan { span: Some(span) }
    }
}

/// What spans say of the tokens `from..to` of those that they tile.
fn cut_spans(spans: &[ProvenanceSpan], from: usize, to: usize) -> Vec<ProvenanceSpan> {
    let mut at = 0;
    let mut kept = Vec::new();
    for span in spans {
        let (first, last) = (from.max(at), to.min(at + span.length));
        if first < last {
            let offset = span.offset + (first - at);
            kept.push(ProvenanceSpan { offset, length: last - first, ..span.clone() });
        }
        at += span.length;
    }
    kept
}

#[cfg(test)]
mod tests;
