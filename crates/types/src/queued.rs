//! The requests that are queued, in the one form in which they are stored. The encoding is canonical
//! (ordered maps, defaults applied), so that a digest of it finds a retry again.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::proto;
use crate::sampling::SampleRequest;
use crate::training::{CreateModelRequest, OptimStepRequest, UnloadModelRequest};
use crate::weights::{
    LoadWeightsRequest, SaveWeightsExternalRequest, SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
};

/// A request that is answered with a future.
#[derive(Clone, Debug, PartialEq)]
pub enum QueuedRequest {
    /// Creates a training run.
    CreateModel(CreateModelRequest),
    /// Creates a run from a checkpoint, or loads one into it. Its token is not stored.
    LoadWeights(LoadWeightsRequest),
    /// Scores a batch.
    Forward(proto::ForwardBackwardRequest),
    /// Scores a batch and adds to the gradient.
    ForwardBackward(proto::ForwardBackwardRequest),
    /// Applies the gradient.
    OptimStep(OptimStepRequest),
    /// Makes a training checkpoint.
    SaveWeights(SaveWeightsRequest),
    /// Makes a sampler checkpoint or a sampling session.
    SaveWeightsForSampler(SaveWeightsForSamplerRequest),
    /// Makes files for other programs.
    SaveWeightsExternal(SaveWeightsExternalRequest),
    /// Ends a run's place in memory.
    UnloadModel(UnloadModelRequest),
    /// Draws tokens.
    Sample(SampleRequest),
}

impl QueuedRequest {
    /// A protobuf request under the name that its `forward_only` says.
    pub fn from_proto(request: proto::ForwardBackwardRequest) -> Self {
        if request.forward_only { Self::Forward(request) } else { Self::ForwardBackward(request) }
    }

    /// The variant's name, as it stands in the store.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::CreateModel(_) => "create_model",
            Self::LoadWeights(_) => "load_weights",
            Self::Forward(_) => "forward",
            Self::ForwardBackward(_) => "forward_backward",
            Self::OptimStep(_) => "optim_step",
            Self::SaveWeights(_) => "save_weights",
            Self::SaveWeightsForSampler(_) => "save_weights_for_sampler",
            Self::SaveWeightsExternal(_) => "save_weights_external",
            Self::UnloadModel(_) => "unload_model",
            Self::Sample(_) => "sample",
        }
    }

    /// What is stored.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::CreateModel(request) => json(request),
            Self::LoadWeights(request) => {
                json(&LoadWeightsRequest { weights_access_token: None, ..request.clone() })
            }
            Self::Forward(request) | Self::ForwardBackward(request) => {
                request.encode_to_vec().into()
            }
            Self::OptimStep(request) => json(request),
            Self::SaveWeights(request) => json(request),
            Self::SaveWeightsForSampler(request) => json(request),
            Self::SaveWeightsExternal(request) => json(request),
            Self::UnloadModel(request) => json(request),
            Self::Sample(request) => json(request),
        }
    }

    /// What was stored. Arrays are slices of `body`, not copies.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownKind`]; [`Error::Json`] and [`Error::Protobuf`] for a body of another kind.
    pub fn decode(kind_name: &str, body: &Bytes) -> Result<Self, Error> {
        Ok(match kind_name {
            "create_model" => Self::CreateModel(read(body)?),
            "load_weights" => Self::LoadWeights(read(body)?),
            "forward" => Self::Forward(Message::decode(body.clone())?),
            "forward_backward" => Self::ForwardBackward(Message::decode(body.clone())?),
            "optim_step" => Self::OptimStep(read(body)?),
            "save_weights" => Self::SaveWeights(read(body)?),
            "save_weights_for_sampler" => Self::SaveWeightsForSampler(read(body)?),
            "save_weights_external" => Self::SaveWeightsExternal(read(body)?),
            "unload_model" => Self::UnloadModel(read(body)?),
            "sample" => Self::Sample(read(body)?),
            other => return Err(Error::UnknownKind(other.to_owned())),
        })
    }

    /// What tells a retry from another request under the same number: all of [`Self::encode`], but
    /// for the sampling session's number, which clients count up when they retry an unnamed save.
    pub fn digest_input(&self) -> Bytes {
        match self {
            Self::SaveWeightsForSampler(request) => json(&SaveWeightsForSamplerRequest {
                sampling_session_seq_id: None,
                ..request.clone()
            }),
            Self::CreateModel(_)
            | Self::LoadWeights(_)
            | Self::Forward(_)
            | Self::ForwardBackward(_)
            | Self::OptimStep(_)
            | Self::SaveWeights(_)
            | Self::SaveWeightsExternal(_)
            | Self::UnloadModel(_)
            | Self::Sample(_) => self.encode(),
        }
    }
}

