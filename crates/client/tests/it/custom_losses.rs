//! Custom losses through the whole client, against the test server.

use std::time::Duration;

use serde_json::{Value, json};
use tinsmith::{
    AdamParams, ApiFuture, Category, Datum, Error, LoraOptions, Loss, ServiceClient,
    TrainingClient,
    custom::{
        Expression, LossValue, Var, evaluate,
        regularizers::{L1, Regularized},
    },
    testing::{Answer, MockServer},
};

const LIMIT: Duration = Duration::from_secs(30);

fn datum(first: u32) -> Datum {
    let tokens = [first, 2, 3];
    Datum::new(&tokens[..])
        .with_input("target_tokens", &tokens[..])
        .with_input("advantages", &[1.0, -0.5, 2.0][..])
}

async fn connected(server: &MockServer) -> (ServiceClient, TrainingClient) {
    let service = ServiceClient::connect(server.config()).await.unwrap();
    let training =
        service.create_lora_training_client(LoraOptions::new("test-model")).await.unwrap();
    (service, training)
}

fn squares(_: &[Datum], logprobs: &[Var]) -> tinsmith::Result<LossValue> {
    let sums: Vec<Var> = logprobs.iter().map(|logprobs| logprobs.square().sum()).collect();
    let loss = Var::stack(&sums)?.sum();
    Ok(LossValue::new(loss.clone()).metric("squares:sum", &loss))
}

fn expression() -> Expression {
    let inputs = [("logprobs", 1), ("advantages", 1)];
    let traced = Expression::trace("weighted", inputs, |inputs| {
        let loss = -(inputs.logprobs() * inputs.get("advantages")).sum();
        Ok(LossValue::new(loss.clone()).metric("custom/weighted:sum", &loss))
    });
    traced.unwrap()
}

/// Numbers, losses and directions of the passes that were sent.
fn passes(server: &MockServer) -> Vec<(i64, String, bool)> {
    let of = |body: &Value| {
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let forward_only = body["forward_only"].as_bool().unwrap_or_default();
        (body["seq_id"].as_i64().unwrap(), text("loss_fn"), forward_only)
    };
    let mut passes: Vec<_> =
        server.seen("forward_backward").iter().map(|seen| of(&seen.body)).collect();
    passes.sort_unstable();
    passes
}

fn pass(number: i64, loss: &str, forward_only: bool) -> (i64, String, bool) {
    (number, loss.to_owned(), forward_only)
}

#[tokio::test]
async fn a_custom_loss_is_two_passes_that_nothing_comes_between() {
    let server = MockServer::start().unwrap();
    let (_service, training) = connected(&server).await;
    let custom = training.forward_backward_custom(vec![datum(1), datum(4)], squares);
    // Called before the first pass has come back.
    let step = training.optim_step(AdamParams::default());
    let output = custom.await.unwrap();
    step.await.unwrap();
    assert_eq!(passes(&server), [pass(1, "cross_entropy", true), pass(2, "cross_entropy", false)]);
    assert_eq!(server.asked("optim_step", "seq_id"), [json!(3)]);
    let logprobs: Vec<f64> = output.logprobs(0).unwrap().iter().map(|x| f64::from(*x)).collect();
    let expected: f64 = 2.0 * logprobs.iter().map(|x| x * x).sum::<f64>();
    assert!((output.loss().unwrap() - expected).abs() < 1e-6, "{output:?}");
    assert!((output.metrics["squares:sum"] - expected).abs() < 1e-6, "{output:?}");
    assert!(output.metrics.contains_key("surrogate_loss:sum"), "{output:?}");
    let sent = &server.seen("forward_backward")[1].body["data"][0]["loss_fn_inputs"];
    let weights: Vec<f64> =
        sent["weights"]["dense"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let gradient: Vec<f64> = logprobs.iter().map(|x| -2.0 * x).collect();
    assert_eq!(weights, gradient);
    assert!(sent.get("advantages").is_none(), "{sent}");
}

#[tokio::test]
async fn both_passes_are_cut_alike() {
    let server = MockServer::start().unwrap();
    server.set_client_config(json!({ "fwdbwd_max_chunk_len": 2 }));
    let (_service, training) = connected(&server).await;
    let custom = training.forward_backward_custom(vec![datum(1), datum(2), datum(3)], squares);
    let step = training.optim_step(AdamParams::default());
    let output = custom.await.unwrap();
    step.await.unwrap();
    assert_eq!(output.outputs.len(), 3);
    let kinds: Vec<_> = passes(&server)
        .into_iter()
        .map(|(number, _, forward_only)| (number, forward_only))
        .collect();
    assert_eq!(kinds, [(1, true), (2, true), (3, false), (4, false)]);
    assert_eq!(server.asked("optim_step", "seq_id"), [json!(5)]);
}

type Compute = fn(&[Datum], &[Var]) -> tinsmith::Result<LossValue>;

async fn error<T: std::fmt::Debug + Send + 'static>(future: ApiFuture<T>) -> Error {
    future.timeout(LIMIT).await.unwrap_err()
}

