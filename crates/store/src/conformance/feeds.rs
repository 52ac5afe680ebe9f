//! What a client that waits for all its samples at once is told.

use std::time::Duration;

use tinsmith_types::{
    futures::SAMPLES_PER_CLONE,
    ids::{RequestId, SamplingSessionId},
};

use super::{
    Fixture, done, failure,
    samples::{sample, sampler},
};
use crate::{Completion, Effect, EndedSample, Error, FeedPage, FeedQuery, Outcome, Retrieved};

const MINUTE: Duration = Duration::from_secs(60);

fn query(sampler: &SamplingSessionId, cursor: u64) -> FeedQuery {
    FeedQuery { sampling_session_id: sampler.clone(), clone: 0, cursor, retrieved: Vec::new() }
}

async fn ask(fixture: &Fixture, sampler: &SamplingSessionId, cursor: u64) -> FeedPage {
    let query = query(sampler, cursor);
    fixture.store.feed(&fixture.tenant, query, Duration::ZERO).await.unwrap()
}

async fn submit(fixture: &Fixture, sampler: &SamplingSessionId, seq: i64) -> RequestId {
    let new = sample(sampler, seq);
    fixture.store.submit_sample(&fixture.tenant, new).await.unwrap().request_id
}

async fn finish(fixture: &Fixture, id: &RequestId) {
    fixture.store.complete(vec![done(id, "tokens")]).await.remove(0).unwrap();
}

fn ended(id: &RequestId, bytes: Option<usize>) -> EndedSample {
    EndedSample { request_id: id.clone(), bytes }
}

#[tokio::test]
async fn ends_are_told_in_their_order_and_after_the_cursor() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    assert_eq!(ask(&fixture, &sampler, 0).await, FeedPage { ended: Vec::new(), cursor: 0 });
    let mut ids = Vec::new();
    for seq in 0..6 {
        ids.push(submit(&fixture, &sampler, seq).await);
    }
    finish(&fixture, &ids[1]).await;
    let outcome = Outcome::Failed(failure("no"));
    let failed =
        Completion { request_id: ids[0].clone(), outcome, digest: None, effect: Effect::None };
    fixture.store.complete(vec![failed]).await.remove(0).unwrap();
    let first = ask(&fixture, &sampler, 0).await;
    assert_eq!(first.ended, [ended(&ids[1], Some(6)), ended(&ids[0], None)]);
    for id in &ids[2..] {
        finish(&fixture, id).await;
    }
    let second = ask(&fixture, &sampler, first.cursor).await;
    let expected: Vec<EndedSample> = ids[2..].iter().map(|id| ended(id, Some(6))).collect();
    assert_eq!(second.ended, expected);
    let none = ask(&fixture, &sampler, second.cursor).await;
    assert_eq!(none, FeedPage { ended: Vec::new(), cursor: second.cursor });
    // Another client of the feed has missed nothing; a page has a limit.
    let again = ask(&fixture, &sampler, 0).await;
    assert_eq!(again.ended.len(), 4);
    assert_eq!(ask(&fixture, &sampler, again.cursor).await.ended, expected[2..]);
    // A cursor from nowhere begins from the beginning.
    assert_eq!(ask(&fixture, &sampler, u64::MAX).await, again);
}

#[tokio::test]
async fn every_clone_has_its_own() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let tenant = &fixture.tenant;
    let clone = fixture.store.join_sampler(tenant, &sampler).await.unwrap();
    assert_eq!(clone, 1);
    let own = submit(&fixture, &sampler, 0).await;
    let other = submit(&fixture, &sampler, clone * SAMPLES_PER_CLONE).await;
    finish(&fixture, &other).await;
    assert_eq!(ask(&fixture, &sampler, 0).await.ended, []);
    finish(&fixture, &own).await;
    assert_eq!(ask(&fixture, &sampler, 0).await.ended, [ended(&own, Some(6))]);
    let theirs = FeedQuery { clone, ..query(&sampler, 0) };
    let page = fixture.store.feed(tenant, theirs, Duration::ZERO).await.unwrap();
    assert_eq!(page.ended, [ended(&other, Some(6))]);
    let foreign = fixture.store.feed(&"b".into(), query(&sampler, 0), Duration::ZERO).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
    let foreign = fixture.store.join_sampler(&"b".into(), &sampler).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
}

#[tokio::test]
async fn clones_are_counted_across_starts() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let sampler = sampler(&fixture).await;
    for expected in [1, 2] {
        let joined = fixture.store.join_sampler(&fixture.tenant, &sampler).await;
        assert_eq!(joined.unwrap(), expected);
    }
    let fixture = fixture.reopen(dir.path());
    assert_eq!(fixture.store.join_sampler(&fixture.tenant, &sampler).await.unwrap(), 3);
}

