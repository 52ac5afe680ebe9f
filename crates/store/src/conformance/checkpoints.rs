//! Blobs, checkpoints, samplers, and completions that make them visible.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tinsmith_types::ids::{ModelId, SamplingSessionId, TenantId};

use super::{Fixture, done, failure, manifest};
use crate::{
    BlobId, CheckpointFilter, CheckpointKind, CheckpointRecord, Completion, Effect, Error,
    NewCheckpoint, NewCopy, NewImport, NewSamplingSession, NewSession, Outcome, Result, Retrieved,
};

const KIND: CheckpointKind = CheckpointKind::Weights;

pub(super) async fn stage(fixture: &Fixture, model: &ModelId, content: &str) -> BlobId {
    let files = vec![("adapter_model.safetensors".to_owned(), Bytes::from(content.to_owned()))];
    fixture.store.stage(manifest(model, 1), files).await.unwrap().0
}

pub(super) fn checkpoint(model: &ModelId, name: &str, blob: &BlobId) -> NewCheckpoint {
    NewCheckpoint {
        model_id: model.clone(),
        kind: KIND,
        name: name.to_owned(),
        blob: blob.clone(),
        size_bytes: 3,
        expires_at: None,
        user_metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        overwrite: false,
    }
}

fn of_run(model: &ModelId) -> CheckpointFilter {
    CheckpointFilter { model_id: Some(model.clone()), ..CheckpointFilter::default() }
}

/// Completes the run's request `seq` with a checkpoint.
pub(super) async fn save(
    fixture: &Fixture,
    seq: i64,
    new: NewCheckpoint,
) -> (Result<()>, Retrieved) {
    let id = fixture.submit(&new.model_id, seq).await.unwrap().request_id;
    let completion = Completion { effect: Effect::Checkpoint(new), ..done(&id, "saved") };
    let result = fixture.store.complete(vec![completion]).await.remove(0);
    (result, fixture.retrieve(&id).await.unwrap())
}

async fn find(fixture: &Fixture, model: &ModelId, name: &str) -> Result<CheckpointRecord> {
    fixture.store.checkpoint(&fixture.tenant, model, KIND, name).await
}

#[tokio::test]
async fn imported_checkpoints_are_those_of_a_run_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.model(0);
    let import = NewImport {
        run: super::new_run(&fixture.session),
        blob: stage(&fixture, &model, "abc").await,
        size_bytes: 3,
        kinds: vec![KIND, CheckpointKind::SamplerWeights],
        name: "mine".to_owned(),
    };
    let nowhere = NewImport { blob: BlobId("0".repeat(64)), ..import.clone() };
    let refused = fixture.store.import(&fixture.tenant, nowhere).await;
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    // Nothing of it was kept, so that it can be done again.
    let run = fixture.store.import(&fixture.tenant, import.clone()).await.unwrap();
    assert_eq!((&run.id, run.ready), (&model, true));
    let ended = fixture.store.heartbeat(&fixture.tenant, &fixture.session).await;
    assert!(matches!(ended, Err(Error::Finished)), "{ended:?}");
    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.claim_seqs().await, [0i64; 0]);
    for kind in import.kinds {
        let found = fixture.store.checkpoint(&fixture.tenant, &model, kind, "mine").await.unwrap();
        assert_eq!((found.blob, found.size_bytes), (import.blob.clone(), 3));
    }
}

#[tokio::test]
async fn a_blob_is_named_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.model(0);
    let blob = stage(&fixture, &model, "abc").await;
    assert_eq!(stage(&fixture, &model, "abc").await, blob);
    assert_ne!(stage(&fixture, &model, "abd").await, blob);
    let (manifest, files) = fixture.store.blob(&blob).await.unwrap();
    assert_eq!(manifest.model_id, model);
    assert_eq!(manifest.lora, super::lora());
    assert_eq!(files["adapter_model.safetensors"], "abc");
    for name in ["../x", "a/b", "", ".hidden", "manifest.json"] {
        let files = vec![(name.to_owned(), Bytes::new())];
        let refused = fixture.store.stage(super::manifest(&model, 1), files).await;
        assert!(matches!(refused, Err(Error::Io(_))), "{name}: {refused:?}");
    }
    for unknown in ["../..".to_owned(), "0".repeat(64)] {
        let answer = fixture.store.blob(&BlobId(unknown)).await;
        assert!(matches!(answer, Err(Error::NotFound { .. })), "{answer:?}");
    }
    let path = dir.path().join("blobs").join(&blob.0).join("adapter_model.safetensors");
    std::fs::write(path, "abX").unwrap();
    let Err(Error::Corrupted { what }) = fixture.store.blob(&blob).await else {
        panic!("not seen")
    };
    assert_eq!(what, format!("file adapter_model.safetensors of blob {blob}"));
}

