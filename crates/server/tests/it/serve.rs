//! The accept loop, over real sockets.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::json;
use tinsmith_server::Config;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::harness::{Server, config, datum, forward_backward};

/// Serves on a free port until the sender says so.
async fn serve(
    server: &Server,
    config: Config,
) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let router = server.router.clone();
    let task = tokio::spawn(async move {
        let shutdown = async { stopped.await.unwrap_or_default() };
        tinsmith_server::serve(listener, router, &config, shutdown).await;
    });
    (address, stop, task)
}

/// Sends a request on a connection of its own; the whole answer comes later.
fn send(address: SocketAddr, head: &str, body: &str) -> JoinHandle<String> {
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

#[tokio::test]
async fn stop_answers_open_polls_at_once() {
    let mut patient = config();
    patient.poll_wait_max = Duration::from_secs(3600);
    let server = Server::with(patient.clone());
    let (_, model) = server.run().await;
    let submitted = server.post("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    let body = json!({"request_id": submitted.text("request_id")}).to_string();
    let (address, stop, task) = serve(&server, patient).await;
    let poll = send(address, "POST /api/v1/retrieve_future", &body);
    // Connections are accepted in order: the poll waits when this is answered.
    let alive = send(address, "GET /api/v1/healthz", "").await.unwrap();
    assert!(alive.starts_with("HTTP/1.1 200 OK"), "{alive}");
    stop.send(()).unwrap();
    let answer = poll.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout"), "{answer}");
    assert!(answer.ends_with(r#"{"queue_state":"active","retry_after_ms":1000}"#), "{answer}");
    task.await.unwrap();
    assert!(TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn silent_connections_make_room() {
    let mut narrow = config();
    narrow.connections_max = 1;
    narrow.head_timeout = Duration::from_millis(20);
    let server = Server::without_worker();
    let (address, stop, task) = serve(&server, narrow).await;
    let mut silent = TcpStream::connect(address).unwrap();
    silent.write_all(b"GET /api/v1/hea").unwrap();
    let next = send(address, "GET /api/v1/healthz", "").await.unwrap();
    assert!(next.starts_with("HTTP/1.1 200 OK"), "{next}");
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test]
async fn a_400_has_its_length_on_the_wire() {
    let server = Server::without_worker();
    let (address, stop, task) = serve(&server, config()).await;
    let answer = send(address, "POST /api/v1/create_session", "{").await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 Bad Request"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    assert!(!head.contains("content-encoding") && !head.contains("transfer-encoding"), "{head}");
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test]
async fn a_refusal_does_not_break_the_connection_of_what_is_still_being_sent() {
    let server = Server::without_worker();
    let (address, stop, task) = serve(&server, config()).await;
    let json = "content-type: application/json\r\n";
    for (head, status) in [
        (format!("POST /api/v1/nowhere HTTP/1.1\r\n{json}"), 404),
        (format!("POST /api/v1/get_server_capabilities HTTP/1.1\r\n{json}"), 405),
        (format!("POST /api/v1/optim_step HTTP/1.1\r\n{json}content-encoding: gzip\r\n"), 400),
        (format!("POST /api/v1/optim_step HTTP/1.1\r\n{json}origin: http://elsewhere\r\n"), 403),
    ] {
        let body = " ".repeat(3 << 20);
        let length = body.len();
        let next = "GET /api/v1/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let mut stream = TcpStream::connect(address).unwrap();
        let answers = tokio::task::spawn_blocking(move || {
            let first = format!("{head}host: localhost\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(first.as_bytes()).unwrap();
            stream.write_all(next.as_bytes()).unwrap();
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            answers
        });
        let answers = answers.await.unwrap();
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{answers}");
        assert!(answers.ends_with(r#"{"status":"ok"}"#), "{answers}");
    }
    stop.send(()).unwrap();
    task.await.unwrap();
}
