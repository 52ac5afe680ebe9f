//! Brings samplers into memory and out of it again; those that follow a run share its newest weights.

use std::{collections::BTreeMap, time::Duration};

use tinsmith_engine::{Backend, SamplerKey};
use tinsmith_store::{Failure, SamplingSessionRecord};
use tinsmith_types::ids::{ModelId, SamplingSessionId, TenantId};

use crate::worker::{Worker, engine_failure, server_failure, user_failure};

/// One sampler in memory.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    pub(crate) key: SamplerKey,
    /// Index of its base model.
    pub(crate) model: usize,
    /// Samples inside the engine.
    pub(crate) in_flight: usize,
    /// When it was last used, on the monotonic clock.
    pub(crate) used_at: Duration,
    /// The run whose in-flight saves move it.
    pub(crate) follows: Option<ModelId>,
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

    /// Those that follow a run: all have the weights of its newest in-flight save.
    pub(crate) fn followers(&self, run: &ModelId) -> impl Iterator<Item = &Sampler> {
        self.by_id.values().filter(move |sampler| sampler.follows.as_ref() == Some(run))
    }

    /// Takes out the idle sampler that has rested longest.
    pub(crate) fn evict(&mut self) -> Option<Sampler> {
        let idle = self.by_id.iter().filter(|(_, sampler)| sampler.in_flight == 0);
        let id = idle.min_by_key(|(_, sampler)| sampler.used_at).map(|(id, _)| id.clone())?;
        self.by_id.remove(&id)
    }
}

impl<B: Backend> Worker<B> {
    /// Makes sure that a sampler is in memory.
    pub(crate) fn ensure_sampler(
        &mut self,
        tenant: &TenantId,
        id: &SamplingSessionId,
    ) -> Result<Sampler, Failure> {
        let now = self.clock.monotonic();
        if let Some(sampler) = self.samplers.get_mut(id) {
            sampler.used_at = now;
            return Ok(sampler.clone());
        }
        let record = self.sampler_record(tenant, id)?;
        let model = self.model_of(&record.base_digest).ok_or_else(|| {
            user_failure(format!(
                "the sampler's base model {} (digest {}) is not served: start the server with the same weights",
                record.base_model, record.base_digest
            ))
        })?;
        let files = match &record.blob {
            Some(blob) => Some(self.blob(blob)?.1),
            None => None,
        };
        self.make_sampler_room();
        let scope = tenant.as_str();
        let key = self.make_sampler(|worker, key| {
            let followed = record.follows.as_ref();
            let leader = followed.and_then(|run| worker.samplers.followers(run).next());
            let leader = leader.map(|leader| leader.key);
            let engine = &mut worker.models[model].engine;
            match (leader, &files) {
                (Some(leader), _) => engine.join_sampler(key, scope, leader),
                (None, Some(files)) if followed.is_some() => {
                    engine.create_own_sampler(key, scope, files)
                }
                (None, files) => engine.create_sampler(key, scope, files.as_ref()),
            }
        })?;
        Ok(self.keep_sampler(id.clone(), key, (model, record.follows)))
    }

    /// What a sampler is made from. Of one that follows a run, that is the newest save that anybody may know of.
    fn sampler_record(
        &self,
        tenant: &TenantId,
        id: &SamplingSessionId,
    ) -> Result<SamplingSessionRecord, Failure> {
        let read = || {
            let record = self.runtime.block_on(self.store.sampling_session(tenant, id));
            record.map_err(|error| server_failure(error.to_string()))
        };
        let record = read()?;
        if record.follows.is_none() {
            return Ok(record);
        }
        // A later save may be on its way to the disk.
        self.flush();
        read()
    }

    /// Gives all samplers that follow a run the weights of one.
    pub(crate) fn move_followers(
        &mut self,
        run: &ModelId,
        leader: &Sampler,
    ) -> Result<(), Failure> {
        let keys: Vec<SamplerKey> = self.samplers.followers(run).map(|each| each.key).collect();
        let engine = &mut self.models[leader.model].engine;
        for key in keys.into_iter().filter(|key| *key != leader.key) {
            engine.follow_sampler(key, leader.key).map_err(|error| engine_failure(&error))?;
        }
        Ok(())
    }

    /// Makes a sampler; drops samplers that rest, one after another, as long as its engine finds no room.
    pub(crate) fn make_sampler(
        &mut self,
        make: impl Fn(&mut Self, SamplerKey) -> tinsmith_engine::Result<()>,
    ) -> Result<SamplerKey, Failure> {
        let key = SamplerKey(self.key());
        loop {
            match make(self, key) {
                Ok(()) => return Ok(key),
                Err(error @ tinsmith_engine::Error::Full { .. }) => {
                    let Some(evicted) = self.samplers.evict() else {
                        return Err(engine_failure(&error));
                    };
                    self.models[evicted.model].engine.drop_sampler(evicted.key);
                }
                Err(error) => return Err(engine_failure(&error)),
            }
        }
    }

    /// Whether a sampler of that name was made before.
    pub(crate) fn knows_sampler(&mut self, tenant: &TenantId, id: &SamplingSessionId) -> bool {
        self.samplers.get_mut(id).is_some()
            || self.runtime.block_on(self.store.sampling_session(tenant, id)).is_ok()
    }

    /// Whether this sampler, or a new one, can be in memory now; else one of those at work has to end first.
    pub(crate) fn has_sampler_room(&self, id: Option<&SamplingSessionId>) -> bool {
        self.samplers.len() < self.config.resident_samplers_max
            || id.is_some_and(|id| self.samplers.contains(id))
            || self.samplers.can_evict()
    }

    /// Drops samplers that rest, until one more has room.
    pub(crate) fn make_sampler_room(&mut self) {
        while self.samplers.len() >= self.config.resident_samplers_max {
            let Some(evicted) = self.samplers.evict() else { break };
            self.models[evicted.model].engine.drop_sampler(evicted.key);
        }
    }

    /// Takes note of a sampler that an engine holds.
    pub(crate) fn keep_sampler(
        &mut self,
        id: SamplingSessionId,
        key: SamplerKey,
        (model, follows): (usize, Option<ModelId>),
    ) -> Sampler {
        let used_at = self.clock.monotonic();
        let sampler = Sampler { key, model, in_flight: 0, used_at, follows };
        self.samplers.insert(id, sampler.clone());
        sampler
    }
}
