//! `GET /openapi.json`, made from the table of routes. What a JSON body looks like is found by reading one
//! (`schema.rs`); an endpoint that takes one has its line in [`BODIES`].

mod schema;

use axum::http::Method;
use serde_json::{Map, Value, json};
use tinsmith_types::{
    auth, checkpoints, custom_losses, futures, sampling, search, service, session, telemetry,
    training, weights,
};

use crate::negotiate::PROTOBUF;

/// A line of the table of routes.
pub(crate) struct Described<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) about: &'a str,
}

type Schema = fn() -> Value;

/// JSON bodies, by method and path behind `/api/v1/`.
const BODIES: &[(Method, &str, Schema)] = &[
    (Method::POST, "asample", schema::of::<sampling::SampleRequest>),
    (Method::POST, "auth/token", schema::of::<auth::AuthTokenRequest>),
    (Method::POST, "cancel_future", schema::of::<futures::CancelFutureRequest>),
    (Method::POST, "client/config", schema::of::<service::ClientConfigRequest>),
    (Method::POST, "client/dynamic_config", schema::of::<service::ClientConfigRequest>),
    (Method::POST, "copy_weights", schema::of::<weights::CopyWeightsRequest>),
    (Method::POST, "create_custom_loss", schema::of::<custom_losses::CreateCustomLossRequest>),
    (Method::POST, "create_model", schema::of::<training::CreateModelRequest>),
    (Method::POST, "create_sampling_session", schema::of::<sampling::CreateSamplingSessionRequest>),
    (Method::POST, "create_session", schema::of::<session::CreateSessionRequest>),
    (Method::POST, "forward", schema::of::<training::ForwardRequest>),
    (Method::POST, "forward_backward", schema::of::<training::ForwardBackwardRequest>),
    (Method::POST, "get_info", schema::of::<training::GetInfoRequest>),
    (Method::POST, "join_sampling_session", schema::of::<sampling::JoinSamplingSessionRequest>),
    (Method::POST, "load_weights", schema::of::<weights::LoadWeightsRequest>),
    (Method::POST, "optim_step", schema::of::<training::OptimStepRequest>),
    (Method::POST, "retrieve_future", schema::of::<futures::RetrieveFutureRequest>),
    (Method::POST, "retrieve_futures", schema::of::<futures::RetrieveFuturesRequest>),
    (Method::POST, "save_weights", schema::of::<weights::SaveWeightsRequest>),
    (Method::POST, "save_weights_for_sampler", schema::of::<weights::SaveWeightsForSamplerRequest>),
    (Method::POST, "session_heartbeat", schema::of::<session::HeartbeatRequest>),
    (Method::POST, "sessions/search", schema::of::<search::SearchSessionsRequest>),
    (Method::POST, "sessions/{session_id}/finish", schema::of::<session::FinishSessionRequest>),
    (Method::POST, "telemetry", schema::of::<telemetry::TelemetryRequest>),
    (
        Method::PUT,
        "training_runs/{run_id}/checkpoints/{kind}/{name}/ttl",
        schema::of::<checkpoints::SetTtlRequest>,
    ),
    (Method::PUT, "sessions/{session_id}/project", schema::of::<search::AssignProjectRequest>),
    (Method::POST, "unload_model", schema::of::<training::UnloadModelRequest>),
    (Method::POST, "weights_info", schema::of::<weights::WeightsInfoRequest>),
];

/// Endpoints whose body may be protobuf, of the message with this name.
const PROTOBUF_BODIES: &[(&str, &str)] = &[("forward_backward", "ForwardBackwardRequest")];

/// The whole document, in OpenAPI 3.1.
pub(crate) fn document<'a>(routes: impl Iterator<Item = Described<'a>>) -> Value {
    let mut paths = Map::new();
    for route in routes {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.method.as_str().to_ascii_lowercase()] = operation(&route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tinsmith",
            "summary": "The Tinker API for training and sampling, on a machine of one's own.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": {
            "schemas": { "Error": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"description": "what is wrong, where, and how to mend it"},
                    "code": {"type": "string", "description": "a stable name of the fault"},
                },
            }},
            "securitySchemes": { "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"} },
        },
        // Without keys, everybody who reaches the address may do everything.
        "security": [{}, {"key": []}],
    })
}

fn operation(route: &Described<'_>) -> Value {
    let endpoint = route.path.trim_start_matches("/api/v1/");
    let error = json!({"$ref": "#/components/schemas/Error"});
    let mut operation = json!({
        "summary": route.about,
        "operationId": format!("{} {endpoint}", route.method.as_str().to_ascii_lowercase()),
        "responses": {
            "2XX": {"description": "done, or accepted: then the body has a `request_id` to poll for"},
            "4XX": {
                "description": "refused",
                "content": {"application/json": {"schema": error}},
            },
        },
    });
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        let name = name.trim_start_matches('*');
        json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
    };
    let parameters: Vec<Value> = names.map(parameter).collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = body(route.method, endpoint) {
        operation["requestBody"] = body;
    }
    operation
}

fn body(method: &Method, endpoint: &str) -> Option<Value> {
    let (_, _, schema) = BODIES.iter().find(|(of, path, _)| of == method && *path == endpoint)?;
    let mut content = json!({"application/json": {"schema": schema()}});
    if let Some((_, message)) = PROTOBUF_BODIES.iter().find(|(path, _)| *path == endpoint) {
        content[PROTOBUF] = json!({"schema": {
            "type": "string", "format": "binary", "description": format!("tinker_public.{message}"),
        }});
    }
    Some(json!({"required": true, "content": content}))
}
