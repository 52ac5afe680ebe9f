//! What samples drew, where it was to be remembered.

use std::{collections::BTreeSet, time::Duration};

use tinsmith_types::ids::{RequestId, SamplingSessionId, SeqId, SequenceId};

use super::{Fixture, done};
use crate::{
    Completion, Effect, NewSample, NewSamplingSession, RecordedSample, RecordedSequence,
    SampleUsage, conformance,
};

async fn sampler(fixture: &Fixture) -> SamplingSessionId {
    let id = SamplingSessionId::of(&fixture.session, 0);
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

/// Submits, claims and completes a sample of two sequences, of `tokens` tokens each.
async fn record(fixture: &Fixture, seq: i64, tokens: u32) -> RequestId {
    let sampler = sampler(fixture).await;
    let new = NewSample {
        sampling_session_id: sampler.clone(),
        seq_id: Some(SeqId(seq)),
        body: vec![0; 10].into(),
        digest: [1; 32],
        refused: None,
    };
    let id = fixture.store.submit_sample(&fixture.tenant, new).await.unwrap().request_id;
    fixture.store.claim(10, Duration::ZERO).await.unwrap();
    let drawn = |first: u32| {
        let tokens: Vec<u32> = (first..first + tokens).collect();
        let logprobs = tokens.iter().map(|_| -0.125).collect();
        (tokens, logprobs)
    };
    let sequences = vec![drawn(10), drawn(20)];
    let sample = RecordedSample { sampler, prompt: vec![1, u32::MAX], sequences };
    let effect = Effect::Sampled(SampleUsage::default(), Some(Box::new(sample)));
    let completion = Completion { effect, ..done(&id, "tokens") };
    // A retry after a fault of the disk writes nothing twice.
    for completion in [completion.clone(), completion] {
        fixture.store.complete(vec![completion]).await.remove(0).unwrap();
    }
    id
}

async fn known(fixture: &Fixture, tenant: &str, id: &RequestId) -> Vec<RecordedSequence> {
    let ids: BTreeSet<_> = (0..3).map(|index| SequenceId::of(id, index)).collect();
    let found = fixture.store.recorded_sequences(&tenant.into(), ids).await.unwrap();
    found.into_values().collect()
}

#[tokio::test]
async fn recorded_sequences_are_there_after_a_restart_until_their_session_ends() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let id = record(&fixture, 0, 2).await;
    let sequence = |tokens: [u32; 2]| RecordedSequence {
        prompt: vec![1, u32::MAX],
        tokens: tokens.to_vec(),
        logprobs: vec![-0.125; 2],
    };
    let expected = [sequence([10, 11]), sequence([20, 21])];
    assert_eq!(known(&fixture, "a", &id).await, expected);
    let fixture = fixture.reopen(dir.path());
    assert_eq!(known(&fixture, "a", &id).await, expected);
    assert_eq!(known(&fixture, "b", &id).await, [], "another tenant's");
    fixture.store.finish_session(&fixture.tenant, &fixture.session, "success", None).await.unwrap();
    assert_eq!(known(&fixture, "a", &id).await, []);
    let late = record(&fixture, 1, 2).await;
    assert_eq!(known(&fixture, "a", &late).await, [], "the session has ended");
}

#[tokio::test]
async fn the_oldest_recordings_make_room() {
    let fixture = Fixture::new(None).await;
    let bytes_max = conformance::config(None).recorded_bytes_max;
    let mut ids = Vec::new();
    for seq in 0..6 {
        ids.push(record(&fixture, seq, 100).await);
    }
    // Each takes 2,376 bytes (two sequences of 100 tokens, and what rows take): one fits, and one more stays.
    assert_eq!(bytes_max, 4096);
    for (index, id) in ids.iter().enumerate() {
        let expected = if index < 4 { 0 } else { 2 };
        assert_eq!(known(&fixture, "a", id).await.len(), expected, "{index}");
    }
    let large = record(&fixture, 6, 2000).await;
    assert_eq!(known(&fixture, "a", &large).await.len(), 2, "the newest one stays");
    assert_eq!(known(&fixture, "a", &ids[5]).await.len(), 0);
}
