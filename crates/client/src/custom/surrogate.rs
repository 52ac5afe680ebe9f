//! A custom loss as two passes of `cross_entropy`: one for the logprobs, one whose weights are `-dloss/dlogprobs`, so that
//! its gradient is that of the custom loss.

use std::collections::BTreeMap;

use tinsmith_types::tensor::Values;

use super::{
    CustomLoss, Evaluated,
    evaluate::{differentiated, failed, guarded},
    inputs,
};
use crate::{Datum, Error, Result, TensorData, datum::TARGETS};

const WEIGHTS: &str = "weights";
/// The server's loss of the second pass, and what it is called beside the custom one.
const LOSS: &str = "loss:sum";
const SURROGATE: &str = "surrogate_loss:sum";

/// What the first pass sends: targets and weights alone, since `cross_entropy` reads nothing else.
pub(super) fn forward(data: &[Datum]) -> Result<Vec<Datum>> {
    data.iter().enumerate().map(|(place, datum)| plain(place, datum)).collect()
}

fn plain(place: usize, datum: &Datum) -> Result<Datum> {
    let Some(targets) = datum.input(TARGETS) else {
        return Err(failed(format!(
            "data[{place}] has no target_tokens: their logprobs are what the loss reads"
        )));
    };
    let mut plain = datum.clone();
    for name in datum.loss_fn_inputs().keys() {
        if name != TARGETS && name != WEIGHTS {
            plain = plain.without_input(name);
        }
    }
    if plain.input(WEIGHTS).is_some() {
        return Ok(plain);
    }
    let zeros = TensorData::new(Values::Float32(vec![0.0; targets.len()]), targets.shape())?;
    Ok(plain.with_input(WEIGHTS, zeros))
}

/// What the second pass sends, and what the loss is.
#[derive(Debug)]
pub(super) struct Surrogate {
    pub(super) data: Vec<Datum>,
    evaluated: Evaluated,
}

impl Surrogate {
    /// Computes the loss on the logprobs of the first pass; `forward` is what that sent.
    pub(super) fn new(
        loss: &dyn CustomLoss,
        data: &[Datum],
        forward: Vec<Datum>,
        outputs: &[BTreeMap<String, TensorData>],
    ) -> Result<Self> {
        tracing::debug!(target: "tinsmith::custom_loss", datums = data.len(), "custom loss starts");
        let surrogate = guarded(|| Self::computed(loss, data, forward, outputs));
        match &surrogate {
            Ok(surrogate) => {
                let loss = surrogate.evaluated.loss;
                tracing::debug!(target: "tinsmith::custom_loss", loss, "custom loss ended");
            }
            Err(error) => {
                tracing::warn!(target: "tinsmith::custom_loss", %error, "custom loss failed");
            }
        }
        surrogate
    }

    fn computed(
        loss: &dyn CustomLoss,
        data: &[Datum],
        forward: Vec<Datum>,
        outputs: &[BTreeMap<String, TensorData>],
    ) -> Result<Self> {
        if outputs.len() != data.len() {
            let (outputs, datums) = (outputs.len(), data.len());
            let message = format!("{datums} datums were answered with the outputs of {outputs}");
            return Err(Error::Response { message });
        }
        let mut logprobs = Vec::with_capacity(data.len());
        for (place, output) in outputs.iter().enumerate() {
            let array = output.get("logprobs").and_then(|tensor| inputs::array(tensor).ok());
            let array = array.ok_or_else(|| Error::Response {
                message: format!("the output of datum {place} has no logprobs"),
            })?;
            logprobs.push(array);
        }
        let evaluated = differentiated(loss, data, &logprobs)?;
        let mut weighted = Vec::with_capacity(data.len());
        for (place, datum) in forward.into_iter().enumerate() {
            let weights: Vec<f32> = evaluated.gradients[place].iter().map(|x| narrow(-x)).collect();
            if let Some(at) = weights.iter().position(|weight| !weight.is_finite()) {
                let gradient = evaluated.gradients[place][at];
                return Err(failed(format!(
                    "its gradient at datum {place}, logprob {at} is {gradient}, beyond float32"
                )));
            }
            let weights = TensorData::new(Values::Float32(weights), logprobs[place].shape())?;
            weighted.push(datum.with_input(WEIGHTS, weights));
        }
        Ok(Self { data: weighted, evaluated })
    }

