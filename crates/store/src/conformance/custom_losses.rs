//! Losses that clients sent.

use tinsmith_types::ids::{LossId, SessionId, TenantId};

use crate::{Error, NewCustomLoss, conformance::Fixture};

fn new(session: &SessionId, number: i64, body: &'static [u8]) -> NewCustomLoss {
    NewCustomLoss {
        id: LossId::of(session, number),
        session_id: session.clone(),
        body: body.into(),
        digest: *blake3::hash(body).as_bytes(),
    }
}

#[tokio::test]
async fn are_made_once_and_found_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Some(directory.path())).await;
    let (tenant, session) = (fixture.tenant.clone(), fixture.session.clone());
    for _ in 0..2 {
        let made = fixture.store.create_custom_loss(&tenant, new(&session, 0, b"one"), 2).await;
        assert!(made.unwrap());
    }
    let other = fixture.store.create_custom_loss(&tenant, new(&session, 0, b"two"), 2).await;
    assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");
    assert!(fixture.store.create_custom_loss(&tenant, new(&session, 1, b"two"), 2).await.unwrap());
    assert!(!fixture.store.create_custom_loss(&tenant, new(&session, 2, b"six"), 2).await.unwrap());

    let fixture = fixture.reopen(directory.path());
    let id = LossId::of(&session, 0);
    let found = fixture.store.custom_loss(&tenant, &id).await.unwrap();
    assert_eq!((found.session_id, &found.body[..]), (session.clone(), &b"one"[..]));
    let foreign = TenantId::from("b");
    let hidden = fixture.store.custom_loss(&foreign, &id).await;
    assert!(matches!(hidden, Err(Error::NotFound { .. })), "{hidden:?}");
    let refused = fixture.store.create_custom_loss(&foreign, new(&session, 3, b"x"), 9).await;
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
}

#[tokio::test]
async fn go_with_their_session() {
    let fixture = Fixture::new(None).await;
    let (tenant, session) = (fixture.tenant.clone(), fixture.session.clone());
    assert!(fixture.store.create_custom_loss(&tenant, new(&session, 0, b"one"), 2).await.unwrap());
    fixture.store.finish_session(&tenant, &session, "success", None).await.unwrap();
    fixture.store.sweep().await.unwrap();
    let id = LossId::of(&session, 0);
    assert!(fixture.store.custom_loss(&tenant, &id).await.is_ok());
    fixture.clock.advance(std::time::Duration::from_secs(86_401));
    fixture.store.sweep().await.unwrap();
    let gone = fixture.store.custom_loss(&tenant, &id).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
}
