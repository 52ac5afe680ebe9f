use insta::assert_snapshot;
use serde_json::json;

use crate::harness::Server;

#[tokio::test]
async fn a_day_of_events() {
    let server = Server::start();
    let (session, model) = server.run().await;
    server.done("save_weights", json!({"model_id": model, "path": "a", "seq_id": 1})).await;
    let path = format!("/api/v1/training_runs/{model}/checkpoints/weights/a/publish");
    server.send_json("POST", path.trim_start_matches("/api/v1/"), json!({})).await;
    let audit = async |query: &str| {
        let mut json = server.get(&format!("/api/v1/audit?{query}")).await.json();
        for entry in json["entries"].as_array_mut().into_iter().flatten() {
            entry["timestamp"] = "T".into();
        }
        json.to_string().replace(&session, "S")
    };
    assert_snapshot!(audit("event_type=checkpoints").await, @r#"{"entries":[{"event":"checkpoint_create","event_details":{"actor":"tml:organization_user:local","model_id":"S:train:0","size_bytes":7,"tinker_path":"tinker://S:train:0/weights/a"},"model_id":"S:train:0","timestamp":"T","tinker_path":"tinker://S:train:0/weights/a"},{"event":"checkpoint_publish","event_details":{"actor":"tml:organization_user:local","model_id":"S:train:0","tinker_path":"tinker://S:train:0/weights/a"},"model_id":"S:train:0","timestamp":"T","tinker_path":"tinker://S:train:0/weights/a"}]}"#);
    let all = audit("").await;
    assert!(all.contains("session_create") && all.contains("training_run_create"), "{all}");
    assert_eq!(audit("event_type=all").await, all);
    assert_snapshot!(audit("event_type=projects").await, @r#"{"entries":[]}"#);
    assert_snapshot!(audit("day=2001-02-03").await, @r#"{"entries":[]}"#);
    assert_snapshot!(audit("day=2001-02-30").await, @r#"{"code":"invalid_day","detail":"day \"2001-02-30\" is no date; give YYYY-MM-DD","entries":null}"#);
    assert_snapshot!(audit("event_type=x").await, @r#"{"code":"invalid_event_type","detail":"event_type \"x\" is not known; use all, checkpoints, projects, teams or organizations","entries":null}"#);
}

#[tokio::test]
async fn a_long_day_shows_its_end() {
    let server = Server::without_worker();
    for _ in 0..25 {
        server.session().await;
    }
    let json = server.get("/api/v1/audit").await.json();
    assert_eq!(json["entries"].as_array().map(Vec::len), Some(20));
    assert_eq!(json["truncated"], true);
}
