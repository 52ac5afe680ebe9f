//! The optimizers. To add one: a file beside this, and its parameters in `Work`.

pub(crate) mod adamw;
