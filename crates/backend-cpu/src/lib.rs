//! The CPU backend: every op in f32, the same bits on every CPU, thread count and batch.
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
    buffer::{Lora, Pair, Rows, Vector, Weight},
    lanes::Path,
    pool::physical_cores,
};
use crate::{buffer::Buffer, pool::Pool, rope::Turns};

mod adamw;
mod add;
mod attention;
mod attention_backward;
mod backend;
mod buffer;
mod embed;
mod footprint;
mod gated;
mod gemm;
mod lanes;
mod linear;
mod math;
mod pool;
mod rms_norm;
mod rope;
mod sample;
mod score;
mod softcap;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Name and version of the kernel set; all its paths give the same bits.
pub const KERNEL_SET: &str = "f32.1";

/// What can go wrong when the backend is made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The instructions that were asked for do not exist here.
    #[error("run kernels {0} on this CPU: it lacks their instructions")]
    KernelsUnavailable(Path),
    /// The operating system gave no thread.
    #[error("start the compute threads")]
    Threads(#[source] io::Error),
}

/// Which instructions to use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KernelChoice {
    /// The fastest that the CPU has.
    Auto,
    /// These, or an error.
    Forced(Path),
}

impl KernelChoice {
    /// Reads `auto` or the name of a path, e.g. `f32:avx2`.
    pub fn parse(name: &str) -> Option<Self> {
        if name == "auto" {
            return Some(Self::Auto);
        }
        Path::ALL.into_iter().find(|path| path.to_string() == name).map(Self::Forced)
    }
}

/// How to compute.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Threads that compute, the caller's among them; [`physical_cores`] is a good number.
    pub threads: usize,
    /// Which instructions to use.
    pub kernels: KernelChoice,
}

/// What `doctor` says about the backend.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Description {
    /// Name and version of the kernel set.
    pub kernel_set: &'static str,
    /// The instructions in use.
    pub path: Path,
    /// All paths that this CPU can run.
    pub available: Vec<Path>,
    /// Threads that compute.
    pub threads: usize,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel set {}, path {} (of", self.kernel_set, self.path)?;
        for path in &self.available {
            write!(f, " {path}")?;
        }
        write!(f, "), {} threads", self.threads)
    }
}

/// The CPU as a backend. Its ops run on the calling thread and on a pool of its own.
#[derive(Debug)]
pub struct CpuBackend {
    path: Path,
    pool: Pool,
    /// `x Aᵀ` where the caller does not keep it.
    hidden: Rows,
    /// `dy B`.
    hidden_gradient: Rows,
    /// One chunk's logits.
    logits: Rows,
    /// Keys and values of a training step in tiles.
    packed: Buffer,
    turns: Vec<Turns>,
}

impl CpuBackend {
    /// Chooses kernels and starts the threads.
    ///
    /// # Errors
    ///
    /// The CPU lacks the instructions asked for, or no thread could be started.
    pub fn new(config: Config) -> Result<Self, Error> {
        let path = match config.kernels {
            KernelChoice::Auto => {
                let best = Path::ALL.into_iter().rfind(|path| path.is_available());
                best.unwrap_or(Path::Portable)
            }
            KernelChoice::Forced(path) if path.is_available() => path,
            KernelChoice::Forced(path) => return Err(Error::KernelsUnavailable(path)),
        };
        Ok(Self {
            path,
            pool: Pool::new(config.threads).map_err(Error::Threads)?,
            hidden: Rows::empty(),
            hidden_gradient: Rows::empty(),
            logits: Rows::empty(),
            packed: Buffer::default(),
            turns: Vec::new(),
        })
    }

    /// What was chosen, and from what.
    pub fn describe(&self) -> Description {
        Description {
            kernel_set: KERNEL_SET,
            path: self.path,
            available: Path::ALL.into_iter().filter(|path| path.is_available()).collect(),
            threads: self.pool.threads(),
        }
    }
}
