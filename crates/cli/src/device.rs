//! Which backend computes. A new one is an arm here.

use anyhow::{Context as _, Result};
use tinsmith_backend_cpu::{CpuBackend, KernelChoice};

use crate::config::Settings;

/// The backend that this binary computes with.
pub(crate) type Device = CpuBackend;

/// Opens the device as the settings ask.
///
/// # Errors
///
/// Kernels that are unknown, or that this CPU does not have.
pub(crate) fn open(settings: &Settings) -> Result<Device> {
    let kernels = KernelChoice::parse(&settings.kernels).with_context(|| {
        format!(
            "use kernels = {:?}: give auto, f32:portable, f32:avx2 or f32:avx512",
            settings.kernels
        )
    })?;
    let threads = match settings.threads {
        0 => tinsmith_backend_cpu::physical_cores(),
        threads => threads,
    };
    let config = tinsmith_backend_cpu::Config { threads, kernels };
    CpuBackend::new(config).with_context(|| format!("use kernels = {:?}", settings.kernels))
}