#[tokio::test]
async fn a_loss_that_fails_ends_the_run_of_its_client() {
    fn failing(_: &[Datum], _: &[Var]) -> tinsmith::Result<LossValue> {
        Err(Error::validation("no reward yet"))
    }
    fn panicking(_: &[Datum], _: &[Var]) -> tinsmith::Result<LossValue> {
        panic!("a slip")
    }
    let losses: [(Compute, &str); 2] =
        [(failing, "no reward yet"), (panicking, "it panicked: a slip")];
    for (loss, expected) in losses {
        let server = MockServer::start().unwrap();
        let (_service, training) = connected(&server).await;
        let custom = training.forward_backward_custom(vec![datum(1)], loss);
        let step = training.optim_step(AdamParams::default());
        let message = error(custom).await.to_string();
        assert!(message.contains(expected), "{message}");
        assert!(matches!(error(step).await, Error::Broken));
        assert!(matches!(error(training.save_state("later")).await, Error::Broken));
        assert_eq!(passes(&server), [pass(1, "cross_entropy", true)]);
        assert!(server.seen("optim_step").is_empty());
    }
}

#[tokio::test]
async fn a_first_pass_that_fails_ends_the_run_of_its_client() {
    let server = MockServer::start().unwrap();
    let (_service, training) = connected(&server).await;
    server.when("forward_backward").result().answer(Answer::failed(Category::User, "a bad batch"));
    let custom = training.forward_backward_custom(vec![datum(1)], squares);
    assert!(matches!(error(custom).await, Error::RequestFailed { .. }));
    assert!(matches!(error(training.optim_step(AdamParams::default())).await, Error::Broken));
}

#[tokio::test]
async fn a_custom_loss_that_is_given_up_does_not_hold_up_others() {
    let server = MockServer::start().unwrap();
    let (_service, training) = connected(&server).await;
    server.when("forward_backward").result().always().answer(Answer::hanging());
    let custom = training.forward_backward_custom(vec![datum(1)], squares);
    let step = training.optim_step(AdamParams::default());
    custom.abort();
    assert!(matches!(error(step).await, Error::Broken));
}

#[tokio::test]
async fn what_cannot_be_sent_harms_no_run() {
    let server = MockServer::start().unwrap();
    let (_service, training) = connected(&server).await;
    for data in [Vec::new(), vec![Datum::new(&[1_u32, 2][..])]] {
        let refused = error(training.forward_backward_custom(data, squares)).await;
        assert!(matches!(refused, Error::Validation { .. }), "{refused:?}");
    }
    training.optim_step(AdamParams::default()).await.unwrap();
    assert_eq!(server.asked("optim_step", "seq_id"), [json!(1)]);
}

