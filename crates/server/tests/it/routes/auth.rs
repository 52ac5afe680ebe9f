use std::time::Duration;

use axum::{body::Body, http::Request};
use insta::assert_snapshot;
use tinsmith_server::Config;

use crate::harness::{Reply, Server, config};

async fn ask(server: &Server, method: &str, path: &str, key: &str) -> Reply {
    let request = Request::builder().method(method).uri(format!("/api/v1/{path}"));
    let request = if key.is_empty() { request } else { request.header("x-api-key", key) };
    let request = request.header("content-type", "application/json");
    server.send(request.body(Body::from("{}")).unwrap()).await
}

/// A server whose clients exchange keys for tokens that hold for so long.
fn server(token_life: Duration) -> Server {
    Server::with(Config { jwt_auth: true, token_life, ..config() })
}

fn refusal(reply: &Reply) -> String {
    let ask = reply.headers.get("www-authenticate").map(|ask| ask.to_str().unwrap());
    format!("{} {ask:?}", reply.line())
}

#[tokio::test]
async fn a_token_stands_for_its_key() {
    let server = server(Duration::from_secs(3600));
    assert_snapshot!(ask(&server, "POST", "client/config", "tml-a").await.json()["pjwt_auth_enabled"], @"true");
    let token = ask(&server, "POST", "auth/token", "tml-a").await.text("jwt");
    assert!(token.starts_with("eyJ"), "{token}");
    assert_snapshot!(ask(&server, "GET", "sessions", &token).await.line(), @r#"200 {"sessions":[]}"#);
    let next = ask(&server, "POST", "auth/token", &token).await;
    assert_eq!(next.status, 200);
    // Keys still do for clients that exchange none.
    assert_eq!(ask(&server, "GET", "sessions", "tml-a").await.status, 200);
    assert_eq!(ask(&server, "GET", "sessions", "").await.status, 200);
}

#[tokio::test]
async fn tokens_that_do_not_hold_are_refused() {
    let expired = server(Duration::ZERO);
    let token = ask(&expired, "POST", "auth/token", "tml-a").await.text("jwt");
    assert_snapshot!(refusal(&ask(&expired, "GET", "sessions", &token).await), @r#"401 {"code":"invalid_token","detail":"the token has expired; exchange your key for a new one"} Some("Bearer error=\"invalid_token\"")"#);
    let other = server(Duration::from_secs(3600));
    let foreign = ask(&server(Duration::from_secs(3600)), "POST", "auth/token", "k").await;
    assert_snapshot!(refusal(&ask(&other, "GET", "sessions", &foreign.text("jwt")).await), @r#"401 {"code":"invalid_token","detail":"the token is not signed by this server; exchange your key for one"} Some("Bearer error=\"invalid_token\"")"#);
    // Signed by nobody, with claims that would do.
    let claims = foreign.text("jwt").split('.').nth(1).unwrap().to_owned();
    for token in ["eyJ", "eyJ.e30.", &format!("eyJhbGciOiJub25lIn0.{claims}.")] {
        assert_eq!(ask(&other, "GET", "sessions", token).await.status, 401, "{token}");
    }
    // Where tokens are not asked for, one is as good as any key.
    let server = Server::without_worker();
    assert_eq!(ask(&server, "GET", "sessions", &token).await.status, 200);
}

#[tokio::test]
async fn a_key_tells_whose_it_is() {
    let server = Server::without_worker();
    let me = async |key| ask(&server, "GET", "auth/apikey/me", key).await;
    assert_snapshot!(me("tml-a").await.line(), @r#"200 {"details":{"org_details":{"name":"local"},"user_details":{"email":"local@localhost"}},"key_id":1711207081,"name":"local","note":""}"#);
    assert_ne!(me("tml-a").await.json()["key_id"], me("tml-b").await.json()["key_id"]);
    assert_snapshot!(me("").await.line(), @r#"401 {"code":"unauthorized","detail":"no key: send it in the header X-API-Key"}"#);
    assert_eq!(ask(&server, "DELETE", "auth/apikey/me", "tml-a").await.status, 204);
}
