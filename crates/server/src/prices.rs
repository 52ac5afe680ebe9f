//! What usage costs, in US dollars. Nothing, unless the settings say otherwise.

use std::collections::BTreeMap;

/// What has a price.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Priced {
    /// A million tokens of forward and backward passes.
    Training,
    /// A million tokens of prompts that were computed.
    Prefill,
    /// A million tokens of prompts that were found in the prefix cache.
    PrefillCached,
    /// A million tokens drawn.
    Sample,
    /// 10^9 bytes of checkpoints for 720 hours.
    Storage,
}

impl Priced {
    /// By their names in the settings.
    pub const ALL: [(&'static str, Self); 5] = [
        ("training", Self::Training),
        ("prefill", Self::Prefill),
        ("prefill_cached", Self::PrefillCached),
        ("sample", Self::Sample),
        ("storage", Self::Storage),
    ];
}

/// Prices, of all base models or of one.
#[derive(Clone, Debug)]
pub struct Prices {
    /// Of whatever has no price of its own.
    pub general: BTreeMap<Priced, f64>,
    /// By the names of base models.
    pub of_model: BTreeMap<String, BTreeMap<Priced, f64>>,
}

impl Prices {
    /// What a unit costs.
    pub(crate) fn of(&self, what: Priced, base_model: Option<&str>) -> f64 {
        let own = base_model.and_then(|name| self.of_model.get(name)?.get(&what));
        own.or_else(|| self.general.get(&what)).copied().unwrap_or(0.0)
    }
}
