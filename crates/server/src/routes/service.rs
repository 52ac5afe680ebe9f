//! What a client asks before it does anything.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tinsmith_types::{
    error::ErrorBody,
    service::{
        Capabilities, ClientConfig, ClientConfigRequest, DynamicConfig, Health, SupportedModel,
    },
};

use crate::{body, state::Shared};

/// `GET healthz`.
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// `GET readyz`.
pub(crate) async fn readyz(State(app): State<Shared>) -> Response {
    if app.store.ready() {
        return Json(Health { status: "ready".to_owned() }).into_response();
    }
    let body = ErrorBody::new("the store accepts no writes", "not_ready");
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(app): State<Shared>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, (app.render_metrics)()).into_response()
}

/// `POST client/config`. Flags that are left out keep the SDK's defaults.
pub(crate) async fn client_config(
    State(app): State<Shared>,
    _: body::Json<ClientConfigRequest>,
) -> Json<ClientConfig> {
    Json(ClientConfig {
        pjwt_auth_enabled: app.config.jwt_auth.then_some(true),
        parallel_fwdbwd_chunks: Some(true),
        proto_compress_fwdbwd: Some(true),
        sample_use_retrieve_futures: Some(true),
        custom_loss_server_side: Some(true),
        sample_join_sampling_session: Some(true),
        ..ClientConfig::default()
    })
}

/// `POST client/dynamic_config`. A sample that nobody waits for takes room from others.
pub(crate) async fn dynamic_config(_: body::Json<ClientConfigRequest>) -> Json<DynamicConfig> {
    Json(DynamicConfig { sample_cancel_enabled: Some(true), ..DynamicConfig::default() })
}

/// `GET get_server_capabilities`.
pub(crate) async fn capabilities(State(app): State<Shared>) -> Json<Capabilities> {
    let supported_models = app
        .catalog
        .models
        .iter()
        .map(|model| SupportedModel {
            model_name: Some(model.name.clone()),
            max_context_length: u64::try_from(model.context).ok(),
            trainable: Some(model.trainable),
            sampleable: Some(model.sampleable),
        })
        .collect();
    Json(Capabilities { supported_models })
}
