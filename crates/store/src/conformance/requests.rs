//! Submission, order, completion, retrieval.

use std::time::Duration;

use super::{Fixture, done, failure, request, seqs};
use crate::{Error, Outcome, QueueState, RequestKind, Retrieved};

#[tokio::test]
async fn a_retry_finds_its_first_submission() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let first = fixture.submit(&model, 1).await.unwrap();
    assert!(first.fresh);
    let again = fixture.submit(&model, 1).await.unwrap();
    assert_eq!((again.fresh, &again.request_id), (false, &first.request_id));
    let other = fixture.store.submit(&fixture.tenant, request(&model, 1, b"other")).await;
    assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");

    assert_eq!(fixture.claim_seqs().await, [0, 1]);
    let completed = fixture.store.complete(vec![done(&first.request_id, "result")]).await;
    assert!(completed[0].is_ok(), "{completed:?}");
    assert_eq!(fixture.submit(&model, 1).await.unwrap().request_id, first.request_id);

    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.submit(&model, 1).await.unwrap().request_id, first.request_id);
    let other = fixture.store.submit(&fixture.tenant, request(&model, 1, b"other")).await;
    assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");
    let expected = Retrieved::Finished {
        kind: RequestKind::ForwardBackward,
        outcome: Outcome::Done("result".into()),
    };
    assert_eq!(fixture.retrieve(&first.request_id).await.unwrap(), expected);
    // What has no result can be claimed again, and only that.
    assert_eq!(fixture.claim_seqs().await, [0]);
}

#[tokio::test]
async fn ids_ahead_of_their_turn_are_parked() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    assert_eq!(fixture.claim_seqs().await, [0]);
    let parked = fixture.submit(&model, 3).await.unwrap();
    fixture.submit(&model, 2).await.unwrap();
    assert_eq!(fixture.claim_seqs().await, [0; 0]);
    let pending = Retrieved::Pending(QueueState::Active);
    assert_eq!(fixture.retrieve(&parked.request_id).await.unwrap(), pending);
    fixture.submit(&model, 1).await.unwrap();
    assert_eq!(fixture.claim_seqs().await, [1, 2, 3]);
}

#[tokio::test]
async fn a_refused_id_takes_its_place() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    fixture.submit(&model, 2).await.unwrap();
    let mut refused = request(&model, 1, b"bad");
    refused.refused = Some(failure("no such token"));
    let refused = fixture.store.submit(&fixture.tenant, refused).await.unwrap();
    assert_eq!(fixture.claim_seqs().await, [0, 2]);
    let expected = Retrieved::Finished {
        kind: RequestKind::ForwardBackward,
        outcome: Outcome::Failed(failure("no such token")),
    };
    assert_eq!(fixture.retrieve(&refused.request_id).await.unwrap(), expected);
}

#[tokio::test]
async fn a_gap_is_given_up_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    fixture.claim_seqs().await;
    fixture.submit(&model, 2).await.unwrap();
    let parked = fixture.submit(&model, 3).await.unwrap().request_id;
    fixture.clock.advance(Duration::from_secs(599));
    assert_eq!(fixture.claim_seqs().await, [0; 0]);
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(fixture.claim_seqs().await, [0; 0]);
    let expected = Retrieved::Finished {
        kind: RequestKind::ForwardBackward,
        outcome: Outcome::Failed(failure("seq 1 never arrived")),
    };
    assert_eq!(fixture.retrieve(&parked).await.unwrap(), expected);

    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.retrieve(&parked).await.unwrap(), expected);
    let late = fixture.submit(&model, 1).await.unwrap().request_id;
    let Retrieved::Finished { outcome: Outcome::Failed(late), .. } =
        fixture.retrieve(&late).await.unwrap()
    else {
        panic!("the late one is not failed")
    };
    assert_eq!(late, failure("seq 1 arrived after its turn had passed"));
    fixture.submit(&model, 4).await.unwrap();
    assert_eq!(fixture.claim_seqs().await, [0, 4]);
}

#[tokio::test]
async fn runs_take_turns() {
    let fixture = Fixture::new(None).await;
    for number in 0..3 {
        let model = fixture.create_run(number).await;
        fixture.submit(&model, 1).await.unwrap();
    }
    assert_eq!(seqs(&fixture.store.claim(4, Duration::ZERO).await.unwrap()), [0, 0, 0, 1]);
    assert_eq!(fixture.claim_seqs().await, [1, 1]);
}

#[tokio::test]
async fn a_request_without_an_id_gets_the_next_one() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    for body in [b"x", b"y"] {
        let mut new = request(&model, 0, body);
        new.seq_id = None;
        assert!(fixture.store.submit(&fixture.tenant, new).await.unwrap().fresh);
    }
    assert_eq!(fixture.claim_seqs().await, [0, 1, 2]);
}

#[tokio::test]
async fn a_run_takes_so_many_unfinished_requests() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    for seq in 1..20 {
        fixture.submit(&model, seq).await.unwrap();
    }
    let full = fixture.submit(&model, 20).await;
    assert!(matches!(full, Err(Error::Full)), "{full:?}");
    assert!(!fixture.submit(&model, 19).await.unwrap().fresh);
    let first = fixture.store.claim(1, Duration::ZERO).await.unwrap().remove(0);
    fixture.store.complete(vec![done(&first.request_id, "x")]).await.remove(0).unwrap();
    assert!(fixture.submit(&model, 20).await.unwrap().fresh);
    // What parked requests wait for is let in even so.
    let other = fixture.create_run(1).await;
    for seq in 2..21 {
        fixture.submit(&other, seq).await.unwrap();
    }
    let full = fixture.submit(&other, 21).await;
    assert!(matches!(full, Err(Error::Full)), "{full:?}");
    assert!(fixture.submit(&other, 1).await.unwrap().fresh);
}

