//! The device and what every step on it needs.

use tinsmith_backend::Backend;
use tinsmith_model::{decoder::Decoder, workspace::Workspace};

/// A backend with the base model on it.
#[derive(Debug)]
pub(crate) struct Device<B: Backend> {
    pub(crate) backend: B,
    pub(crate) decoder: Decoder<B>,
    pub(crate) workspace: Workspace<B>,
}
