//! Rotary embedding (Su et al. 2021), each head normalized first if `norm` is given (Qwen3).
//!
//! For each head, normalized or not, n; `angle[i] = f32(position) · inverse_frequencies[i]` rounded to f32;
//! `c = amplitude · cos(angle[i])`, `s = amplitude · sin(angle[i])`, and `j = i + head_dim / 2`.

use crate::{Rope, RopeTable};

use super::{ReferenceBackend, Rows, rms_norm};

/// `out[i] = n[i] c - n[j] s`, `out[j] = n[j] c + n[i] s`.
pub(super) fn forward(out: &mut Rows, x: &Rows, rope: &Rope<'_, ReferenceBackend>) {
    check_shapes(out, x, rope);
    for (i, &position) in rope.positions.iter().enumerate() {
        let heads = x.row(i).chunks_exact(rope.head_dim);
        for (out, x) in out.row_mut(i).chunks_exact_mut(rope.head_dim).zip(heads) {
            let mut n = x.to_vec();
            if let Some((weight, eps)) = rope.norm {
                rms_norm::normalize(&mut n, x, &weight.values, eps);
            }
            rotate(out, &n, &angles(rope.table, position));
        }
    }
}

/// `dn[i] = dy[i] c + dy[j] s`, `dn[j] = dy[j] c - dy[i] s`, then `dx` through the norm.
pub(super) fn backward(dx: &mut Rows, dy: &Rows, x: &Rows, rope: &Rope<'_, ReferenceBackend>) {
    check_shapes(dx, x, rope);
    for (i, &position) in rope.positions.iter().enumerate() {
        let heads = dy.row(i).chunks_exact(rope.head_dim).zip(x.row(i).chunks_exact(rope.head_dim));
        for (dx, (dy, x)) in dx.row_mut(i).chunks_exact_mut(rope.head_dim).zip(heads) {
            let inverse: Vec<_> =
                angles(rope.table, position).into_iter().map(|(c, s)| (c, -s)).collect();
            let mut dn = vec![0.0; rope.head_dim];
            rotate(&mut dn, dy, &inverse);
            if let Some((weight, eps)) = rope.norm {
                dx.fill(0.0);
                rms_norm::add_gradient(dx, &dn, x, (&weight.values, eps));
            } else {
                dx.copy_from_slice(&dn);
            }
        }
    }
}

/// Cosine and sine of each pair, times the amplitude.
fn angles(table: &RopeTable, position: u32) -> Vec<(f64, f64)> {
    #[expect(clippy::cast_precision_loss, reason = "transformers rounds positions to f32")]
    let position = position as f32;
    let amplitude = f64::from(table.amplitude);
    let rotation = |frequency: &f32| {
        let (sine, cosine) = f64::from(position * frequency).sin_cos();
        (amplitude * cosine, amplitude * sine)
    };
    table.inverse_frequencies.iter().map(rotation).collect()
}

fn rotate(out: &mut [f64], n: &[f64], angles: &[(f64, f64)]) {
    let half = n.len() / 2;
    for (i, (c, s)) in angles.iter().enumerate() {
        let j = i + half;
        out[i] = n[i] * c - n[j] * s;
        out[j] = n[j] * c + n[i] * s;
    }
}

fn check_shapes(out: &Rows, x: &Rows, rope: &Rope<'_, ReferenceBackend>) {
    assert_eq!(x.len(), rope.positions.len(), "a position for each row");
    assert_eq!(out.len(), x.len(), "as many rows out as in");
    assert_eq!(x.features() % rope.head_dim, 0, "whole heads");
    assert_eq!(rope.table.inverse_frequencies.len() * 2, rope.head_dim, "half a head of pairs");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::assert_close;

    #[test]
    fn rope_turns_pairs_half_a_head_apart() {
        let table = RopeTable { inverse_frequencies: vec![1.0, 0.1], amplitude: 2.0 };
        let rope = Rope { norm: None, table: &table, positions: &[3], head_dim: 4 };
        let mut out = Rows::unwritten(1, 4);
        forward(&mut out, &Rows::new(4, &[1.0, 0.0, 0.0, 1.0]), &rope);
        // transformers multiplies in f32, and 3 * 0.1f32 is not 0.3f32.
        let angle = f64::from(3.0 * 0.1_f32);
        let expected =
            [2.0 * 3.0_f64.cos(), -2.0 * angle.sin(), 2.0 * 3.0_f64.sin(), 2.0 * angle.cos()];
        assert_close(out.values(), &expected);
    }
}
