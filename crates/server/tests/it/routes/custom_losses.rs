use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::{Server, config, datum, forward_backward};

fn node(op: &str, name: &str, target: &str, args: &Value) -> Value {
    json!({"op": op, "name": name, "target": target, "args": args, "kwargs": {}})
}

/// `-(logprobs * weights).sum()`, with another function in place of `sum` if wanted.
fn body(session: &str, number: i64, function: &str) -> Value {
    let nodes = [
        node("placeholder", "logprobs", "logprobs", &json!([])),
        node("placeholder", "weights", "weights", &json!([])),
        node(
            "call_function",
            "mul",
            "operator.mul",
            &json!([{"ref": "logprobs"}, {"ref": "weights"}]),
        ),
        node("call_function", "sum_1", function, &json!([{"ref": "mul"}])),
        node("call_function", "neg", "operator.neg", &json!([{"ref": "sum_1"}])),
        node("output", "output", "output", &json!([{"tuple": [{"ref": "neg"}, {"dict": {}}]}])),
    ];
    json!({
        "session_id": session, "custom_loss_seq_id": number, "name": "nll", "type": "create_custom_loss",
        "inputs": [{"name": "logprobs", "rank": 1}, {"name": "weights", "rank": 1}],
        "graph": {"format": 1, "nodes": nodes},
    })
}

fn batch(model: &str, seq_id: i64, datum: Value, config: Value) -> Value {
    let mut body = forward_backward(model, seq_id, &[datum]);
    body["forward_backward_input"]["loss_fn"] = json!("custom");
    body["forward_backward_input"]["loss_fn_config"] = config;
    body
}

#[tokio::test]
async fn a_loss_is_made_once_and_found_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Server::open(config(), Some(directory.path().to_owned()));
    let server = open();
    let session = server.session().await;
    let made = server.post("create_custom_loss", body(&session, 0, "torch.sum")).await;
    let id = made.text("request_id");
    let result = json!({"loss_id": format!("{session}:loss:0"), "type": "create_custom_loss"});
    assert_eq!(server.result(&id, "application/json").await.json(), result);
    let again = server.post("create_custom_loss", body(&session, 0, "torch.sum")).await;
    assert_eq!(again.text("request_id"), id);
    let other = server.post("create_custom_loss", body(&session, 0, "torch.mean")).await;
    assert_eq!(other.status, 422, "{}", other.line());
    drop(server);
    let server = open();
    assert_eq!(server.result(&id, "application/json").await.json(), result);
    let unknown = json!({"request_id": format!("{session}:loss:7")});
    assert_eq!(server.post("retrieve_future", unknown).await.status, 404);
}

