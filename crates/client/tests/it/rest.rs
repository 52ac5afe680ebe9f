//! The clients without a session: their requests are those of the official SDK's recordings.

use std::{path::Path, sync::Arc};

use serde_json::Value;
use tinsmith::{
    AccessScope, AdminClient, ApiFuture, AuditEventType, CopyOptions, Error, ListOptions,
    RestClient, TinkerPath,
    testing::{Answer, MockServer, Recording, TestClock},
};
use tinsmith_types::search::{FinishReasonName, SearchOwner, SearchSessionsRequest, StatusQuery};

const PATH: &str = "tinker://run-1/weights/step-1";

fn recording(operation: &str) -> Recording {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings/0.38.0");
    Recording::read(folder.join(format!("{operation}.json"))).unwrap()
}

/// What a client asked, but for what every client asks first.
fn asked(server: &MockServer) -> Vec<(String, String, Value, Value)> {
    let seen = server.requests().into_iter().filter(|seen| !seen.endpoint().starts_with("client/"));
    seen.map(|seen| {
        let query = serde_json::to_value(&seen.query).unwrap();
        (seen.method, seen.path, query, seen.body)
    })
    .collect()
}

/// Serves a recording, makes the call, and compares what was asked.
fn check<T: Send + 'static>(
    operation: &str,
    call: impl FnOnce(&RestClient, &AdminClient) -> ApiFuture<T>,
) -> T {
    let recording = recording(operation);
    let server = MockServer::start().unwrap();
    server.replay(&recording).unwrap();
    let config = server.config().to_builder().clock(Arc::new(TestClock::new())).build().unwrap();
    let (rest, admin) =
        (RestClient::new(config.clone()).unwrap(), AdminClient::new(config).unwrap());
    let answer = call(&rest, &admin).wait().unwrap();
    let exchanges = recording.exchanges.into_iter().map(|exchange| exchange.request);
    let expected: Vec<_> = exchanges
        .filter(|request| !request.endpoint().starts_with("client/"))
        // Links are for whoever wants them.
        .filter(|request| request.path.starts_with("/api/"))
        .map(|request| {
            let body = request.says().clone();
            (request.method, request.path, serde_json::to_value(&request.query).unwrap(), body)
        })
        .collect();
    assert_eq!(asked(&server), expected, "{operation}");
    answer
}

#[test]
fn runs_are_asked_for_as_recorded() {
    let run = check("rest.get_training_run", |rest, _| rest.get_training_run("run-1"));
    assert_eq!((run.training_run_id.as_str(), run.lora_rank), ("run-1", Some(32)));
    check("rest.get_training_run_by_tinker_path", |rest, _| {
        rest.get_training_run_by_tinker_path(PATH)
    });
    let options = ListOptions::new().limit(2);
    let runs = check("rest.list_training_runs", |rest, _| rest.list_training_runs(options));
    assert_eq!(runs.training_runs.len(), 2);
    let options = ListOptions::new().limit(1).offset(1).project_id("proj-1");
    check("rest.list_training_runs__scoped", |rest, _| {
        rest.with_access_scope(AccessScope::Accessible).list_training_runs(options)
    });
    let info = check("rest.get_weights_info_by_tinker_path", |rest, _| {
        rest.get_weights_info_by_tinker_path(PATH)
    });
    assert_eq!((info.lora_rank, info.train_mlp), (Some(32), Some(true)));
}

#[test]
fn checkpoints_are_asked_for_as_recorded() {
    let listed = check("rest.list_checkpoints", |rest, _| rest.list_checkpoints("run-1"));
    assert_eq!(listed.checkpoints.len(), 3);
    let options = ListOptions::new().limit(2).offset(1);
    check("rest.list_user_checkpoints", |rest, _| rest.list_user_checkpoints(options));
    let urls = check("rest.get_external_weights_urls", |rest, _| {
        rest.get_external_weights_urls("tinker://run-1/external_weights/final")
    });
    assert_eq!(urls.urls.len(), 2);
    check("rest.delete_checkpoint", |rest, _| rest.delete_checkpoint("run-1", "weights/step-1"));
    let path: TinkerPath = PATH.parse().unwrap();
    check("rest.delete_checkpoint_from_tinker_path", |rest, _| {
        rest.delete_checkpoint_from_tinker_path(&path)
    });
    check("rest.delete_checkpoint_from_tinker_path", |rest, _| {
        rest.delete_checkpoint_by_tinker_path(path)
    });
    check("rest.publish_checkpoint_from_tinker_path", |rest, _| {
        rest.publish_checkpoint_from_tinker_path(PATH)
    });
    check("rest.publish_checkpoint_from_tinker_path", |rest, _| rest.publish_checkpoint(PATH));
    check("rest.unpublish_checkpoint_from_tinker_path", |rest, _| {
        rest.unpublish_checkpoint_from_tinker_path(PATH)
    });
    check("rest.unpublish_checkpoint_from_tinker_path", |rest, _| rest.unpublish_checkpoint(PATH));
    check("rest.set_checkpoint_ttl_from_tinker_path", |rest, _| {
        rest.set_checkpoint_ttl_from_tinker_path(PATH, Some(7200))
    });
    check("rest.set_checkpoint_ttl_from_tinker_path__remove", |rest, _| {
        rest.set_checkpoint_ttl_from_tinker_path(PATH, None)
    });
    let options = CopyOptions::default().destination_project_id("proj-2").ttl_seconds(3600);
    let copy = check("rest.copy_weights", |rest, _| rest.copy_weights(PATH, options));
    assert_eq!(copy, "tinker://00000000-0000-4000-8000-0000000000aa:train:0/weights/step-1");
}

