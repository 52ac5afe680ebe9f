//! Which type belongs to which endpoint.

use std::fmt::Debug;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tinsmith_types::error::ErrorBody;
use tinsmith_types::json::{self, Request};
use tinsmith_types::proto;
use tinsmith_types::queued::QueuedRequest;
use tinsmith_types::{
    audit, auth, billing, checkpoints, custom_losses, futures, runs, sampling, search, service,
    session, telemetry, training, weights,
};

use super::{Result, has_all_of, round_trip};

type Check = fn(&Value) -> Result;

/// `METHOD path`, ids and names replaced by stars; for a poll followed by what is waited for.
pub(super) fn name(request: &Value) -> String {
    let path = request["path"].as_str().unwrap_or_default().trim_start_matches("/api/v1/");
    let mut segments: Vec<&str> = path.split('/').collect();
    for i in 1..segments.len() {
        let is_id = match segments[i - 1] {
            "sessions" => segments[i] != "search",
            "training_runs" | "models" | "samplers" | "dl" => true,
            "weights" | "sampler_weights" | "external_weights" => true,
            _ => false,
        };
        if is_id {
            segments[i] = "*";
        }
    }
    let method = request["method"].as_str().unwrap_or_default();
    let waits_for = request["headers"]["x-tinker-request-type"].as_str();
    let waits_for = waits_for.map(|kind| format!(" {kind}")).unwrap_or_default();
    format!("{method} {}{waits_for}", segments.join("/"))
}

pub(super) fn request(endpoint: &str) -> Option<Check> {
    if endpoint.starts_with("POST retrieve_future ") {
        return Some(read::<futures::RetrieveFutureRequest>);
    }
    Some(match endpoint {
        "POST client/config" | "POST client/dynamic_config" => read::<service::ClientConfigRequest>,
        "POST create_session" => read::<session::CreateSessionRequest>,
        "POST session_heartbeat" => read::<session::HeartbeatRequest>,
        "POST sessions/*/finish" => read::<session::FinishSessionRequest>,
        "POST telemetry" => read::<telemetry::TelemetryRequest>,
        "POST get_info" => read::<training::GetInfoRequest>,
        "POST create_model" => |body| {
            queued("create_model", body)?;
            read::<training::CreateModelRequest>(body)
        },
        "POST forward" => |body| {
            read::<training::ForwardRequest>(body)?;
            batch::<training::ForwardRequest>(body)
        },
        "POST forward_backward" => |body| {
            read::<training::ForwardBackwardRequest>(body)?;
            batch::<training::ForwardBackwardRequest>(body)
        },
        "POST unload_model" => |body| {
            queued("unload_model", body)?;
            read::<training::UnloadModelRequest>(body)
        },
        "POST optim_step" => |body| {
            queued("optim_step", body)?;
            read::<training::OptimStepRequest>(body)
        },
        "POST save_weights" => |body| {
            queued("save_weights", body)?;
            read::<weights::SaveWeightsRequest>(body)
        },
        "POST save_weights_for_sampler" => |body| {
            queued("save_weights_for_sampler", body)?;
            read::<weights::SaveWeightsForSamplerRequest>(body)
        },
        "POST save_weights_external" => |body| {
            queued("save_weights_external", body)?;
            read::<weights::SaveWeightsExternalRequest>(body)
        },
        "POST copy_weights" => read::<weights::CopyWeightsRequest>,
        "POST load_weights" => |body| {
            queued("load_weights", body)?;
            read::<weights::LoadWeightsRequest>(body)
        },
        "POST asample" => |body| {
            queued("sample", body)?;
            read::<sampling::SampleRequest>(body)
        },
        "POST create_custom_loss" => read::<custom_losses::CreateCustomLossRequest>,
        "POST create_sampling_session" => read::<sampling::CreateSamplingSessionRequest>,
        "POST retrieve_futures" => read::<futures::RetrieveFuturesRequest>,
        "POST join_sampling_session" => read::<sampling::JoinSamplingSessionRequest>,
        "POST auth/token" => read::<auth::AuthTokenRequest>,
        "POST sessions/search" => read::<search::SearchSessionsRequest>,
        "PUT sessions/*/project" => read::<search::AssignProjectRequest>,
        "POST cancel_future" => read::<futures::CancelFutureRequest>,
        "POST weights_info" => read::<weights::WeightsInfoRequest>,
        "PUT training_runs/*/checkpoints/weights/*/ttl"
        | "PUT training_runs/*/checkpoints/external_weights/*/ttl" => {
            read::<checkpoints::SetTtlRequest>
        }
        _ => return None,
    })
}

