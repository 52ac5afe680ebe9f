use insta::assert_snapshot;
use serde_json::json;

use crate::harness::Server;

#[tokio::test]
async fn telemetry_is_accepted_and_dropped() {
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
