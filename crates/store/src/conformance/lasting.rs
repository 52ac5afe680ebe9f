//! The session of clients that open none, and samples that are kept.

use std::time::Duration;

use bytes::Bytes;
use tinsmith_types::ids::{ModelId, SamplingSessionId};

use super::{Fixture, new_run, request};
use crate::{Error, KeptSampler, NewSamplingSession, Outcome};

#[tokio::test]
async fn a_lasting_session_never_expires() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    assert_eq!(store.lasting_session(tenant).await.unwrap(), None);
    let (session, first) = store.lasting_number(tenant).await.unwrap();
    assert_eq!((first, store.lasting_number(tenant).await.unwrap()), (0, (session.clone(), 1)));
    let other = store.lasting_number(&"b".into()).await.unwrap().0;
    assert_ne!(other, session);
    let fixture = fixture.reopen(dir.path());
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    fixture.clock.advance(Duration::from_secs(864_000));
    store.sweep().await.unwrap();
    store.heartbeat(tenant, &session).await.unwrap();
    let ended = store.heartbeat(tenant, &fixture.session).await;
    assert!(matches!(ended, Err(Error::Finished)), "others do: {ended:?}");
    assert_eq!(store.lasting_number(tenant).await.unwrap(), (session.clone(), 2));
    store.finish_session(tenant, &session, "success", None).await.unwrap();
    let (next, number) = store.lasting_number(tenant).await.unwrap();
    assert_eq!(number, 3);
    assert_ne!(next, session, "ended by its owner");
    assert_eq!(store.lasting_session(tenant).await.unwrap(), Some(next));
}

#[tokio::test]
async fn a_removed_run_stays_removed() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let model = ModelId::of(&fixture.session, 0);
    let mut create = request(&model, 0, b"x");
    create.creates = Some(new_run(&fixture.session));
    store.submit(tenant, create).await.unwrap();
    assert!(!store.is_removed(tenant, &model).await.unwrap());
    assert!(store.remove_run(tenant, &model).await.unwrap());
    assert!(!store.remove_run(tenant, &model).await.unwrap());
    assert!(store.is_removed(tenant, &model).await.unwrap());
    let foreign = store.remove_run(&"b".into(), &model).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
}

#[tokio::test]
async fn kept_samples_end_and_go() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let sampler = SamplingSessionId::of(&fixture.session, 0);
    let kept = |source: &str| KeptSampler {
        sampler: sampler.clone(),
        source: source.to_owned(),
        saved_by: None,
    };
    let body = Bytes::from_static(b"{}");
    let missing = store.keep_sample(tenant, kept("base x"), body.clone()).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    let session = NewSamplingSession {
        id: sampler.clone(),
        session_id: fixture.session.clone(),
        base_model: "m".to_owned(),
        base_digest: "d".to_owned(),
        model_path: None,
        blob: None,
        digest: [0; 32],
        follows: None,
    };
    store.create_sampling_session(tenant, session).await.unwrap();
    let id = store.keep_sample(tenant, kept("checkpoint x"), body.clone()).await.unwrap();
    assert_eq!(store.kept_sample(tenant, &id).await.unwrap().body, body);
    let foreign = store.kept_sample(&"b".into(), &id).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
    store.sweep().await.unwrap();
    store.sampling_session(tenant, &sampler).await.unwrap();
    let found = store.kept_sampler(tenant, "checkpoint x").await.unwrap();
    assert_eq!(found, Some(kept("checkpoint x")));
    let done = Outcome::Done(Bytes::from_static(b"drawn"));
    store.finish_kept_sample(tenant, &id, done.clone()).await.unwrap();
    let again = Outcome::Done(Bytes::from_static(b"other"));
    store.finish_kept_sample(tenant, &id, again).await.unwrap();
    assert_eq!(store.kept_sample(tenant, &id).await.unwrap().outcome, Some(done));
    store.sweep().await.unwrap();
    let gone = store.sampling_session(tenant, &sampler).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "nothing is drawn from it: {gone:?}");
    fixture.clock.advance(Duration::from_secs(600));
    store.sweep().await.unwrap();
    let gone = store.kept_sample(tenant, &id).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
}