#[tokio::test]
async fn what_is_not_allowed_is_refused() {
    let server = Server::start();
    let session = server.session().await;
    let create = async |change: Value| {
        let mut body = body(&session, 1, "torch.sum");
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let line = server.post("create_custom_loss", body).await.line();
        line.replace(&session, "SESSION")
    };
    let function = async |name: &str| {
        let body = body(&session, 1, name);
        server.post("create_custom_loss", body).await.line()
    };
    assert_snapshot!(function("os.system").await, @r#"400 {"code":"invalid_custom_loss","detail":"graph: nodes[3]: the function \"os.system\" is not one that a loss may call"}"#);
    assert_snapshot!(function("torch.load").await, @r#"400 {"code":"invalid_custom_loss","detail":"graph: nodes[3]: the function \"torch.load\" is not one that a loss may call"}"#);
    assert_snapshot!(create(json!({"session_id": "unknown"})).await, @r#"404 {"code":"not_found","detail":"session unknown not found"}"#);
    assert_snapshot!(create(json!({"custom_loss_seq_id": -1})).await, @r#"400 {"code":"invalid_custom_loss_seq_id","detail":"custom_loss_seq_id must be from 0 to 4294967295"}"#);
    assert_snapshot!(create(json!({"name": "x".repeat(300)})).await, @r#"400 {"code":"invalid_custom_loss","detail":"name may have 256 bytes"}"#);
    assert_snapshot!(create(json!({"name": "x".repeat(30_000)})).await, @r#"400 {"code":"custom_loss_too_large","detail":"a custom loss may have 20000 bytes; capture less in its function"}"#);
    assert_snapshot!(create(json!({"inputs": [{"name": "logprobs", "rank": 1}]})).await, @r#"400 {"code":"invalid_custom_loss","detail":"the graph takes (logprobs, weights) but the inputs are (logprobs)"}"#);
    assert_snapshot!(create(json!({"inputs": [{"name": "logprobs", "rank": 999}]})).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `inputs[0].rank`: invalid value: integer `999`, expected u8 at line 1 column 672"}"#);
    assert_snapshot!(create(json!({"inputs": 3})).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `inputs`: invalid type: integer `3`, expected a sequence at line 1 column 643"}"#);
    assert_snapshot!(create(json!({"graph": "gASVKAAAAAAAAACM"})).await, @r#"400 {"code":"invalid_custom_loss","detail":"graph: has no list \"nodes\""}"#);
    assert_snapshot!(create(json!({"graph": {"format": 1, "nodes": [[]]}})).await, @r#"400 {"code":"invalid_custom_loss","detail":"graph: nodes[0]: has no text \"op\""}"#);
    let many = vec![node("placeholder", "a", "a", &json!([])); 60];
    assert_snapshot!(create(json!({"graph": {"format": 1, "nodes": many}})).await, @r#"400 {"code":"invalid_custom_loss","detail":"graph: has 60 nodes; the limit is 50"}"#);
    for number in 1..4 {
        let made = server.post("create_custom_loss", body(&session, number, "torch.sum")).await;
        assert_eq!(made.status, 200, "{}", made.line());
    }
    assert_snapshot!(create(json!({"custom_loss_seq_id": 4})).await, @r#"400 {"code":"too_many_custom_losses","detail":"a session may have 3 custom losses; open another one"}"#);
}

#[tokio::test]
async fn a_batch_must_fit_its_loss() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let made = server.post("create_custom_loss", body(&session, 0, "torch.sum")).await;
    let id = made.text("request_id");
    let (other_session, _) = server.run().await;
    let made = server.post("create_custom_loss", body(&other_session, 0, "torch.sum")).await;
    let foreign = made.text("request_id");
    let mut seq_id = 0;
    let mut send = async |datum: Value, config: Value| {
        seq_id += 1;
        let reply = server.done("forward_backward", batch(&model, seq_id, datum, config)).await;
        reply.line().replace(&session, "SESSION").replace(&other_session, "OTHER")
    };
    let with = |name: &str, tensor: Value| {
        let mut datum = datum();
        datum["loss_fn_inputs"][name] = tensor;
        datum
    };
    let loss = json!({"loss_id": id});
    assert!(send(datum(), loss.clone()).await.contains("logprobs"));
    assert_snapshot!(send(datum(), json!({})).await, @r#"200 {"category":"user","error":"loss_fn_config.loss_id is missing; custom needs the id that create_custom_loss gave"}"#);
    assert_snapshot!(send(datum(), json!({"loss_id": 3.5})).await, @r#"200 {"category":"user","error":"loss_fn_config.loss_id is 3.5, not a text"}"#);
    assert_snapshot!(send(datum(), json!({"loss_id": "none"})).await, @r#"200 {"category":"user","error":"loss_fn_config.loss_id: there is no custom loss \"none\" in the run's session SESSION; make it with create_custom_loss"}"#);
    assert_snapshot!(send(datum(), json!({"loss_id": foreign})).await, @r#"200 {"category":"user","error":"loss_fn_config.loss_id: there is no custom loss \"OTHER:loss:0\" in the run's session SESSION; make it with create_custom_loss"}"#);
    assert_snapshot!(send(datum(), json!({"loss_id": id, "beta": 1.0})).await, @r#"200 {"category":"user","error":"loss_fn_config.beta is no setting of custom; known: loss_id"}"#);
    assert_snapshot!(send(datum(), json!({"loss_id": id, "loss": "{}"})).await, @r#"200 {"category":"user","error":"loss_fn_config.loss is no setting of custom; known: loss_id"}"#);
    let scalar = json!({"data": [1.0], "dtype": "float32", "shape": []});
    assert_snapshot!(send(with("weights", scalar), loss.clone()).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights has the shape [], but the custom loss declared weights with rank 1"}"#);
    let wide = json!({"data": [2, 3, 4], "dtype": "int64", "shape": [3, 1]});
    assert_snapshot!(send(with("target_tokens", wide), loss.clone()).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.target_tokens has the shape [3, 1], but the custom loss declared logprobs with rank 1"}"#);
    let large = json!({"data": [1_i64 << 54, 0, 0], "dtype": "int64", "shape": [3]});
    assert_snapshot!(send(with("weights", large), loss.clone()).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights has the value 18014398509481984; 2^53 is the largest"}"#);
    let mut without = datum();
    without["loss_fn_inputs"].as_object_mut().unwrap().remove("weights");
    assert_snapshot!(send(without, loss).await, @r#"200 {"category":"user","error":"data[0].loss_fn_inputs.weights is missing; the custom loss takes it"}"#);
}
