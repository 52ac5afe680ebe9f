//! What was used: counted once, whatever happens, and when.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Fixture,
    checkpoints::{checkpoint, save, stage},
    done, failure,
    samples::{sampler, submit},
};
use crate::{
    CheckpointKind, Completion, Effect, Outcome, RequestKind, SampleUsage, StorageRow, UsageKind,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Hour, kind and quantity of all that the tenant used.
async fn usage(fixture: &Fixture) -> Vec<(i64, UsageKind, u64)> {
    let from = Timestamp::UNIX_EPOCH;
    let window = (from, from + SignedDuration::from_hours(1000));
    let rows = fixture.store.usage(&fixture.tenant, window, 100).await.unwrap();
    for row in &rows {
        assert_eq!(row.session_id.as_ref(), Some(&fixture.session));
        assert_eq!(row.base_model.as_deref(), Some("nano"));
        assert_eq!(row.project_id.as_deref(), Some("default"));
    }
    rows.into_iter().map(|row| (row.hour.as_second() / 3600, row.kind, row.quantity)).collect()
}

fn trained(completion: Completion, tokens: u64) -> Completion {
    Completion { effect: Effect::Trained(tokens), ..completion }
}

#[tokio::test]
async fn training_counts_once_and_only_if_it_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let first = fixture.submit(&model, 1).await.unwrap().request_id;
    let second = fixture.submit(&model, 2).await.unwrap().request_id;
    let third = fixture.submit(&model, 3).await.unwrap().request_id;
    let completion = trained(done(&first, "r"), 100);
    let failed =
        Completion { outcome: Outcome::Failed(failure("no")), ..trained(done(&second, "r"), 1000) };
    for result in fixture.store.complete(vec![completion.clone(), failed]).await {
        result.unwrap();
    }
    assert_eq!(usage(&fixture).await, [(0, UsageKind::Training, 100)]);
    // As after a crash between the commit and what came after it.
    fixture.store.complete(vec![completion]).await.remove(0).unwrap();
    let fixture = fixture.reopen(dir.path());
    assert_eq!(usage(&fixture).await, [(0, UsageKind::Training, 100)]);
    fixture.clock.advance(HOUR);
    fixture.store.complete(vec![trained(done(&third, "r"), 7)]).await.remove(0).unwrap();
    let expected = [(0, UsageKind::Training, 100), (1, UsageKind::Training, 7)];
    assert_eq!(usage(&fixture).await, expected);
    fixture.clock.advance(HOUR * 24 * 31);
    fixture.store.sweep().await.unwrap();
    assert_eq!(usage(&fixture).await, []);
}

#[tokio::test]
async fn samples_are_counted_and_traced() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await.unwrap();
    let open = submit(&fixture, &sampler, 1).await.unwrap();
    fixture.clock.advance(Duration::from_secs(1));
    fixture.store.started(&id);
    fixture.clock.advance(Duration::from_secs(2));
    let used = SampleUsage { prefill: 10, prefill_cached: 4, sampled: 30 };
    let completion = Completion { effect: Effect::Sampled(used, None), ..done(&id, "tokens") };
    for _ in 0..2 {
        fixture.store.complete(vec![completion.clone()]).await.remove(0).unwrap();
    }
    let expected =
        [(0, UsageKind::Sample, 30), (0, UsageKind::Prefill, 10), (0, UsageKind::PrefillCached, 4)];
    assert_eq!(usage(&fixture).await, expected);
    let fixture = {
        fixture.store.close();
        fixture.reopen(dir.path())
    };
    assert_eq!(usage(&fixture).await, expected);

    let spans = fixture.store.session_spans(&fixture.tenant, &fixture.session, 10).await.unwrap();
    let seconds = |at: Option<Timestamp>| at.map(|at| at.as_second());
    let found: Vec<_> = spans.0.iter().map(|span| (&span.request_id, span.kind)).collect();
    // What was open is gone with its start.
    assert_eq!(found, [(&id, RequestKind::Sample)], "{open}");
    let span = &spans.0[0];
    assert_eq!(span.target, sampler.0);
    let times = (seconds(Some(span.created_at)), seconds(span.started_at));
    assert_eq!((times, seconds(span.finished_at)), ((Some(0), Some(1)), Some(3)));
}

#[tokio::test]
async fn operations_of_runs_are_traced() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    let first = fixture.submit(&model, 1).await.unwrap().request_id;
    fixture.claim_seqs().await;
    fixture.clock.advance(Duration::from_secs(5));
    fixture.store.started(&first);
    let spans = async |limit| {
        let found = fixture.store.session_spans(&fixture.tenant, &fixture.session, limit).await;
        let (spans, cut) = found.unwrap();
        let seconds = |at: Option<Timestamp>| at.map(|at| at.as_second());
        let spans: Vec<_> = spans
            .into_iter()
            .map(|span| (span.seq_id, seconds(span.started_at), seconds(span.finished_at)))
            .collect();
        (spans, cut)
    };
    assert_eq!(spans(10).await, (vec![(Some(0), None, None), (Some(1), Some(5), None)], false));
    fixture.clock.advance(Duration::from_secs(5));
    fixture.store.complete(vec![done(&first, "r")]).await.remove(0).unwrap();
    assert_eq!(spans(1).await, (vec![(Some(1), Some(5), Some(10))], true));
    let foreign = fixture.store.session_spans(&"b".into(), &fixture.session, 1).await;
    assert!(matches!(foreign, Err(crate::Error::NotFound { .. })), "{foreign:?}");
}

#[tokio::test]
async fn storage_counts_for_as_long_as_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    fixture.clock.advance(HOUR / 2);
    let blob = stage(&fixture, &model, "abc").await;
    save(&fixture, 1, checkpoint(&model, "a", &blob)).await.0.unwrap();
    let current = async |project| fixture.store.storage(&fixture.tenant, project).await.unwrap();
    let row = StorageRow { project_id: "default".to_owned(), checkpoints: 1, size_bytes: 3 };
    let expected = [row];
    assert_eq!(current(None).await, expected);
    assert_eq!(current(Some("default")).await, expected);
    assert_eq!(current(Some("other")).await, []);
    fixture.clock.advance(HOUR);
    // It is gone before the ledger is looked at, and counts all the same.
    let kind = CheckpointKind::Weights;
    fixture.store.delete_checkpoint(&fixture.tenant, &model, kind, "a").await.unwrap();
    fixture.clock.advance(HOUR * 3);
    assert_eq!(current(None).await, []);
    let expected = [
        (0, UsageKind::Checkpoint, 1),
        (0, UsageKind::Storage, 3 * 1800),
        (1, UsageKind::Storage, 3 * 1800),
    ];
    assert_eq!(usage(&fixture).await, expected);
    let fixture = fixture.reopen(dir.path());
    assert_eq!(usage(&fixture).await, expected);
}
