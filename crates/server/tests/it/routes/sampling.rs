use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::Server;

fn sample(sampler: &str, seq_id: i64) -> Value {
    json!({
        "sampling_session_id": sampler, "seq_id": seq_id, "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 4, "temperature": 1.0, "top_k": -1, "top_p": 1.0},
        "prompt_logprobs": false, "topk_prompt_logprobs": 0, "topk_sample_logprobs": 0,
        "prompt_alt_tokens_k": 0, "record_stability_info": false, "type": "sample",
    })
}

#[tokio::test]
async fn create_session_of_a_base_model() {
    let server = Server::without_worker();
    let session = server.session().await;
    let create = async |body: Value| {
        let mut all = json!({"session_id": session, "sampling_session_seq_id": 0});
        for (key, value) in body.as_object().unwrap() {
            all[key] = value.clone();
        }
        server.post("create_sampling_session", all).await.line().replace(&session, "S")
    };
    assert_snapshot!(create(json!({"base_model": "nano"})).await, @r#"200 {"sampling_session_id":"S:sample:0","type":"create_sampling_session"}"#);
    assert_snapshot!(create(json!({"base_model": "nano"})).await, @r#"200 {"sampling_session_id":"S:sample:0","type":"create_sampling_session"}"#);
    assert_snapshot!(create(json!({"base_model": "Qwen/Qwen3-8B"})).await, @r#"422 {"code":"conflict","detail":"sampling session S:sample:0 was submitted before with another body"}"#);
    assert_snapshot!(create(json!({"base_model": "gpt"})).await, @r#"400 {"code":"unknown_base_model","detail":"base_model \"gpt\" is not offered; known: nano, Qwen/Qwen3-8B"}"#);
    assert_snapshot!(create(json!({})).await, @r#"400 {"code":"invalid_sampling_session","detail":"wants exactly one of base_model and model_path"}"#);
    assert_snapshot!(create(json!({"base_model": "nano", "model_path": "tinker://a/weights/b"})).await, @r#"400 {"code":"invalid_sampling_session","detail":"wants exactly one of base_model and model_path"}"#);
    assert_snapshot!(create(json!({"model_path": "tinker://a/weights/b"})).await, @r#"404 {"code":"not_found","detail":"checkpoint `b` of a not found"}"#);
    assert_snapshot!(create(json!({"model_path": "/etc/passwd"})).await, @r#"400 {"code":"invalid_value","detail":"failed to read checkpoint path `/etc/passwd`: does not begin with `tinker://`"}"#);
    assert_snapshot!(create(json!({"session_id": "x", "base_model": "nano"})).await, @r#"404 {"code":"not_found","detail":"session x not found"}"#);
    let got = server.get(&format!("/api/v1/samplers/{session}:sample:0")).await;
    assert_snapshot!(got.line().replace(&session, "S"), @r#"200 {"base_model":"nano","sampler_id":"S:sample:0","tokenizer_id":"/models/nano"}"#);
    assert_snapshot!(server.get("/api/v1/samplers/x").await.line(), @r#"404 {"code":"not_found","detail":"sampling session x not found"}"#);
}

#[tokio::test]
async fn create_session_of_a_checkpoint() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let save = json!({"model_id": model, "seq_id": 1, "path": "a"});
    let path = server.done("save_weights_for_sampler", save).await.text("path");
    let body = json!({"session_id": session, "sampling_session_seq_id": 0, "model_path": path});
    let sampler = server.post("create_sampling_session", body).await.text("sampling_session_id");
    let got = server.get(&format!("/api/v1/samplers/{sampler}")).await.json();
    let expected = json!({
        "sampler_id": sampler, "base_model": "nano", "model_path": path, "tokenizer_id": "/models/nano",
    });
    assert_eq!(got, expected);
}

#[tokio::test]
async fn sample_has_an_id_for_each_sequence() {
    let server = Server::start();
    let (_, sampler) = server.sampler().await;
    let first = server.post("asample", sample(&sampler, 0)).await;
    let id = first.text("request_id");
    assert_eq!(first.json()["sample_sequence_ids"], json!([format!("{id}:0"), format!("{id}:1")]));
    assert_eq!(server.post("asample", sample(&sampler, 0)).await.json(), first.json());
    let mut other = sample(&sampler, 0);
    other["num_samples"] = json!(1);
    assert_eq!(server.post("asample", other).await.status, 422);
    assert_snapshot!(server.result(&id, "application/json").await.line(), @r#"200 {"prompt_logprobs":null,"sequences":[{"logprobs":[-0.5,-0.25],"stop_reason":"length","tokens":[7,8]},{"logprobs":[-0.5,-0.25],"stop_reason":"length","tokens":[7,8]}],"topk_prompt_logprobs":null,"type":"sample"}"#);
    let reply = server.result(&id, "application/x-protobuf").await;
    assert_eq!(reply.headers["content-type"], "application/x-protobuf");
}

#[tokio::test]
async fn faults_are_400() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    let check = async |change: fn(&mut Value)| {
        let mut body = sample(&sampler, 0);
        change(&mut body);
        server.post("asample", body).await.line()
    };
    let line = check(|body| body["sampling_session_id"] = json!("x")).await;
    assert_snapshot!(line, @r#"404 {"code":"not_found","detail":"sampling session x not found"}"#);
    assert_snapshot!(check(|body| body["num_samples"] = json!(0)).await, @r#"400 {"code":"invalid_sample","detail":"num_samples is 0; it must be from 1 to 64"}"#);
    assert_snapshot!(check(|body| body["num_samples"] = json!(65)).await, @r#"400 {"code":"invalid_sample","detail":"num_samples is 65; it must be from 1 to 64"}"#);
    assert_snapshot!(check(|body| body["prompt"] = json!({"chunks": []})).await, @r#"400 {"code":"invalid_sample","detail":"prompt has no tokens"}"#);
    assert_snapshot!(check(|body| body["prompt"]["chunks"][0]["tokens"] = json!([1, 1000])).await, @r#"400 {"code":"invalid_sample","detail":"prompt.chunks[0].tokens[1] is the token 1000, which is out of the vocabulary of 1000"}"#);
    assert_snapshot!(check(|body| body["prompt"]["chunks"][0] =
        json!({"type": "image", "data": "iVBORw0K", "format": "png"})).await, @r#"400 {"code":"unsupported","detail":"prompt.chunks[0] is an image; this server's models read text only"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["max_tokens"] = json!(0)).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.max_tokens must be at least 1 where nothing of the prompt is asked for"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["max_tokens"] = json!(62)).await, @r#"400 {"code":"context_exceeded","detail":"Prompt length plus max_tokens exceeds the model's context window: 3 prompt tokens + 62 max_tokens > 64."}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["max_tokens"] = json!(2_000_000_000)).await, @r#"400 {"code":"context_exceeded","detail":"Prompt length plus max_tokens exceeds the model's context window: 3 prompt tokens + 2000000000 max_tokens > 64."}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["temperature"] = json!(-0.1)).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.temperature is -0.1; it must be 0 (greedy) or more"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["top_p"] = json!(0)).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.top_p is 0; it must be above 0 and at most 1"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["top_k"] = json!(0)).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.top_k is 0; it must be -1 (off) or at least 1"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["stop"] = json!([""])).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.stop has an entry that is empty or longer than 1000 bytes"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["stop"] = json!([1000])).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.stop[0] is the token 1000, which is out of the vocabulary of 1000"}"#);
    assert_snapshot!(check(|body| body["sampling_params"]["stop"] = json!(vec![1; 17])).await, @r#"400 {"code":"invalid_sample","detail":"sampling_params.stop has 17 entries; at most 16 are taken"}"#);
}

/// Changes of a sample of a prompt of three tokens, in a vocabulary of 1000, and what is answered.
const SCORES: [(&str, &str); 18] = [
    (r#"{"topk_prompt_logprobs": 20, "topk_sample_logprobs": 20, "prompt_alt_tokens_k": 20}"#, ""),
    (r#"{"topk_prompt_logprobs": 21}"#, "topk_prompt_logprobs is 21; it must be from 0 to 20"),
    (r#"{"topk_sample_logprobs": 21}"#, "topk_sample_logprobs is 21; it must be from 0 to 20"),
    (r#"{"prompt_alt_tokens_k": 21}"#, "prompt_alt_tokens_k is 21; it must be from 0 to 20"),
    (r#"{"topk_prompt_logprobs": -1}"#, "`topk_prompt_logprobs`: invalid value: integer `-1`"),
    (r#"{"prompt_logprobs": true, "prompt_logprobs_last_n": 2}"#, ""),
    (
        r#"{"prompt_logprobs": true, "prompt_logprobs_last_n": 3}"#,
        "prompt_logprobs_last_n is 3; it must be from 1 to 2,",
    ),
    (
        r#"{"prompt_logprobs": true, "prompt_logprobs_last_n": 0}"#,
        "prompt_logprobs_last_n is 0; it must be from 1 to 2,",
    ),
    (r#"{"prompt_logprobs_last_n": 1}"#, "prompt_logprobs_last_n is given without prompt_logprobs"),
    (r#"{"target_prompt_logprobs": {"data": [1, -1], "dtype": "int64", "shape": [2, 1]}}"#, ""),
    (
        r#"{"target_prompt_logprobs": {"data": [7], "dtype": "int64", "shape": [2, 5], "sparse_crow_indices": [0, 0, 1], "sparse_col_indices": [4]}}"#,
        "",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [1, 2], "dtype": "float32", "shape": [2, 1]}}"#,
        "target_prompt_logprobs has the dtype float32; token ids are int64",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [1, 2, 3], "dtype": "int64", "shape": [3, 1]}}"#,
        "target_prompt_logprobs has the shape [3, 1]; expected is [2, K]",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [1, 2, 3], "dtype": "int64", "shape": [2, 2]}}"#,
        "target_prompt_logprobs.data has 3 values; its shape says 2 times 2",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [-1, -1], "dtype": "int64", "shape": [2, 1]}}"#,
        "target_prompt_logprobs names no token id",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [1, 1000], "dtype": "int64", "shape": [2, 1]}}"#,
        "target_prompt_logprobs.data[1] is the token 1000, which is out of the vocabulary of 1000",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [7], "dtype": "int64", "shape": [2, 5], "sparse_crow_indices": [0, 1, 0], "sparse_col_indices": [4]}}"#,
        "target_prompt_logprobs.sparse_crow_indices is not 3 numbers that rise",
    ),
    (
        r#"{"target_prompt_logprobs": {"data": [7, 8], "dtype": "int64", "shape": [2, 5], "sparse_crow_indices": [0, 2, 2], "sparse_col_indices": [4, 4]}}"#,
        "target_prompt_logprobs.sparse_col_indices must rise within each row",
    ),
];

#[tokio::test]
async fn what_is_scored_is_checked() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    for (seq_id, (change, expected)) in (0..).zip(SCORES) {
        let mut body = sample(&sampler, seq_id);
        let change: Value = serde_json::from_str(change).unwrap();
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        let reply = server.post("asample", body).await;
        let status = if expected.is_empty() { 200 } else { 400 };
        assert_eq!(reply.status.as_u16(), status, "{change}: {}", reply.line());
        assert!(reply.line().contains(expected), "{}", reply.line());
    }
    let mut body = sample(&sampler, 100);
    body["topk_sample_logprobs"] = json!(20);
    body["sampling_params"]["max_tokens"] = Value::Null;
    let line = server.post("asample", body).await.line();
    assert_snapshot!(line, @r#"400 {"code":"invalid_sample","detail":"topk_sample_logprobs asks for 2440 logprobs, of 2440 in all; at most 1000 are given in one result"}"#);
}

#[tokio::test]
async fn full_table_asks_to_wait() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    let mut last = None;
    for seq_id in 0..=100 {
        last = Some(server.post("asample", sample(&sampler, seq_id)).await);
    }
    let last = last.unwrap();
    assert_eq!((last.status.as_u16(), last.headers["retry-after"].to_str().unwrap()), (429, "1"));
}

#[tokio::test]
async fn clones_get_numbers_of_their_own() {
    let server = Server::without_worker();
    let (session, sampler) = server.sampler().await;
    let join = async |id: &str| {
        let body = json!({"sampling_session_id": id, "type": "join_sampling_session"});
        server.post("join_sampling_session", body).await.line()
    };
    assert_snapshot!(join(&sampler).await, @r#"200 {"client_counter":1,"type":"join_sampling_session"}"#);
    assert_snapshot!(join(&sampler).await, @r#"200 {"client_counter":2,"type":"join_sampling_session"}"#);
    assert_snapshot!(join("x").await, @r#"404 {"code":"not_found","detail":"sampling session x not found"}"#);
    server
        .post(&format!("sessions/{session}/finish"), json!({"reason": {"type": "success"}}))
        .await;
    assert_snapshot!(join(&sampler).await, @r#"410 {"code":"session_finished","detail":"the session has finished or expired; open a new one"}"#);
}