#[tokio::test]
async fn who_waits_is_woken_at_once() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await;
    let wait = || fixture.store.feed(&fixture.tenant, query(&sampler, 0), MINUTE);
    let ((), first, second) = tokio::join!(
        async {
            tokio::task::yield_now().await;
            finish(&fixture, &id).await;
        },
        wait(),
        wait(),
    );
    assert_eq!(first.unwrap().ended, [ended(&id, Some(6))]);
    assert_eq!(second.unwrap().ended, [ended(&id, Some(6))]);
}

#[tokio::test]
async fn what_was_received_is_dropped() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let (first, second) =
        (submit(&fixture, &sampler, 0).await, submit(&fixture, &sampler, 1).await);
    finish(&fixture, &first).await;
    // What has not ended stays, whatever is said of it; and nobody speaks for another tenant.
    let retrieved = vec![first.clone(), second.clone(), "unknown".into()];
    let received = FeedQuery { retrieved, ..query(&sampler, 0) };
    let foreign = fixture.store.feed(&"b".into(), received.clone(), Duration::ZERO).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
    assert!(matches!(fixture.retrieve(&first).await.unwrap(), Retrieved::Finished { .. }));
    let page = fixture.store.feed(&fixture.tenant, received, Duration::ZERO).await.unwrap();
    assert_eq!(page.ended, []);
    assert_eq!(fixture.retrieve(&first).await.unwrap(), Retrieved::Gone);
    assert!(matches!(fixture.retrieve(&second).await.unwrap(), Retrieved::Pending(_)));
}

#[tokio::test]
async fn what_was_never_received_is_told_when_it_is_gone() {
    let fixture = Fixture::new(None).await;
    let sampler = sampler(&fixture).await;
    let id = submit(&fixture, &sampler, 0).await;
    finish(&fixture, &id).await;
    assert_eq!(ask(&fixture, &sampler, 0).await.ended, [ended(&id, Some(6))]);
    fixture.clock.advance(Duration::from_secs(600));
    fixture.store.sweep().await.unwrap();
    let page = ask(&fixture, &sampler, 0).await;
    assert_eq!(page.ended, [ended(&id, None)]);
    assert_eq!(fixture.retrieve(&id).await.unwrap(), Retrieved::Gone);
    // Once it has been seen, nothing is left of it.
    assert_eq!(ask(&fixture, &sampler, page.cursor).await.ended, []);
    assert_eq!(ask(&fixture, &sampler, 0).await.ended, []);
    // The number can be used again, and what is left of its first use does not end it.
    assert_eq!(submit(&fixture, &sampler, 0).await, id);
    fixture.store.sweep().await.unwrap();
    assert!(matches!(fixture.retrieve(&id).await.unwrap(), Retrieved::Pending(_)));
}

#[tokio::test]
async fn what_an_earlier_start_lost_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let sampler = sampler(&fixture).await;
    let first = submit(&fixture, &sampler, 3).await;
    finish(&fixture, &first).await;
    let cursor = ask(&fixture, &sampler, 0).await.cursor;
    let second = submit(&fixture, &sampler, 4).await;

    let fixture = fixture.reopen(dir.path());
    let third = submit(&fixture, &sampler, 5).await;
    finish(&fixture, &third).await;
    let mut told = Vec::new();
    let mut at = cursor;
    loop {
        let page = ask(&fixture, &sampler, at).await;
        assert!(page.ended.is_empty() || page.cursor > at);
        at = page.cursor;
        if page.ended.is_empty() {
            break;
        }
        told.extend(page.ended);
    }
    assert!(told.contains(&ended(&first, None)), "a page was told of, and may not have come");
    assert!(told.contains(&ended(&second, None)));
    assert!(told.contains(&ended(&third, Some(6))));
    assert_eq!(told.len(), 256 + 1);
    assert_eq!(fixture.retrieve(&second).await.unwrap(), Retrieved::Gone);

    // Once they have been seen, no later start tells them again.
    fixture.store.sweep().await.unwrap();
    let fixture = fixture.reopen(dir.path());
    let page = ask(&fixture, &sampler, 0).await;
    assert!(page.ended.iter().all(|ended| ended.request_id != second), "{page:?}");
}

#[tokio::test]
async fn blocks_without_samples_are_not_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(dir.path())).await;
    let sampler = sampler(&fixture).await;
    for seq in [0, 255, 256, SAMPLES_PER_CLONE, -1] {
        let id = submit(&fixture, &sampler, seq).await;
        finish(&fixture, &id).await;
        fixture.retrieve(&id).await.unwrap();
    }
    let open = submit(&fixture, &sampler, 512).await;
    fixture.clock.advance(Duration::from_secs(600));
    fixture.store.sweep().await.unwrap();
    fixture.store.sweep().await.unwrap();
    let fixture = fixture.reopen(dir.path());
    let page = ask(&fixture, &sampler, 0).await;
    // The first number of the only block that is left.
    assert_eq!(page.ended.first(), Some(&ended(&open, None)));
    assert_eq!(page.ended.len(), 4);
}