#[test]
fn sessions_are_asked_for_as_recorded() {
    let session = check("rest.get_session", |rest, _| rest.get_session("session-a"));
    assert_eq!(session.sampler_ids[0].as_str(), "session-a:sample:0");
    let options = ListOptions::new().limit(5).offset(1);
    check("rest.list_sessions", |rest, _| rest.list_sessions(options));
    check("rest.get_sampler", |rest, _| rest.get_sampler("session-a:sample:0"));
    check("rest.assign_session_project", |rest, _| {
        rest.assign_session_project("session-a", "proj-2")
    });
    // The first look finds it pending.
    let url = check("rest.export_session_trace", |rest, _| rest.export_session_trace("session-a"));
    assert!(url.ends_with("/dl/trace.pftrace"), "{url}");
    let reasons = Some(vec![FinishReasonName::Success]);
    let request = SearchSessionsRequest {
        user_metadata: [("k".to_owned(), "v".to_owned())].into(),
        display_name: Some("nightly".to_owned()),
        owner: SearchOwner::Accessible,
        statuses: Some(vec![StatusQuery::Active, StatusQuery::ClientFinished { reasons }]),
        limit: 50,
        ..SearchSessionsRequest::default()
    };
    let found = check("rest.search_sessions", |rest, _| rest.search_sessions(request));
    assert!(found.next_cursor.is_some());
    let models = check("rest.get_server_capabilities", |rest, _| rest.get_server_capabilities());
    assert_eq!(models.supported_models.len(), 2);
}

#[test]
fn administrators_ask_as_recorded() {
    check("admin.get_audit_log", |_, admin| admin.get_audit_log(AuditEventType::All, None));
    check("rest.get_audit_log", |rest, _| rest.get_audit_log(AuditEventType::All, None));
    check("admin.get_audit_log__day", |_, admin| {
        admin.get_audit_log(AuditEventType::Checkpoints, Some("2026-01-02"))
    });
    let (from, to) = ("2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z");
    let used = check("admin.get_billing_usage", |_, admin| admin.get_billing_usage(from, to));
    assert!(!used.data.is_empty());
    check("rest.get_billing_usage", |rest, _| rest.get_billing_usage(from, to));
    let kept = check("admin.get_current_checkpoint_storage_usage", |_, admin| {
        admin.get_current_checkpoint_storage_usage(Some("proj-1"))
    });
    assert_eq!(kept.data[0].checkpoint_count, 2);
}

fn client() -> (MockServer, RestClient) {
    let server = MockServer::start().unwrap();
    let rest = RestClient::new(server.config()).unwrap();
    (server, rest)
}

fn queries(server: &MockServer, endpoint: &str) -> Vec<(String, String)> {
    let of = |seen: tinsmith::testing::Seen| {
        let field = |name: &str| seen.query.get(name).cloned().unwrap_or_default();
        (field("limit"), field("offset"))
    };
    server.seen(endpoint).into_iter().map(of).collect()
}

#[test]
fn pages_are_twenty_or_a_hundred_long_where_it_is_not_said() {
    let (server, rest) = client();
    rest.list_training_runs(ListOptions::new()).wait().unwrap();
    rest.list_sessions(ListOptions::new()).wait().unwrap();
    rest.list_user_checkpoints(ListOptions::new()).wait().unwrap();
    let page = |limit: &str| vec![(limit.to_owned(), "0".to_owned())];
    assert_eq!(queries(&server, "training_runs"), page("20"));
    assert_eq!(queries(&server, "sessions"), page("20"));
    assert_eq!(queries(&server, "checkpoints"), page("100"));
}

