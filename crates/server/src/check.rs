//! Checks of values, before anything is written down.
//!
//! What is wrong with a request that has a place in a run's order is a [`Fault`]: the request takes its
//! place, failed. What is wrong with others is a 400.

use serde::Serialize;
use serde_json::Value;
use tinsmith_store::{Category, Failure};
use tinsmith_types::session::Metadata;

use crate::{
    config::Config,
    error::{Error, Result, short},
};

pub(crate) mod custom_loss;
pub(crate) mod datums;
pub(crate) mod prompt_scores;
pub(crate) mod provenance;
pub(crate) mod sample;

/// What is wrong, with the place named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Fault(pub(crate) String);

impl Fault {
    /// As the request's end.
    pub(crate) fn into_failure(self) -> Failure {
        Failure { category: Category::User, message: short(&self.0).into_owned() }
    }

    /// As an answer.
    pub(crate) fn into_error(self, code: &'static str) -> Error {
        Error::invalid(code, self.0)
    }
}

/// Refuses with a message unless `ok`.
pub(crate) fn ensure(ok: bool, message: impl FnOnce() -> String) -> Result<(), Fault> {
    if ok { Ok(()) } else { Err(Fault(message())) }
}

/// The number as the engine computes with it.
#[expect(clippy::cast_possible_truncation, reason = "the rounding is what is looked at")]
pub(crate) fn rounded(number: f64) -> f32 {
    number as f32
}

/// Shortest and longest time after which a checkpoint may expire.
const TTL_SECONDS: std::ops::RangeInclusive<i64> = 3600..=10 * 365 * 24 * 3600;

/// Checks `ttl_seconds`, null for none.
pub(crate) fn ttl(seconds: Option<i64>) -> Result<(), Fault> {
    ensure(seconds.is_none_or(|seconds| TTL_SECONDS.contains(&seconds)), || {
        format!(
            "ttl_seconds must be from {} to {} (one hour to ten years)",
            TTL_SECONDS.start(),
            TTL_SECONDS.end()
        )
    })
}

/// Longest name of a checkpoint, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Checks the name of a checkpoint to be made: one segment of a `tinker://` path.
pub(crate) fn checkpoint_name(name: &str) -> Result<(), Fault> {
    let is_segment = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    let is_plain = !name.chars().any(char::is_control) && name.len() <= NAME_BYTES_MAX;
    ensure(is_segment && is_plain, || {
        format!(
            "path {name:?} is no name of a checkpoint: one segment without `/` and control \
             characters, at most {NAME_BYTES_MAX} bytes"
        )
    })
}

/// A user's notes on a session or run as they are stored, `{}` where there are none.
pub(crate) fn metadata(config: &Config, metadata: Option<Metadata>) -> Result<Value> {
    let metadata = metadata.unwrap_or_default();
    small(config, "user_metadata", &metadata)?;
    Ok(Value::Object(metadata.into_iter().collect()))
}

/// A user's notes as they travel; none where none were given.
pub(crate) fn as_metadata(stored: Value) -> Option<Metadata> {
    match stored {
        Value::Object(object) => Some(object.into_iter().collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            None
        }
    }
}

/// Refuses what has no business to be large.
pub(crate) fn small(config: &Config, name: &str, value: &impl Serialize) -> Result<()> {
    let bytes_max = config.metadata_bytes_max;
    if serde_json::to_vec(value).is_ok_and(|json| json.len() <= bytes_max) {
        return Ok(());
    }
    let detail = format!("{name} has more than {bytes_max} bytes as JSON");
    Err(Error::invalid("metadata_too_large", detail))
}