fn json(request: &impl Serialize) -> Bytes {
    serde_json::to_vec(request).expect("wire types have text keys and no failing field").into()
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|error| Error::Json { at: String::new(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::proto::Tensor;
    use crate::weights::Secret;

    use super::*;

    fn sampler_save(seq_id: i64, sampling_session_seq_id: i64) -> QueuedRequest {
        let body = format!(
            r#"{{"model_id":"m","seq_id":{seq_id},"sampling_session_seq_id":{sampling_session_seq_id}}}"#
        );
        QueuedRequest::decode("save_weights_for_sampler", &body.into()).unwrap()
    }

    #[test]
    fn retry_of_an_unnamed_save_has_the_same_digest() {
        let first = sampler_save(3, 0);
        let retry = sampler_save(3, 1);
        assert_eq!(first.digest_input(), retry.digest_input());
        assert_ne!(first.encode(), retry.encode());
        assert_ne!(first.digest_input(), sampler_save(4, 0).digest_input());
    }

    #[test]
    fn token_is_not_stored() {
        let body = Bytes::from_static(br#"{"path":"p","weights_access_token":"eyJsecret"}"#);
        let request = QueuedRequest::decode("load_weights", &body).unwrap();
        let QueuedRequest::LoadWeights(load) = &request else { panic!("{request:?}") };
        assert_eq!(load.weights_access_token, Some(Secret("eyJsecret".into())));
        let stored = request.encode();
        assert_eq!(stored[..], *br#"{"type":"load_weights","path":"p","optimizer":false}"#);
    }

    #[test]
    fn defaults_are_stored_so_that_spelling_does_not_matter() {
        let encode = |body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            QueuedRequest::decode("optim_step", &body).unwrap().encode()
        };
        assert_eq!(
            encode(r#"{"model_id":"m","seq_id":1,"adam_params":{"learning_rate":0.0001}}"#),
            encode(
                r#"{"adam_params":{"beta2":0.95},"seq_id":1,"model_id":"m","type":"optim_step"}"#
            )
        );
    }

    #[test]
    fn arrays_are_not_copied() {
        let datum = proto::Datum {
            loss_fn_inputs: BTreeMap::from([(
                "weights".to_owned(),
                Tensor::dense_f32(&[1.0; 1000], vec![1000]),
            )]),
            ..Default::default()
        };
        let request = proto::ForwardBackwardRequest { data: vec![datum], ..Default::default() };
        let stored = QueuedRequest::from_proto(request).encode();
        let read = QueuedRequest::decode("forward_backward", &stored).unwrap();
        let QueuedRequest::ForwardBackward(read) = read else { panic!("{read:?}") };
        let array = read.data[0].loss_fn_inputs["weights"].stored();
        assert!(stored.as_ptr_range().contains(&array.as_ptr()));
    }

    #[test]
    fn kinds_have_one_name() {
        let forward = proto::ForwardBackwardRequest { forward_only: true, ..Default::default() };
        for (request, name) in [
            (QueuedRequest::from_proto(forward), "forward"),
            (QueuedRequest::from_proto(Default::default()), "forward_backward"),
        ] {
            assert_eq!(request.kind_name(), name);
            assert_eq!(QueuedRequest::decode(name, &request.encode()).unwrap(), request);
        }
        assert_eq!(
            QueuedRequest::decode("forwards", &Bytes::new()).unwrap_err().to_string(),
            "read a queued request of the unknown kind `forwards`"
        );
    }
}
