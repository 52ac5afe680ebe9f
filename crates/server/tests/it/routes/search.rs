use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::Server;

#[tokio::test]
async fn what_a_session_shows() {
    let server = Server::start();
    let body = json!({"tags": [], "sdk_version": "0.38.0", "display_name": "Nightly", "user_metadata": {"k": "v"}});
    let session = server.post("create_session", body).await.text("session_id");
    let create = json!({"session_id": session, "model_seq_id": 0, "base_model": "nano"});
    let model = server.done("create_model", create).await.text("model_id");
    server.done("save_weights", json!({"model_id": model, "path": "a", "seq_id": 1})).await;
    let search = async |body: Value| {
        let reply = server.post("sessions/search", body).await;
        let mut json = reply.json();
        if let Some(found) = json["sessions"].get_mut(0) {
            assert_eq!(found["session_id"], session.as_str());
            assert!(found["created_at"].as_str().unwrap().ends_with('Z'));
            found["session_id"] = "S".into();
            found["created_at"] = "T".into();
        }
        format!("{} {json}", reply.status.as_u16())
    };
    assert_snapshot!(search(json!({})).await, @r#"200 {"sessions":[{"checkpoint_storage_bytes":7,"checkpoints_count":1,"created_at":"T","display_name":"Nightly","owner":"tml:organization_user:local","project_id":"default","session_id":"S","status":{"type":"active"},"user_metadata":{"k":"v"}}]}"#);
    let put = async |id: &str, body: Value| {
        server.send_json("PUT", &format!("sessions/{id}/project"), body).await.line()
    };
    assert_snapshot!(put(&session, json!({"project_id": "p-1"})).await, @"200 null");
    assert_snapshot!(put(&session, json!({"project_id": ""})).await, @r#"400 {"code":"invalid_project_id","detail":"project_id must not be empty"}"#);
    assert_snapshot!(put(&session, json!({"project_id": null})).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `project_id`: invalid type: null, expected a string at line 1 column 18"}"#);
    assert_snapshot!(put("unknown", json!({"project_id": "p-1"})).await, @r#"404 {"code":"not_found","detail":"session unknown not found"}"#);
    let runs = async |query: &str| {
        server.get(&format!("/api/v1/training_runs?{query}")).await.json()["cursor"].to_string()
    };
    assert_snapshot!(runs("project_id=p-1").await, @r#"{"limit":20,"offset":0,"total_count":1}"#);
    assert_snapshot!(runs("project_id=p-2").await, @r#"{"limit":20,"offset":0,"total_count":0}"#);
    let finish = json!({"reason": {"type": "errored"}, "detail": "out of coffee"});
    server.post(&format!("sessions/{session}/finish"), finish).await;
    let filters = json!({"project_ids": ["p-1"], "owner": {"type": "accessible"}, "display_name": "night",
        "user_metadata": {"k": "v"}, "limit": 1,
        "statuses": [{"type": "active"}, {"type": "client_finished", "reasons": ["errored"]}]});
    assert_snapshot!(search(filters).await, @r#"200 {"sessions":[{"checkpoint_storage_bytes":7,"checkpoints_count":1,"created_at":"T","display_name":"Nightly","owner":"tml:organization_user:local","project_id":"p-1","session_id":"S","status":{"detail":"out of coffee","reason":{"type":"errored"},"type":"client_finished"},"user_metadata":{"k":"v"}}]}"#);
    let mine = json!({"owner": {"type": "user", "owner_urns": ["tml:organization_user:local"]}});
    assert!(search(mine).await.contains("Nightly"));
    let other = json!({"owner": {"type": "user", "owner_urns": ["tml:organization_user:x"]}});
    assert_snapshot!(search(other).await, @r#"200 {"sessions":[]}"#);
}

#[tokio::test]
async fn broken_searches_are_refused() {
    let server = Server::without_worker();
    let check = async |body: Value| server.post("sessions/search", body).await.text("detail");
    assert_snapshot!(check(json!({"limit": 0})).await, @"limit must be from 1 to 200");
    assert_snapshot!(check(json!({"limit": 201})).await, @"limit must be from 1 to 200");
    assert_snapshot!(check(json!({"display_name": ""})).await, @"display_name must not be empty; leave it out for any");
    assert_snapshot!(check(json!({"statuses": []})).await, @"statuses must not be empty; leave it out for any");
    assert_snapshot!(check(json!({"statuses": [{"type": "client_finished", "reasons": []}]})).await, @"statuses.reasons must not be empty; leave it out for any");
    assert_snapshot!(check(json!({"statuses": [{"type": "paused"}]})).await, @"failed to read the JSON body: `statuses[0].type`: unknown variant `paused`, expected one of `active`, `cancelled`, `failed`, `client_finished` at line 1 column 29");
    assert_snapshot!(check(json!({"owner": {"type": "user", "owner_urns": []}})).await, @"owner.owner_urns must have from 1 to 10 entries");
    assert_snapshot!(check(json!({"cursor": {"last_created_at": "x", "last_session_id": "y"}})).await, @"cursor.last_created_at is no time; pass next_cursor back as it came");
    assert_snapshot!(check(json!({"display_name": "x".repeat(2000)})).await, @"display_name has more than 1000 bytes as JSON");
}

#[tokio::test]
async fn pages_are_followed_by_their_cursors() {
    let server = Server::without_worker();
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(server.session().await);
    }
    let (mut found, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let body = json!({"limit": 2, "cursor": cursor});
        let page = server.post("sessions/search", body).await.json();
        for session in page["sessions"].as_array().unwrap() {
            found.push(session["session_id"].as_str().unwrap().to_owned());
        }
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    found.sort();
    made.sort();
    assert_eq!(found, made);
}
