//! *When* it runs: batching, KV cache, sampling, losses, optimizers, adapters.
//!
//! Synchronous and deterministic: no clock, no async, no files but the one for spilled blocks. A caller submits [`Work`] and calls
//! [`Engine::step`] until its ticket comes back. A new loss goes in `loss/`, an optimizer in `optim/`.

mod config;
mod device;
mod engine;
mod error;
mod loss;
mod optim;
mod plan;
mod sample;
mod train;
mod work;

pub use config::Config;
pub use engine::{Engine, Training};
pub use error::{Error, Result};
pub use loss::{Evaluation, LossChoice, SequenceLoss, loss_inputs};
pub use plan::{
    Plan, longest_datum, run_bytes, sampler_bytes, sampling_step_bytes, training_step_bytes,
};
pub use sample::SpillFile;
pub use tinsmith_backend::{Backend, Between, Drawn};
pub use tinsmith_model::{
    config::DecoderConfig,
    decoder::Decoder,
    files::ModelDir,
    lora::LoraSpec,
    memory::cache_bytes,
    peft::{self, Files},
};
pub use work::{
    AdamParams, Array, Datum, Failure, Output, Parts, PromptTargets, RunKey, SampleJob,
    SampleOutput, SamplerKey, Sequence, Stats, Stop, StopReason, Ticket, Work,
};
