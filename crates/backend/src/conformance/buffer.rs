//! What is written into a buffer is what is read from it.

use crate::Backend;

use super::{
    Suite,
    inputs::{Inputs, blank, upload},
};

pub(super) fn check<B: Backend>(suite: &mut Suite<'_, B>) {
    if suite.backend.kernel_set().is_empty() {
        suite.fail("the kernel set has no name");
    }
    for features in [1, 7, 16, 33] {
        rows(suite, features);
        for rank in [1, 7, 16, 64] {
            pairs(suite, features, rank);
        }
    }
}

fn rows<B: Backend>(suite: &mut Suite<'_, B>, features: usize) {
    let mut stream = Inputs::new(1);
    let mut buffer = blank(&mut suite.backend, 3, features);
    for rows in [3, 1, 0, 70, 2] {
        suite.backend.resize(&mut buffer, rows).expect("the suite's buffers are small");
        let values = stream.values(rows * features, 1e20);
        suite.backend.write_rows(&mut buffer, &values);
        let read = suite.backend.read_rows(&buffer);
        suite.same_bits(&format!("{rows} rows of {features}"), &read, &values);
        suite.backend.zero(&mut buffer);
        let read = suite.backend.read_rows(&buffer);
        suite.same_bits(
            &format!("{rows} rows of {features}, zeroed"),
            &read,
            &vec![0.0; values.len()],
        );
    }
    let values = stream.values(5 * features, 1.0);
    let buffer = upload(&mut suite.backend, features, &values);
    let read = suite.backend.read_rows(&buffer);
    suite.same_bits(&format!("5 rows of {features}"), &read, &values);
}

fn pairs<B: Backend>(suite: &mut Suite<'_, B>, inputs: usize, rank: usize) {
    let what = |part| format!("{part} of {inputs} inputs and rank {rank}");
    let outputs = 19;
    let mut stream = Inputs::new(2);
    let a = stream.values(rank * inputs, 1.0);
    let b = stream.values(outputs * rank, 1.0);
    let zeros = (vec![0.0; a.len()], vec![0.0; b.len()]);
    let backend = &mut suite.backend;

    let lora = backend.lora(&a, &b, rank).expect("the suite's adapters are small");
    let mut pair = backend.pair(&lora).expect("the suite's adapters are small");
    let mut copy = backend.pair(&lora).expect("the suite's adapters are small");
    let fresh = backend.read_pair(&pair);
    backend.write_pair(&mut pair, &a, &b);
    backend.copy_pair(&mut copy, &pair);
    let written = backend.read_pair(&pair);
    backend.zero_pair(&mut pair);
    let zeroed = backend.read_pair(&pair);
    let lora = backend.read_lora(&lora);
    let copied = backend.read_pair(&copy);

    let full = (a, b);
    for (part, actual, expected) in [
        ("adapter", &lora, &full),
        ("new pair", &fresh, &zeros),
        ("written pair", &written, &full),
        ("zeroed pair", &zeroed, &zeros),
        ("copied pair", &copied, &full),
    ] {
        suite.same_bits(&what(part), &actual.0, &expected.0);
        suite.same_bits(&what(part), &actual.1, &expected.1);
    }
}
