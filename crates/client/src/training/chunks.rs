//! A batch that is too large for one request travels in several; their results become one again.

use std::collections::BTreeMap;

use tinsmith_types::{service::ClientConfig, training::ForwardBackwardOutput};

use crate::{Error, Result};

const CHUNK_DATUMS: u64 = 1024;
const CHUNK_BYTES: u64 = 5_000_000;

/// How large one request may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ChunkLimits {
    pub(crate) datums: usize,
    pub(crate) bytes: u64,
}

impl ChunkLimits {
    pub(crate) fn of(config: Option<&ClientConfig>) -> Self {
        let datums = config.and_then(|config| config.fwdbwd_max_chunk_len).unwrap_or(CHUNK_DATUMS);
        let bytes = config.and_then(|config| config.fwdbwd_max_chunk_bytes_count);
        let datums = usize::try_from(datums).unwrap_or(usize::MAX).max(1);
        Self { datums, bytes: bytes.unwrap_or(CHUNK_BYTES) }
    }

    /// Splits greedily in order: a chunk is full when the next datum would make it larger than the limits. A
    /// datum that is too large by itself is a chunk by itself.
    pub(crate) fn split<T>(self, items: Vec<T>, bytes: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
        let mut chunks: Vec<Vec<T>> = Vec::new();
        let mut filled = 0;
        for item in items {
            let size = bytes(&item);
            let full = |chunk: &Vec<T>| chunk.len() >= self.datums || filled + size > self.bytes;
            match chunks.last_mut() {
                Some(chunk) if !full(chunk) => {
                    filled += size;
                    chunk.push(item);
                }
                _ => {
                    filled = size;
                    chunks.push(vec![item]);
                }
            }
        }
        chunks
    }
}

/// One result of those of all chunks, in their order.
///
/// # Errors
///
/// [`Error::Response`] for a metric whose name does not say how it is combined.
pub(crate) fn combine(outputs: Vec<ForwardBackwardOutput>) -> Result<ForwardBackwardOutput> {
    for name in outputs.iter().flat_map(|output| output.metrics.keys()) {
        if name.matches(':').count() != 1 {
            return Err(Error::response(format!("metric `{name}` is not `name:reduction`")));
        }
    }
    if outputs.len() == 1 {
        return Ok(outputs.into_iter().next().expect("it was counted"));
    }
    let mut metrics = BTreeMap::new();
    let names = outputs.first().map(|first| first.metrics.keys()).into_iter().flatten();
    for name in names {
        let values: Option<Vec<f64>> =
            outputs.iter().map(|output| output.metrics.get(name).copied()).collect();
        if let Some(values) = values {
            let weights: Vec<f64> = outputs.iter().map(weight).collect();
            metrics.extend(reduce(name, &values, &weights));
        }
    }
    let mut outputs = outputs.into_iter();
    let mut combined = outputs.next().unwrap_or_else(|| ForwardBackwardOutput {
        loss_fn_output_type: String::new(),
        loss_fn_outputs: Vec::new(),
        metrics: BTreeMap::new(),
    });
    combined.loss_fn_outputs.extend(outputs.flat_map(|output| output.loss_fn_outputs));
    combined.metrics = metrics;
    Ok(combined)
}

/// Means are weighed with the number of datums.
fn weight(output: &ForwardBackwardOutput) -> f64 {
    u32::try_from(output.loss_fn_outputs.len()).map_or_else(|_| f64::from(u32::MAX), f64::from)
}

fn reduce(name: &str, values: &[f64], weights: &[f64]) -> Vec<(String, f64)> {
    let one = |value| vec![(name.to_owned(), value)];
    let max = || values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mean = || {
        let sum: f64 = values.iter().zip(weights).map(|(value, weight)| value * weight).sum();
        sum / weights.iter().sum::<f64>()
    };
    match name.rsplit_once(':').map(|(_, reduction)| reduction) {
        Some("sum") => one(values.iter().sum()),
        Some("mean") => one(mean()),
        Some("min") => one(values.iter().copied().fold(f64::INFINITY, f64::min)),
        Some("max") => one(max()),
        Some("slack") => one(max() - mean()),
        Some("hash2" | "hash_unordered") => one(hash(values)),
        Some("unique") => {
            let number = |(i, value): (usize, &f64)| match i {
                0 => (name.to_owned(), *value),
                _ => (format!("{name}_{i}"), *value),
            };
            values.iter().enumerate().map(number).collect()
        }
        // A newer server's: nobody here knows how.
        _ => Vec::new(),
    }
}

/// The sum modulo 2⁶⁴ of the values as integers.
#[expect(clippy::cast_possible_truncation, reason = "hashes are integers within what f64 holds")]
#[expect(clippy::cast_precision_loss, reason = "the format is f64")]
fn hash(values: &[f64]) -> f64 {
    values.iter().fold(0_u64, |sum, value| sum.wrapping_add_signed(*value as i64)) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn output(datums: usize, metrics: &[(&str, f64)]) -> ForwardBackwardOutput {
        ForwardBackwardOutput {
            loss_fn_output_type: "t".to_owned(),
            loss_fn_outputs: vec![BTreeMap::new(); datums],
            metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        }
    }

    #[test]
    fn metrics_are_combined_as_their_names_say() {
        let all = |value: f64| {
            ["a:sum", "a:mean", "a:min", "a:max", "a:slack", "a:hash2", "a:unique", "a:odd"]
                .map(|name| (name, value))
        };
        let combined =
            combine(vec![output(2, &all(1.0)), output(2, &all(5.0)), output(1, &all(9.0))])
                .unwrap();
        assert_eq!(combined.loss_fn_outputs.len(), 5);
        let expected: BTreeMap<String, f64> = [
            ("a:sum", 15.0),
            ("a:mean", 4.2),
            ("a:min", 1.0),
            ("a:max", 9.0),
            ("a:slack", 4.8),
            ("a:hash2", 15.0),
            ("a:unique", 1.0),
            ("a:unique_1", 5.0),
            ("a:unique_2", 9.0),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        assert_eq!(combined.metrics, expected);
    }

    #[test]
    fn only_metrics_of_all_chunks_survive_and_each_needs_a_reduction() {
        let combined = combine(vec![
            output(1, &[("a:sum", 1.0), ("b:sum", 1.0)]),
            output(1, &[("a:sum", 1.0)]),
        ]);
        assert_eq!(combined.unwrap().metrics.into_keys().collect::<Vec<_>>(), ["a:sum"]);
        assert!(combine(vec![output(1, &[("loss", 1.0)])]).is_err());
        assert!(combine(vec![output(1, &[("a:b:sum", 1.0)])]).is_err());
        assert!(combine(Vec::new()).unwrap().metrics.is_empty());
    }

    proptest! {
        #[test]
        fn chunks_keep_the_order_and_the_limits(
            sizes in prop::collection::vec(0_u64..50, 0..60),
            datums in 1_usize..9,
            bytes in 1_u64..80,
        ) {
            let limits = ChunkLimits { datums, bytes };
            let chunks = limits.split(sizes.clone(), |size| *size);
            for chunk in &chunks {
                prop_assert!(!chunk.is_empty() && chunk.len() <= datums);
                prop_assert!(chunk.len() == 1 || chunk.iter().sum::<u64>() <= bytes);
            }
            for pair in chunks.windows(2) {
                let first = pair[1][0];
                let fits = pair[0].iter().sum::<u64>() + first <= bytes && pair[0].len() < datums;
                prop_assert!(!fits, "a chunk was ended too early");
            }
            prop_assert_eq!(chunks.concat(), sizes);
        }
    }
}
