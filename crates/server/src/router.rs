//! The table of all endpoints. `GET /` lists it as it stands here.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    handler::Handler,
    http::Method,
    middleware,
    routing::{MethodFilter, MethodRouter, on},
};
use serde_json::json;
use tinsmith_store::{Store, clock::Clock};

use crate::{
    catalog::Catalog,
    config::Config,
    drain,
    error::Error,
    openapi, origin,
    routes::{
        audit, auth, billing, checkpoints, custom_losses, downloads, futures, runs, sampling,
        search, service, sessions, telemetry,
        tinkerbell::{self, Face, Operation, own, shared},
        traces, training, weights,
    },
    state::{App, Shared},
    trace,
};

/// The whole HTTP API. `metrics` renders the text of `GET /metrics`.
pub fn router(
    config: Config,
    store: Store,
    catalog: Catalog,
    clock: Arc<dyn Clock>,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
) -> Router {
    let app: Shared = Arc::new(App::new(config, store, catalog, clock, metrics));
    let mut router = Router::new();
    for route in table() {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(no_endpoint)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), origin::same))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), drain::drain))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), trace::trace))
        .with_state(app)
}

/// One line of the table.
struct Route {
    method: Method,
    path: &'static str,
    about: &'static str,
    handler: MethodRouter<Shared>,
}

fn get<H: Handler<T, Shared>, T: 'static>(
    path: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route { method: Method::GET, path, about, handler: on(MethodFilter::GET, handler) }
}

fn post<H: Handler<T, Shared>, T: 'static>(
    path: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route { method: Method::POST, path, about, handler: on(MethodFilter::POST, handler) }
}

fn put<H: Handler<T, Shared>, T: 'static>(
    path: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route { method: Method::PUT, path, about, handler: on(MethodFilter::PUT, handler) }
}

fn delete<H: Handler<T, Shared>, T: 'static>(
    path: &'static str,
    about: &'static str,
    handler: H,
) -> Route {
    Route { method: Method::DELETE, path, about, handler: on(MethodFilter::DELETE, handler) }
}

/// An endpoint that the Tinkerbell dialect has, and maybe the official one too.
fn tinker(path: &'static str, about: &'static str, handler: MethodRouter<Shared>) -> Route {
    Route { method: Method::POST, path, about, handler }
}

/// An old name of one.
fn legacy(path: &'static str, operation: Operation) -> Route {
    let about = "old name of the endpoint in /api/v1 that does not wait";
    tinker(path, about, tinkerbell::legacy(operation))
}

/// All endpoints.
fn table() -> Vec<Route> {
    let groups = [clients(), work(), records(), of_tinkerbell()];
    groups.into_iter().flatten().collect()
}

/// What a client needs before it works: configuration, keys, sessions.
#[rustfmt::skip]
fn clients() -> Vec<Route> {
    vec![
        get("/", "this list", list),
        get("/openapi.json", "this list in the form of OpenAPI", described),
        get("/metrics", "metrics in Prometheus' text format", service::metrics),
        get("/api/v1/healthz", "the process is alive", service::healthz),
        get("/api/v1/readyz", "requests are accepted", service::readyz),
        post("/api/v1/client/config", "flags of the SDK", service::client_config),
        post("/api/v1/client/dynamic_config", "flags that the SDK reads again", service::dynamic_config),
        get("/api/v1/get_server_capabilities", "base models that are offered", service::capabilities),
        post("/api/v1/auth/token", "exchange a key for a token that expires", auth::token),
        get("/api/v1/auth/apikey/me", "whose key this is", auth::own_key),
        delete("/api/v1/auth/apikey/me", "give a key up", auth::delete_own_key),
        post("/api/v1/telemetry", "logs the SDK's reports without the keys in them", telemetry::telemetry),

        post("/api/v1/create_session", "open a session", sessions::create),
        post("/api/v1/session_heartbeat", "keep a session alive", sessions::heartbeat),
        get("/api/v1/sessions", "list sessions, newest first", sessions::list),
        post("/api/v1/sessions/search", "find sessions", search::search),
        get("/api/v1/sessions/{session_id}", "a session's runs and samplers", sessions::get),
        post("/api/v1/sessions/{session_id}/finish", "end a session", sessions::finish),
        put("/api/v1/sessions/{session_id}/project", "move a session into a project", sessions::assign_project),
        get("/api/v1/sessions/{session_id}/trace_export", "a link to a trace of a session's operations", traces::export),
        get("/api/v1/traces/{tenant}/{session_id}", "a session's operations for Perfetto, by a link", traces::trace),
    ]
}

