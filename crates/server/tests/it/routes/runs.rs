use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::Server;

#[tokio::test]
async fn get_info_names_the_tokenizer() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let reply = server.post("get_info", json!({"model_id": model, "type": "get_info"})).await;
    assert_snapshot!(reply.line().replace(&session, "S"), @r#"200 {"is_lora":true,"lora_config":{"rank":8,"seed":7,"train_attn":true,"train_mlp":true,"train_unembed":true},"lora_rank":8,"model_data":{"arch":"qwen3","lora_rank":8,"model_name":"nano","tokenizer_id":"/models/nano"},"model_id":"S:train:0","model_name":"nano","optimizer_config":{"type":"adamw"},"type":"get_info"}"#);
    assert_snapshot!(server.post("get_info", json!({"model_id": "x"})).await.line(), @r#"404 {"code":"not_found","detail":"run x not found"}"#);
}

#[tokio::test]
async fn list_and_get() {
    let server = Server::start();
    let (session, first) = server.run().await;
    let (_, second) = server.run().await;
    let ids = |reply: Value| -> Vec<Value> {
        reply["training_runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["training_run_id"].clone())
            .collect()
    };
    let all = server.get("/api/v1/training_runs").await.json();
    assert_eq!(all["cursor"], json!({"offset": 0, "limit": 20, "total_count": 2}));
    assert_eq!(ids(all), [json!(second), json!(first)]);
    let page = server.get("/api/v1/training_runs?limit=1&offset=1&access_scope=owned").await.json();
    assert_eq!(ids(page), [json!(first)]);
    let mut one =
        server.get(&format!("/api/v1/training_runs/{first}?access_scope=owned")).await.json();
    assert!(one["last_request_time"].take().is_string());
    assert_snapshot!(one.to_string().replace(&session, "S"), @r#"{"base_model":"nano","corrupted":false,"is_lora":true,"last_request_time":null,"lora_rank":8,"model_owner":"local","training_run_id":"S:train:0","user_metadata":{}}"#);
    let encoded = first.replace(':', "%3A");
    assert_eq!(server.get(&format!("/api/v1/training_runs/{encoded}")).await.status, 200);
    assert_snapshot!(server.get("/api/v1/training_runs/x").await.line(), @r#"404 {"code":"not_found","detail":"run x not found"}"#);
}
