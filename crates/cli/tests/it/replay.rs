//! Every recorded request, sent to a real server: it answers with the recorded status, the headers that the
//! SDK reads, and the recorded fields in their types. What it answers otherwise is listed with the reason,
//! and a list that says too much fails too.

mod otherwise;
mod shape;

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use crate::{
    conversation::Conversation,
    recording::{self, Exchange, Recording, VERSIONS},
    server::{Reply, Server},
};

#[tokio::test(flavor = "multi_thread")]
async fn recorded_requests_are_answered_alike() {
    let mut versions = JoinSet::new();
    for version in VERSIONS {
        versions.spawn(replay_all(version));
    }
    let (mut problems, mut used, mut sent) = (Vec::new(), BTreeSet::new(), 0);
    while let Some(version) = versions.join_next().await {
        let (lines, count) = version.unwrap();
        sent += count;
        for (operation, line) in lines {
            match otherwise::reason(&operation, &line) {
                Some(reason) => drop(used.insert(reason)),
                None => problems.push(format!("{operation}: {line}")),
            }
        }
    }
    problems.sort();
    problems.extend(otherwise::unused(&used));
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    // So that looking at nothing does not pass.
    assert!(sent > 1000, "{sent}");
}

/// Operations of a version with what was answered otherwise, and how many requests were sent.
async fn replay_all(version: &str) -> (Vec<(String, String)>, usize) {
    let server = Server::start();
    let (mut differences, mut sent) = (Vec::new(), 0);
    for recording in recording::all(version) {
        let (lines, count) = replay(&server, &recording).await;
        let operation = format!("{version}/{}", recording.operation);
        differences.extend(lines.into_iter().map(|line| (operation.clone(), line)));
        sent += count;
    }
    differences.extend(server.complaints().into_iter().map(|line| (version.to_owned(), line)));
    (differences, sent)
}

/// What was answered otherwise, and how many requests were sent.
async fn replay(server: &Server, recording: &Recording) -> (Vec<String>, usize) {
    let mut conversation = Conversation::new(server, recording).await;
    let mut answered: Vec<(&Exchange, Reply)> = Vec::new();
    // Polls, each an open connection of its own, begin before what they wait for can end.
    let mut polls: Vec<&Exchange> = Vec::new();
    for exchange in &recording.exchanges {
        if exchange.request.is_poll() {
            polls.push(exchange);
            continue;
        }
        if !exchange.request.is_submission() {
            poll(&mut conversation, &mut polls, &mut answered).await;
        }
        let reply = conversation.send(exchange).await;
        answered.push((exchange, reply));
    }
    poll(&mut conversation, &mut polls, &mut answered).await;
    let mut lines = Vec::new();
    for (exchange, reply) in &answered {
        let is_faulty = is_faulty(&recording.operation, exchange);
        for difference in shape::differences(exchange, reply, is_faulty) {
            let request = &exchange.request;
            let difference = conversation.theirs(&difference);
            let line = format!("{} {} {difference}", request.method, request.endpoint());
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    (lines, answered.len())
}

async fn poll<'a>(
    conversation: &mut Conversation<'_>,
    polls: &mut Vec<&'a Exchange>,
    answered: &mut Vec<(&'a Exchange, Reply)>,
) {
    let mut later = Vec::new();
    for exchange in polls.drain(..) {
        if conversation.can_poll(&exchange.request) {
            let reply = conversation.send(exchange).await;
            answered.push((exchange, reply));
        } else {
            later.push(exchange);
        }
    }
    *polls = later;
}

/// Whether the recorded answer is a fault that was put there, to see what the SDK does.
fn is_faulty(operation: &str, exchange: &Exchange) -> bool {
    let json = &exchange.response.body["json"];
    let is_bad_answer = exchange.response.status != Some(200)
        || ["error", "queue_state", "response_payload_size"].iter().any(|key| !json[key].is_null());
    operation.starts_with("behaviour.status.")
        || operation.starts_with("behaviour.") && is_bad_answer
}
