//! Sessions are found by what is known of them.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use tinsmith_types::ids::SessionId;

use super::{Fixture, new_session};
use crate::{SessionSearch, SessionStatus, StatusFilter};

async fn make(fixture: &Fixture, name: &str, project: Option<&str>) -> SessionId {
    fixture.clock.advance(Duration::from_secs(1));
    let mut new = new_session();
    new.display_name = Some(name.to_owned());
    new.project_id = project.map(str::to_owned);
    new.user_metadata = json!({"k": name, "n": 1});
    fixture.store.create_session(&fixture.tenant, new, None).await.unwrap().id
}

fn search() -> SessionSearch {
    SessionSearch { limit: 10, ..SessionSearch::default() }
}

async fn find(fixture: &Fixture, search: SessionSearch) -> Vec<SessionId> {
    let page = fixture.store.search_sessions(&fixture.tenant, search).await.unwrap();
    assert_eq!(page.next, None);
    page.sessions.into_iter().map(|found| found.record.id).collect()
}

#[tokio::test]
async fn filters_hold_together() {
    let fixture = Fixture::new(None).await;
    let one = make(&fixture, "Nightly Grüße", Some("p")).await;
    let two = make(&fixture, "nightly", None).await;
    let first = fixture.session.clone();
    let check = async |search: SessionSearch, expected: &[&SessionId]| {
        assert_eq!(find(&fixture, search).await.iter().collect::<Vec<_>>(), expected);
    };
    check(search(), &[&two, &one, &first]).await;
    let named = |name: &str| Some(name.to_owned());
    check(SessionSearch { display_name: named("NIGHT"), ..search() }, &[&two, &one]).await;
    check(SessionSearch { display_name: named("grÜSSE"), ..search() }, &[]).await;
    check(SessionSearch { display_name: named("GRÜßE night"), ..search() }, &[&one]).await;
    let either =
        SessionSearch { display_name: named("grüße"), id: Some(two.clone()), ..search() };
    check(either, &[&two, &one]).await;
    check(SessionSearch { id: Some(first.clone()), ..search() }, &[&first]).await;
    let project = |name: &str| Some(vec![name.to_owned()]);
    check(SessionSearch { projects: project("p"), ..search() }, &[&one]).await;
    check(SessionSearch { projects: project("default"), ..search() }, &[&two, &first]).await;
    let noted = |key: &str, value: &str| SessionSearch {
        user_metadata: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..search()
    };
    check(noted("k", "nightly"), &[&two]).await;
    check(noted("n", "1"), &[]).await;
    assert_eq!(fixture.store.search_sessions(&"b".into(), search()).await.unwrap().sessions, []);
}

#[tokio::test]
async fn statuses_are_told_apart() {
    let fixture = Fixture::new(None).await;
    let (store, tenant) = (&fixture.store, &fixture.tenant);
    let model = fixture.create_run(0).await;
    let done = make(&fixture, "done", None).await;
    let told = Some("by hand");
    store.finish_session(tenant, &done, "interrupted", told).await.unwrap();
    let active = make(&fixture, "active", None).await;
    store.mark_run(tenant, &model, Some("bad".to_owned()), None).await.unwrap();
    let status = async |id: &SessionId| {
        let search = SessionSearch { id: Some(id.clone()), ..search() };
        store.search_sessions(tenant, search).await.unwrap().sessions.remove(0).status
    };
    let failed = SessionStatus::Failed { model_id: model.clone(), message: "bad".to_owned() };
    assert_eq!(status(&fixture.session).await, failed);
    let (reason, detail) = ("interrupted".to_owned(), told.map(str::to_owned));
    assert_eq!(status(&done).await, SessionStatus::ClientFinished { reason, detail });
    assert_eq!(status(&active).await, SessionStatus::Active);
    let with = async |filter: StatusFilter| {
        find(&fixture, SessionSearch { statuses: Some(vec![filter]), ..search() }).await
    };
    assert_eq!(with(StatusFilter::Active).await, vec![active.clone()]);
    assert_eq!(with(StatusFilter::Failed).await, vec![fixture.session.clone()]);
    assert_eq!(with(StatusFilter::ClientFinished(None)).await, vec![done.clone()]);
    let success = Some(vec!["success".to_owned()]);
    assert_eq!(with(StatusFilter::ClientFinished(success)).await, []);
    fixture.clock.advance(Duration::from_secs(86_400));
    store.sweep().await.unwrap();
    assert_eq!(with(StatusFilter::Cancelled).await, [active]);
}

#[tokio::test]
async fn pages_follow_each_other() {
    let fixture = Fixture::new(None).await;
    let mut expected = vec![fixture.session.clone()];
    for number in 0..4 {
        expected.push(make(&fixture, &number.to_string(), None).await);
    }
    expected.reverse();
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let search = SessionSearch { limit: 2, after, ..SessionSearch::default() };
        let page = fixture.store.search_sessions(&fixture.tenant, search).await.unwrap();
        assert!(page.sessions.len() <= 2);
        found.extend(page.sessions.into_iter().map(|found| found.record.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
}
