//! `tinsmith checkpoint unpublish`.

use anyhow::Result;

use super::One;
use crate::terminal::say;

pub(crate) fn run(One { path, remote }: &One) -> Result<()> {
    let call = remote.rest()?.unpublish_checkpoint_from_tinker_path(path);
    remote.wait("unpublish the checkpoint", call)?;
    say(&format!("{path} can be read by its owner only"));
    Ok(())
}