#[test]
fn whole_lists_are_fetched_page_by_page_as_they_are_read() {
    let (server, rest) = client();
    for step in 0..7 {
        server.add_checkpoint(&format!("tinker://run-1/weights/step-{step}"));
    }
    let mut pages = rest.user_checkpoints(ListOptions::new().limit(3)).into_iter();
    assert_eq!(queries(&server, "checkpoints"), []);
    assert!(pages.next().unwrap().is_ok());
    assert_eq!(queries(&server, "checkpoints").len(), 1);
    let rest_of_them: Vec<_> = pages.collect::<Result<_, _>>().unwrap();
    assert_eq!(rest_of_them.len(), 6);
    let offsets = queries(&server, "checkpoints").into_iter().map(|(_, offset)| offset);
    assert_eq!(offsets.collect::<Vec<_>>(), ["0", "3", "6"]);
}

#[tokio::test]
async fn pages_are_read_in_async_code_too_and_end_with_an_error() {
    let (server, rest) = client();
    for step in 0..5 {
        server.add_checkpoint(&format!("tinker://run-1/weights/step-{step}"));
    }
    let all = rest.user_checkpoints(ListOptions::new().limit(2)).all().await.unwrap();
    assert_eq!(all.len(), 5);
    server.when("checkpoints").answer(Answer::status(403, "not yours"));
    let mut pages = rest.user_checkpoints(ListOptions::new());
    assert!(matches!(pages.next().await, Some(Err(Error::Api { status: 403, .. }))));
    assert!(pages.next().await.is_none());
    // Waiting would hold the runtime up.
    let mut blocking = rest.user_checkpoints(ListOptions::new()).into_iter();
    assert!(matches!(blocking.next(), Some(Err(Error::Validation { .. }))));
    assert!(blocking.next().is_none());
}

#[test]
fn what_makes_no_sense_is_not_sent() {
    let (server, rest) = client();
    let refused = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::Validation { .. })), "{result:?}");
    };
    refused(rest.get_training_run("").wait().map(drop));
    refused(rest.get_session("..").wait().map(drop));
    refused(rest.list_checkpoints(&"x".repeat(5000)).wait().map(drop));
    refused(rest.publish_checkpoint("run-1/weights/a").wait());
    refused(rest.delete_checkpoint("run-1", "weights/../../../x").wait());
    refused(rest.set_checkpoint_ttl_from_tinker_path(PATH, Some(5)).wait());
    assert_eq!(asked(&server), []);
    // An id is never more than an id: here the path is as the server decodes it.
    drop(rest.get_training_run("a/../b?c=d").wait());
    let asked = asked(&server);
    assert_eq!(asked[0].1, "/api/v1/training_runs/a/../b?c=d");
    assert_eq!(asked[0].2, serde_json::json!({ "access_scope": "owned" }));
}

#[test]
fn archives_are_answered_as_json_or_as_a_redirect_that_is_not_followed() {
    let (server, rest) = client();
    let endpoint = "training_runs/run-1/checkpoints/weights/step-1/archive";
    let url = server.add_file("/dl/a.tar", "a tar");
    let found = Answer::status(302, "").header("location", &url).header("expires", "then");
    server.when(endpoint).answer(found);
    let answer = rest.get_checkpoint_archive_url_by_tinker_path(PATH).wait().unwrap();
    assert_eq!((answer.url, answer.expires.as_str()), (url.clone(), "then"));
    let body = serde_json::json!({ "url": url, "expires": "2099-01-01T00:00:00Z" });
    server.when(endpoint).answer(Answer::json(body));
    let answer = rest.get_checkpoint_archive_url("run-1", "weights/step-1").wait().unwrap();
    assert_eq!(answer.url, url);
    assert!(server.requests().iter().all(|seen| seen.path != "/dl/a.tar"));
}