#[tokio::test]
async fn a_loss_that_the_server_runs_takes_one_pass() {
    let server = MockServer::start().unwrap();
    server.set_client_config(json!({ "custom_loss_server_side": true }));
    let (service, training) = connected(&server).await;
    let handle = service.create_custom_loss(expression()).await.unwrap();
    let created = &server.seen("create_custom_loss")[0].body;
    assert_eq!(created["custom_loss_seq_id"], 0);
    assert_eq!(created["name"], "weighted");
    assert_eq!(created["type"], "create_custom_loss");
    assert_eq!(
        created["inputs"],
        json!([{"name": "logprobs", "rank": 1}, {"name": "advantages", "rank": 1}])
    );
    assert_eq!(created["graph"], expression().graph());
    let loss_id = handle.loss_id().unwrap().to_owned();
    training.forward_backward_custom(vec![datum(1)], handle.clone()).await.unwrap();
    training.forward(vec![datum(1)], Loss::custom(&handle).unwrap()).await.unwrap();
    assert_eq!(passes(&server), [pass(1, "custom", false), pass(2, "custom", true)]);
    let config = &server.seen("forward_backward")[0].body["loss_fn_config_v2"];
    assert_eq!(config["loss_id"], json!({ "text": loss_id }));
    let incomplete = datum(1).without_input("advantages");
    let refused = error(training.forward_backward_custom(vec![incomplete], handle.clone())).await;
    assert!(refused.to_string().contains("\"advantages\""), "{refused}");
    let other = handle.on_client();
    assert!(Loss::custom(&other).is_err());
}

#[tokio::test]
async fn a_handle_runs_here_where_the_server_runs_none() {
    let server = MockServer::start().unwrap();
    server.set_client_config(json!({ "custom_loss_server_side": false }));
    let (service, training) = connected(&server).await;
    let handle = service.create_custom_loss(expression()).await.unwrap();
    assert_eq!(handle.loss_id(), None);
    assert!(server.seen("create_custom_loss").is_empty());
    let output = training.forward_backward_custom(vec![datum(1)], handle).await.unwrap();
    let logprobs: Vec<f64> = output.logprobs(0).unwrap().iter().map(|x| f64::from(*x)).collect();
    let here = evaluate(&expression(), &[datum(1)], &[logprobs]).unwrap();
    assert!((output.loss().unwrap() - here.loss).abs() < 1e-9);
    assert!((output.metrics["custom/weighted:sum"] - here.loss).abs() < 1e-9);
    assert_eq!(passes(&server).len(), 2);
}

#[tokio::test]
async fn a_handle_of_another_session_is_refused() {
    let (first, second) = (MockServer::start().unwrap(), MockServer::start().unwrap());
    second.when("create_session").answer(Answer::json(json!({ "session_id": "another" })));
    let (service, _training) = connected(&first).await;
    let (_service, training) = connected(&second).await;
    let handle = service.create_custom_loss(expression()).await.unwrap();
    let refused = error(training.forward_backward_custom(vec![datum(1)], handle)).await;
    assert!(refused.to_string().contains("only clients of that session can use it"), "{refused}");
}

#[tokio::test]
async fn a_regularized_loss_says_what_it_was_made_of() {
    let server = MockServer::start().unwrap();
    let (_service, training) = connected(&server).await;
    let loss = Regularized::new(squares).with(0.5, L1::default()).with_gradient_norms();
    let made = training.forward_backward_regularized(vec![datum(1)], loss).await.unwrap();
    let l1 = &made.loss.regularizers["l1"];
    assert!((l1.contribution - 0.5 * l1.value).abs() < 1e-12);
    assert!((made.output.loss().unwrap() - made.loss.loss_total).abs() < 1e-12);
    assert!((made.output.metrics["regularizer/l1:sum"] - l1.contribution).abs() < 1e-12);
    assert!(made.loss.total_grad_norm.unwrap() > 0.0);
}
