//! Runs cases and gathers what is wrong with them.

use crate::{Backend, ReferenceBackend};

use super::{
    Tolerances,
    step::{Answer, Case, Datum, Output, Segment, Step},
};

/// A backend beside the reference, and the failures so far.
#[derive(Debug)]
pub struct Suite<'t, B> {
    name: &'static str,
    pub(super) backend: B,
    pub(super) reference: ReferenceBackend,
    pub(super) tolerances: &'t Tolerances,
    failures: Vec<String>,
}

impl<'t, B: Backend> Suite<'t, B> {
    pub(super) fn new(name: &'static str, backend: B, tolerances: &'t Tolerances) -> Self {
        Self { name, backend, reference: ReferenceBackend, tolerances, failures: Vec::new() }
    }

    pub(super) fn into_failures(self) -> Vec<String> {
        self.failures
    }

    /// The values against the reference, and that company changes nothing.
    pub(super) fn case(&mut self, case: &impl Case, step: &Step) {
        self.values(case, step);
        self.invariance(case, step);
    }

    pub(super) fn values(&mut self, case: &impl Case, step: &Step) {
        self.values_within(1.0, case, step);
    }

    /// As [`Self::values`], with `slack` times the tolerances, for numbers that magnify rounding.
    pub(super) fn values_within(&mut self, slack: f64, case: &impl Case, step: &Step) {
        let actual = case.run(&mut self.backend, std::slice::from_ref(step));
        let expected = case.run(&mut self.reference, std::slice::from_ref(step));
        for (index, (output, _)) in expected.outputs.iter().enumerate() {
            let (name, tolerance) = match output {
                Output::Value(name) => (name, self.tolerances.values),
                Output::Gradient(name) => (name, self.tolerances.gradients),
            };
            let what = format!("{} {name}", case.label());
            self.close(&what, &actual.all(index), &expected.all(index), slack * tolerance);
        }
        for (adapter, (actual, expected)) in
            actual.gradients.iter().zip(&expected.gradients).enumerate()
        {
            let what = format!("{} adapter {adapter}", case.label());
            let tolerance = slack * self.tolerances.gradients;
            self.close(&format!("{what} dA"), &actual.0, &expected.0, tolerance);
            self.close(&format!("{what} dB"), &actual.1, &expected.1, tolerance);
        }
    }

    /// Together, in another order, datum by datum, and row by row: the same bits.
    pub(super) fn invariance(&mut self, case: &impl Case, step: &Step) {
        let together = case.run(&mut self.backend, std::slice::from_ref(step));
        let label = case.label();

        let reversed: Step = step.iter().rev().cloned().collect();
        let other_order = case.run(&mut self.backend, &[reversed]);
        self.same_outputs(&format!("{label} in another order"), &other_order, &together);
        self.same_gradients(&format!("{label} in another order"), &other_order, &together);

        let datums: Vec<Step> = singles(step, |datum| vec![datum.clone()]);
        let alone = case.run(&mut self.backend, &datums);
        self.same_outputs(&format!("{label} alone"), &alone, &together);
        self.same_gradients(&format!("{label} alone"), &alone, &together);

        if case.rowwise() {
            let rows = singles(step, |datum| {
                let row = |row| Datum { seed: datum.seed, rows: row..row + 1 };
                datum.rows.clone().map(row).collect()
            });
            let by_row = case.run(&mut self.backend, &rows);
            self.same_outputs(&format!("{label} row by row"), &by_row, &together);
        }
    }

    /// Fails once an output, at the first row that differs in a bit.
    pub(super) fn same_outputs(&mut self, what: &str, actual: &Answer, expected: &Answer) {
        for ((output, actual), (_, expected)) in actual.outputs.iter().zip(&expected.outputs) {
            if actual.len() != expected.len() {
                self.fail(&format!("{what} {output:?}: rows are missing"));
            }
            let row_of = |key| actual.get(key).map_or(&[][..], Vec::as_slice);
            let differs = |(key, expected): &(_, &Vec<f32>)| !equal_bits(row_of(*key), expected);
            if let Some((key, expected)) = expected.iter().find(differs) {
                let (seed, row) = key;
                let what = format!("{what} {output:?} datum {seed} row {row}");
                self.same_bits(&what, row_of(key), expected);
            }
        }
    }

    fn same_gradients(&mut self, what: &str, actual: &Answer, expected: &Answer) {
        for (adapter, (actual, expected)) in
            actual.gradients.iter().zip(&expected.gradients).enumerate()
        {
            self.same_bits(&format!("{what} adapter {adapter} dA"), &actual.0, &expected.0);
            self.same_bits(&format!("{what} adapter {adapter} dB"), &actual.1, &expected.1);
        }
    }

    /// Fails once, at the first element that differs in a bit.
    pub(super) fn same_bits(&mut self, what: &str, actual: &[f32], expected: &[f32]) {
        if actual.len() != expected.len() {
            self.fail(&format!("{what}: {} numbers for {}", actual.len(), expected.len()));
            return;
        }
        let differs = |(a, e): (&f32, &f32)| a.to_bits() != e.to_bits();
        if let Some(i) = actual.iter().zip(expected).position(differs) {
            let (a, e) = (actual[i], expected[i]);
            self.fail(&format!("{what}: other bits, first at [{i}]: {a:?} for {e:?}"));
        }
    }

    /// Fails once, at the element that is furthest off; see [`Tolerances`].
    pub(super) fn close(&mut self, what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
        if actual.len() != expected.len() {
            self.fail(&format!("{what}: {} numbers for {}", actual.len(), expected.len()));
            return;
        }
        let root_mean_square = root_mean_square(expected);
        let mut worst = (0.0, 0);
        for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
            let error = error_of(a, e, root_mean_square);
            if error > worst.0 {
                worst = (error, i);
            }
        }
        let (error, i) = worst;
        if error > tolerance {
            let (a, e) = (actual[i], expected[i]);
            self.fail(&format!("{what}: error {error:.1e} at [{i}]: {a:?} for {e:?}"));
        }
    }

    pub(super) fn fail(&mut self, what: &str) {
        self.failures.push(format!("{}: {what}", self.name));
    }
}

fn equal_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A step for each of the datums that `split` makes of each datum.
fn singles(step: &Step, split: impl Fn(&Datum) -> Vec<Datum>) -> Vec<Step> {
    let mut steps = Vec::new();
    for Segment { adapter, datums } in step {
        for datum in datums.iter().flat_map(&split) {
            steps.push(vec![Segment { adapter: *adapter, datums: vec![datum] }]);
        }
    }
    steps
}

fn root_mean_square(values: &[f32]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it scales a tolerance")]
    let count = values.len().max(1) as f64;
    let squares: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    (squares / count).sqrt()
}

/// NaN and infinity are infinitely wrong, whatever was expected.
fn error_of(actual: f32, expected: f32, root_mean_square: f64) -> f64 {
    let difference = (f64::from(actual) - f64::from(expected)).abs();
    if !actual.is_finite() || !expected.is_finite() {
        f64::INFINITY
    } else if difference == 0.0 {
        0.0
    } else {
        difference / (f64::from(expected).abs() + root_mean_square)
    }
}
