//! Samples: in memory, bounded, and gone after a restart.

use std::time::Duration;

use tinsmith_types::ids::{RequestId, SamplingSessionId, SeqId};

use super::{Fixture, done, failure};
use crate::{
    Error, NewSample, NewSamplingSession, Outcome, Peeked, QueueState, RequestKind, Retrieved,
    Room, Shortage,
};

pub(super) async fn sampler(fixture: &Fixture) -> SamplingSessionId {
    let id = SamplingSessionId(format!("{}:sample:0", fixture.session));
    let new = NewSamplingSession {
        id: id.clone(),
        session_id: fixture.session.clone(),
        base_model: "nano".to_owned(),
        base_digest: "00".to_owned(),
        model_path: None,
        blob: None,
        follows: None,
        digest: [0; 32],
    };
    fixture.store.create_sampling_session(&fixture.tenant, new).await.unwrap();
    id
}

pub(super) fn sample(sampler: &SamplingSessionId, seq: i64) -> NewSample {
    NewSample {
        sampling_session_id: sampler.clone(),
        seq_id: Some(SeqId(seq)),
        body: vec![0; 100].into(),
        digest: [1; 32],
        refused: None,
    }
}

pub(super) async fn submit(
    fixture: &Fixture,
    sampler: &SamplingSessionId,
    seq: i64,
) -> Result<RequestId, Error> {
    let submitted = fixture.store.submit_sample(&fixture.tenant, sample(sampler, seq)).await?;
    Ok(submitted.request_id)
}

#[tokio::test]
async fn a_sample_walks_through() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await.unwrap();
    assert_eq!(submit(&fixture, &sampler, 0).await.unwrap(), id);
    let mut other = sample(&sampler, 0);
    other.digest = [2; 32];
    let other = fixture.store.submit_sample(&fixture.tenant, other).await;
    assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");
    let foreign = fixture.store.submit_sample(&"b".into(), sample(&sampler, 1)).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");

    let claimed = fixture.store.claim(10, Duration::ZERO).await.unwrap();
    assert_eq!(
        (claimed.len(), claimed[0].kind, claimed[0].body.len()),
        (1, RequestKind::Sample, 100)
    );
    fixture.store.complete(vec![done(&id, "tokens")]).await.remove(0).unwrap();
    let expected =
        Retrieved::Finished { kind: RequestKind::Sample, outcome: Outcome::Done("tokens".into()) };
    assert_eq!(fixture.retrieve(&id).await.unwrap(), expected);
    assert_eq!(fixture.retrieve(&id).await.unwrap(), expected);
    let foreign = fixture.store.retrieve(&"b".into(), &id, Duration::ZERO).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
}

#[tokio::test]
async fn a_sample_of_an_earlier_start_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await.unwrap();
    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.retrieve(&id).await.unwrap(), Retrieved::Gone);
    let foreign = fixture.store.retrieve(&"b".into(), &id, Duration::ZERO).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
    for garbage in ["smp-1-2-3", "smp-", "x", &id.0.replace("smp", "req"), &id.0[..40]] {
        let answer = fixture.retrieve(&garbage.into()).await;
        assert!(matches!(answer, Err(Error::NotFound { .. })), "{garbage}: {answer:?}");
    }
    assert_ne!(submit(&fixture, &sampler, 0).await.unwrap(), id);
}

