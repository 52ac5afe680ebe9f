//! Snapshots and the requests since.

use std::time::Duration;

use bytes::Bytes;
use tinsmith_types::ids::SeqId;

use super::{Fixture, done, failure, manifest, request};
use crate::{
    BlobId, Completion, Effect, Error, JournalState, NewRequest, Outcome, RequestKind,
    SnapshotRecord,
};

#[tokio::test]
async fn a_run_is_its_snapshot_and_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    for seq in 1..=4 {
        let body = vec![u8::try_from(seq).unwrap(); 3000];
        fixture.store.submit(&fixture.tenant, request(&model, seq, &body)).await.unwrap();
    }
    let claimed = fixture.store.claim(4, Duration::ZERO).await.unwrap();
    let id = |place: usize| &claimed[place].request_id;
    let failed = Completion {
        request_id: id(2).clone(),
        outcome: Outcome::Failed(failure("nan")),
        digest: None,
        effect: Effect::None,
    };
    let completions = vec![done(id(0), "0"), done(id(1), "1"), failed];
    for completed in fixture.store.complete(completions).await {
        completed.unwrap();
    }
    assert_eq!(fixture.store.snapshot(&model).await.unwrap(), None);
    let files = vec![("state.safetensors".to_owned(), Bytes::from_static(b"state"))];
    let (blob, _) = fixture.store.stage(manifest(&model, 1), files).await.unwrap();
    let snapshot = |seq| SnapshotRecord { applied_seq: SeqId(seq), blob: blob.clone() };
    let early = fixture.store.put_snapshot(&model, snapshot(3)).await;
    assert!(matches!(early, Err(Error::Conflict { .. })), "{early:?}");
    fixture.store.put_snapshot(&model, snapshot(1)).await.unwrap();
    let backwards = fixture.store.put_snapshot(&model, snapshot(0)).await;
    assert!(matches!(backwards, Err(Error::Conflict { .. })), "{backwards:?}");

    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.store.snapshot(&model).await.unwrap(), Some(snapshot(1)));
    let journal = fixture.store.journal(&model, SeqId(1)).await.unwrap();
    let states: Vec<_> = journal.iter().map(|entry| (entry.seq_id.0, entry.state)).collect();
    let pending = JournalState::Pending;
    assert_eq!(states, [(2, JournalState::Failed), (3, pending), (4, pending)]);
    assert!(journal.iter().all(|entry| entry.body.is_empty()), "{journal:?}");
    let earlier = fixture.store.journal(&model, SeqId(0)).await;
    assert!(matches!(earlier, Err(Error::Corrupted { .. })), "{earlier:?}");
    // Their results stay.
    let retrieved = fixture.retrieve(id(1)).await.unwrap();
    assert!(matches!(retrieved, crate::Retrieved::Finished { .. }), "{retrieved:?}");

    let digest = *blake3::hash(b"3").as_bytes();
    let again = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0);
    fixture.store.complete(vec![done(&again.request_id, "3")]).await.remove(0).unwrap();
    let journal = fixture.store.journal(&model, SeqId(1)).await.unwrap();
    assert_eq!(journal[1].state, JournalState::Applied(Some(digest)));
    assert_eq!(journal[1].body, vec![3; 3000]);
}

#[tokio::test]
async fn what_no_replay_needs_may_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let created = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0);
    let mut completions = vec![done(&created.request_id, "made")];
    let kinds = [
        RequestKind::OptimStep,
        RequestKind::Forward,
        RequestKind::SaveWeights,
        RequestKind::ForwardBackward,
    ];
    for (seq, kind) in (1..).zip(kinds) {
        let body = vec![u8::try_from(seq).unwrap(); 5000];
        let new = NewRequest { kind, ..request(&model, seq, &body) };
        let id = fixture.store.submit(&fixture.tenant, new).await.unwrap().request_id;
        // The last one stays pending.
        completions.extend((seq < 4).then(|| done(&id, "x")));
    }
    for completed in fixture.store.complete(completions).await {
        completed.unwrap();
    }
    // Each body fills a segment.
    let damage = |segment: u64| {
        let segment = dir.path().join(format!("spool/{segment:010}.spool"));
        std::fs::write(segment, b"damaged").unwrap();
    };
    (2..=4).for_each(damage);
    let journal = fixture.store.journal(&model, SeqId(-1)).await.unwrap();
    let bodies: Vec<_> = journal.iter().map(|entry| entry.body.len()).collect();
    assert_eq!(bodies, [6, 5000, 0, 0, 0]);
    damage(1);
    let damaged = fixture.store.journal(&model, SeqId(-1)).await;
    assert!(matches!(damaged, Err(Error::Corrupted { .. })), "{damaged:?}");
}

