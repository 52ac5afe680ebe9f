//! `AdamW` with f32 state, each element as PyTorch's single-tensor step computes it, and norms.

use tinsmith_backend::AdamW;

use crate::{
    CpuBackend,
    buffer::{Lora, Pair, Rows},
    lanes::{Kernel, LANES, Lanes},
};

pub(crate) fn adamw(
    cpu: &CpuBackend,
    lora: &mut Lora,
    gradient: &Pair,
    (first, second): (&mut Pair, &mut Pair),
    step: &AdamW,
) {
    let sides = [
        (&mut lora.trained.a, &gradient.a, &mut first.a, &mut second.a),
        (&mut lora.trained.b, &gradient.b, &mut first.b, &mut second.b),
    ];
    let factors = Factors::new(step);
    for (value, gradient, first, second) in sides {
        let (rows, stride) = (value.rows, value.stride);
        assert!(gradient.rows == rows && gradient.stride == stride, "shapes fit");
        assert!(first.rows == rows && first.stride == stride, "shapes fit");
        assert!(second.rows == rows && second.stride == stride, "shapes fit");
        let (value, gradient) = (value.view_mut(), gradient.view());
        let (first, second) = (first.view_mut(), second.view_mut());
        // About ten operations an element.
        cpu.pool.run_sized(rows, 10 * rows * stride, &|row| {
            // SAFETY: all four have the row, with its padding, which is computed and never looked at; each
            // row is one task's own.
            unsafe {
                cpu.path.run(Update {
                    value: value.at(row, 0),
                    gradient: gradient.at(row, 0),
                    first: first.at(row, 0),
                    second: second.at(row, 0),
                    count: stride,
                    factors: &factors,
                });
            }
        });
    }
    lora.refresh(&cpu.pool);
}

/// Rows whose sums of squares are taken side by side: each is a chain that waits for itself.
const SUMMED_ROWS: usize = 8;

/// The sums of squares of A and B: rows in order, features in order.
pub(crate) fn sum_squares(pair: &Pair) -> (f64, f64) {
    let sum = |rows: &Rows| -> f64 {
        let groups = (0..rows.rows).step_by(SUMMED_ROWS);
        let sums = groups.flat_map(|first| {
            let count = SUMMED_ROWS.min(rows.rows - first);
            let sums = if count == SUMMED_ROWS {
                row_squares(std::array::from_fn(|i| rows.row(first + i)))
            } else {
                let mut sums = [0.0; SUMMED_ROWS];
                for (i, sum) in sums[..count].iter_mut().enumerate() {
                    [*sum] = row_squares([rows.row(first + i)]);
                }
                sums
            };
            sums.into_iter().take(count)
        });
        sums.sum()
    };
    (sum(&pair.a), sum(&pair.b))
}

/// Each row's sum of squares, in its order.
fn row_squares<const N: usize>(rows: [&[f32]; N]) -> [f64; N] {
    let mut sums = [0.0; N];
    for i in 0..rows[0].len() {
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum += f64::from(row[i]) * f64::from(row[i]);
        }
    }
    sums
}

/// Constants of a step: computed in f64, applied in f32, as torch does.
struct Factors {
    gradient: f32,
    keep: f32,
    towards_gradient: f32,
    second_keep: f32,
    second_take: f32,
    second_root: f32,
    eps: f32,
    step: f32,
}

impl Factors {
    fn new(step: &AdamW) -> Self {
        let bias1 = 1.0 - power(step.beta1, step.step);
        let bias2 = 1.0 - power(step.beta2, step.step);
        Self {
            gradient: step.gradient_scale,
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            towards_gradient: (1.0 - step.beta1) as f32,
            second_keep: step.beta2 as f32,
            second_take: (1.0 - step.beta2) as f32,
            second_root: bias2.sqrt() as f32,
            eps: step.eps as f32,
            step: (-(step.learning_rate / bias1)) as f32,
        }
    }
}

/// `base^exponent` by squaring: the platform's `pow` may differ in the last bit.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut product = 1.0;
    while exponent > 0 {
        if exponent % 2 == 1 {
            product *= base;
        }
        base *= base;
        exponent /= 2;
    }
    product
}

struct Update<'a> {
    value: *mut f32,
    gradient: *const f32,
    first: *mut f32,
    second: *mut f32,
    count: usize,
    factors: &'a Factors,
}

impl Kernel for Update<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let factors = self.factors;
        let mut i = 0;
        while i < self.count {
            let gradient = L::load(self.gradient.add(i)).mul(L::splat(factors.gradient));
            let value = L::load(self.value.add(i)).mul(L::splat(factors.keep));
            let old = L::load(self.first.add(i));
            let difference = gradient.sub(old);
            // torch's lerp goes from the nearer end.
            let first = if factors.towards_gradient < 0.5 {
                difference.mul_add(L::splat(factors.towards_gradient), old)
            } else {
                difference.mul_add(L::splat(-(1.0 - factors.towards_gradient)), gradient)
            };
            first.store(self.first.add(i));
            let squared = gradient.mul(gradient).mul(L::splat(factors.second_take));
            let second =
                L::load(self.second.add(i)).mul_add(L::splat(factors.second_keep), squared);
            second.store(self.second.add(i));
            let root = second.sqrt().div(L::splat(factors.second_root));
            let ratio = first.div(root.add(L::splat(factors.eps)));
            ratio.mul_add(L::splat(factors.step), value).store(self.value.add(i));
            i += LANES;
        }
    }
}