pub(super) fn response(endpoint: &str, exchange: &Value) -> Option<Check> {
    let status = exchange["response"]["status"].as_u64().unwrap_or_default();
    let json = &exchange["response"]["body"]["json"];
    if status == 408 && json.get("queue_state").is_some() {
        return Some(round_trip::<futures::Pending>);
    }
    if !(200..300).contains(&status) {
        return Some(round_trip::<ErrorBody>);
    }
    Some(match endpoint {
        "GET healthz" => round_trip::<service::Health>,
        "POST client/config" => round_trip::<service::ClientConfig>,
        "POST client/dynamic_config" => round_trip::<service::DynamicConfig>,
        "GET get_server_capabilities" => round_trip::<service::Capabilities>,
        "POST create_session" => round_trip::<session::CreateSessionResponse>,
        "POST session_heartbeat" => round_trip::<session::HeartbeatResponse>,
        "GET sessions" => round_trip::<session::ListSessionsResponse>,
        "GET sessions/*" => round_trip::<session::SessionInfo>,
        "POST sessions/search" => round_trip::<search::SearchSessionsResponse>,
        "GET sessions/*/trace_export" => round_trip::<search::TraceExportResponse>,
        "GET audit" => round_trip::<audit::AuditLogResponse>,
        "POST auth/token" => round_trip::<auth::AuthTokenResponse>,
        "GET auth/apikey/me" => round_trip::<auth::ApiKeyResponse>,
        "GET billing/usage/events" => round_trip::<billing::UsageResponse>,
        "GET billing/usage/checkpoints/current" => round_trip::<billing::StorageResponse>,
        "POST telemetry" => round_trip::<telemetry::TelemetryResponse>,
        "POST get_info" => round_trip::<training::GetInfoResponse>,
        "POST create_model"
        | "POST forward"
        | "POST forward_backward"
        | "POST unload_model"
        | "POST optim_step"
        | "POST save_weights"
        | "POST save_weights_for_sampler"
        | "POST load_weights"
        | "POST asample"
        | "POST save_weights_external"
        | "POST create_custom_loss" => round_trip::<futures::UntypedFuture>,
        "POST create_sampling_session" => round_trip::<sampling::CreateSamplingSessionResponse>,
        "POST retrieve_futures" => round_trip::<futures::RetrieveFuturesResponse>,
        "POST join_sampling_session" => round_trip::<sampling::JoinSamplingSessionResponse>,
        "GET samplers/*" => round_trip::<sampling::SamplerInfo>,
        "POST weights_info" => round_trip::<weights::WeightsInfoResponse>,
        "POST copy_weights" => round_trip::<weights::CopyWeightsResponse>,
        "GET training_runs/*/checkpoints/external_weights/*/external_weights_urls" => {
            round_trip::<checkpoints::ExternalWeightsUrlsResponse>
        }
        "GET training_runs" => round_trip::<runs::ListTrainingRunsResponse>,
        "GET training_runs/*" => round_trip::<runs::TrainingRun>,
        "GET checkpoints" | "GET training_runs/*/checkpoints" | "GET models/*/checkpoints" => {
            round_trip::<checkpoints::ListCheckpointsResponse>
        }
        poll if poll.starts_with("POST retrieve_future ") => return result(poll, json),
        _ => return None,
    })
}

/// In the order in which clients tell them apart.
fn result(poll: &str, json: &Value) -> Option<Check> {
    if json["type"] == "try_again" {
        return Some(round_trip::<futures::TryAgain>);
    }
    if json["status"] == "complete_metadata" {
        return Some(round_trip::<futures::CompleteMetadata>);
    }
    if json.get("error").is_some() {
        return Some(round_trip::<futures::Failed>);
    }
    Some(match poll.rsplit(' ').next()? {
        "CreateModel" => round_trip::<training::CreateModelResponse>,
        "Forward" | "ForwardBackward" => round_trip::<training::ForwardBackwardOutput>,
        "OptimStep" => round_trip::<training::OptimStepResponse>,
        "UnloadModel" => round_trip::<training::UnloadModelResponse>,
        "SaveWeights" => round_trip::<weights::SaveWeightsResponse>,
        "SaveWeightsForSampler" => round_trip::<weights::SaveWeightsForSamplerResponse>,
        "CreateCustomLoss" => round_trip::<custom_losses::CreateCustomLossResponse>,
        "SaveWeightsExternal" => round_trip::<weights::SaveWeightsExternalResponse>,
        "LoadWeights" => round_trip::<weights::LoadWeightsResponse>,
        "Sample" => round_trip::<sampling::SampleResponse>,
        _ => return None,
    })
}

/// Reads a recorded request as a `T`, which has every field of it, and says the same when it is read
/// again. What it writes may be more: older SDKs leave defaults out.
fn read<T: Debug + PartialEq + Request + Serialize>(recorded: &Value) -> Result {
    let read = json::read::<T>(recorded.to_string().as_bytes())?;
    if !read.unknown_fields.is_empty() {
        return Err(format!("has unknown fields {:?}", read.unknown_fields).into());
    }
    let written = serde_json::to_value(&read.request)?;
    has_all_of(recorded, &written)?;
    let again = json::read::<T>(written.to_string().as_bytes())?;
    if again != read {
        return Err(format!("is read as {read:?}, and written and read again as {again:?}").into());
    }
    Ok(())
}

/// A batch in JSON is stored in its protobuf form.
fn batch<T: Request>(recorded: &Value) -> Result
where
    proto::ForwardBackwardRequest: TryFrom<T, Error = tinsmith_types::Error>,
{
    let request = json::read::<T>(recorded.to_string().as_bytes())?.request;
    let queued = QueuedRequest::from_proto(request.try_into()?);
    if QueuedRequest::decode(queued.kind_name(), &queued.encode())? != queued {
        return Err("does not survive being stored".into());
    }
    Ok(())
}

/// What is stored of a request says the same as the request, and is canonical.
fn queued(kind_name: &str, recorded: &Value) -> Result {
    let body = Bytes::from(recorded.to_string());
    let stored = QueuedRequest::decode(kind_name, &body)?.encode();
    let again = QueuedRequest::decode(kind_name, &stored)?;
    if again.kind_name() != kind_name || again.encode() != stored {
        return Err(format!("stored as {stored:?}, read as {again:?}").into());
    }
    Ok(())
}
