use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;

use crate::harness::{Reply, Server, config};

/// A server with `weights/a`, the path of its archive's link, and the link.
async fn archived(server: &Server) -> (String, String) {
    let (_, model) = server.run().await;
    let save = json!({"model_id": model, "seq_id": 1, "path": "a"});
    server.done("save_weights", save).await;
    let path = format!("/api/v1/training_runs/{model}/checkpoints/weights/a/archive");
    let reply = get(server, &path, &[]).await;
    (path, reply.text("url"))
}

async fn get(server: &Server, url: &str, headers: &[(&str, &str)]) -> Reply {
    server.get_with(url, &[&[("host", "localhost:8000")], headers].concat()).await
}

/// The part of a URL behind its host.
fn path(url: &str) -> &str {
    url.strip_prefix("http://localhost:8000").expect("made with the host of the request")
}

#[tokio::test]
async fn archive_is_a_tar_behind_a_redirect() {
    let server = Server::start();
    let (place, url) = archived(&server).await;
    let reply = get(&server, &place, &[("accept", "application/gzip")]).await;
    assert_eq!(reply.status, 302);
    assert!(reply.headers["location"].to_str().unwrap().starts_with("http://localhost:8000/"));
    assert!(reply.headers["expires"].to_str().unwrap().ends_with(" GMT"));
    assert!(reply.text("expires").ends_with('Z'));

    let tar = get(&server, path(&url), &[]).await;
    assert_eq!((tar.status.as_u16(), tar.body.len()), (200, 512 * 5));
    assert_eq!(tar.headers["content-length"], "2560");
    let entry = |at: usize| {
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&tar.body[at + range.start..at + range.end])
                .trim_matches(['\0', ' '])
                .to_owned()
        };
        (text(0..100), text(124..136), text(257..263))
    };
    let owned = |name: &str, size: &str| (name.to_owned(), size.to_owned(), "ustar".to_owned());
    assert_eq!(entry(0), owned("adapter_model.safetensors", "00000000007"));
    assert_eq!(&tar.body[512..519], b"weights");
    assert_eq!(entry(1024), owned("checkpoint_complete", "00000000000"));
    assert!(tar.body[1536..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let server = Server::start();
    let (_, url) = archived(&server).await;
    let whole = get(&server, path(&url), &[]).await;
    let etag = whole.headers["etag"].to_str().unwrap().to_owned();
    for (range, start, end) in
        [("bytes=0-99", 0, 100), ("bytes=500-516", 500, 517), ("bytes=-600", 1960, 2560)]
    {
        let part = get(&server, path(&url), &[("range", range), ("if-range", &etag)]).await;
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.body, whole.body[start..end], "{range}");
        let place = format!("bytes {start}-{}/2560", end - 1);
        assert_eq!(part.headers["content-range"].to_str().unwrap(), place);
    }
    let other = [("range", "bytes=5-"), ("if-range", "\"another\"")];
    assert_eq!(get(&server, path(&url), &other).await.status, 200);
    let beyond = get(&server, path(&url), &[("range", "bytes=9999-")]).await;
    assert_eq!(
        (beyond.status.as_u16(), beyond.headers["content-range"].to_str().unwrap()),
        (416, "bytes */2560")
    );
}

#[tokio::test]
async fn links_are_signed_and_end_with_their_checkpoint() {
    let server = Server::start();
    let (place, url) = archived(&server).await;
    let forged = [
        path(&url).split('?').next().unwrap().to_owned(),
        path(&url).replace("expires=1", "expires=2"),
        path(&url).replace("signature=", "signature=0"),
        path(&url).replace("archives/", "archives/0"),
    ];
    for url in forged {
        let reply = get(&server, &url, &[]).await;
        assert_eq!((reply.status.as_u16(), reply.text("code")), (403, "link_invalid".to_owned()));
    }
    assert_eq!(get(&server, path(&url), &[]).await.status, 200);
    let checkpoint = place.trim_start_matches("/api/v1/").trim_end_matches("/archive");
    server.send_json("DELETE", checkpoint, json!(null)).await;
    assert_snapshot!(get(&server, path(&url), &[]).await.line(), @r#"404 {"code":"not_found","detail":"the checkpoint of this URL not found"}"#);
}

#[tokio::test]
async fn links_expire() {
    let config = tinsmith_server::Config { link_life: Duration::ZERO, ..config() };
    let server = Server::start_with(config);
    let (_, url) = archived(&server).await;
    assert_snapshot!(get(&server, path(&url), &[]).await.line(), @r#"403 {"code":"link_expired","detail":"this URL has expired; ask for a new one"}"#);
}

#[tokio::test]
async fn links_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::open(config(), Some(dir.path().to_owned())).with_worker();
    let (_, url) = archived(&server).await;
    server.stop().await;
    let server = Server::open(config(), Some(dir.path().to_owned()));
    assert_eq!(get(&server, path(&url), &[]).await.status, 200);
}
