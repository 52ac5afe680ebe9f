//! A frozen linear map with low-rank adapters (Hu et al. 2021).
//!
//! For a row x that a use covers, let `h = x Aᵀ` (that is `hidden`) and s the use's scale.

use crate::{Linear, LoraGradientUse, LoraUse};

use super::{Lora, Pair, ReferenceBackend, Rows, Weight};

/// `out (+)= x Wᵀ + bias + s · h Bᵀ`.
pub(super) fn forward(
    out: &mut Rows,
    x: &Rows,
    linear: &Linear<'_, ReferenceBackend>,
    hidden: Option<&mut Rows>,
) {
    assert_eq!(out.len(), x.len(), "as many rows out as in");
    assert_eq!(x.features(), linear.weight.inputs, "inputs of the weight");
    assert_eq!(out.features(), linear.weight.outputs, "outputs of the weight");
    for i in 0..x.len() {
        for (o, out) in out.row_mut(i).iter_mut().enumerate() {
            let before = if linear.add { *out } else { 0.0 };
            let bias = linear.bias.map_or(0.0, |bias| bias.values[o]);
            *out = before + (dot(x.row(i), linear.weight.row(o)) + bias);
        }
    }
    let mut own_hidden = Rows::unwritten(0, 0);
    let hidden = hidden.unwrap_or(&mut own_hidden);
    let rank_max = linear.uses.iter().map(|lora_use| lora_use.lora.rank).max().unwrap_or(0);
    hidden.reshape(x.len(), rank_max);
    for lora_use in linear.uses {
        add_lora(out, x, lora_use, hidden);
    }
}

fn add_lora(out: &mut Rows, x: &Rows, lora_use: &LoraUse<'_, Lora>, hidden: &mut Rows) {
    let LoraUse { rows, lora, scale } = lora_use;
    for i in rows.clone() {
        let h = &mut hidden.row_mut(i)[..lora.rank];
        for (h, a) in h.iter_mut().zip(lora.a.chunks_exact(lora.inputs())) {
            *h = dot(x.row(i), a);
        }
        for (out, b) in out.row_mut(i).iter_mut().zip(lora.b.chunks_exact(lora.rank)) {
            *out += f64::from(*scale) * dot(h, b);
        }
    }
}

/// With `g = s · dy B`: `dx += dy W + g A`, `dA += gᵀ x`, `dB += s · dyᵀ h`, row after row of one datum
/// after another. W and bias are frozen and have no gradient.
pub(super) fn backward(
    dx: Option<&mut Rows>,
    dy: &Rows,
    x: &Rows,
    weight: &Weight,
    hidden: &Rows,
    uses: &mut [LoraGradientUse<'_, Lora, Pair>],
) {
    assert_eq!(dy.len(), x.len(), "as many rows out as in");
    assert_eq!(x.features(), weight.inputs, "inputs of the weight");
    assert_eq!(dy.features(), weight.outputs, "outputs of the weight");
    if let Some(dx) = dx {
        for i in 0..x.len() {
            add_vector_matrix(dx.row_mut(i), dy.row(i), &weight.values);
        }
        for gradient_use in &*uses {
            for i in gradient_use.rows.clone() {
                let g = lora_hidden_gradient(dy.row(i), gradient_use);
                add_vector_matrix(dx.row_mut(i), &g, &gradient_use.lora.a);
            }
        }
    }
    for gradient_use in uses {
        let datum_rows: usize = gradient_use.datums.iter().map(|datum| datum.len()).sum();
        assert_eq!(datum_rows, gradient_use.rows.len(), "the datums tile the rows of the use");
        for i in gradient_use.datums.iter().flat_map(Clone::clone) {
            let g = lora_hidden_gradient(dy.row(i), gradient_use);
            add_outer(&mut gradient_use.gradient.a, 1.0, &g, x.row(i));
            let h = &hidden.row(i)[..gradient_use.lora.rank];
            add_outer(&mut gradient_use.gradient.b, f64::from(gradient_use.scale), dy.row(i), h);
        }
    }
}

/// `g = s · dy B`, `[rank]`.
fn lora_hidden_gradient(dy: &[f64], gradient_use: &LoraGradientUse<'_, Lora, Pair>) -> Vec<f64> {
    let lora = gradient_use.lora;
    let mut g = vec![0.0; lora.rank];
    add_vector_matrix(&mut g, dy, &lora.b);
    for g in &mut g {
        *g *= f64::from(gradient_use.scale);
    }
    g
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "vectors of one length");
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `out += x M`, with M row-major `[x.len(), out.len()]`.
fn add_vector_matrix(out: &mut [f64], x: &[f64], matrix: &[f64]) {
    assert_eq!(matrix.len(), x.len() * out.len(), "shape of the matrix");
    for (x, row) in x.iter().zip(matrix.chunks_exact(out.len())) {
        for (out, m) in out.iter_mut().zip(row) {
            *out += x * m;
        }
    }
}

/// `M += scale · xᵀ y`, with M row-major `[x.len(), y.len()]`.
fn add_outer(matrix: &mut [f64], scale: f64, x: &[f64], y: &[f64]) {
    assert_eq!(matrix.len(), x.len() * y.len(), "shape of the matrix");
    for (x, row) in x.iter().zip(matrix.chunks_exact_mut(y.len())) {
        for (m, y) in row.iter_mut().zip(y) {
            *m += scale * x * y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Vector;

    #[test]
    fn linear_by_hand() {
        let lora = Lora { rank: 1, a: vec![1.0, -1.0], b: vec![2.0, 0.0] };
        let uses = [LoraUse { rows: 1..2, lora: &lora, scale: 0.5 }];
        let weight = Weight::new(2, &[1.0, 2.0, 3.0, 4.0]);
        let bias = Vector { values: vec![10.0, 20.0] };
        let linear = Linear { weight: &weight, bias: Some(&bias), uses: &uses, add: true };
        let mut out = Rows::new(2, &[100.0; 4]);
        let mut hidden = Rows::unwritten(0, 0);
        forward(&mut out, &Rows::new(2, &[1.0, 1.0, 5.0, 2.0]), &linear, Some(&mut hidden));
        assert_eq!(out.values(), [113.0, 127.0, 119.0 + 3.0, 143.0]);
        assert_eq!((hidden.len(), hidden.features(), hidden.row(1)), (2, 1, &[3.0][..]));
    }
}