#[tokio::test]
async fn spool_segments_go_when_nothing_is_left_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let spool = dir.path().join("spool");
    let segments = || std::fs::read_dir(&spool).unwrap().count();
    let mut completions = Vec::new();
    for seq in 1..=8 {
        let body = vec![u8::try_from(seq).unwrap(); 3000];
        let new = request(&model, seq, &body);
        let id = fixture.store.submit(&fixture.tenant, new).await.unwrap().request_id;
        completions.push(done(&id, "x"));
    }
    let created = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0);
    completions.push(done(&created.request_id, "x"));
    for completed in fixture.store.complete(completions).await {
        completed.unwrap();
    }
    fixture.store.sweep().await.unwrap();
    assert_eq!(segments(), 4);
    let (blob, _) = fixture.store.stage(manifest(&model, 1), Vec::new()).await.unwrap();
    let snapshot = SnapshotRecord { applied_seq: SeqId(6), blob };
    fixture.store.put_snapshot(&model, snapshot).await.unwrap();
    fixture.store.sweep().await.unwrap();
    assert_eq!(segments(), 1);
    assert_eq!(fixture.store.journal(&model, SeqId(6)).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_load_that_cannot_be_kept_leaves_its_request_pending() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let mut ids = Vec::new();
    for seq in 1..=3 {
        ids.push(fixture.submit(&model, seq).await.unwrap().request_id);
    }
    let created = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0).request_id;
    let loaded = |id, seq, blob: &BlobId| {
        let snapshot = SnapshotRecord { applied_seq: SeqId(seq), blob: blob.clone() };
        Completion { effect: Effect::Loaded(snapshot), ..done(id, "loaded") }
    };
    let (blob, _) = fixture.store.stage(manifest(&model, 2), Vec::new()).await.unwrap();
    let unknown = BlobId("00".to_owned());
    // The ones around it count, in the same write.
    let completions =
        vec![done(&created, "made"), loaded(&ids[0], 1, &unknown), done(&ids[2], "3")];
    let ended = fixture.store.complete(completions).await;
    assert!(matches!(ended[..], [Ok(()), Err(Error::NotFound { .. }), Ok(())]), "{ended:?}");
    let early = fixture.store.complete(vec![loaded(&ids[1], 2, &blob)]).await.remove(0);
    assert!(matches!(early, Err(Error::Conflict { .. })), "{early:?}");

    let fixture = fixture.reopen(dir.path());
    for (place, is_pending) in [(0, true), (1, true), (2, false)] {
        let retrieved = fixture.retrieve(&ids[place]).await.unwrap();
        let found = matches!(retrieved, crate::Retrieved::Pending(_));
        assert_eq!(found, is_pending, "{place}: {retrieved:?}");
    }
    assert!(!fixture.store.run(&fixture.tenant, &model).await.unwrap().ready);
    assert_eq!(fixture.store.snapshot(&model).await.unwrap(), None);
    assert_eq!(fixture.claim_seqs().await, [1, 2]);
    let completions = vec![done(&ids[0], "1"), loaded(&ids[1], 2, &blob)];
    for completed in fixture.store.complete(completions).await {
        completed.unwrap();
    }
    assert!(fixture.store.run(&fixture.tenant, &model).await.unwrap().ready);
    assert!(fixture.store.snapshot(&model).await.unwrap().is_some());
}
