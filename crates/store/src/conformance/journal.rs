//! Snapshots and the requests since.

use std::time::Duration;

use bytes::Bytes;
use tinsmith_types::ids::SeqId;

use super::{Fixture, done, failure, manifest, request};
use crate::{Completion, Effect, Error, JournalState, Outcome, SnapshotRecord};

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
    assert_eq!(journal[1].body, vec![3; 3000]);
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