/// What the engine does, and how its results are waited for.
#[rustfmt::skip]
fn work() -> Vec<Route> {
    vec![
        post("/api/v1/create_model", "create a training run", training::create_model),
        post("/api/v1/get_info", "base model, tokenizer and LoRA of a run", runs::get_info),
        tinker("/api/v1/forward", "logprobs and loss", shared(Operation::Forward, training::forward)),
        tinker("/api/v1/forward_backward", "logprobs, loss and gradients", shared(Operation::ForwardBackward, training::forward_backward)),
        tinker("/api/v1/optim_step", "apply the gathered gradients", shared(Operation::OptimStep, training::optim_step)),
        post("/api/v1/create_custom_loss", "check and keep a loss that was traced to a graph", custom_losses::create),
        post("/api/v1/unload_model", "free a run's place in memory", training::unload_model),

        tinker("/api/v1/save_weights", "save a training checkpoint", shared(Operation::SaveWeights, weights::save_weights)),
        tinker("/api/v1/save_weights_for_sampler", "save weights to sample from", shared(Operation::SaveWeightsForSampler, weights::save_weights_for_sampler)),
        post("/api/v1/save_weights_external", "save files for other programs, in PEFT's layout", weights::save_weights_external),
        tinker("/api/v1/load_weights", "load a checkpoint into a run, or create a run from it", shared(Operation::LoadWeights, weights::load_weights)),
        post("/api/v1/copy_weights", "give a checkpoint a second name, in a run of its own", weights::copy_weights),
        post("/api/v1/weights_info", "base model and LoRA of a checkpoint", weights::weights_info),

        post("/api/v1/create_sampling_session", "open a sampler", sampling::create_session),
        post("/api/v1/join_sampling_session", "a number for another client of a sampler", sampling::join_session),
        get("/api/v1/samplers/{sampler_id}", "what a sampler samples from", sampling::get_sampler),
        tinker("/api/v1/asample", "sample from a sampler", shared(Operation::Sample, sampling::asample)),

        post("/api/v1/retrieve_future", "wait for a result", futures::retrieve),
        post("/api/v1/retrieve_futures", "wait for any of a client's samples", futures::retrieve_many),
        post("/api/v1/cancel_future", "give up a sample", futures::cancel),
    ]
}

/// What is kept: runs, checkpoints, the audit log, usage.
#[rustfmt::skip]
fn records() -> Vec<Route> {
    vec![
        get("/api/v1/training_runs", "list training runs, newest first", runs::list),
        get("/api/v1/training_runs/{run_id}", "one training run", runs::get),
        get("/api/v1/training_runs/{run_id}/checkpoints", "a run's checkpoints", checkpoints::list_of_run),
        get("/api/v1/models/{run_id}/checkpoints", "the same for SDKs up to 0.3.0", checkpoints::list_of_run),
        get("/api/v1/checkpoints", "list all checkpoints", checkpoints::list),
        delete("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}", "delete a checkpoint", checkpoints::delete),
        post("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish", "let anyone read a checkpoint", checkpoints::publish),
        delete("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish", "take that back", checkpoints::unpublish),
        put("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl", "set or remove a checkpoint's expiry", checkpoints::set_ttl),
        get("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls", "links to the files of an export", downloads::external_weights_urls),
        get("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/archive", "a link to all files in one, for SDKs up to 0.35", downloads::archive_url),
        get("/api/v1/downloads/{blob}/{file}", "one file of a checkpoint, by a link", downloads::file),
        get("/api/v1/archives/{blob}", "all files of a checkpoint, by a link", downloads::archive),

        get("/api/v1/audit", "what was made, read, changed and deleted, and by whom", audit::list),
        get("/api/v1/billing/usage/events", "what was used, by the hour", billing::usage),
        get("/api/v1/billing/usage/checkpoints/current", "checkpoints that are kept, by project", billing::storage),
    ]
}

