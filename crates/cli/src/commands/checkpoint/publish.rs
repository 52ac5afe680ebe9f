//! `tinsmith checkpoint publish`.

use anyhow::Result;

use super::One;
use crate::terminal::say;

pub(crate) fn run(One { path, remote }: &One) -> Result<()> {
    let call = remote.rest()?.publish_checkpoint_from_tinker_path(path);
    remote.wait("publish the checkpoint", call)?;
    say(&format!("{path} can be read by anybody"));
    Ok(())
}
