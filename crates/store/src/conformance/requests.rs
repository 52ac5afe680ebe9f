//! Submission, order, completion, retrieval.

use std::time::Duration;

use super::{Fixture, done, failure, request};
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
