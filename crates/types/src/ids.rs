//! Names of things on the wire, each with a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The id as it travels.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(id: String) -> Self {
                Self(id)
            }
        }
    )*};
}

ids! {
    /// Whose things these are. `local` without keys.
    TenantId;
    /// One client program's connection scope.
    SessionId;
    /// One training run: `<session>:train:<model_seq_id>`.
    ModelId;
    /// One queued request.
    RequestId;
    /// One sampler: `<session>:sample:<sampling_session_seq_id>`.
    SamplingSessionId;
    /// One sampled sequence.
    SequenceId;
    /// One custom loss: `<session>:loss:<custom_loss_seq_id>`.
    LossId;
}

impl ModelId {
    /// The id of a session's run: clients work it out themselves.
    pub fn of(session: &SessionId, model_seq_id: i64) -> Self {
        Self(format!("{session}:train:{model_seq_id}"))
    }
}

impl SamplingSessionId {
    /// The id of a session's sampler.
    pub fn of(session: &SessionId, sampling_session_seq_id: i64) -> Self {
        Self(format!("{session}:sample:{sampling_session_seq_id}"))
    }
}

impl SequenceId {
    /// The id of one of the sequences that a sample draws.
    pub fn of(request: &RequestId, index: usize) -> Self {
        Self(format!("{request}:{index}"))
    }
}

impl LossId {
    /// The id of a session's loss. Its request has the same one: the loss is there when it is answered.
    pub fn of(session: &SessionId, custom_loss_seq_id: i64) -> Self {
        Self(format!("{session}:loss:{custom_loss_seq_id}"))
    }

    /// The loss that a request made, where the id is one of such a request.
    pub fn of_request(id: &RequestId) -> Option<Self> {
        let (_, number) = id.0.rsplit_once(":loss:")?;
        number.parse::<u32>().is_ok().then(|| Self(id.0.clone()))
    }
}

/// Order number of a request within a training run (from 1; creation is 0), or of a sample within a
/// sampling session.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Deserialize, Serialize,
)]
#[serde(transparent)]
pub struct SeqId(pub i64);

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
