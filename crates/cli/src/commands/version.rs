//! `tinsmith version`.

use anyhow::Result;
use tinsmith_backend::Backend as _;

use crate::{
    config::{Settings, Values},
    device,
    terminal::say,
};

pub(crate) fn run() -> Result<()> {
    let settings = Settings::new(&Values::load(&Vec::new(), None)?)?;
    let device = device::open(&settings)?;
    say(&format!("tinsmith {} ({})", env!("CARGO_PKG_VERSION"), device.kernel_set()));
    Ok(())
}
