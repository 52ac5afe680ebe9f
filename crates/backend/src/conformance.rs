//! The suite that every backend runs from its tests: each op against [`crate::ReferenceBackend`] over odd
//! shapes, and, to the bit, that no row's numbers depend on its company.
//!
//! A new op gets a file of its name here and a line in [`checks`]; a test of this module misses it
//! until then.

use crate::Backend;

mod adamw;
mod add;
mod attention;
mod buffer;
mod embed;
mod gated;
mod inputs;
mod linear;
mod linears;
mod paged;
mod rms_norm;
mod rope;
mod sample;
mod score;
mod step;
mod suite;

pub use suite::Suite;

/// How far from the reference a backend may be.
///
/// An element's error is measured against the sum of its own magnitude and the root mean square of
/// the array that it stands in.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    /// Of what forward ops give.
    pub values: f64,
    /// Of what backward ops give.
    pub gradients: f64,
    /// How many times that far attention may be, which is several products one after another.
    pub attention: f64,
}

impl Tolerances {
    /// For f32 weights, activations and arithmetic.
    pub const F32: Self = Self { values: 5e-6, gradients: 1e-5, attention: 1.0 };

    /// For weights rounded to bf16, frozen ones or adapters' as well, with or without the rows that they are
    /// multiplied by, and sums in f32. Each factor is off by up to 2⁻⁹ of itself, so a sum of products by
    /// about 2⁻⁹ of its typical size, and a few times that at worst; where logits are large, their logprobs
    /// are off by as much, and the gradient that is made from those by more. So are attention's scores, and
    /// the weights that it makes from them are rounded again.
    pub const BF16: Self = Self { values: 2e-2, gradients: 3e-2, attention: 3.0 };
}

/// One part of the suite.
#[derive(Debug)]
pub struct Check<B> {
    /// What failures are listed under.
    pub name: &'static str,
    /// The ops of [`Backend`] that it covers.
    pub ops: &'static [&'static str],
    /// Gathers the failures of the suite's backend.
    pub run: fn(&mut Suite<'_, B>),
}

/// Runs every check, each on a backend of its own.
///
/// # Panics
///
/// At the end, with every failure's check, shape and worst element, if there is any.
pub fn all<B: Backend>(make: impl Fn() -> B, tolerances: &Tolerances) {
    let mut failures = Vec::new();
    for check in checks() {
        failures.extend(failures_of(&check, make(), tolerances));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Runs one check; answers its failures, a line each.
pub fn failures_of<B: Backend>(
    check: &Check<B>,
    backend: B,
    tolerances: &Tolerances,
) -> Vec<String> {
    let mut suite = Suite::new(check.name, backend, tolerances);
    (check.run)(&mut suite);
    suite.into_failures()
}

/// Every check, for callers that run them one by one.
pub fn checks<B: Backend>() -> Vec<Check<B>> {
    let check = |name, ops, run| Check { name, ops, run };
    vec![
        check("buffer", &[], buffer::check),
        check("embed", &["embed", "gather"], embed::check),
        check("add", &["add"], add::check),
        check("rms_norm", &["rms_norm", "rms_norm_backward"], rms_norm::check),
        check("linear", &["linear", "linear_backward"], linear::check),
        check("linears", &["linears", "linears_backward"], linears::check),
        check("rope", &["rope", "rope_backward"], rope::check),
        check("attention", &["attention", "attention_backward"], attention::check),
        check("paged", &["cache_write", "attention_paged"], paged::check),
        check("gated", &["gated", "gated_backward"], gated::check),
        check("score", &["score", "score_backward"], score::check),
        check("sample", &["sample"], sample::check),
        check("adamw", &["adamw", "sum_squares"], adamw::check),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ReferenceBackend;

    #[test]
    fn the_reference_conforms() {
        all(|| ReferenceBackend, &Tolerances { values: 0.0, gradients: 0.0, attention: 1.0 });
    }

    #[test]
    fn every_op_has_a_check() {
        let (_, ops) = include_str!("lib.rs").split_once("// Ops.").expect("the trait's ops");
        let (ops, _) = ops.split_once("\n}").expect("the trait's end");
        let name =
            |line: &str| Some(line.trim().strip_prefix("fn ")?.split_once('(')?.0.to_owned());
        let in_trait: BTreeSet<String> = ops.lines().filter_map(name).collect();
        let checked: BTreeSet<String> = checks::<ReferenceBackend>()
            .iter()
            .flat_map(|check| check.ops)
            .map(|op| (*op).to_owned())
            .collect();
        assert_eq!(in_trait, checked);
    }
}
