//! Full and failing disks, and directories that must not be opened.

use std::{fs, io, time::Duration};

use super::{Fixture, config, request};
use crate::{Error, ManualClock, Store};

fn refusal(store: Result<Store, Error>) -> String {
    match store {
        Err(Error::Refused { reason }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let second = Store::open(config(Some(dir.path())), ManualClock::new());
    assert!(refusal(second).contains("is in use by another server"));
    drop(fixture);
    Store::open(config(Some(dir.path())), ManualClock::new()).unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Fixture::new(Some(dir.path())).await);
    let conn = rusqlite::Connection::open(dir.path().join("tinsmith.sqlite")).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let newer = Store::open(config(Some(dir.path())), ManualClock::new());
    assert!(refusal(newer).contains("newer version (schema 99"));
}

#[tokio::test]
async fn commits_are_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let settings = fixture.store.alone(|conn, _, _| {
        let number = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let mode: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        Ok((mode, number("synchronous")?, number("foreign_keys")?, number("mmap_size")?))
    });
    // 2 is FULL.
    assert_eq!(settings.await.unwrap(), ("wal".to_owned(), 2, 1, 0));
}

#[tokio::test]
async fn a_closed_store_accepts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    fixture.clock.advance(Duration::from_secs(9));
    fixture.store.heartbeat(&fixture.tenant, &fixture.session).await.unwrap();
    fixture.store.close();
    fixture.store.close();
    assert!(!fixture.store.ready());
    let closed = fixture.submit(&model, 1).await;
    assert!(matches!(closed, Err(Error::Fatal)), "{closed:?}");
    let closed = fixture.store.claim(1, Duration::from_secs(3600)).await;
    assert!(matches!(closed, Err(Error::Fatal)), "{closed:?}");
    let conn = rusqlite::Connection::open(dir.path().join("tinsmith.sqlite")).unwrap();
    let select = "SELECT last_heartbeat_at FROM sessions";
    let heard: i64 = conn.query_row(select, [], |row| row.get(0)).unwrap();
    assert_eq!(heard, 9_000_000);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let limit = |pages: i64| {
        fixture.store.alone(move |conn, _, _| {
            let set = format!("PRAGMA max_page_count = {pages}");
            Ok(conn.query_row(&set, [], |row| row.get::<_, i64>(0))?)
        })
    };
    let full_at = limit(1).await.unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match fixture.submit(&model, acknowledged + 1).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        let id = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0).request_id;
        let completed = fixture.store.complete(vec![super::done(&id, &"x".repeat(60))]).await;
        if let Some(Err(error)) = completed.into_iter().next() {
            break error;
        }
    };
    let Error::Io(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(fixture.store.ready());
    limit(full_at + 1000).await.unwrap();
    fixture.submit(&model, acknowledged + 1).await.unwrap();

    let fixture = fixture.reopen(dir.path());
    let journal = fixture.store.journal(&model, tinsmith_types::ids::SeqId(0)).await.unwrap();
    let seqs: Vec<_> = journal.iter().map(|entry| entry.seq_id.0).collect();
    assert_eq!(seqs, (1..=acknowledged + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_failed_write_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    fs::remove_dir(dir.path().join("spool")).unwrap();
    let large = || request(&model, 1, &[0; 100]);
    let failed = fixture.store.submit(&fixture.tenant, large()).await;
    assert!(matches!(failed, Err(Error::Fatal)), "{failed:?}");
    assert!(!fixture.store.ready());
    let after = fixture.submit(&model, 2).await;
    assert!(matches!(after, Err(Error::Fatal)), "{after:?}");
    let fixture = fixture.reopen(dir.path());
    assert!(fixture.store.submit(&fixture.tenant, large()).await.unwrap().fresh);
}

#[tokio::test]
async fn a_damaged_body_fails_its_request_alone() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let id = fixture
        .store
        .submit(&fixture.tenant, request(&model, 1, &[0; 100]))
        .await
        .unwrap()
        .request_id;
    fixture.submit(&model, 2).await.unwrap();
    let segment = dir.path().join("spool/0000000001.spool");
    let mut bytes = fs::read(&segment).unwrap();
    *bytes.last_mut().unwrap() = 1;
    fs::write(&segment, bytes).unwrap();
    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.claim_seqs().await, [0, 2]);
    let retrieved = fixture.retrieve(&id).await.unwrap();
    let crate::Retrieved::Finished { outcome: crate::Outcome::Failed(failure), .. } = retrieved
    else {
        panic!("{retrieved:?}")
    };
    assert_eq!(failure.category, crate::Category::Server);
}
