//! Sessions and runs, and that no tenant sees another's.

use std::time::Duration;

use tinsmith_types::ids::{SamplingSessionId, TenantId};

use super::{Fixture, new_run, new_session, request};
use crate::{CheckpointKind, Error};

#[tokio::test]
async fn secrets_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let (links, tokens) = (fixture.store.secret("links"), fixture.store.secret("tokens"));
    assert_ne!(links, tokens);
    let fixture = fixture.reopen(dir.path());
    assert_eq!((fixture.store.secret("links"), fixture.store.secret("tokens")), (links, tokens));
    assert_ne!(Fixture::new(None).await.store.secret("links"), links);
}

#[tokio::test]
async fn an_idempotency_key_finds_its_session() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let first = store.create_session(tenant, new_session(), Some("key")).await.unwrap();
    assert_eq!(store.create_session(tenant, new_session(), Some("key")).await.unwrap(), first);
    let mut other = new_session();
    other.sdk_version = "0.1".to_owned();
    let conflict = store.create_session(tenant, other, Some("key")).await;
    assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
    let stranger = store.create_session(&"b".into(), new_session(), Some("key")).await.unwrap();
    assert_ne!(stranger.id, first.id);
    fixture.clock.advance(Duration::from_secs(600));
    let later = store.create_session(tenant, new_session(), Some("key")).await.unwrap();
    assert_ne!(later.id, first.id);
    let expected = (vec![later.id, first.id], 3);
    assert_eq!(store.sessions(tenant, 2, 0).await.unwrap(), expected);
    assert_eq!(store.sessions(tenant, 2, 2).await.unwrap(), (vec![fixture.session.clone()], 3));
}

#[tokio::test]
async fn the_first_reason_ends_a_session() {
    let fixture = Fixture::new(None).await;
    let (store, tenant, id) = (&fixture.store, &fixture.tenant, &fixture.session);
    store.heartbeat(tenant, id).await.unwrap();
    store.finish_session(tenant, id, "success", None).await.unwrap();
    store.finish_session(tenant, id, "errored", None).await.unwrap();
    assert_eq!(store.session(tenant, id).await.unwrap().finished.as_deref(), Some("success"));
    let beat = store.heartbeat(tenant, id).await;
    assert!(matches!(beat, Err(Error::Finished)), "{beat:?}");
}

#[tokio::test]
async fn a_silent_session_expires() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    fixture.clock.advance(hours(20));
    fixture.store.heartbeat(&fixture.tenant, &fixture.session).await.unwrap();
    fixture.clock.advance(hours(20));
    fixture.store.sweep().await.unwrap();
    let record = fixture.store.session(&fixture.tenant, &fixture.session).await.unwrap();
    let heard_at = jiff::Timestamp::UNIX_EPOCH + hours(20);
    assert_eq!((record.finished, record.last_heartbeat_at), (None, heard_at));
    // Nobody could be heard while the server was down.
    let fixture = fixture.reopen(dir.path());
    fixture.clock.advance(hours(20));
    fixture.store.sweep().await.unwrap();
    fixture.store.heartbeat(&fixture.tenant, &fixture.session).await.unwrap();
    fixture.clock.advance(hours(24));
    fixture.store.sweep().await.unwrap();
    let record = fixture.store.session(&fixture.tenant, &fixture.session).await.unwrap();
    assert_eq!(record.finished.as_deref(), Some("expired"));
}

#[tokio::test]
async fn runs_are_listed_newest_first() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let models = [fixture.create_run(0).await, fixture.create_run(1).await];
    let (page, total) = store.runs(tenant, None, (1, 0)).await.unwrap();
    assert_eq!((&page[0].id, page.len(), total), (&models[1], 1, 2));
    let children = store.session_children(tenant, &fixture.session).await.unwrap();
    assert_eq!(children, (models.to_vec(), Vec::new()));

    let run = store.run(tenant, &models[0]).await.unwrap();
    let new = new_run(&fixture.session);
    assert_eq!((run.lora, run.optimizer_config), (new.lora, new.optimizer_config));
    assert_eq!((run.ready, run.corrupted, run.note), (false, None, None));
    store.mark_run(tenant, &models[0], None, Some("slow".to_owned())).await.unwrap();
    store.mark_run(tenant, &models[0], Some("bad".to_owned()), None).await.unwrap();
    let run = store.run(tenant, &models[0]).await.unwrap();
    assert_eq!((run.corrupted.as_deref(), run.note.as_deref()), (Some("bad"), Some("slow")));
}

#[tokio::test]
async fn a_stranger_finds_nothing() {
    let fixture = Fixture::new(None).await;
    let (store, b) = (&fixture.store, TenantId::from("b"));
    let model = fixture.create_run(0).await;
    let id = fixture.submit(&model, 1).await.unwrap().request_id;
    let mut creates = request(&fixture.model(7), 0, b"create");
    creates.creates = Some(new_run(&fixture.session));
    let kind = CheckpointKind::Weights;
    let session = &fixture.session;
    let answers = [
        store.session(&b, session).await.map(drop),
        store.heartbeat(&b, session).await,
        store.finish_session(&b, session, "success", None).await,
        store.session_children(&b, session).await.map(drop),
        store.run(&b, &model).await.map(drop),
        store.mark_run(&b, &model, None, Some("x".to_owned())).await,
        store.submit(&b, request(&model, 1, b"body 1")).await.map(drop),
        store.submit(&b, request(&model, 2, b"x")).await.map(drop),
        store.submit(&b, creates).await.map(drop),
        store.retrieve(&b, &id, Duration::ZERO).await.map(drop),
        store.cancel_sample(&b, &id).await,
        store.checkpoint(&b, &model, kind, "x").await.map(drop),
        store.delete_checkpoint(&b, &model, kind, "x").await,
        store.sampling_session(&b, &SamplingSessionId::from("x")).await.map(drop),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        assert!(matches!(answer, Err(Error::NotFound { .. })), "{number}: {answer:?}");
    }
    assert_eq!(store.runs(&b, None, (10, 0)).await.unwrap().1, 0);
    assert_eq!(store.sessions(&b, 10, 0).await.unwrap().1, 0);
    assert_eq!(fixture.claim_seqs().await, [0, 1]);
}
