//! Recorded requests of REST clients and of the command line.

use tinsmith::{
    AccessScope, AuditEventType, CopyOptions, ListOptions, RestClient, TinkerPath,
    testing::RecordedRequest,
};

use super::{
    cases::{Acted, Call, read},
    stage::Stage,
};

/// What a client without a session did after its connection was set up.
pub(super) fn alone(stage: &Stage, requests: &[&RecordedRequest]) -> Acted {
    let config = stage.config().build().unwrap();
    let rest = RestClient::new(config).unwrap();
    let is_own = |request: &&&RecordedRequest| {
        !["client/", "auth/token"].iter().any(|begin| request.endpoint().starts_with(begin))
    };
    let mut outcome = Ok(());
    let own: Vec<_> = requests.iter().filter(is_own).collect();
    for (i, request) in own.iter().enumerate() {
        let is_repeated =
            own[..i].iter().any(|other| other.path == request.path && other.query == request.query);
        if !is_repeated {
            outcome = outcome.and(call(&rest, request)?.wait());
        }
    }
    if own.is_empty() {
        // Connections are made at the first call: one that is not compared.
        outcome = rest.health_check().wait().map(drop);
    }
    Some(outcome)
}

/// The call that a request came from; none where there is no such call.
pub(super) fn call(rest: &RestClient, request: &RecordedRequest) -> Option<Call> {
    let body = request.says();
    let scope = match request.query.get("access_scope").map(String::as_str) {
        Some("accessible") => AccessScope::Accessible,
        Some(_) | None => AccessScope::Owned,
    };
    let rest = rest.with_access_scope(scope);
    let segments: Vec<&str> = request.endpoint().split('/').collect();
    let list = || {
        let number = |name: &str| request.query.get(name).map(|text| text.parse().unwrap());
        let mut options = ListOptions::new();
        if let Some(limit) = number("limit") {
            options = options.limit(limit);
        }
        if let Some(offset) = number("offset") {
            options = options.offset(offset);
        }
        match request.query.get("project_id") {
            Some(project) => options.project_id(project),
            None => options,
        }
    };
    Some(match (request.method.as_str(), &segments[..]) {
        ("GET", ["get_server_capabilities"]) => rest.get_server_capabilities().map(drop),
        ("GET", ["healthz"]) => rest.health_check().map(drop),
        ("GET", ["samplers", id]) => rest.get_sampler(id).map(drop),
        ("GET", ["sessions"]) => rest.list_sessions(list()).map(drop),
        ("GET", ["sessions", id]) => rest.get_session(id).map(drop),
        ("PUT", ["sessions", id, "project"]) => {
            rest.assign_session_project(id, body["project_id"].as_str()?)
        }
        ("GET", ["sessions", id, "trace_export"]) => rest.export_session_trace(id).map(drop),
        ("POST", ["sessions", "search"]) => rest.search_sessions(read(body)).map(drop),
        ("GET", ["training_runs"]) => rest.list_training_runs(list()).map(drop),
        ("GET", ["training_runs", id]) => rest.get_training_run(id).map(drop),
        ("GET", ["checkpoints"]) => rest.list_user_checkpoints(list()).map(drop),
        ("GET", ["training_runs", id, "checkpoints"]) => rest.list_checkpoints(id).map(drop),
        ("POST", ["weights_info"]) => {
            rest.get_weights_info_by_tinker_path(path(body["tinker_path"].as_str()?)).map(drop)
        }
        ("POST", ["copy_weights"]) => {
            let mut options = CopyOptions::default();
            if let Some(project) = body["destination_project_id"].as_str() {
                options = options.destination_project_id(project);
            }
            if let Some(seconds) = body["ttl_seconds"].as_i64() {
                options = options.ttl_seconds(seconds);
            }
            if let Some(token) = request.headers.get("x-tinker-weights-access-token") {
                options = options.weights_access_token(token);
            }
            rest.copy_weights(path(body["source_path"].as_str()?), options).map(drop)
        }
        (method, ["training_runs", run, "checkpoints", kind, name, rest_of @ ..]) => {
            let path = path(&format!("tinker://{run}/{kind}/{name}"));
            checkpoint(&rest, method, path, rest_of, request)?
        }
        _ => return admin(&rest, request, &segments),
    })
}

fn checkpoint(
    rest: &RestClient,
    method: &str,
    path: TinkerPath,
    rest_of: &[&str],
    request: &RecordedRequest,
) -> Option<Call> {
    Some(match (method, rest_of) {
        ("POST", ["publish"]) => rest.publish_checkpoint_from_tinker_path(path),
        ("DELETE", ["publish"]) => rest.unpublish_checkpoint_from_tinker_path(path),
        ("PUT", ["ttl"]) => {
            let seconds = request.says()["ttl_seconds"].as_u64();
            rest.set_checkpoint_ttl_from_tinker_path(path, seconds)
        }
        ("DELETE", []) => rest.delete_checkpoint_from_tinker_path(path),
        ("GET", ["external_weights_urls"]) => rest.get_external_weights_urls(path).map(drop),
        _ => return None,
    })
}

fn admin(rest: &RestClient, request: &RecordedRequest, segments: &[&str]) -> Option<Call> {
    let asked = |name: &str| request.query.get(name).map(String::as_str);
    Some(match segments {
        ["audit"] => {
            let kind = match asked("event_type")? {
                "checkpoints" => AuditEventType::Checkpoints,
                _ => AuditEventType::All,
            };
            rest.get_audit_log(kind, asked("day")).map(drop)
        }
        ["billing", "usage", "events"] => {
            rest.get_billing_usage(asked("starting_on")?, asked("ending_before")?).map(drop)
        }
        ["billing", "usage", "checkpoints", "current"] => {
            rest.get_current_checkpoint_storage_usage(asked("project_id")).map(drop)
        }
        _ => return None,
    })
}

fn path(text: &str) -> TinkerPath {
    text.parse().unwrap()
}
