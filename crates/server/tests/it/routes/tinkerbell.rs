//! The Tinkerbell dialect, on its own paths and on those that it shares.

use std::time::Duration;

use axum::http::StatusCode;
use insta::assert_snapshot;
use serde_json::{Value, json};
use tinsmith_store::Claimed;
use tinsmith_types::{
    proto::{self, chunk, pack},
    queued::QueuedRequest,
};

use crate::harness::{Reply, Server, config, datum, forward_backward};

/// A chat of the model that ships.
fn chat() -> Value {
    json!([{"role": "user", "content": "hello hello"}, {"role": "assistant", "content": "hello"}])
}

fn training(model: &str) -> Value {
    json!({"model_id": model, "data": [chat()], "loss_fn": "cross_entropy"})
}

async fn lora(server: &Server) -> String {
    let added = server.post("add_lora", json!({"base_model": "nano", "rank": 16})).await;
    assert_eq!(added.status, StatusCode::OK, "{}", added.line());
    added.text("model_id")
}

async fn retrieve(server: &Server, id: &str) -> Reply {
    server.post_to("/retrieve_future", &[], json!({"request_id": id})).await
}

async fn result(server: &Server, id: &str) -> Reply {
    for _ in 0..200 {
        let reply = retrieve(server, id).await;
        if reply.status != StatusCode::ACCEPTED {
            return reply;
        }
    }
    panic!("{id} never finished");
}

/// What the worker would get.
async fn claimed(server: &Server) -> Vec<(Claimed, QueuedRequest)> {
    let claimed = server.store.claim(16, Duration::from_millis(1)).await.unwrap();
    let decoded = claimed.into_iter().map(|claimed| {
        let request = QueuedRequest::decode(claimed.kind.name(), &claimed.body).unwrap();
        (claimed, request)
    });
    decoded.collect()
}

