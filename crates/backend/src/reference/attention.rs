//! Causal attention (Vaswani et al. 2017), several query heads to one key-value head (Ainslie et al. 2023).
//!
//! For query i of a sequence and the keys j ≤ i that it sees, with head h reading key-value head
//! `h / (heads / kv_heads)`: `s[j] = scale · q·k[j]`, or `c · tanh(scale · q·k[j] / c)` under a softcap c;
//! `lse = log Σ exp(s[j])`, `p[j] = exp(s[j] - lse)`.

use std::ops::Range;

use crate::{AttentionForward, AttentionShape, PagedSequence, Qkv, QkvGradients};

use super::{Cache, ReferenceBackend, Rows, score::soft_capped};

/// `out = Σ p[j] v[j]`, and `lse`.
pub(super) fn forward(
    out: &mut Rows,
    lse: &mut Rows,
    qkv: &Qkv<'_, ReferenceBackend>,
    sequences: &[Range<usize>],
    shape: &AttentionShape,
) {
    lse.reshape(qkv.q.len(), shape.heads);
    for rows in sequences {
        for (position, i) in rows.clone().enumerate() {
            let visible = visible(rows, position, shape);
            for h in 0..shape.heads {
                let keys: Vec<_> =
                    visible.clone().map(|j| kv_head(qkv.k.row(j), h, shape)).collect();
                let values: Vec<_> =
                    visible.clone().map(|j| kv_head(qkv.v.row(j), h, shape)).collect();
                let q = &qkv.q.row(i)[head(h, shape)];
                let head_out = &mut out.row_mut(i)[head(h, shape)];
                lse.row_mut(i)[h] = attend(head_out, q, &keys, &values, shape);
            }
        }
    }
}

pub(super) fn cache_write(
    cache: &mut Cache,
    layer: usize,
    k: &Rows,
    v: &Rows,
    sequences: &[PagedSequence<'_>],
) {
    for sequence in sequences {
        for (position, i) in (sequence.position..).zip(sequence.rows.clone()) {
            cache.write((layer, sequence.blocks, position), k.row(i), v.row(i));
        }
    }
}

/// As [`forward`], with keys and values read from the cache.
pub(super) fn paged(
    out: &mut Rows,
    q: &Rows,
    cache: &Cache,
    layer: usize,
    sequences: &[PagedSequence<'_>],
    shape: &AttentionShape,
) {
    for PagedSequence { rows, position, blocks } in sequences {
        for (position, i) in (*position..).zip(rows.clone()) {
            for h in 0..shape.heads {
                let key = |j| kv_head(cache.key(layer, blocks, j), h, shape);
                let value = |j| kv_head(cache.value(layer, blocks, j), h, shape);
                let keys: Vec<_> = shape.visible(position).map(key).collect();
                let values: Vec<_> = shape.visible(position).map(value).collect();
                let head_out = &mut out.row_mut(i)[head(h, shape)];
                attend(head_out, &q.row(i)[head(h, shape)], &keys, &values, shape);
            }
        }
    }
}

/// One query of one head over the keys that it sees; answers the log of the sum of exponentials.
fn attend(
    out: &mut [f64],
    q: &[f64],
    keys: &[&[f64]],
    values: &[&[f64]],
    shape: &AttentionShape,
) -> f64 {
    let scores: Vec<f64> = keys.iter().map(|k| score(q, k, shape)).collect();
    let lse = log_sum_exp(&scores);
    out.fill(0.0);
    for (score, value) in scores.iter().zip(values) {
        add_scaled(out, (score - lse).exp(), value);
    }
    lse
}

/// With `ds[j] = scale · p[j] (dout·v[j] - dout·out)`, times `1 - (s[j] / c)²` under a softcap:
/// `dq = Σ ds[j] k[j]`, and by head and query in order `dk[j] += ds[j] q`, `dv[j] += p[j] dout`.
pub(super) fn backward(
    gradients: QkvGradients<'_, ReferenceBackend>,
    forward: &AttentionForward<'_, ReferenceBackend>,
    sequences: &[Range<usize>],
    shape: &AttentionShape,
) {
    let QkvGradients { dq, dk, dv } = gradients;
    let AttentionForward { qkv: Qkv { q, k, v }, out, lse, dout } = forward;
    let scale = f64::from(shape.scale);
    for rows in sequences {
        for i in rows.clone() {
            dq.row_mut(i).fill(0.0);
            dk.row_mut(i).fill(0.0);
            dv.row_mut(i).fill(0.0);
        }
        for h in 0..shape.heads {
            let (head, kv) = (head(h, shape), kv_range(h, shape));
            for (position, i) in rows.clone().enumerate() {
                let (q, dout) = (&q.row(i)[head.clone()], &dout.row(i)[head.clone()]);
                let out_share = dot(dout, &out.row(i)[head.clone()]);
                for j in visible(rows, position, shape) {
                    let (k, v) = (&k.row(j)[kv.clone()], &v.row(j)[kv.clone()]);
                    let s = score(q, k, shape);
                    let p = (s - lse.row(i)[h]).exp();
                    let slope = shape.softcap.map_or(1.0, |c| 1.0 - (s / f64::from(c)).powi(2));
                    let ds = scale * slope * p * (dot(dout, v) - out_share);
                    add_scaled(&mut dq.row_mut(i)[head.clone()], ds, k);
                    add_scaled(&mut dk.row_mut(j)[kv.clone()], ds, q);
                    add_scaled(&mut dv.row_mut(j)[kv.clone()], p, dout);
                }
            }
        }
    }
}

/// The rows of the keys that a query of the sequence sees.
fn visible(rows: &Range<usize>, position: usize, shape: &AttentionShape) -> Range<usize> {
    let visible = shape.visible(position);
    rows.start + visible.start..rows.start + visible.end
}

fn score(q: &[f64], k: &[f64], shape: &AttentionShape) -> f64 {
    soft_capped(f64::from(shape.scale) * dot(q, k), shape.softcap)
}

fn head(h: usize, shape: &AttentionShape) -> Range<usize> {
    h * shape.head_dim..(h + 1) * shape.head_dim
}

fn kv_range(h: usize, shape: &AttentionShape) -> Range<usize> {
    head(h / (shape.heads / shape.kv_heads), shape)
}

fn kv_head<'r>(row: &'r [f64], h: usize, shape: &AttentionShape) -> &'r [f64] {
    &row[kv_range(h, shape)]
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn add_scaled(out: &mut [f64], scale: f64, x: &[f64]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += scale * x;
    }
}