#[tokio::test]
async fn every_async_alias_answers() {
    let (server, rest) = client();
    server.add_checkpoint(PATH);
    server.add_checkpoint("tinker://run-1/weights/other");
    let page = ListOptions::new();
    rest.get_server_capabilities_async().await.unwrap();
    rest.get_session_async("session-a").await.unwrap();
    rest.list_sessions_async(page.clone()).await.unwrap();
    assert!(matches!(
        rest.get_sampler_async("invalid-sampler").await,
        Err(Error::Api { status: 404, .. })
    ));
    rest.get_weights_info_by_tinker_path_async(PATH).await.unwrap();
    let listed = rest.list_checkpoints_async("run-1").await.unwrap();
    assert_eq!(listed.checkpoints.len(), 2);
    rest.list_user_checkpoints_async(page.clone()).await.unwrap();
    rest.get_training_run_async("run-1").await.unwrap();
    rest.get_training_run_by_tinker_path_async(PATH).await.unwrap();
    rest.list_training_runs_async(page).await.unwrap();
    rest.publish_checkpoint_async(PATH).await.unwrap();
    rest.publish_checkpoint_from_tinker_path_async(PATH).await.unwrap();
    rest.unpublish_checkpoint_async(PATH).await.unwrap();
    rest.unpublish_checkpoint_from_tinker_path_async(PATH).await.unwrap();
    rest.set_checkpoint_ttl_from_tinker_path_async(PATH, Some(3600)).await.unwrap();
    rest.get_checkpoint_archive_url_async("run-1", "weights/step-1").await.unwrap();
    rest.get_checkpoint_archive_url_by_tinker_path_async(PATH).await.unwrap();
    rest.get_checkpoint_archive_url_from_tinker_path_async(PATH).await.unwrap();
    rest.get_external_weights_urls_async("tinker://run-1/external_weights/a").await.unwrap();
    rest.assign_session_project_async("session-a", "proj").await.unwrap();
    rest.export_session_trace_async("session-a").await.unwrap();
    rest.copy_weights_async(PATH, CopyOptions::default()).await.unwrap();
    rest.delete_checkpoint_async("run-1", "weights/step-1").await.unwrap();
    rest.delete_checkpoint_by_tinker_path_async("tinker://run-1/weights/other").await.unwrap();
}

#[test]
fn every_blocking_twin_answers() {
    let server = MockServer::start().unwrap();
    server.add_checkpoint(PATH);
    server.add_checkpoint("tinker://run-1/weights/other");
    let rest = tinsmith::blocking::RestClient::new(server.config()).unwrap();
    assert!(!rest.list_checkpoints("run-1").unwrap().checkpoints.is_empty());
    assert!(!rest.list_user_checkpoints(ListOptions::new()).unwrap().checkpoints.is_empty());
    rest.list_sessions(ListOptions::new()).unwrap();
    rest.get_session("session-a").unwrap();
    rest.get_training_run("run-1").unwrap();
    rest.list_training_runs(ListOptions::new()).unwrap();
    rest.get_weights_info_by_tinker_path(PATH).unwrap();
    rest.publish_checkpoint(PATH).unwrap();
    rest.unpublish_checkpoint(PATH).unwrap();
    rest.delete_checkpoint("run-1", "weights/step-1").unwrap();
    rest.delete_checkpoint_from_tinker_path("tinker://run-1/weights/other").unwrap();
    let admin = tinsmith::blocking::AdminClient::new(server.config()).unwrap();
    admin.get_audit_log(AuditEventType::All, None).unwrap();
}

/// There is no list of samplers: their ids are in a session.
#[test]
fn samplers_are_found_through_their_session() {
    let server = MockServer::start().unwrap();
    let service = tinsmith::blocking::ServiceClient::connect(server.config()).unwrap();
    service.create_sampling_client("test-model").unwrap();
    let rest = service.inner().create_rest_client();
    let session = rest.get_session(service.session_id().as_str()).wait().unwrap();
    let sampler = rest.get_sampler(session.sampler_ids[0].as_str()).wait().unwrap();
    assert_eq!(sampler.base_model, "test-model");
}

/// What `create_training_client_from_state` does by itself can be done by hand.
#[test]
fn a_run_is_made_from_what_a_checkpoint_says_of_itself() {
    let server = MockServer::start().unwrap();
    server.add_checkpoint(PATH);
    let service = tinsmith::blocking::ServiceClient::connect(server.config()).unwrap();
    let rest = service.inner().create_rest_client();
    let info = rest.get_weights_info_by_tinker_path(PATH).wait().unwrap();
    let rank = info.lora_rank.unwrap();
    let options = tinsmith::LoraOptions::new(info.base_model.as_str()).rank(rank);
    let training = service.create_lora_training_client(options).unwrap();
    training.load_state(PATH).unwrap();
    let asked: Vec<_> =
        server.requests().into_iter().map(|seen| seen.endpoint().to_owned()).collect();
    let place = |endpoint: &str| asked.iter().position(|asked| asked == endpoint).unwrap();
    assert!(place("weights_info") < place("create_model"));
    assert!(place("create_model") < place("load_weights"));
    assert_eq!(server.asked("create_model", "base_model"), [info.base_model]);
}