#[tokio::test]
async fn large_bodies_and_results_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let mut ids = Vec::new();
    for seq in 1..8 {
        let body = [u8::try_from(seq).unwrap(); 1500];
        let submitted = fixture.store.submit(&fixture.tenant, request(&model, seq, &body)).await;
        ids.push(submitted.unwrap().request_id);
    }
    let results: Vec<_> = (0..7).map(|number| format!("{number}").repeat(1500)).collect();
    let completed = vec![done(&ids[0], &results[0]), done(&ids[1], &results[1])];
    for completed in fixture.store.complete(completed).await {
        completed.unwrap();
    }
    let fixture = fixture.reopen(dir.path());
    for place in 0..2 {
        let expected = Retrieved::Finished {
            kind: RequestKind::ForwardBackward,
            outcome: Outcome::Done(results[place].clone().into()),
        };
        assert_eq!(fixture.retrieve(&ids[place]).await.unwrap(), expected);
    }
    let claimed = fixture.store.claim(100, Duration::ZERO).await.unwrap();
    assert_eq!(seqs(&claimed), [0, 3, 4, 5, 6, 7]);
    for (claimed, byte) in claimed[1..].iter().zip(3..) {
        assert_eq!(claimed.body, vec![byte; 1500]);
    }
}

#[tokio::test]
async fn a_claim_stops_at_so_many_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let (model, other) = (fixture.create_run(0).await, fixture.create_run(1).await);
    fixture.claim_seqs().await;
    // In memory as long as there is room, inline in a row, in the spool, and larger than the limit.
    for (seq, length) in [(1, 1500), (2, 50), (3, 7000), (4, 9000), (5, 9000), (6, 10)] {
        let body = vec![1; length];
        fixture.store.submit(&fixture.tenant, request(&model, seq, &body)).await.unwrap();
    }
    assert_eq!(fixture.claim_seqs().await, [1, 2, 3]);
    // Runs go on taking turns.
    let small = request(&other, 1, b"small");
    fixture.store.submit(&fixture.tenant, small).await.unwrap();
    assert_eq!(fixture.claim_seqs().await, [4]);
    assert_eq!(fixture.claim_seqs().await, [1, 5]);
    assert_eq!(fixture.claim_seqs().await, [6]);

    let fixture = fixture.reopen(dir.path());
    let mut claims = Vec::new();
    while let claimed @ [_, ..] = &fixture.store.claim(100, Duration::ZERO).await.unwrap()[..] {
        let bytes: usize = claimed.iter().map(|claimed| claimed.body.len()).sum();
        claims.push((claimed.len(), bytes));
    }
    assert_eq!(claims, [(6, 8567), (1, 9000), (1, 9000), (1, 10)]);
}

#[tokio::test]
async fn waiters_wake_at_the_end() {
    let fixture = Fixture::new(None).await;
    let model = fixture.create_run(0).await;
    let id = fixture.submit(&model, 1).await.unwrap().request_id;
    let hour = Duration::from_secs(3600);
    let waiters: Vec<_> = (0..100)
        .map(|_| {
            let (store, tenant, id) = (fixture.store.clone(), fixture.tenant.clone(), id.clone());
            tokio::spawn(async move { store.retrieve(&tenant, &id, hour).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let claimed = fixture.store.claim(2, hour).await.unwrap();
    fixture.store.complete(vec![done(&claimed[1].request_id, "x")]).await.remove(0).unwrap();
    for waiter in waiters {
        let retrieved = waiter.await.unwrap().unwrap();
        assert!(matches!(retrieved, Retrieved::Finished { .. }), "{retrieved:?}");
    }
}

#[tokio::test]
async fn a_claim_waits_for_work_and_loses_none() {
    let fixture = Fixture::new(None).await;
    let store = fixture.store.clone();
    let claim = tokio::spawn(async move { store.claim(1, Duration::from_secs(3600)).await });
    tokio::task::yield_now().await;
    fixture.create_run(0).await;
    assert_eq!(seqs(&claim.await.unwrap().unwrap()), [0]);
}

#[tokio::test]
async fn results_go_after_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let id = fixture.submit(&model, 1).await.unwrap().request_id;
    fixture.store.complete(vec![done(&id, "x")]).await.remove(0).unwrap();
    let fixture = fixture.reopen(dir.path());
    fixture.clock.advance(Duration::from_secs(35_999));
    fixture.store.sweep().await.unwrap();
    assert!(matches!(fixture.retrieve(&id).await.unwrap(), Retrieved::Finished { .. }));
    fixture.clock.advance(Duration::from_secs(1));
    fixture.store.sweep().await.unwrap();
    assert_eq!(fixture.retrieve(&id).await.unwrap(), Retrieved::Gone);
    assert_eq!(fixture.submit(&model, 1).await.unwrap().request_id, id);
}

#[tokio::test]
async fn a_completion_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let model = fixture.create_run(0).await;
    let id = fixture.submit(&model, 1).await.unwrap().request_id;
    for result in ["first", "second"] {
        fixture.store.complete(vec![done(&id, result)]).await.remove(0).unwrap();
    }
    let expected = Retrieved::Finished {
        kind: RequestKind::ForwardBackward,
        outcome: Outcome::Done("first".into()),
    };
    assert_eq!(fixture.retrieve(&id).await.unwrap(), expected);
    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.retrieve(&id).await.unwrap(), expected);
    let unknown = fixture.store.complete(vec![done(&"req-0".into(), "x")]).await.remove(0);
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
}
