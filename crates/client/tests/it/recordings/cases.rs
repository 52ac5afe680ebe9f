//! Turns recorded requests into calls of this client.

use std::{collections::BTreeMap, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tinsmith::{
    AdamParams, ApiFuture, ConfigBuilder, CopyOptions, Datum, Error, FromStateOptions, LoraOptions,
    OptimParams, SampleOptions, SamplingOptions, SaveOptions, ServiceClient,
    custom::{LossValue, Var},
    testing::{RecordedRequest, Recording},
};

use super::{data, rest, stage::Stage};

/// How an operation ended; none where this client has nothing like it.
pub(super) type Acted = Option<Result<(), Error>>;

/// A call on its way.
pub(super) type Call = ApiFuture<()>;

/// Does what the recording's program did, and waits for it.
pub(super) fn act(stage: &Stage, operation: &str, recording: &Recording) -> Acted {
    let requests: Vec<&RecordedRequest> = (recording.exchanges.iter())
        .map(|exchange| &exchange.request)
        .filter(|request| !super::compare::is_poll(request))
        .collect();
    let opens = requests.iter().any(|request| request.endpoint() == "create_session");
    if opens && !operation.starts_with("cli.") {
        return Some(open(stage, &requests).and_then(|service| {
            let rest = &requests[requests.iter().position(is_opening).map_or(0, |at| at + 1)..];
            run(stage, &service, operation, rest).unwrap_or(Ok(()))
        }));
    }
    if opens || operation == "telemetry" {
        return None;
    }
    if recording.exchanges[0].request.endpoint() == "session_heartbeat" {
        return Some(beat(stage, recording));
    }
    if requests.first().is_none_or(|first| first.endpoint() == "client/config") {
        return rest::alone(stage, &requests);
    }
    run(stage, stage.service(), operation, &requests)
}

/// The session's own task sends heartbeats.
fn beat(stage: &Stage, recording: &Recording) -> Result<(), Error> {
    let is_beat = |request: &RecordedRequest| request.endpoint() == "session_heartbeat";
    let beats = recording.exchanges.iter().filter(|exchange| is_beat(&exchange.request)).count();
    assert!(stage.server.wait_for("session_heartbeat", beats, Duration::from_secs(10)));
    Ok(())
}

fn is_opening(request: &&RecordedRequest) -> bool {
    request.endpoint() == "create_session"
}

/// A session as it was opened in the recording.
fn open(stage: &Stage, requests: &[&RecordedRequest]) -> Result<ServiceClient, Error> {
    let said = requests.iter().find(|request| is_opening(request)).unwrap().says();
    let mut config: ConfigBuilder = stage.config();
    if let Some(project) = said["project_id"].as_str() {
        config = config.project_id(project);
    }
    if let Some(name) = said["display_name"].as_str() {
        config = config.display_name(name);
    }
    let config = config.tags(read::<Vec<String>>(&said["tags"]));
    let config = config.user_metadata(read(&said["user_metadata"])).build()?;
    ServiceClient::connect_blocking(config)
}

/// The calls that these requests came from, all on their way before the first is waited for.
fn run(
    stage: &Stage,
    service: &ServiceClient,
    operation: &str,
    requests: &[&RecordedRequest],
) -> Acted {
    let mut calls = Vec::new();
    let mut samples = 0;
    let mut chunks = chunks(requests);
    for (i, request) in requests.iter().enumerate() {
        let resubmits = operation.contains("410");
        if is_repeated(request, &requests[..i], resubmits) || follows(request, &requests[..i]) {
            continue;
        }
        let call = match request.endpoint() {
            "forward_backward" if operation.contains("custom") => {
                let forward = |(_, chunks): (i64, Vec<Value>)| {
                    chunks.into_iter().filter(|chunk| chunk["forward_only"] == true)
                };
                let forward: Vec<Value> =
                    std::mem::take(&mut chunks).into_iter().flat_map(forward).collect();
                if forward.is_empty() && calls.is_empty() {
                    return None;
                }
                if forward.is_empty() {
                    continue;
                }
                custom(stage, operation, &forward)
            }
            "forward_backward" => {
                let Some(batch) = chunks.pop_first() else { continue };
                forward_backward(stage, &batch.1)
            }
            "asample" => {
                samples += 1;
                sample(stage, operation, request.says(), samples)
            }
            endpoint => match call(stage, service, endpoint, request.says()) {
                Some(call) => call,
                None => rest::call(&service.create_rest_client(), request)?,
            },
        };
        calls.push(call);
    }
    Some(calls.into_iter().try_for_each(ApiFuture::wait))
}

/// Whether it is sent for the second time; a sample that the server forgot is sent anew under another number.
fn is_repeated(request: &RecordedRequest, before: &[&RecordedRequest], resubmits: bool) -> bool {
    before.iter().any(|other| {
        let is_same = other.says() == request.says() && other.query == request.query;
        other.path == request.path && other.method == request.method && (is_same || resubmits)
    })
}

/// Whether it is a part of the call before.
fn follows(request: &RecordedRequest, before: &[&RecordedRequest]) -> bool {
    let after = |names: &[&str]| before.iter().any(|other| names.contains(&other.endpoint()));
    match request.endpoint() {
        "get_info" => after(&["create_model", "load_weights"]),
        "join_sampling_session" => true,
        "cancel_future" | "auth/token" => true,
        endpoint if endpoint.starts_with("samplers/") => after(&["create_sampling_session"]),
        endpoint if endpoint.ends_with("trace_export") => after(&[endpoint]),
        _ => false,
    }
}

/// Batches by their first number: chunks whose numbers follow on one another are one.
fn chunks(requests: &[&RecordedRequest]) -> BTreeMap<i64, Vec<Value>> {
    let mut by_number: BTreeMap<i64, Value> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.endpoint() == "forward_backward") {
        by_number.insert(request.says()["seq_id"].as_i64().unwrap(), request.says().clone());
    }
    let mut batches: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    for (number, body) in by_number {
        match batches.last_entry() {
            Some(mut batch) if follows_on(&batch, number, &body) => batch.get_mut().push(body),
            _ => drop(batches.insert(number, vec![body])),
        }
    }
    batches
}

