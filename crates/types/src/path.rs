//! `tinker://<run>/<kind>/<name>`, parsed once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Error;
use crate::ids::ModelId;

const SCHEME: &str = "tinker://";

/// What a checkpoint is made for.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// Weights and optimizer state: training goes on from it.
    Weights,
    /// Weights to sample from.
    SamplerWeights,
    /// Weights in files for others to download.
    ExternalWeights,
}

impl CheckpointKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Weights, Self::SamplerWeights, Self::ExternalWeights];

    /// As in paths and URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::SamplerWeights => "sampler_weights",
            Self::ExternalWeights => "external_weights",
        }
    }
}

impl fmt::Display for CheckpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CheckpointKind {
    type Err = Error;

    fn from_str(kind: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|known| known.as_str() == kind).ok_or_else(|| {
            Error::value(
                format!("checkpoint kind `{kind}`"),
                "is none of `weights`, `sampler_weights` and `external_weights`",
            )
        })
    }
}

/// Where a checkpoint is found.
///
/// ```
/// use tinsmith_types::path::{CheckpointKind, CheckpointPath};
///
/// let path: CheckpointPath = "tinker://s:train:0/weights/step-1".parse()?;
/// assert_eq!((path.run.as_str(), path.kind), ("s:train:0", CheckpointKind::Weights));
/// assert_eq!(path.checkpoint_id(), "weights/step-1");
/// assert_eq!(path.to_string(), "tinker://s:train:0/weights/step-1");
/// # Ok::<(), tinsmith_types::Error>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CheckpointPath {
    /// The training run.
    pub run: ModelId,
    /// What the checkpoint is made for.
    pub kind: CheckpointKind,
    /// Its name: one segment.
    pub name: String,
}

impl CheckpointPath {
    /// `<kind>/<name>`: the name within the run.
    pub fn checkpoint_id(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

impl fmt::Display for CheckpointPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.run, self.kind, self.name)
    }
}

impl FromStr for CheckpointPath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        let shape = |message| Error::value(format!("checkpoint path `{path}`"), message);
        let rest =
            path.strip_prefix(SCHEME).ok_or_else(|| shape("does not begin with `tinker://`"))?;
        let segments: Vec<&str> = rest.split('/').collect();
        let [run, kind, name] = segments[..] else {
            return Err(shape("is not `tinker://<run>/<kind>/<name>`"));
        };
        if run.is_empty() || name.is_empty() {
            return Err(shape("has an empty segment"));
        }
        Ok(Self { run: run.into(), kind: kind.parse()?, name: name.to_owned() })
    }
}

impl TryFrom<&str> for CheckpointPath {
    type Error = Error;

    fn try_from(path: &str) -> Result<Self, Error> {
        path.parse()
    }
}

impl TryFrom<String> for CheckpointPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self, Error> {
        path.parse()
    }
}

impl TryFrom<&String> for CheckpointPath {
    type Error = Error;

    fn try_from(path: &String) -> Result<Self, Error> {
        path.parse()
    }
}

impl From<&Self> for CheckpointPath {
    fn from(path: &Self) -> Self {
        path.clone()
    }
}

impl Serialize for CheckpointPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CheckpointPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &str) {
        assert_eq!(path.parse::<CheckpointPath>().unwrap_err().to_string(), expected);
    }

    #[test]
    fn other_shapes_are_refused() {
        check(
            "run-1/weights/a",
            "read checkpoint path `run-1/weights/a`: does not begin with `tinker://`",
        );
        for path in ["tinker://run-1", "tinker://run-1/weights", "tinker://run-1/weights/a/b"] {
            check(
                path,
                &format!("read checkpoint path `{path}`: is not `tinker://<run>/<kind>/<name>`"),
            );
        }
        for path in ["tinker:///weights/a", "tinker://run-1/weights/"] {
            check(path, &format!("read checkpoint path `{path}`: has an empty segment"));
        }
        check(
            "tinker://run-1/Weights/a",
            "read checkpoint kind `Weights`: is none of `weights`, `sampler_weights` and \
             `external_weights`",
        );
    }
}
