//! Requests and answers as they travel, where they are given as they are.

pub use tinsmith_types::{
    audit::{AuditLogEntry, AuditLogResponse},
    billing::{StorageItem, StorageResponse, UsageEvent, UsageInfo, UsageResponse, UsageSession},
    checkpoints::{
        Checkpoint, CheckpointArchiveUrlResponse, CheckpointType, ExternalWeightsUrlsResponse,
        ListCheckpointsResponse,
    },
    futures::UntypedFuture,
    ids::{ModelId, RequestId, SamplingSessionId, SeqId},
    path::CheckpointKind,
    runs::{Cursor, ListTrainingRunsResponse, TrainingRun},
    sampling::SamplerInfo,
    search::{
        SearchOwner, SearchSessionsRequest, SearchSessionsResponse, SessionStatus, SessionSummary,
        StatusQuery,
    },
    service::{Capabilities, Health, SupportedModel},
    session::{ListSessionsResponse, SessionInfo},
    training::{
        CreateModelRequest, CreateModelResponse, GetInfoRequest, GetInfoResponse, ModelData,
        OptimStepRequest, OptimStepResponse, UnloadModelRequest, UnloadModelResponse,
    },
    weights::{
        LoadWeightsRequest, LoadWeightsResponse, SaveWeightsExternalRequest,
        SaveWeightsExternalResponse, SaveWeightsForSamplerRequest, SaveWeightsForSamplerResponse,
        SaveWeightsRequest, SaveWeightsResponse, WeightsInfoResponse,
    },
};
