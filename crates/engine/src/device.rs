//! The device and what every step on it needs.

use std::sync::Arc;

use tinsmith_backend::{Backend, StepKind};
use tinsmith_model::{
    decoder::Decoder,
    memory::{StepShape, step_bytes},
    workspace::Workspace,
};

use crate::{Config, LoraSpec, Result, plan};

/// A backend with the base model on it, and working memory for one step at a time.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    pub(crate) backend: B,
    pub(crate) decoder: Arc<Decoder<B>>,
    pub(crate) workspace: Workspace<B>,
    /// What the training steps since the last release have grown the workspace to.
    pub(crate) grown: Option<StepShape>,
}

impl<B: Backend> Device<B> {
    pub(crate) fn new(mut backend: B, decoder: Arc<Decoder<B>>) -> Result<Self> {
        let workspace = Workspace::new(&mut backend, decoder.config())?;
        Ok(Self { backend, decoder, workspace, grown: None })
    }

    /// Another one, whose steps may run from within this one's.
    pub(crate) fn sibling(&self) -> Result<Self> {
        Self::new(self.backend.sibling()?, Arc::clone(&self.decoder))
    }

    /// Planned bytes of a step.
    pub(crate) fn step_bytes(&self, step: &StepShape) -> usize {
        step_bytes(&self.backend, self.decoder.config(), step)
    }

    /// Decides whether a step's layers are computed again, and frees what earlier steps left where this one
    /// would not fit beside it. Gives the step as it will run.
    pub(crate) fn make_room(&mut self, mut step: StepShape, bytes_max: usize) -> Result<StepShape> {
        let backward = step.kind == StepKind::ForwardBackward;
        step.recompute = backward && self.step_bytes(&step) > bytes_max;
        let merged = match &self.grown {
            Some(grown) => grown.merged(&step).filter(|all| self.step_bytes(all) <= bytes_max),
            None => Some(step),
        };
        if merged.is_none() {
            self.workspace.release(&mut self.backend, self.decoder.config())?;
        }
        self.grown = Some(merged.unwrap_or(step));
        Ok(step)
    }

    /// Tokens of the longest datum that can be trained.
    pub(crate) fn longest_datum(&self, config: &Config, rank: usize) -> usize {
        plan::longest_datum(&self.backend, self.decoder.config(), config, rank)
    }

    /// Planned bytes of a run.
    pub(crate) fn run_bytes(&self, spec: &LoraSpec) -> usize {
        plan::run_bytes(&self.backend, self.decoder.config(), spec)
    }

    /// Planned bytes of a sampler.
    pub(crate) fn sampler_bytes(&self, spec: &LoraSpec) -> usize {
        plan::sampler_bytes(&self.backend, self.decoder.config(), spec)
    }
}
