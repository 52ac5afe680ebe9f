//! The metrics of one request as they gather.

use std::collections::BTreeMap;

use super::{Chosen, Evaluation, Metric, Reduction, Rule, Term};

/// `loss:sum` and what the loss reports beside it.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    loss_sum: f64,
    /// Of losses that are sums over tokens: the metrics of the loss, in its order.
    of_tokens: &'static [Metric],
    values: Vec<Option<f64>>,
    /// Of losses that are sums over datums, by name.
    of_datums: BTreeMap<String, Gathered>,
}

#[derive(Clone, Copy, Debug)]
struct Gathered {
    reduction: Reduction,
    value: f64,
    count: f64,
}

impl Totals {
    pub(crate) fn new(loss: &Chosen) -> Self {
        let of_tokens = match loss {
            Chosen::Named { loss, .. } => match &loss.rule {
                Rule::Token(rule) => rule.metrics,
                Rule::Datum(_) => &[],
            },
            Chosen::Custom(_) => &[],
        };
        let values = vec![None; of_tokens.len()];
        Self { loss_sum: 0.0, of_tokens, values, of_datums: BTreeMap::new() }
    }

    /// Takes in one token whose term has the value `value`.
    pub(crate) fn add(&mut self, value: f64, term: &Term<'_>) {
        self.loss_sum += value;
        for (metric, total) in self.of_tokens.iter().zip(&mut self.values) {
            if let Some(value) = (metric.value)(term) {
                *total = Some(total.map_or(value, |total| merged(metric.reduction, total, value)));
            }
        }
    }

    /// Takes in one datum.
    pub(crate) fn add_datum(&mut self, evaluation: Evaluation) {
        self.loss_sum += evaluation.loss;
        for (name, value) in evaluation.metrics {
            // Names without a reduction were refused when the datum was evaluated.
            let Some(reduction) = Reduction::of(&name) else { continue };
            let first = Gathered { reduction, value, count: 1.0 };
            let merge = |gathered: &mut Gathered| {
                gathered.value = merged(reduction, gathered.value, value);
                gathered.count += 1.0;
            };
            self.of_datums.entry(name).and_modify(merge).or_insert(first);
        }
    }

    /// By `name:reduction`; a metric that no token counted in is zero. A mean is over the datums that have it.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let of_tokens = self.of_tokens.iter().zip(&self.values);
        let named = |(metric, value): (&Metric, &Option<f64>)| {
            (metric.name.to_owned(), value.unwrap_or_default())
        };
        let mut metrics: BTreeMap<_, _> = of_tokens.map(named).collect();
        for (name, gathered) in &self.of_datums {
            let value = match gathered.reduction {
                Reduction::Mean => gathered.value / gathered.count,
                Reduction::Sum | Reduction::Max | Reduction::Min => gathered.value,
            };
            metrics.insert(name.clone(), value);
        }
        metrics.insert("loss:sum".to_owned(), self.loss_sum);
        metrics
    }
}

fn merged(reduction: Reduction, total: f64, value: f64) -> f64 {
    match reduction {
        Reduction::Sum | Reduction::Mean => total + value,
        Reduction::Max => total.max(value),
        Reduction::Min => total.min(value),
    }
}