/// `log Σ exp(x)`, with the greatest x taken out of the sum so that no exponential overflows.
pub(super) fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::assert_close;

    #[test]
    fn attention_sees_its_own_past_alone() {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 1,
            scale: 1.0,
            window: None,
            softcap: None,
        };
        let q = Rows::new(2, &[9.0, 9.0, 0.0, 1.0, 7.0, 7.0]);
        let k = Rows::new(1, &[0.0, 1.0, 5.0]);
        let v = Rows::new(1, &[1.0, 3.0, 5.0]);
        let (mut out, mut lse) = (Rows::unwritten(3, 2), Rows::unwritten(0, 2));
        let qkv = Qkv { q: &q, k: &k, v: &v };
        forward(&mut out, &mut lse, &qkv, &[0..2, 2..2, 2..3], &shape);
        let e = 1.0_f64.exp();
        assert_close(out.values(), &[1.0, 1.0, 2.0, 3.0f64.mul_add(e, 1.0) / (1.0 + e), 5.0, 5.0]);
        assert_close(lse.values(), &[0.0, 0.0, 2.0_f64.ln(), (1.0 + e).ln(), 35.0, 35.0]);
    }
    #[test]
    fn a_window_and_a_softcap_by_hand() {
        let shape = AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
            scale: 2.0,
            window: Some(2),
            softcap: Some(3.0),
        };
        let q = Rows::new(1, &[1.0, 1.0, 1.0]);
        let k = Rows::new(1, &[50.0, 0.0, 1.5]);
        let v = Rows::new(1, &[100.0, 1.0, 3.0]);
        let (mut out, mut lse) = (Rows::unwritten(3, 1), Rows::unwritten(0, 1));
        let qkv = Qkv { q: &q, k: &k, v: &v };
        forward(&mut out, &mut lse, &qkv, std::slice::from_ref(&(0..3)), &shape);
        let capped = (3.0 * 1.0_f64.tanh()).exp();
        assert_close(&out.values()[2..], &[(1.0 + 3.0 * capped) / (1.0 + capped)]);
        assert_close(&lse.values()[2..], &[(1.0 + capped).ln()]);
        assert_eq!(shape.visible(0), 0..1);
        assert_eq!(shape.visible(7), 6..8);
    }
}