/// Endpoints that only Tinkerbell's dialect has.
#[rustfmt::skip]
fn of_tinkerbell() -> Vec<Route> {
    vec![
        tinker("/api/v1/forward_async", "logprobs and loss of chats, later", own(Operation::Forward, Face::Async)),
        tinker("/api/v1/forward_backward_async", "the same and gradients, later", own(Operation::ForwardBackward, Face::Async)),
        tinker("/api/v1/optim_step_async", "apply the gathered gradients, later", own(Operation::OptimStep, Face::Async)),
        tinker("/api/v1/add_lora", "create a training run and wait for it", own(Operation::AddLora, Face::Sync)),
        tinker("/api/v1/add_lora_async", "create a training run, later", own(Operation::AddLora, Face::Async)),
        tinker("/api/v1/remove_lora", "remove a training run and wait for it", own(Operation::RemoveLora, Face::Sync)),
        tinker("/api/v1/remove_lora_async", "remove a training run, later", own(Operation::RemoveLora, Face::Async)),
        tinker("/api/v1/load_weights_async", "load a checkpoint into a run, later", own(Operation::LoadWeights, Face::Async)),
        tinker("/api/v1/save_weights_async", "save a training checkpoint, later", own(Operation::SaveWeights, Face::Async)),
        tinker("/api/v1/save_weights_for_sampler_async", "save weights to sample from, later", own(Operation::SaveWeightsForSampler, Face::Async)),
        tinker("/api/v1/sample", "sample from a run, a checkpoint or a base model, and wait", own(Operation::Sample, Face::Sync)),
        post("/retrieve_future", "a result (200), or that there is none yet (202)", tinkerbell::retrieve),
        legacy("/fwd", Operation::Forward),
        legacy("/fwdbwd", Operation::ForwardBackward),
        legacy("/optim_step", Operation::OptimStep),
        legacy("/add_lora", Operation::AddLora),
        legacy("/remove_lora", Operation::RemoveLora),
        legacy("/load_weights", Operation::LoadWeights),
        legacy("/save_weights", Operation::SaveWeights),
        legacy("/save_weights_for_sampler", Operation::SaveWeightsForSampler),
        get("/healthz", "the process is alive", service::healthz),
        get("/get_server_capabilities", "base models that are offered", service::capabilities),
        post("/get_info", "base model, tokenizer and LoRA of a run", runs::get_info),
        get("/list_loss_functions", "names of the losses", tinkerbell::loss_functions),
        get("/api/v1/list_loss_functions", "names of the losses", tinkerbell::loss_functions),
        post("/register_custom_loss", "refused: pickles are programs", tinkerbell::register_custom_loss),
        post("/api/v1/register_custom_loss", "refused: pickles are programs", tinkerbell::register_custom_loss),
        get("/favicon.ico", "there is none", tinkerbell::favicon),
    ]
}

async fn list(State(_): State<Shared>) -> Json<serde_json::Value> {
    let endpoints: Vec<serde_json::Value> = table()
        .iter()
        .map(|route| json!({"method": route.method.as_str(), "path": route.path, "about": route.about}))
        .collect();
    Json(json!({
        "name": "tinsmith",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": endpoints,
    }))
}

async fn described(State(_): State<Shared>) -> Json<serde_json::Value> {
    let table = table();
    let routes = table.iter().map(|route| openapi::Described {
        method: &route.method,
        path: route.path,
        about: route.about,
    });
    Json(openapi::document(routes))
}

async fn no_endpoint(request: Request) -> Error {
    Error::NoEndpoint { path: request.uri().path().to_owned() }
}

async fn method_not_allowed(request: Request) -> Error {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    Error::MethodNotAllowed { method, path }
}
