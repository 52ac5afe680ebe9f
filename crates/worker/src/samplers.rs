//! Which samplers are in memory, and since when they rest.

use std::{collections::BTreeMap, time::Duration};

use tinsmith_engine::SamplerKey;
use tinsmith_types::ids::SamplingSessionId;

/// One sampler in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampler {
    pub(crate) key: SamplerKey,
    /// Index of its base model.
    pub(crate) model: usize,
    /// Samples inside the engine.
    pub(crate) in_flight: usize,
    /// When it was last used, on the monotonic clock.
    pub(crate) used_at: Duration,
}

/// The samplers in memory.
#[derive(Debug, Default)]
pub(crate) struct Samplers {
    by_id: BTreeMap<SamplingSessionId, Sampler>,
}

impl Samplers {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn contains(&self, id: &SamplingSessionId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Whether one of them is idle, or there is none at all.
    pub(crate) fn can_evict(&self) -> bool {
        self.by_id.is_empty() || self.by_id.values().any(|sampler| sampler.in_flight == 0)
    }

    pub(crate) fn get_mut(&mut self, id: &SamplingSessionId) -> Option<&mut Sampler> {
        self.by_id.get_mut(id)
    }

    pub(crate) fn insert(&mut self, id: SamplingSessionId, sampler: Sampler) {
        self.by_id.insert(id, sampler);
    }

    /// Takes out the idle sampler that has rested longest.
    pub(crate) fn evict(&mut self) -> Option<Sampler> {
        let idle = self.by_id.iter().filter(|(_, sampler)| sampler.in_flight == 0);
        let id = idle.min_by_key(|(_, sampler)| sampler.used_at).map(|(id, _)| id.clone())?;
        self.by_id.remove(&id)
    }
}