    /// The metrics of the second pass, with the loss and its metrics in the places that the official SDK gives them.
    pub(super) fn metrics(self, mut server: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
        let surrogate = server.remove(LOSS);
        server.extend(self.evaluated.metrics);
        server.insert(LOSS.to_owned(), self.evaluated.loss);
        server.extend(surrogate.map(|loss| (SURROGATE.to_owned(), loss)));
        server
    }
}

#[expect(clippy::cast_possible_truncation, reason = "weights travel as float32")]
fn narrow(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom::{LossValue, Var};

    fn datum() -> Datum {
        let tokens: &[u32] = &[1, 2, 3];
        Datum::new(tokens)
            .with_input(TARGETS, tokens)
            .with_input("advantages", &[1.0, -2.0, 0.5][..])
    }

    fn output(logprobs: &[f32]) -> BTreeMap<String, TensorData> {
        BTreeMap::from([("logprobs".to_owned(), TensorData::from_f32(logprobs))])
    }

    #[test]
    fn the_first_pass_has_targets_and_weights_alone() {
        let forward =
            forward(&[datum(), datum().with_input(WEIGHTS, &[1.0, 0.0, 1.0][..])]).unwrap();
        let names: Vec<_> = forward[0].loss_fn_inputs().keys().collect();
        assert_eq!(names, [TARGETS, WEIGHTS]);
        assert_eq!(forward[0].input(WEIGHTS).unwrap().as_f32(), Some(&[0.0; 3][..]));
        assert_eq!(forward[1].input(WEIGHTS).unwrap().as_f32(), Some(&[1.0, 0.0, 1.0][..]));
        let error = super::forward(&[Datum::new(&[1][..])]).unwrap_err().to_string();
        assert!(error.contains("data[0] has no target_tokens"), "{error}");
    }

    #[test]
    fn the_second_pass_weighs_with_the_negative_gradient() {
        let loss = |data: &[Datum], logprobs: &[Var]| {
            let advantages = logprobs[0].input(&data[0], "advantages")?;
            let loss = (logprobs[0].square() * advantages).sum() + logprobs[1].sum();
            Ok(LossValue::new(loss).metric("mine:sum", 7.0))
        };
        let (data, logprobs) = ([datum(), datum()], [[-0.5f32, -1.0, -2.0], [-1.0, -1.0, -1.0]]);
        let outputs = logprobs.map(|logprobs| output(&logprobs));
        let surrogate = Surrogate::new(&loss, &data, forward(&data).unwrap(), &outputs).unwrap();
        let weights =
            |place: usize| surrogate.data[place].input(WEIGHTS).unwrap().as_f32().unwrap();
        assert_eq!(weights(0), [1.0, -4.0, 2.0]);
        assert_eq!(weights(1), [-1.0; 3]);
        let server = BTreeMap::from([(LOSS.to_owned(), 42.0), ("tokens:sum".to_owned(), 6.0)]);
        let metrics: Vec<_> = surrogate.metrics(server).into_iter().collect();
        let expected =
            [("loss:sum", -2.75), ("mine:sum", 7.0), (SURROGATE, 42.0), ("tokens:sum", 6.0)];
        assert_eq!(metrics, expected.map(|(name, number)| (name.to_owned(), number)));
    }

    #[test]
    fn an_answer_without_logprobs_is_an_error() {
        let loss = |_: &[Datum], logprobs: &[Var]| Ok(LossValue::new(logprobs[0].sum()));
        let run = |outputs: &[_]| {
            let data = [datum()];
            Surrogate::new(&loss, &data, forward(&data).unwrap(), outputs).unwrap_err()
        };
        assert!(matches!(run(&[]), Error::Response { .. }));
        assert!(matches!(run(&[BTreeMap::new()]), Error::Response { .. }));
    }
}
