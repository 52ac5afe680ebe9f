//! `tinsmith version`.

use anyhow::Result;
use tinsmith_backend::Dtype;

use crate::{
    config::{Settings, Values},
    device,
    terminal::say,
};

pub(crate) fn run() -> Result<()> {
    let settings = Settings::new(&Values::load(&Vec::new(), None)?)?;
    let (floats, halves) =
        (device::kernels(&settings, Dtype::F32)?, device::kernels(&settings, Dtype::Bf16)?);
    let mut sets = floats.set().versioned().to_owned();
    if halves.set() != floats.set() {
        sets = format!("{sets}; {} for models in bf16", halves.set().versioned());
    }
    say(&format!("tinsmith {} ({sets})", env!("CARGO_PKG_VERSION")));
    Ok(())
}
