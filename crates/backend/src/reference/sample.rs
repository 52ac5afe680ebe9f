//! Reading tokens off logits; what is asked is said at [`Query`], what is drawn at [`Draw`].

use crate::{Ask, Draw, Drawn, LoraUse, Query, Unembedding};

use super::{Lora, ReferenceBackend, Rows, attention::log_sum_exp, buffer::rounded, score};

pub(super) fn sample(
    answers: &mut Vec<Drawn>,
    x: &Rows,
    unembedding: Unembedding<'_, ReferenceBackend>,
    uses: &[LoraUse<'_, Lora>],
    asks: &[Ask],
) {
    assert!(asks.is_sorted_by_key(|ask| ask.row), "rows ascend");
    let (logits, _) = score::logits(x, unembedding, uses);
    answers.clear();
    for ask in asks {
        let logits = logits.row(ask.row);
        match &ask.query {
            Query::Token(token) => answers.push(Tempered::new(logits, 1.0).token(*token as usize)),
            Query::Top { count, temperature } => {
                let tempered = Tempered::new(logits, *temperature);
                let top = descending(&tempered.logits).into_iter().take(*count);
                answers.extend(top.map(|token| tempered.token(token)));
            }
            Query::Draw(draw) => {
                let tempered = Tempered::new(logits, draw.temperature);
                answers.push(tempered.token(tempered.draw(draw)));
            }
        }
    }
}

/// Logits divided by a temperature, and their log of the sum of exponentials.
struct Tempered {
    logits: Vec<f64>,
    lse: f64,
}

impl Tempered {
    /// The temperature 0 leaves the logits as they are.
    fn new(logits: &[f64], temperature: f32) -> Self {
        let divisor = if temperature == 0.0 { 1.0 } else { f64::from(temperature) };
        let logits: Vec<f64> = logits.iter().map(|logit| logit / divisor).collect();
        Self { lse: log_sum_exp(&logits), logits }
    }

    fn token(&self, token: usize) -> Drawn {
        let id = u32::try_from(token).expect("token ids fit 32 bits");
        Drawn { token: id, logprob: rounded(self.logits[token] - self.lse) }
    }

    fn draw(&self, draw: &Draw) -> usize {
        if draw.temperature == 0.0 {
            return descending(&self.logits)[0];
        }
        let p: Vec<f64> = self.logits.iter().map(|logit| (logit - self.lse).exp()).collect();
        pick(&p, &candidates(&self.logits, &p, draw), draw.uniform)
    }
}

/// The tokens that top-k and top-p leave, in vocabulary order.
fn candidates(scaled: &[f64], p: &[f64], draw: &Draw) -> Vec<usize> {
    if draw.top_k.is_none() && draw.top_p >= 1.0 {
        return (0..p.len()).collect();
    }
    let mut tokens = descending(scaled);
    if let Some(top_k) = draw.top_k {
        tokens.truncate(top_k.max(1));
    }
    if draw.top_p < 1.0 {
        let wanted = f64::from(draw.top_p) * tokens.iter().map(|&token| p[token]).sum::<f64>();
        let mut sum = 0.0;
        let reaches = |&token: &usize| {
            sum += p[token];
            sum >= wanted
        };
        let last = tokens.iter().position(reaches).unwrap_or(tokens.len() - 1);
        tokens.truncate(last + 1);
    }
    tokens.sort_unstable();
    tokens
}

/// The first candidate at which the running sum of p exceeds `uniform` times the whole.
fn pick(p: &[f64], candidates: &[usize], uniform: f64) -> usize {
    let total: f64 = candidates.iter().map(|&token| p[token]).sum();
    let mut sum = 0.0;
    let exceeds = |&&token: &&usize| {
        sum += p[token];
        sum > uniform * total
    };
    let found = candidates.iter().find(exceeds).or_else(|| candidates.last());
    *found.expect("at least one candidate is left")
}

/// Token ids by descending logit, lower ids first among equals.
fn descending(logits: &[f64]) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..logits.len()).collect();
    tokens.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Weight;

    #[test]
    fn draws_follow_top_k_and_top_p() {
        // Probabilities 0.1, 0.4, 0.1, 0.4, exactly representable as logarithms of integers.
        let weight = Weight::new(1, &[0.0, 4.0_f64.ln(), 0.0, 4.0_f64.ln()]);
        let drawn = |temperature, top_k, top_p, uniform| {
            let unembedding = Unembedding { weight: &weight, softcap: None };
            let mut drawn = Vec::new();
            let draw = Draw { temperature, top_k, top_p, uniform };
            let ask = Ask { row: 0, query: Query::Draw(draw) };
            sample(&mut drawn, &Rows::new(1, &[1.0]), unembedding, &[], &[ask]);
            (drawn[0].token, f64::from(drawn[0].logprob.exp()))
        };
        let tokens = |uniforms: &[f64], top_k, top_p| -> Vec<u32> {
            uniforms.iter().map(|&uniform| drawn(1.0, top_k, top_p, uniform).0).collect()
        };
        assert_eq!(drawn(0.0, None, 1.0, 0.9).0, 1);
        assert_eq!(
            tokens(&[0.0, 0.09, 0.11, 0.49, 0.51, 0.59, 0.61, 0.99], None, 1.0),
            [0, 0, 1, 1, 2, 2, 3, 3]
        );
        assert_eq!(tokens(&[0.0, 0.49, 0.51, 0.99], Some(2), 1.0), [1, 1, 3, 3]);
        // Of the two last, the lower id stays: 1/9, 4/9, 4/9.
        assert_eq!(tokens(&[0.1, 0.12, 0.54, 0.56, 0.99], Some(3), 1.0), [0, 1, 1, 3, 3]);
        assert_eq!(tokens(&[0.0, 0.99], None, 0.35), [1, 1]);
        assert_eq!(tokens(&[0.0, 0.49, 0.51, 0.99], None, 0.75), [1, 1, 3, 3]);
        assert!((drawn(1.0, Some(1), 1.0, 0.5).1 - 0.4).abs() < 1e-6);
        assert!((drawn(0.5, None, 1.0, 0.4).1 - 16.0 / 34.0).abs() < 1e-6);
    }
}
