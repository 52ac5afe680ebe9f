//! The audit log tells what was done, and is bounded.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Fixture,
    checkpoints::{checkpoint, save, stage},
    samples::sampler,
};
use crate::CheckpointKind;

/// Events of the tenant that begin so, with the path of a checkpoint.
async fn events(fixture: &Fixture, tenant: &str, prefix: &'static str) -> Vec<String> {
    let window = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
    let entries = fixture.store.audit_entries(&tenant.into(), window, prefix, 100).await.unwrap();
    let told = entries.into_iter().map(|entry| {
        let path = entry.details.get("tinker_path").and_then(|path| path.as_str());
        let name = path.and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        format!("{} {name}", entry.event).trim().to_owned()
    });
    told.collect()
}

#[tokio::test]
async fn everything_that_concerns_weights_is_told() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let model = fixture.create_run(0).await;
    let blob = stage(&fixture, &model, "abc").await;
    for (seq, name) in [(1, "a"), (2, "b"), (3, "a")] {
        let mut new = checkpoint(&model, name, &blob);
        new.overwrite = seq == 3;
        save(&fixture, seq, new).await.0.unwrap();
    }
    let kind = CheckpointKind::Weights;
    store.set_checkpoint_public(tenant, &model, kind, "a", true).await.unwrap();
    store.audit_read((tenant, &"b".into()), (&model, kind, "a"), "load").await.unwrap();
    store.set_checkpoint_public(tenant, &model, kind, "a", false).await.unwrap();
    let soon = Timestamp::from_second(60).unwrap();
    store.set_checkpoint_ttl(tenant, &model, kind, "b", Some(soon)).await.unwrap();
    store.delete_checkpoint(tenant, &model, kind, "a").await.unwrap();
    let expected = [
        "checkpoint_create a",
        "checkpoint_create b",
        "checkpoint_create a",
        "checkpoint_publish a",
        "checkpoint_read a",
        "checkpoint_unpublish a",
        "checkpoint_ttl_set b",
        "checkpoint_delete a",
    ];
    assert_eq!(events(&fixture, "a", "checkpoint_").await, expected);
    assert_eq!(events(&fixture, "b", "").await, ["checkpoint_read a"]);
    let gone = store.delete_checkpoint(tenant, &model, kind, "a").await;
    assert!(gone.is_err());
    assert_eq!(events(&fixture, "a", "checkpoint_").await.len(), 8);
    fixture.clock.advance(Duration::from_secs(60));
    store.sweep().await.unwrap();
    let last = events(&fixture, "a", "checkpoint_").await.pop();
    assert_eq!(last.as_deref(), Some("checkpoint_expire b"));
}

#[tokio::test]
async fn sessions_runs_and_samplers_are_told_once() {
    let fixture = Fixture::new(None).await;
    let (store, tenant, id) = (&fixture.store, &fixture.tenant, &fixture.session);
    fixture.create_run(0).await;
    fixture.create_run(0).await;
    sampler(&fixture).await;
    sampler(&fixture).await;
    store.assign_project(tenant, id, "p").await.unwrap();
    store.finish_session(tenant, id, "success", None).await.unwrap();
    store.finish_session(tenant, id, "errored", None).await.unwrap();
    let expected = [
        "session_create",
        "training_run_create",
        "sampler_create",
        "project_session_assign",
        "session_finish",
    ];
    assert_eq!(events(&fixture, "a", "").await, expected);
    assert_eq!(events(&fixture, "a", "project_").await, ["project_session_assign"]);
}

#[tokio::test]
async fn the_log_is_bounded() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    for number in 0..20 {
        store.assign_project(tenant, &fixture.session, &number.to_string()).await.unwrap();
    }
    store.sweep().await.unwrap();
    assert_eq!(events(&fixture, "a", "").await.len(), 10);
    fixture.clock.advance(Duration::from_secs(86_400 * 31));
    store.sweep().await.unwrap();
    // The session that has expired meanwhile.
    assert_eq!(events(&fixture, "a", "").await, ["session_finish"]);
}