#[tokio::test]
async fn the_table_is_bounded() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let mut ids = Vec::new();
    for seq in 0..8 {
        ids.push(submit(&fixture, &sampler, seq).await.unwrap());
    }
    let full = submit(&fixture, &sampler, 8).await;
    assert!(matches!(full, Err(Error::Full)), "{full:?}");
    // What has been delivered makes room for what is new; what has not stays.
    for id in &ids[..2] {
        fixture.store.complete(vec![done(id, "x")]).await.remove(0).unwrap();
    }
    assert!(matches!(submit(&fixture, &sampler, 8).await, Err(Error::Full)));
    fixture.retrieve(&ids[1]).await.unwrap();
    submit(&fixture, &sampler, 8).await.unwrap();
    assert_eq!(fixture.retrieve(&ids[1]).await.unwrap(), Retrieved::Gone);
    assert!(matches!(fixture.retrieve(&ids[0]).await.unwrap(), Retrieved::Finished { .. }));
    // Bytes are bounded too.
    let mut large = sample(&sampler, 9);
    large.body = vec![0; 3500].into();
    let full = fixture.store.submit_sample(&fixture.tenant, large).await;
    assert!(matches!(full, Err(Error::Full)), "{full:?}");

    fixture.clock.advance(Duration::from_secs(600));
    fixture.store.sweep().await.unwrap();
    assert_eq!(fixture.retrieve(&ids[0]).await.unwrap(), Retrieved::Gone);
    assert_eq!(fixture.claim_seqs().await, [2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn a_cancelled_sample_is_not_claimed() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await.unwrap();
    submit(&fixture, &sampler, 1).await.unwrap();
    for _ in 0..2 {
        fixture.store.cancel_sample(&fixture.tenant, &id).await.unwrap();
    }
    let mut refused = sample(&sampler, 2);
    refused.refused = Some(failure("too long"));
    let refused = fixture.store.submit_sample(&fixture.tenant, refused).await.unwrap();
    assert_eq!(fixture.claim_seqs().await, [1]);
    for (id, message) in [(&id, "cancelled"), (&refused.request_id, "too long")] {
        let outcome = Outcome::Failed(failure(message));
        let expected = Retrieved::Finished { kind: RequestKind::Sample, outcome };
        assert_eq!(fixture.retrieve(id).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn who_claimed_a_sample_is_told_once_that_it_was_cancelled() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let mut ids = Vec::new();
    for seq in 0..4 {
        ids.push(submit(&fixture, &sampler, seq).await.unwrap());
    }
    assert!(!fixture.store.wants_sample(&ids[0]), "not claimed yet");
    assert_eq!(fixture.store.claim(3, Duration::ZERO).await.unwrap().len(), 3);
    fixture.store.complete(vec![done(&ids[1], "x")]).await.remove(0).unwrap();
    let wanted = |id: &RequestId| fixture.store.wants_sample(id);
    assert_eq!(ids.iter().map(wanted).collect::<Vec<_>>(), [true, false, true, false]);
    for id in [&ids[0], &ids[0], &ids[1], &ids[3]] {
        fixture.store.cancel_sample(&fixture.tenant, id).await.unwrap();
    }
    let foreign = fixture.store.cancel_sample(&"b".into(), &ids[2]).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
    assert_eq!(fixture.store.cancelled_samples(), ids[..1]);
    assert_eq!(fixture.store.cancelled_samples(), []);
    assert!(!fixture.store.wants_sample(&ids[0]));
    // Its result comes too late; that of the first is kept.
    fixture.store.complete(vec![done(&ids[0], "x")]).await.remove(0).unwrap();
    let outcome = Outcome::Failed(failure("cancelled"));
    let expected = Retrieved::Finished { kind: RequestKind::Sample, outcome };
    assert_eq!(fixture.retrieve(&ids[0]).await.unwrap(), expected);
}

#[tokio::test]
async fn a_large_result_is_announced_and_not_delivered() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await.unwrap();
    fixture.store.complete(vec![done(&id, "tokens")]).await.remove(0).unwrap();
    let peek = |bytes_max| fixture.store.peek(&fixture.tenant, &id, Duration::ZERO, bytes_max);
    assert_eq!(peek(5).await.unwrap(), Peeked::Larger { bytes: 6 });
    // It makes no room for others yet.
    for seq in 1..8 {
        submit(&fixture, &sampler, seq).await.unwrap();
    }
    assert!(matches!(submit(&fixture, &sampler, 8).await, Err(Error::Full)));
    assert!(matches!(peek(6).await.unwrap(), Peeked::Whole(Retrieved::Finished { .. })));
    submit(&fixture, &sampler, 8).await.unwrap();
}

#[tokio::test]
async fn who_waits_for_room_hears_so() {
    let fixture = Fixture::new(None).await;
    let (runs, sampler) =
        ([fixture.create_run(0).await, fixture.create_run(1).await], sampler(&fixture).await);
    let mut samples = Vec::new();
    for seq in 0..2 {
        samples.push(submit(&fixture, &sampler, seq).await.unwrap());
    }
    let mut steps = Vec::new();
    for run in &runs {
        steps.push(fixture.submit(run, 1).await.unwrap().request_id);
    }
    let states = async || {
        let mut states = Vec::new();
        for id in steps.iter().chain(&samples) {
            let Retrieved::Pending(state) = fixture.retrieve(id).await.unwrap() else { panic!() };
            states.push(state);
        }
        states
    };
    let (active, paused) = (QueueState::Active, QueueState::PausedCapacity);
    assert_eq!(states().await, [active; 4]);
    fixture.store.set_shortage(Shortage {
        runs: Some([runs[0].clone()].into()),
        samples: Some([samples[1].clone()].into()),
    });
    assert_eq!(states().await, [active, paused(Room::Runs), paused(Room::Samplers), active]);
    fixture.store.set_shortage(Shortage::default());
    assert_eq!(states().await, [active; 4]);
}
