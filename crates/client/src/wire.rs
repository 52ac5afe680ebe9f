//! Requests and answers as they travel, where they are given as they are.

pub use tinsmith_types::{
    futures::UntypedFuture,
    service::{Capabilities, SupportedModel},
    training::{
        CreateModelRequest, CreateModelResponse, GetInfoRequest, GetInfoResponse, ModelData,
        OptimStepRequest, OptimStepResponse, UnloadModelRequest, UnloadModelResponse,
    },
    weights::{
        LoadWeightsRequest, LoadWeightsResponse, SaveWeightsExternalRequest,
        SaveWeightsExternalResponse, SaveWeightsForSamplerRequest, SaveWeightsForSamplerResponse,
        SaveWeightsRequest, SaveWeightsResponse,
    },
};