#[tokio::test]
async fn a_checkpoint_comes_with_its_completion() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    let blob = stage(&fixture, &model, "abc").await;
    save(&fixture, 1, checkpoint(&model, "one", &blob)).await.0.unwrap();
    let record = find(&fixture, &model, "one").await.unwrap();
    assert_eq!((&record.blob, record.size_bytes, record.public), (&blob, 3, false));
    assert_eq!(record.user_metadata["k"], "v");

    let (taken, retrieved) = save(&fixture, 2, checkpoint(&model, "one", &blob)).await;
    assert!(matches!(taken, Err(Error::NameTaken { .. })), "{taken:?}");
    let message =
        format!("a checkpoint named `one` exists already in {model}; choose another name");
    let Retrieved::Finished { outcome, .. } = retrieved else { panic!("still pending") };
    assert_eq!(outcome, Outcome::Failed(failure(&message)));

    let other = stage(&fixture, &model, "other").await;
    let new = NewCheckpoint { overwrite: true, ..checkpoint(&model, "one", &other) };
    save(&fixture, 3, new).await.0.unwrap();
    assert_eq!(find(&fixture, &model, "one").await.unwrap().blob, other);

    let unknown = checkpoint(&model, "two", &BlobId("0".repeat(64)));
    let (missing, retrieved) = save(&fixture, 4, unknown).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    assert!(matches!(retrieved, Retrieved::Pending(_)), "{retrieved:?}");
}

#[tokio::test]
async fn a_failed_request_makes_nothing_visible() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    let claimed = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0);
    let failed = Completion {
        outcome: Outcome::Failed(failure("no")),
        effect: Effect::RunReady,
        ..done(&claimed.request_id, "")
    };
    fixture.store.complete(vec![failed]).await.remove(0).unwrap();
    assert!(!fixture.store.run(&fixture.tenant, &model).await.unwrap().ready);

    let other = fixture.create_run(1).await;
    let claimed = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0);
    let ready = Completion { effect: Effect::RunReady, ..done(&claimed.request_id, "") };
    fixture.store.complete(vec![ready]).await.remove(0).unwrap();
    assert!(fixture.store.run(&fixture.tenant, &other).await.unwrap().ready);
}

