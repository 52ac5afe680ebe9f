//! Drawing a token from logits; what is drawn is said at [`Draw`].

use crate::{Draw, Drawn, Linear};

use super::{ReferenceBackend, Rows, attention::log_sum_exp, buffers::rounded, score};

pub(super) fn sample(
    drawn: &mut Vec<Drawn>,
    x: &Rows,
    linear: &Linear<'_, ReferenceBackend>,
    draws: &[Draw],
) {
    assert_eq!(x.len(), draws.len(), "a draw for each row");
    let (logits, _) = score::logits(x, linear);
    drawn.clear();
    drawn.extend(draws.iter().enumerate().map(|(i, draw)| draw_token(logits.row(i), draw)));
}

fn draw_token(logits: &[f64], draw: &Draw) -> Drawn {
    let greedy = draw.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { f64::from(draw.temperature) };
    let scaled: Vec<f64> = logits.iter().map(|logit| logit / temperature).collect();
    let lse = log_sum_exp(&scaled);
    let token = if greedy {
        descending(&scaled)[0]
    } else {
        let p: Vec<f64> = scaled.iter().map(|logit| (logit - lse).exp()).collect();
        pick(&p, &candidates(&scaled, &p, draw), draw.uniform)
    };
    let id = u32::try_from(token).expect("token ids fit 32 bits");
    Drawn { token: id, logprob: rounded(scaled[token] - lse) }
}

/// The tokens that top-k and top-p leave, in vocabulary order.
fn candidates(scaled: &[f64], p: &[f64], draw: &Draw) -> Vec<usize> {
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