fn follows_on(
    batch: &std::collections::btree_map::OccupiedEntry<'_, i64, Vec<Value>>,
    number: i64,
    body: &Value,
) -> bool {
    let chunks = batch.get();
    let next = *batch.key() + i64::try_from(chunks.len()).unwrap();
    next == number && chunks[0]["forward_only"] == body["forward_only"]
}

fn forward_backward(stage: &Stage, chunks: &[Value]) -> Call {
    let datums = chunks.iter().flat_map(|chunk| data::datums(&chunk["data"])).collect();
    let loss = data::loss(&chunks[0]);
    let training = stage.training();
    if chunks[0]["forward_only"] == true {
        training.forward(datums, loss).map(drop)
    } else {
        training.forward_backward(datums, loss).map(drop)
    }
}

/// A loss of the client's own: minus the sum of all logprobs, whose gradient is -1 everywhere.
fn custom(stage: &Stage, operation: &str, chunks: &[Value]) -> Call {
    let datums = chunks.iter().flat_map(|chunk| data::datums(&chunk["data"])).collect();
    let fails = operation.ends_with("raises");
    let weighs = operation.ends_with("loss_handle_client");
    let loss = move |data: &[Datum], logprobs: &[Var]| {
        if fails {
            return Err(Error::validation("a loss that fails"));
        }
        let sum = |(datum, logprobs): (&Datum, &Var)| {
            let weight = if weighs { Some(logprobs.input(datum, "weights")?) } else { None };
            Ok(weight.map_or_else(|| logprobs.clone(), |weight| logprobs * weight).sum())
        };
        let sums = data.iter().zip(logprobs).map(sum).collect::<Result<Vec<Var>, Error>>()?;
        Ok(LossValue::new(-Var::stack(&sums)?.sum()))
    };
    stage.training().forward_backward_custom(datums, loss).map(drop)
}

fn sample(stage: &Stage, operation: &str, body: &Value, number: usize) -> Call {
    let prompt = data::model_input(&body["prompt"]["chunks"]);
    let mut options =
        SampleOptions::new(read(&body["num_samples"]), read(&body["sampling_params"]));
    options.prompt_logprobs = read(&body["prompt_logprobs"]);
    options.topk_prompt_logprobs = read(&body["topk_prompt_logprobs"]);
    options.topk_sample_logprobs = read(&body["topk_sample_logprobs"]);
    options.prompt_alt_tokens_k = read(&body["prompt_alt_tokens_k"]);
    options.prompt_logprobs_last_n = read(&body["prompt_logprobs_last_n"]);
    options.record_stability_info = read(&body["record_stability_info"]);
    options.target_prompt_logprobs =
        Some(&body["target_prompt_logprobs"]).filter(|value| !value.is_null()).map(data::tensor);
    let sampler = stage.sampler();
    let call = if operation == "compute_logprobs" {
        sampler.compute_logprobs(prompt).map(drop)
    } else {
        sampler.sample_with(prompt, options).map(drop)
    };
    // Samples are sent beside each other: in the order of their calls only if each waits for the one before.
    assert!(stage.server.wait_for("asample", stage.samples + number, Duration::from_secs(10)));
    call
}