#[tokio::test]
async fn checkpoints_are_listed_shared_and_expire() {
    let fixture = Fixture::new(None).await;
    let (store, tenant, b) = (&fixture.store, &fixture.tenant, TenantId::from("b"));
    let model = fixture.create_run(0).await;
    let blob = stage(&fixture, &model, "abc").await;
    for (seq, name) in [(1, "one"), (2, "two")] {
        save(&fixture, seq, checkpoint(&model, name, &blob)).await.0.unwrap();
    }
    let (page, total) = store.checkpoints(tenant, &of_run(&model), 1, 0).await.unwrap();
    assert_eq!((page[0].name.as_str(), page.len(), total), ("two", 1, 2));
    assert_eq!(store.checkpoints(tenant, &of_run(&fixture.model(9)), 9, 0).await.unwrap().1, 0);

    store.set_checkpoint_public(tenant, &model, KIND, "one", true).await.unwrap();
    assert!(store.checkpoint(&b, &model, KIND, "one").await.unwrap().public);
    let foreign = store.delete_checkpoint(&b, &model, KIND, "one").await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");

    let soon = jiff::Timestamp::UNIX_EPOCH + Duration::from_secs(5);
    store.set_checkpoint_ttl(tenant, &model, KIND, "one", Some(soon)).await.unwrap();
    assert_eq!(find(&fixture, &model, "one").await.unwrap().expires_at, Some(soon));
    fixture.clock.advance(Duration::from_secs(5));
    assert!(matches!(find(&fixture, &model, "one").await, Err(Error::NotFound { .. })));
    assert_eq!(store.checkpoints(tenant, &CheckpointFilter::default(), 9, 0).await.unwrap().1, 1);
    // The name is free again before the sweep.
    save(&fixture, 3, checkpoint(&model, "one", &blob)).await.0.unwrap();
    store.delete_checkpoint(tenant, &model, KIND, "one").await.unwrap();
    assert!(matches!(find(&fixture, &model, "one").await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn listings_are_filtered() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let model = fixture.create_run(0).await;
    let blob = stage(&fixture, &model, "abc").await;
    let kinds = [KIND, CheckpointKind::SamplerWeights, CheckpointKind::ExternalWeights];
    for (seq, kind) in (1..).zip(kinds) {
        save(&fixture, seq, NewCheckpoint { kind, ..checkpoint(&model, "one", &blob) })
            .await
            .0
            .unwrap();
    }
    let project = NewSession { project_id: Some("p".to_owned()), ..super::new_session() };
    let session = store.create_session(tenant, project, None).await.unwrap().id;
    let run = super::new_run(&session);
    let id = ModelId::of(&session, 0);
    let new = NewCopy {
        run,
        source: "tinker://x/weights/one".to_owned(),
        checkpoint: checkpoint(&id, "one", &blob),
        ends_session: false,
    };
    store.copy_checkpoint(tenant, new).await.unwrap();
    let count = async |filter: CheckpointFilter| {
        let (page, total) = store.checkpoints(tenant, &filter, 2, 0).await.unwrap();
        (page.len(), total)
    };
    let all = CheckpointFilter::default();
    assert_eq!(count(all.clone()).await, (2, 4));
    assert_eq!(count(of_run(&model)).await, (2, 3));
    assert_eq!(count(CheckpointFilter { kind: Some(KIND), ..of_run(&model) }).await, (1, 1));
    let without = Some(CheckpointKind::ExternalWeights);
    assert_eq!(count(CheckpointFilter { without, ..all.clone() }).await, (2, 3));
    let project_id = Some("p".to_owned());
    assert_eq!(count(CheckpointFilter { project_id, ..all }).await, (1, 1));
}

#[tokio::test]
async fn a_copy_is_made_once_and_cannot_be_trained() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let model = fixture.create_run(0).await;
    let blob = stage(&fixture, &model, "abc").await;
    save(&fixture, 1, checkpoint(&model, "one", &blob)).await.0.unwrap();
    let session = store.create_session(tenant, super::new_session(), None).await.unwrap().id;
    let id = ModelId::of(&session, 0);
    let new = NewCopy {
        run: super::new_run(&session),
        source: format!("tinker://{model}/weights/one"),
        checkpoint: checkpoint(&id, "one", &blob),
        ends_session: true,
    };
    let copy = store.copy_checkpoint(tenant, new.clone()).await.unwrap();
    assert_eq!((&copy.model_id, &copy.blob), (&id, &blob));
    assert_eq!(store.copy_checkpoint(tenant, new.clone()).await.unwrap(), copy);
    let other = NewCopy { source: "tinker://x/weights/one".to_owned(), ..new.clone() };
    let conflict = store.copy_checkpoint(tenant, other).await;
    assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
    let ended = store.heartbeat(tenant, &session).await;
    assert!(matches!(ended, Err(Error::Finished)), "{ended:?}");
    let record = store.run(tenant, &id).await.unwrap();
    assert_eq!((record.ready, record.copied_from), (true, Some(new.source.clone())));
    let refused = fixture.submit(&id, 1).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");

    // The source may go: its files stay as long as the copy does.
    store.delete_checkpoint(tenant, &model, KIND, "one").await.unwrap();
    fixture.clock.advance(Duration::from_secs(7200));
    store.sweep().await.unwrap();
    let fixture = fixture.reopen(dir.path());
    fixture.store.sweep().await.unwrap();
    fixture.store.blob(&find(&fixture, &id, "one").await.unwrap().blob).await.unwrap();
}

#[tokio::test]
async fn a_sweep_spares_what_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let named = stage(&fixture, &model, "named").await;
    save(&fixture, 1, checkpoint(&model, "one", &named)).await.0.unwrap();
    let unnamed = stage(&fixture, &model, "unnamed").await;
    fixture.clock.advance(Duration::from_secs(3599));
    fixture.store.sweep().await.unwrap();
    fixture.store.blob(&unnamed).await.unwrap();
    // Staging it again renews its grace.
    let renewed = stage(&fixture, &model, "renewed").await;
    fixture.clock.advance(Duration::from_secs(1));
    fixture.store.sweep().await.unwrap();
    assert!(matches!(fixture.store.blob(&unnamed).await, Err(Error::NotFound { .. })));
    fixture.store.blob(&renewed).await.unwrap();
    fixture.store.blob(&named).await.unwrap();

    let fixture = fixture.reopen(dir.path());
    fixture.store.delete_checkpoint(&fixture.tenant, &model, KIND, "one").await.unwrap();
    fixture.store.sweep().await.unwrap();
    fixture.store.blob(&named).await.unwrap();
    fixture.clock.advance(Duration::from_secs(3600));
    fixture.store.sweep().await.unwrap();
    assert!(matches!(fixture.store.blob(&named).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_sampler_is_found_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let new = NewSamplingSession {
        id: SamplingSessionId(format!("{}:sample:0", fixture.session)),
        session_id: fixture.session.clone(),
        base_model: "nano".to_owned(),
        base_digest: "00".to_owned(),
        model_path: None,
        blob: Some(stage(&fixture, &model, "abc").await),
        follows: None,
        digest: [3; 32],
    };
    let id = fixture.submit(&model, 1).await.unwrap().request_id;
    let effect = Effect::SamplingSession(new.clone());
    let completion = Completion { effect, ..done(&id, "saved") };
    fixture.store.complete(vec![completion]).await.remove(0).unwrap();
    let record = fixture.store.sampling_session(&fixture.tenant, &new.id).await.unwrap();
    assert_eq!(record.blob, new.blob);

    let fixture = fixture.reopen(dir.path());
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    assert_eq!(store.create_sampling_session(tenant, new.clone()).await.unwrap(), record);
    let other = NewSamplingSession { digest: [4; 32], ..new };
    let conflict = store.create_sampling_session(tenant, other).await;
    assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
    // A sampler outlives its session by the time after which a silent session expires.
    store.finish_session(tenant, &fixture.session, "success", None).await.unwrap();
    fixture.clock.advance(Duration::from_secs(86_399));
    store.sweep().await.unwrap();
    store.sampling_session(tenant, &record.id).await.unwrap();
    fixture.clock.advance(Duration::from_secs(1));
    store.sweep().await.unwrap();
    let gone = store.sampling_session(tenant, &record.id).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
}

#[tokio::test]
async fn samplers_that_follow_a_run_have_its_newest_weights() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let (model, other) = (fixture.create_run(0).await, fixture.create_run(1).await);
    let mut blobs = Vec::new();
    for (number, content, run) in [(0, "a", &model), (1, "b", &model), (2, "c", &other)] {
        let blob = stage(&fixture, run, content).await;
        blobs.push(blob.clone());
        let new = NewSamplingSession {
            id: SamplingSessionId::of(&fixture.session, number),
            session_id: fixture.session.clone(),
            base_model: "nano".to_owned(),
            base_digest: "00".to_owned(),
            model_path: None,
            blob: Some(blob),
            follows: Some(run.clone()),
            digest: [3; 32],
        };
        let id = fixture.submit(run, number + 1).await.unwrap().request_id;
        let effect = Effect::SamplingSession(new);
        let completion = Completion { effect, ..done(&id, "saved") };
        fixture.store.complete(vec![completion]).await.remove(0).unwrap();
    }
    // The blob that all have left goes, the newest stay.
    fixture.clock.advance(Duration::from_secs(3600));
    fixture.store.sweep().await.unwrap();
    assert!(matches!(fixture.store.blob(&blobs[0]).await, Err(Error::NotFound { .. })));
    let fixture = fixture.reopen(dir.path());
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    for (number, run, blob) in [(0, &model, 1), (1, &model, 1), (2, &other, 2)] {
        let id = SamplingSessionId::of(&fixture.session, number);
        let record = store.sampling_session(tenant, &id).await.unwrap();
        assert_eq!(
            (record.follows.as_ref(), record.blob.as_ref()),
            (Some(run), Some(&blobs[blob]))
        );
        store.blob(&blobs[blob]).await.unwrap();
    }
    store.finish_session(tenant, &fixture.session, "success", None).await.unwrap();
    for _ in 0..2 {
        fixture.clock.advance(Duration::from_secs(86_400));
        store.sweep().await.unwrap();
    }
    assert!(matches!(store.blob(&blobs[1]).await, Err(Error::NotFound { .. })));
}