#[tokio::test]
async fn every_operation_waits_on_one_path_and_not_on_another() {
    let server = Server::start();
    let model = &lora(&server).await;
    let of_run = json!({"model_id": model});
    let saved = server.post("save_weights", json!({"model_id": model, "path": "first"})).await;
    let path = saved.text("path");
    let bodies = [
        ("forward", training(model), "loss"),
        ("forward_backward", training(model), "loss"),
        ("optim_step", json!({"model_id": model, "learning_rate": 0.01}), "metrics"),
        ("optim_step", of_run.clone(), "metrics"),
        ("save_weights", json!({"model_id": model, "path": "a"}), "path"),
        ("save_weights_for_sampler", json!({"model_id": model, "path": "a"}), "path"),
        ("save_weights_for_sampler", of_run.clone(), "path"),
        ("load_weights", json!({"model_id": model, "path": path}), "path"),
        ("add_lora", json!({"base_model": "nano", "rank": 8, "alpha": 32}), "model_id"),
        ("remove_lora", of_run, "model_id"),
    ];
    for (operation, body, field) in bodies {
        if operation == "remove_lora" {
            continue;
        }
        let reply = server.post(operation, body.clone()).await;
        assert_eq!(reply.status, StatusCode::OK, "{operation} {}", reply.line());
        assert!(!reply.json()[field].is_null(), "{operation} {}", reply.line());
        let mut body = body;
        if !body["path"].is_null() && operation.starts_with("save") {
            body["path"] = json!("b");
        } else if operation.starts_with("save") {
            body["path"] = json!("c");
        }
        let submitted = server.post(&format!("{operation}_async"), body).await;
        assert_eq!(submitted.status, StatusCode::OK, "{operation} {}", submitted.line());
        let id = submitted.text("request_id");
        assert!(id.starts_with("future_"), "{id}");
        assert!(!submitted.text("model_id").is_empty());
        let reply = result(&server, &id).await;
        assert_eq!(reply.status, StatusCode::OK, "{operation} {}", reply.line());
        assert!(!reply.json()[field].is_null(), "{operation} {}", reply.line());
        assert_eq!(retrieve(&server, &id).await.json(), reply.json(), "as often as one likes");
    }
    let other = lora(&server).await;
    let removed = server.post("remove_lora", json!({"model_id": model})).await;
    assert_eq!(removed.text("model_id"), *model);
    let id = server.post("remove_lora_async", json!({"model_id": other})).await.text("request_id");
    assert_eq!(result(&server, &id).await.text("model_id"), other);
    let reply = server.post("forward_backward", training(model)).await.line();
    assert_snapshot!(reply.replace(model, "RUN"), @r#"404 {"code":"not_found","detail":"run RUN: remove_lora removed it, it was not found"}"#);
}

#[tokio::test]
async fn a_result_is_200_202_404_or_500() {
    let mut server = Server::without_worker();
    let added = server.post("add_lora_async", json!({"base_model": "nano"})).await;
    let model = added.text("model_id");
    let id = server.post("forward_backward_async", training(&model)).await.text("request_id");
    let pending = retrieve(&server, &id).await;
    assert_snapshot!(pending.line(), @r#"202 {"status":"pending"}"#);
    assert_eq!(pending.headers["retry-after"], "1");
    assert_snapshot!(retrieve(&server, "future_req-0").await.line(), @r#"404 {"code":"not_found","detail":"request req-0 not found"}"#);
    assert_snapshot!(server.post_to("/retrieve_future", &[], json!({})).await.line(), @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: missing field `request_id` at line 1 column 2"}"#);
    server.work();
    let reply = result(&server, &id).await;
    assert_eq!((reply.status, &reply.json()["loss"]), (StatusCode::OK, &json!(1.5)));
    // The official name means the same, and so does the official path.
    let official = id.strip_prefix("future_").unwrap();
    assert_eq!(retrieve(&server, official).await.json(), reply.json());
    let official = server.result(&id, "application/json").await;
    assert_eq!((official.status, &official.json()["loss"]), (StatusCode::OK, &Value::Null));
    // What fails at its turn is a 500 to those who ask for it, and a 400 to those who wait, if it is their fault.
    let (_, numbered) = server.run().await;
    let step = json!({"model_id": numbered, "seq_id": 1, "adam_params": {"beta1": 2.0}});
    let id = server.post("optim_step", step).await.text("request_id");
    assert_snapshot!(retrieve(&server, &id).await.line(), @r#"500 {"category":"user","code":"request_failed","detail":"adam_params.beta1 is 2; it must be at least 0 and below 1","status":"failed"}"#);
    for path in ["optim_step", "optim_step_async"] {
        let step = json!({"model_id": model, "adam_params": {"beta1": 2.0}});
        let refused = server.post(path, step).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{path} {}", refused.line());
        assert!(refused.text("detail").starts_with("adam_params.beta1 is 2"));
    }
}

#[tokio::test]
async fn futures_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Server::open(config(), Some(dir.path().to_owned()));
    let server = open();
    let model = server.post("add_lora_async", json!({"base_model": "nano"})).await.text("model_id");
    let id = server.post("forward_backward_async", training(&model)).await.text("request_id");
    server.stop().await;
    let mut server = open();
    server.work();
    assert_eq!(result(&server, &id).await.json()["loss"], 1.5);
    let reply = server.post("forward_backward", training(&model)).await;
    assert_eq!(reply.status, StatusCode::OK, "the run goes on: {}", reply.line());
    let other = lora(&server).await;
    assert_eq!(other, model.replace(":train:0", ":train:1"), "the session is the same");
    server.stop().await;
    assert_eq!(result(&open(), &id).await.json()["loss"], 1.5);
}

#[tokio::test]
async fn old_names_still_work() {
    let server = Server::start();
    let model = &lora(&server).await;
    let saved = server.post("save_weights", json!({"model_id": model, "path": "first"})).await;
    let bodies = [
        ("fwd", training(model)),
        ("fwdbwd", training(model)),
        ("optim_step", json!({"model_id": model})),
        ("save_weights", json!({"model_id": model})),
        ("save_weights_for_sampler", json!({"model_id": model, "path": "a"})),
        ("load_weights", json!({"model_id": model, "path": saved.text("path")})),
        ("add_lora", json!({"base_model": "nano"})),
        ("remove_lora", json!({"model_id": model})),
    ];
    let mut links = Vec::new();
    for (operation, body) in bodies {
        let submitted = server.post_to(&format!("/{operation}"), &[], body).await;
        let id = submitted.text("request_id");
        assert!(id.starts_with("future_"), "{operation} {id}");
        assert_eq!(submitted.headers["deprecation"], "@1795219200");
        links.push(submitted.headers["link"].to_str().unwrap().to_owned());
        assert_eq!(result(&server, &id).await.status, StatusCode::OK, "{operation}");
    }
    assert_snapshot!(links.join("\n"), @r#"
    </api/v1/forward_async>; rel="successor-version"
    </api/v1/forward_backward_async>; rel="successor-version"
    </api/v1/optim_step_async>; rel="successor-version"
    </api/v1/save_weights_async>; rel="successor-version"
    </api/v1/save_weights_for_sampler_async>; rel="successor-version"
    </api/v1/load_weights_async>; rel="successor-version"
    </api/v1/add_lora_async>; rel="successor-version"
    </api/v1/remove_lora_async>; rel="successor-version"
    "#);
}

#[tokio::test]
async fn official_bodies_are_answered_as_ever() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let datums = json!({"data": [datum()], "loss_fn": "cross_entropy"});
    // As SDK 0.3.0 writes them: no `type`, and null for what is not set.
    let bodies = [
        ("forward_backward", forward_backward(&model, 1, &[datum()])),
        ("forward", json!({"forward_input": datums, "model_id": model, "seq_id": 2})),
        ("optim_step", json!({"adam_params": {}, "model_id": model, "seq_id": 3})),
        ("save_weights", json!({"model_id": model, "path": null, "seq_id": 4})),
        ("save_weights_for_sampler", json!({"model_id": model, "path": "a", "seq_id": 5})),
        (
            "load_weights",
            json!({"model_id": model, "path": format!("tinker://{model}/weights/seq-4"), "seq_id": 6}),
        ),
        (
            "load_weights",
            json!({
                "session_id": session, "model_seq_id": 1, "seq_id": null,
                "path": format!("tinker://{model}/weights/seq-4"),
            }),
        ),
        ("optim_step", json!({"adam_params": {}, "model_id": model, "type": "optim_step"})),
    ];
    for (path, body) in bodies {
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{path} {}", reply.line());
        assert!(reply.text("request_id").starts_with("req-"), "{path} {}", reply.line());
        let done = server.result(&reply.text("request_id"), "application/json").await;
        assert_eq!(done.json()["error"], Value::Null, "{path} {}", done.line());
    }
    let mistaken = json!({"model_id": model, "seq_id": 8, "data": [datum()]});
    assert_snapshot!(server.post("forward_backward", mistaken).await.line(), @r#"400 {"code":"mistaken_field","detail":"failed to read the JSON body: `data` is not a field here; use `forward_backward_input.data`"}"#);
}

#[tokio::test]
async fn the_header_prefer_overrides() {
    let mut server = Server::without_worker();
    let added = server.post("add_lora_async", json!({"base_model": "nano"})).await;
    let model = added.text("model_id");
    let send = async |server: &Server, path: &str, prefer: &str, body: Value| {
        server.post_to(&format!("/api/v1/{path}"), &[("prefer", prefer)], body).await
    };
    let later = send(&server, "forward_backward", "respond-async", training(&model)).await;
    assert_eq!(later.status, StatusCode::OK, "{}", later.line());
    assert!(later.text("request_id").starts_with("future_"));
    let late = send(&server, "forward_backward_async", "wait=0", training(&model)).await;
    assert_eq!(late.status, StatusCode::ACCEPTED, "{}", late.line());
    assert_eq!((late.text("status"), late.text("model_id")), ("pending".to_owned(), model.clone()));
    server.work();
    assert_eq!(result(&server, &late.text("request_id")).await.json()["loss"], 1.5);
    let waited = send(&server, "forward_backward_async", "wait", training(&model)).await;
    assert_eq!(waited.json()["loss"], 1.5, "{}", waited.line());
    let (_, numbered) = server.run().await;
    let body = forward_backward(&numbered, 1, &[datum()]);
    let waited = send(&server, "forward_backward", "wait", body).await;
    assert_eq!(waited.json()["loss"], 1.5, "an official body: {}", waited.line());
}

/// A batch as the worker gets it: tokens, targets and weights of each datum.
fn arrays(request: &proto::ForwardBackwardRequest) -> Vec<(Vec<i32>, Vec<i64>, Vec<f32>)> {
    let arrays = request.data.iter().map(|datum| {
        let Some(chunk::Chunk::EncodedText(text)) = &datum.model_input[0].chunk else {
            panic!("{datum:?}")
        };
        let stored = |name: &str| datum.loss_fn_inputs[name].stored();
        (
            pack::unpack_i32(&text.tokens).unwrap(),
            pack::unpack_i64(stored("target_tokens")).unwrap(),
            pack::unpack_f32(stored("weights")).unwrap(),
        )
    });
    arrays.collect()
}

#[tokio::test]
async fn what_the_assistant_says_is_trained_and_nothing_else() {
    let server = Server::without_worker();
    let added = server.post("add_lora_async", json!({"base_model": "nano"})).await;
    let model = added.text("model_id");
    let silent = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"model_id": model, "data": [chat(), {"messages": silent}]});
    let submitted = server.post("forward_backward_async", body).await;
    assert_eq!(
        submitted.json()["warnings"],
        json!(["data[1] has no assistant message: nothing is learnt from it"])
    );
    let mut claimed = claimed(&server).await;
    while claimed.len() < 2 {
        claimed.extend(self::claimed(&server).await);
    }
    let QueuedRequest::ForwardBackward(request) = &claimed[1].1 else { panic!("{claimed:?}") };
    let all = arrays(request);
    let tokenizer_of = |text: &str| {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        let tokenizer = tinsmith_tokenizer::Tokenizer::open(&dir).unwrap();
        tokenizer.encode(text, false).unwrap()
    };
    let head = tokenizer_of("<|im_start|>user\nhello hello<|im_end|>\n<|im_start|>assistant\n");
    let said = tokenizer_of("hello<|im_end|>");
    let tail = tokenizer_of("\n");
    let whole = [head.as_slice(), &said, &tail].concat();
    let (tokens, targets, weights) = &all[0];
    let as_i64 = |tokens: &[u32]| tokens.iter().map(|&it| i64::from(it)).collect::<Vec<_>>();
    assert_eq!(
        tokens.iter().map(|&it| i64::from(it)).collect::<Vec<_>>(),
        as_i64(&whole[..whole.len() - 1])
    );
    assert_eq!(*targets, as_i64(&whole[1..]));
    #[expect(clippy::cast_precision_loss, reason = "a few tokens")]
    let weight = 1.0 / said.len() as f32;
    let expected: Vec<f32> =
        [vec![0.0; head.len() - 1], vec![weight; said.len()], vec![0.0; tail.len()]].concat();
    assert_eq!(*weights, expected);
    assert!(all[1].2.iter().all(|weight| *weight == 0.0));
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Server::start();
    let model = lora(&server).await;
    let (_, numbered) = server.run().await;
    let check = async |path: &str, body: Value| {
        let reply = server.post(path, body).await.line();
        reply.replace(&model, "RUN").replace(&numbered, "NUMBERED")
    };
    assert_snapshot!(check("forward_backward", training("test")).await, @r#"404 {"code":"not_found","detail":"run test not found"}"#);
    assert_snapshot!(check("forward_backward_async", training(&numbered)).await, @r#"400 {"code":"numbered_run","detail":"run NUMBERED was made by create_model, and its requests are numbered: send them in the official form, with seq_id; runs made by add_lora take this form"}"#);
    assert_snapshot!(check("add_lora", json!({"base_model": "nano", "alpha": 16})).await, @r#"400 {"code":"unsupported_alpha","detail":"alpha is 16; adapters are scaled by 32 / rank here, as on the hosted service: leave alpha out, and scale the learning rate instead"}"#);
    assert_snapshot!(check("add_lora", json!({"base_model": "nano", "rank": 0})).await, @r#"400 {"code":"invalid_lora_config","detail":"lora_config.rank must be positive"}"#);
    assert_snapshot!(check("add_lora", json!({"base_model": "gpt"})).await, @r#"400 {"code":"unknown_base_model","detail":"base_model \"gpt\" is not offered; known: nano, Qwen/Qwen3-8B"}"#);
    assert_snapshot!(check("add_lora_async", json!({"lora_rank": 3})).await, @r#"400 {"code":"mistaken_field","detail":"failed to read the JSON body: `lora_rank` is not a field here; use `rank`"}"#);
    let data = async |data: Value| {
        let body = json!({"model_id": model, "data": data});
        check("forward_backward", body).await
    };
    assert_snapshot!(data(json!([])).await, @r#"400 {"category":"user","code":"request_failed","detail":"data is empty","status":"failed"}"#);
    assert_snapshot!(data(json!([[]])).await, @r#"400 {"code":"invalid_chat","detail":"data[0] has no messages"}"#);
    assert_snapshot!(data(json!([[{"role": "bot", "content": ""}]])).await, @r#"400 {"code":"invalid_chat","detail":"data[0][0].role is \"bot\"; known: system, developer, user, assistant, tool"}"#);
    assert_snapshot!(data(json!([[{"role": "user", "content": null}]])).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `data[0][0].content`: invalid type: null, expected a string at line 1 column 25"}"#);
    let message = json!({"role": "user", "content": "hello"});
    assert_snapshot!(data(json!([vec![message.clone(); 9]])).await, @r#"400 {"code":"invalid_chat","detail":"data[0] has 9 messages; at most 8 are taken"}"#);
    let long = json!([[{"role": "user", "content": "hello ".repeat(100)}]]);
    assert_snapshot!(data(long).await, @r#"400 {"code":"invalid_data","detail":"data[0] has 306 tokens; from 2 to 81 can be trained on at once"}"#);
    let body = json!({"model_id": model, "data": [[message]], "loss_fn": "ppo"});
    assert_snapshot!(check("forward_backward", body).await, @r#"400 {"code":"invalid_data","detail":"data[0] is a chat, and loss_fn \"ppo\" reads arrays that a chat does not have: send datums with model_input and loss_fn_inputs, or use cross_entropy"}"#);
    assert_snapshot!(check("optim_step", json!({"model_id": model, "learning_rate": 1, "adam_params": {}})).await, @r#"400 {"code":"two_learning_rates","detail":"learning_rate stands in adam_params where there is one, or alone"}"#);
    assert_snapshot!(check("save_weights_async", json!({"path": "a"})).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: missing field `model_id` at line 1 column 12"}"#);
}

#[tokio::test]
async fn what_its_clients_ask_besides() {
    let server = Server::without_worker();
    assert_snapshot!(server.get("/healthz").await.line(), @r#"200 {"status":"ok"}"#);
    assert_eq!(
        server.get("/get_server_capabilities").await.json(),
        server.get("/api/v1/get_server_capabilities").await.json()
    );
    let names = server.get("/list_loss_functions").await.json();
    assert_eq!(names["loss_functions"][0], "cross_entropy");
    assert_eq!(server.get("/api/v1/list_loss_functions").await.json(), names);
    assert_eq!(server.get("/favicon.ico").await.status, StatusCode::NO_CONTENT);
    let (_, model) = server.run().await;
    let info = server.post_to("/get_info", &[], json!({"model_id": model})).await;
    assert_eq!(info.text("model_id"), model);
    for path in ["/register_custom_loss", "/api/v1/register_custom_loss"] {
        let refused = server.post_to(path, &[], json!({"pickle": "gASV"})).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(refused.text("detail").contains("/api/v1/create_custom_loss"));
    }
}

#[tokio::test]
async fn endpoints_are_as_many_as_promised() {
    let server = Server::without_worker();
    let root = server.get("/").await.json();
    let paths: Vec<&str> =
        root["endpoints"].as_array().unwrap().iter().filter_map(|it| it["path"].as_str()).collect();
    let groups = [
        (6, ["forward", "forward_backward", "optim_step"].as_slice()),
        (4, &["add_lora", "remove_lora"]),
    ];
    for (count, operations) in groups {
        let found = operations.iter().flat_map(|operation| {
            [format!("/api/v1/{operation}"), format!("/api/v1/{operation}_async")]
        });
        assert_eq!(found.filter(|path| paths.contains(&path.as_str())).count(), count);
    }
    for weights in ["load_weights", "save_weights", "save_weights_for_sampler"] {
        assert!(paths.contains(&format!("/api/v1/{weights}_async").as_str()), "{weights}");
    }
    assert!(paths.contains(&"/retrieve_future"));
}

#[tokio::test]
async fn samples_need_no_sampling_session() {
    let server = Server::start();
    let model = lora(&server).await;
    let saved = server.post("save_weights", json!({"model_id": model, "path": "first"})).await;
    let hello = json!([{"role": "user", "content": "hello"}]);
    let bodies = [
        json!({"model_id": model, "messages": hello, "max_tokens": 4, "temperature": 0.5}),
        json!({"model_id": model, "prompt": {"chunks": [{"tokens": [1, 2]}]}, "max_tokens": 4}),
        json!({"base_model": "nano", "prompt": "hello", "num_samples": 1}),
        json!({"model_path": saved.text("path"), "prompt": [1, 2], "sampling_params": {"max_tokens": 4}}),
    ];
    for mut body in bodies {
        let drawn = server.post("sample", body.clone()).await;
        assert_eq!(drawn.status, StatusCode::OK, "{body} {}", drawn.line());
        assert_eq!(drawn.json()["sequences"][0]["tokens"], json!([7, 8]));
        assert_eq!(drawn.json()["sequences"][0]["text"], drawn.json()["text"]);
        assert!(drawn.json()["text"].is_string(), "{}", drawn.line());
        if body["model_id"].is_null() && body["prompt"]["chunks"].is_array() {
            continue;
        }
        body["seed"] = json!(3);
        let submitted = server.post("asample", body.clone()).await;
        let id = submitted.text("request_id");
        assert!(id.starts_with("future_kept-"), "{id}");
        assert!(!submitted.text("model_id").is_empty());
        assert_eq!(result(&server, &id).await.json()["text"], drawn.json()["text"]);
        let official = server.post("retrieve_future", json!({"request_id": id})).await;
        assert_eq!(official.json()["sequences"][0]["tokens"], json!([7, 8]), "{}", official.line());
    }
    let check = async |body: Value| server.post("sample", body).await.line();
    assert_snapshot!(check(json!({"base_model": "nano"})).await, @r#"400 {"code":"invalid_prompt","detail":"wants either prompt (a text, or tokens) or messages (a chat to answer)"}"#);
    assert_snapshot!(check(json!({"base_model": "nano", "model_id": model, "prompt": "x"})).await, @r#"400 {"code":"invalid_sample","detail":"wants one of model_id, model_path and base_model"}"#);
    assert_snapshot!(check(json!({"base_model": "nano", "prompt": "x", "num_samples": 0})).await, @r#"400 {"code":"invalid_sample","detail":"num_samples is 0; it must be from 1 to 64"}"#);
    assert_snapshot!(check(json!({"base_model": "nano", "prompt": "x", "max_tokens": 999})).await, @r#"400 {"code":"context_exceeded","detail":"Prompt length plus max_tokens exceeds the model's context window: 1 prompt tokens + 999 max_tokens > 64."}"#);
    assert_snapshot!(check(json!({"model_path": "tinker://a/weights/b", "prompt": "x"})).await, @r#"404 {"code":"not_found","detail":"checkpoint `b` of a not found"}"#);
    assert_snapshot!(check(json!({"base_model": "nano", "messages": []})).await, @r#"400 {"code":"invalid_chat","detail":"messages has no messages"}"#);
}

/// Runs one life of a server: what it has spawned ends with it.
fn life<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn samples_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Server::open(config(), Some(dir.path().to_owned()));
    let (model, first, second) = life(async {
        let server = open();
        let added = server.post("add_lora_async", json!({"base_model": "nano"})).await;
        let model = added.text("model_id");
        let body = json!({"model_id": model, "prompt": "hello", "max_tokens": 4});
        let first = server.post("asample", body.clone()).await.text("request_id");
        let second = server.post("asample", body).await.text("request_id");
        assert_eq!(retrieve(&server, &first).await.status, StatusCode::ACCEPTED);
        server.stop().await;
        (model, first, second)
    });
    let drawn = life(async {
        let mut server = open();
        server.work();
        let drawn = result(&server, &first).await;
        assert_eq!(drawn.json()["sequences"][0]["tokens"], json!([7, 8]), "{}", drawn.line());
        assert_eq!(result(&server, &second).await.json()["text"], drawn.json()["text"]);
        let session = model.split(':').next().unwrap().into();
        let (_, samplers) = server.store.session_children(&"local".into(), &session).await.unwrap();
        assert_eq!(samplers.len(), 1, "both are drawn from what nothing has changed since");
        server.stop().await;
        drawn
    });
    let again = life(async {
        let server = open();
        retrieve(&server, &first).await
    });
    assert_eq!(again.json(), drawn.json());
}
