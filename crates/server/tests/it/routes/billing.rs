use axum::{body::Body, http::Request};
use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::{Server, datum, forward_backward};

/// The hour that the clock of the machine shows, and the next but one: a test may pass the hour.
fn window() -> String {
    let now = jiff::Timestamp::now().as_second();
    let at = |hours: i64| jiff::Timestamp::from_second((now / 3600 + hours) * 3600).unwrap();
    format!("starting_on={}&ending_before={}", at(0), at(2))
}

async fn usage(server: &Server, window: &str, agent: &str) -> Value {
    let request = Request::get(format!("/api/v1/billing/usage/events?{window}"));
    let request = request.header("user-agent", agent).body(Body::empty()).unwrap();
    server.send(request).await.json()
}

#[tokio::test]
async fn usage_is_told_by_session_with_its_price() {
    let window = window();
    let server = Server::start();
    let (session, model) = server.run().await;
    server.done("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    server.done("forward_backward", forward_backward(&model, 2, &[datum()])).await;
    server.done("save_weights", json!({"model_id": model, "path": "a", "seq_id": 3})).await;
    let sampler =
        json!({"session_id": session, "sampling_session_seq_id": 0, "base_model": "nano"});
    let sampler = server.post("create_sampling_session", sampler).await.text("sampling_session_id");
    let sample = json!({"sampling_session_id": sampler, "seq_id": 0, "num_samples": 2,
        "prompt": {"chunks": [{"tokens": [1, 2, 3]}]}, "sampling_params": {"max_tokens": 2}});
    server.done("asample", sample).await;
    let told = usage(&server, &window, "AsyncTinker/Python 0.38.0").await;
    let rows: Vec<String> = told["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["event_info"]["type"] != "storage")
        .map(|row| {
            assert_eq!(row["session_id"], session.as_str());
            assert_eq!(row["base_model"], "nano");
            assert_eq!(row["project_id"], "default");
            let rate = &row["effective_rate_usd_per_million_tokens"];
            format!("{} {} at {rate}", row["event_info"], row["estimated_cost_usd"])
        })
        .collect();
    assert_snapshot!(rows.join("\n"), @r#"
        {"token_count":2000,"type":"training"} 0.004 at 2.0
        {"token_count":4,"type":"sampling_sample"} 0.0 at 0.0
        {"cached":false,"token_count":3,"type":"sampling_prefill"} 0.0 at 0.0
        {"count":1,"type":"checkpoint"} null at null
        {"cached":true,"token_count":1,"type":"sampling_prefill"} 0.0 at 0.0
        "#);
    assert_snapshot!(told["sessions"].to_string().replace(&session, "S"), @r#"{"S":{"user_metadata":{}}}"#);
    let current = server.get("/api/v1/billing/usage/checkpoints/current").await.json();
    assert_snapshot!(current, @r#"{"data":[{"checkpoint_count":1,"estimated_monthly_cost_usd":0.0,"org_user_urn":"tml:organization_user:local","project_id":"default","size_bytes":7,"size_gigabytes":7e-9,"user_email":"local@localhost","user_name":"local"}],"effective_rate_usd_per_gigabyte_month":0.0}"#);
    let other = server.get("/api/v1/billing/usage/checkpoints/current?project_id=p").await.json();
    assert_snapshot!(other["data"], @"[]");
}

#[tokio::test]
async fn windows_are_checked() {
    let server = Server::without_worker();
    let day = "starting_on=2026-01-02T00:00:00Z&ending_before=2026-01-03T00:00:00Z";
    assert_snapshot!(usage(&server, day, "curl").await, @r#"{"cost_data_through":null,"data":[],"sessions":{}}"#);
    let check = async |window: &str| usage(&server, window, "curl").await["detail"].to_string();
    assert_snapshot!(check("").await, @r#""starting_on is required: an RFC 3339 time""#);
    assert_snapshot!(check("starting_on=2026-01-02T00:00:01Z&ending_before=2026-01-03").await, @r#""starting_on \"2026-01-02T00:00:01Z\" must be a full hour in UTC""#);
}