/// A call of a service or training client.
fn call(stage: &Stage, service: &ServiceClient, endpoint: &str, body: &Value) -> Option<Call> {
    let text = |field: &str| body[field].as_str();
    let session = endpoint.strip_prefix("sessions/").and_then(|path| path.strip_suffix("/finish"));
    if session.is_some() {
        let detail = text("detail").map(str::to_owned);
        return Some(service.close_with(read(&body["reason"]), detail));
    }
    Some(match endpoint {
        "create_model" => service.create_lora_training_client(lora(body)).map(drop),
        "load_weights" if text("session_id").is_some() => {
            let path = text("path").unwrap();
            service.create_training_client_from_state_with(path, from_state(body)).map(drop)
        }
        "load_weights" if body["optimizer"] == true => {
            stage.training().load_state_with_optimizer(text("path").unwrap()).map(drop)
        }
        "load_weights" => stage.training().load_state(text("path").unwrap()).map(drop),
        "optim_step" => stage.training().optim_step(optimizer(body)).map(drop),
        "save_weights" => stage.training().save_state(save(body)).map(drop),
        "save_weights_external" => stage.training().save_weights_external(save(body)).map(drop),
        "save_weights_for_sampler" if text("path").is_some() => {
            stage.training().save_weights_for_sampler(save(body)).map(drop)
        }
        "save_weights_for_sampler" => {
            let options = SamplingOptions::new().kind(read(&body["kind"]));
            stage.training().save_weights_and_get_sampling_client_with(options).map(drop)
        }
        "create_sampling_session" => {
            let source = text("base_model").or_else(|| text("model_path")).unwrap();
            service.create_sampling_client(source).map(drop)
        }
        "copy_weights" if text("destination_project_id") == Some("proj-1") => {
            let options = CopyOptions::default().destination_project_id("proj-1");
            service.copy_weights(text("source_path").unwrap(), options).map(drop)
        }
        _ => return None,
    })
}

fn lora(body: &Value) -> LoraOptions {
    let lora = &body["lora_config"];
    let mut options = LoraOptions::new(body["base_model"].as_str().unwrap())
        .rank(read(&lora["rank"]))
        .train_mlp(read(&lora["train_mlp"]))
        .train_attn(read(&lora["train_attn"]))
        .train_unembed(read(&lora["train_unembed"]))
        .optimizer(read(&body["optimizer_config"]));
    if let Some(seed) = lora["seed"].as_u64() {
        options = options.seed(seed);
    }
    if body["user_metadata"].is_object() {
        options = options.user_metadata(read(&body["user_metadata"]));
    }
    options
}

fn from_state(body: &Value) -> FromStateOptions {
    let mut options = FromStateOptions::new().load_optimizer(read(&body["optimizer"]));
    if let Some(model) = body["base_model"].as_str() {
        options = options.base_model(model);
    }
    if let Some(token) = body["weights_access_token"].as_str() {
        options = options.weights_access_token(token);
    }
    if body["user_metadata"].is_object() {
        options = options.user_metadata(read(&body["user_metadata"]));
    }
    if body["optimizer_config"].is_object() {
        options = options.optimizer(read(&body["optimizer_config"]));
    }
    options
}

fn optimizer(body: &Value) -> OptimParams {
    match body.get("adam_params") {
        Some(adam) => OptimParams::Adam(read::<AdamParams>(adam)),
        None => OptimParams::Other(read(&body["optimizer_params"])),
    }
}

fn save(body: &Value) -> SaveOptions {
    let mut options = SaveOptions::new(body["path"].as_str().unwrap());
    options = options.overwrite(body["overwrite"] == true);
    if let Some(seconds) = body["ttl_seconds"].as_i64() {
        options = options.ttl_seconds(seconds);
    }
    if body["user_metadata"].is_object() {
        options = options.user_metadata(read(&body["user_metadata"]));
    }
    for key in body["age_encryption_recipients"].as_array().into_iter().flatten() {
        options = options.recipient(key.as_str().unwrap());
    }
    options
}

/// Recorded JSON as what the client takes.
pub(super) fn read<T: DeserializeOwned>(json: &Value) -> T {
    serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"))
}
