//! Which backend computes. A new one is an arm here.

use anyhow::{Context as _, Result};
use tinsmith_backend::Dtype;
use tinsmith_backend_cpu::{CpuBackend, DtypeChoice, KernelChoice, Kernels, choose};

use crate::config::Settings;

/// The backend that this binary computes with.
pub(crate) type Device = CpuBackend;

/// Opens the device as the settings ask, for a model whose matrices are stored as `stored`.
///
/// # Errors
///
/// Kernels that this CPU does not have, or that keep weights in another dtype than the one wanted.
pub(crate) fn open(settings: &Settings, stored: Dtype) -> Result<Device> {
    let threads = match settings.threads {
        0 => tinsmith_backend_cpu::physical_cores(),
        threads => threads,
    };
    let kernels = kernels(settings, stored)?;
    CpuBackend::new(tinsmith_backend_cpu::Config { threads, kernels }).context("open the CPU")
}

/// The kernels for a model whose matrices are stored as `stored`.
///
/// # Errors
///
/// As for [`open`].
pub(crate) fn kernels(settings: &Settings, stored: Dtype) -> Result<Kernels> {
    Ok(choose(settings.dtype, settings.kernels, stored)?)
}

/// Reads the setting `dtype`.
pub(crate) fn read_dtype(text: &str) -> Result<DtypeChoice> {
    DtypeChoice::parse(text)
        .with_context(|| format!("use dtype = {text:?}: give auto, f32 or bf16"))
}

/// Reads the setting `kernels`.
pub(crate) fn read_kernels(text: &str) -> Result<KernelChoice> {
    KernelChoice::parse(text)
        .with_context(|| format!("use kernels = {text:?}: give one of {}", KernelChoice::names()))
}
