use insta::assert_snapshot;
use serde_json::json;

use crate::harness::Server;

#[tokio::test]
async fn telemetry_is_accepted() {
    let server = Server::without_worker();
    let body = json!({
        "events": [{
            "event": "GENERIC_EVENT", "event_id": "1", "event_session_index": 0, "severity": "INFO",
            "timestamp": "2026-01-02T03:04:05Z", "event_name": "e",
            "event_data": {"request_headers": {"x-api-key": "tml-secret"}},
        }],
        "platform": "Linux", "sdk_version": "0.38.0", "session_id": "sessionless-1",
    });
    assert_snapshot!(server.post("telemetry", body).await.line(), @r#"200 {"status":"accepted"}"#);
}

#[tokio::test]
async fn broken_reports_are_refused() {
    let server = Server::without_worker();
    let report = async |events| server.post("telemetry", json!({"events": events})).await.line();
    assert_snapshot!(report(json!(null)).await, @r#"200 {"status":"accepted"}"#);
    assert_snapshot!(report(json!(vec![json!({"event": "SESSION_START"}); 10])).await, @r#"200 {"status":"accepted"}"#);
    assert_snapshot!(report(json!(vec![json!({"event": "SESSION_START"}); 11])).await, @r#"400 {"code":"too_many_events","detail":"a report has at most 10 events"}"#);
    assert_snapshot!(report(json!([{"event": 1}])).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `events[0].event`: invalid type: integer `1`, expected a string at line 1 column 21"}"#);
}
