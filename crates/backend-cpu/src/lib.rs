//! The CPU backend: activations in f32, frozen matrices as a kernel set keeps them, and with every set
//! the same bits for every thread count and batch.
//!
//! Kernels are written once over sixteen virtual lanes (`lanes.rs`) and instantiated for each
//! instruction set; one file an op. A new op gets a file, and one method in `backend.rs`.

#![expect(unsafe_code, reason = "kernels are vector instructions and pointer arithmetic")]
#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "a kernel is pointer arithmetic from end to end; its contract stands at its head"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "indices and exponents that are in range by construction"
)]

use std::{fmt, io};

pub use crate::{
    attention::Cache,
    buffer::{Lora, Pair, Rows, Vector},
    lanes::Path,
    pool::physical_cores,
    sets::{DtypeChoice, KernelChoice, KernelSet, Kernels, choose, dtype_name},
    weight::Weight,
};
use crate::{buffer::Buffer, pool::Pool, rope::Turns};

mod adamw;
mod add;
mod attention;
mod attention_backward;
mod backend;
mod between;
mod buffer;
mod embed;
mod footprint;
mod gated;
mod gemm;
mod lanes;
mod linear;
mod lists;
mod math;
mod peak;
mod pool;
mod rms_norm;
mod rope;
mod sample;
mod score;
mod select;
mod sets;
mod softcap;
mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

/// What can go wrong when the backend is chosen or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The instructions that were asked for do not exist here.
    #[error("run kernels {0} on this CPU: it lacks {1}")]
    KernelsUnavailable(Kernels, String),
    /// The set's f32 ops do not run on the path.
    #[error("run kernels {0}: the set has no such path")]
    NoSuchPath(Kernels),
    /// The set keeps weights in another dtype than the one asked for.
    #[error("run kernels {set} with dtype {wanted}: they keep weights in {kept}")]
    OtherDtype {
        /// What was asked for by name.
        set: KernelSet,
        /// Its dtype.
        kept: &'static str,
        /// The dtype asked for.
        wanted: &'static str,
    },
    /// No set with weights in bf16 runs here.
    #[error(
        "compute with dtype bf16 on this CPU: it lacks AVX2 with FMA, which the least of the sets needs"
    )]
    NoHalves,
    /// The operating system gave no thread.
    #[error("start the compute threads")]
    Threads(#[source] io::Error),
}

/// How to compute.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Threads that compute, the caller's among them; [`physical_cores`] is a good number.
    pub threads: usize,
    /// Which instructions to use.
    pub kernels: Kernels,
}

/// What the backend computes with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Description {
    /// The kernel set and its path.
    pub kernels: Kernels,
    /// Threads that compute.
    pub threads: usize,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, path) = (self.kernels.set().versioned(), self.kernels.path());
        write!(f, "kernel set {set}, path {path}, {} threads", self.threads)
    }
}

/// The CPU as a backend. Its ops run on the calling thread and on a pool of its own.
#[derive(Debug)]
pub struct CpuBackend {
    set: KernelSet,
    path: Path,
    pool: Pool,
    /// `x Aᵀ` where the caller does not keep it.
    hidden: Rows,
    /// `dy B` of each of several linear maps.
    hidden_gradients: [Rows; 3],
    /// One chunk's logits.
    logits: Rows,
    /// What is asked of each of a chunk's rows.
    groups: Vec<sample::Group>,
    scoring: score::Scoring,
    /// What products on tiles work with.
    #[cfg(target_arch = "x86_64")]
    tiles: sets::Tiles,
    /// Keys and values of a training step in tiles.
    packed: Buffer,
    /// Shares of the gradients of a long sequence's keys and values.
    partials: Buffer,
    turns: Vec<Turns>,
}

impl CpuBackend {
    /// Chooses kernels and starts the threads.
    ///
    /// # Errors
    ///
    /// The CPU lacks the instructions asked for, or no thread could be started.
    pub fn new(config: Config) -> Result<Self, Error> {
        let kernels = Kernels::new(config.kernels.set, config.kernels.path)?;
        Ok(Self::with_pool(kernels, Pool::new(config.threads).map_err(Error::Threads)?))
    }

    fn with_pool(kernels: Kernels, pool: Pool) -> Self {
        Self {
            set: kernels.set,
            path: kernels.path,
            pool,
            hidden: Rows::empty(),
            hidden_gradients: [Rows::empty(), Rows::empty(), Rows::empty()],
            logits: Rows::empty(),
            groups: Vec::new(),
            scoring: score::Scoring::default(),
            #[cfg(target_arch = "x86_64")]
            tiles: sets::Tiles::default(),
            packed: Buffer::default(),
            partials: Buffer::default(),
            turns: Vec::new(),
        }
    }

    /// What was chosen.
    pub fn describe(&self) -> Description {
        let kernels = Kernels { set: self.set, path: self.path };
        Description { kernels, threads: self.pool.threads() }
    }
}
