//! Every method of the official SDK and of the founding documents is here under its own name, and under its `_async`
//! name where it has one there.

use std::{collections::BTreeSet, fs, path::Path};

use tinsmith::{
    AdamParams, AdminClient, ApiFuture, Config, Error, ListOptions, ModelInput, RestClient,
    SampleOptions, SamplingClient, SamplingParams, ServiceClient, TinkerPath, TrainingClient,
    testing::MockServer,
};

/// Calls every method (in code that never runs), and lists their names.
macro_rules! surface {
    ($($client:ident { $($method:ident($($argument:expr),*);)* })*) => {
        const METHODS: &[(&str, &str)] =
            &[$($((stringify!($client), stringify!($method)),)*)*];

        $(const _: fn(&$client) = |client| {
            $(drop(client.$method($($argument),*));)*
        };)*
    };
}

fn anything<T>() -> T {
    unreachable!("nobody runs this")
}

fn path() -> TinkerPath {
    anything()
}

surface! {
    ServiceClient {
        get_console_url();
        get_server_capabilities();
        get_server_capabilities_async();
        create_lora_training_client("m");
        create_lora_training_client_async("m");
        create_training_client_from_state("p");
        create_training_client_from_state_async("p");
        create_training_client_from_state_with_optimizer("p");
        create_training_client_from_state_with_optimizer_async("p");
        create_sampling_client("m");
        create_sampling_client_async("m");
        create_rest_client();
        copy_weights("p", anything());
        create_custom_loss(anything());
        create_custom_loss_async(anything());
        close();
    }
    TrainingClient {
        get_console_url();
        forward(vec![], "l");
        forward_async(vec![], "l");
        forward_backward(vec![], "l");
        forward_backward_async(vec![], "l");
        optim_step(AdamParams::default());
        optim_step_async(AdamParams::default());
        save_state("n");
        save_state_async("n");
        load_state("p");
        load_state_async("p");
        load_state_with_optimizer("p");
        load_state_with_optimizer_async("p");
        save_weights_for_sampler("n");
        save_weights_for_sampler_async("n");
        save_weights_external("n");
        save_weights_external_async("n");
        save_weights_and_get_sampling_client();
        save_weights_and_get_sampling_client_async();
        get_info();
        get_info_async();
        create_sampling_client("p");
        create_sampling_client_async("p");
    }
    SamplingClient {
        sample(ModelInput::empty(), 1, SamplingParams::default());
        sample_async(ModelInput::empty(), 1, SamplingParams::default());
        sample_with(ModelInput::empty(), SampleOptions::new(1, SamplingParams::default()));
        compute_logprobs(ModelInput::empty());
        compute_logprobs_async(ModelInput::empty());
        get_base_model();
        get_base_model_async();
        get_sampler_handle();
    }
    RestClient {
        get_server_capabilities();
        get_training_run("r");
        get_training_run_async("r");
        get_training_run_by_tinker_path(path());
        get_training_run_by_tinker_path_async(path());
        get_weights_info_by_tinker_path(path());
        get_weights_info_by_tinker_path_async(path());
        list_training_runs(ListOptions::new());
        list_training_runs_async(ListOptions::new());
        list_checkpoints("r");
        list_checkpoints_async("r");
        list_user_checkpoints(ListOptions::new());
        list_user_checkpoints_async(ListOptions::new());
        get_external_weights_urls(path());
        get_external_weights_urls_async(path());
        get_checkpoint_archive_url("r", "weights/c");
        get_checkpoint_archive_url_async("r", "weights/c");
        get_checkpoint_archive_url_by_tinker_path(path());
        get_checkpoint_archive_url_by_tinker_path_async(path());
        get_checkpoint_archive_url_from_tinker_path(path());
        get_checkpoint_archive_url_from_tinker_path_async(path());
        delete_checkpoint("r", "weights/c");
        delete_checkpoint_async("r", "weights/c");
        delete_checkpoint_by_tinker_path(path());
        delete_checkpoint_by_tinker_path_async(path());
        delete_checkpoint_from_tinker_path(path());
        delete_checkpoint_from_tinker_path_async(path());
        publish_checkpoint(path());
        publish_checkpoint_async(path());
        publish_checkpoint_from_tinker_path(path());
        publish_checkpoint_from_tinker_path_async(path());
        unpublish_checkpoint(path());
        unpublish_checkpoint_async(path());
        unpublish_checkpoint_from_tinker_path(path());
        unpublish_checkpoint_from_tinker_path_async(path());
        set_checkpoint_ttl_from_tinker_path(path(), None);
        set_checkpoint_ttl_from_tinker_path_async(path(), None);
        copy_weights(path(), anything());
        copy_weights_async(path(), anything());
        get_session("s");
        get_session_async("s");
        list_sessions(ListOptions::new());
        list_sessions_async(ListOptions::new());
        assign_session_project("s", "p");
        assign_session_project_async("s", "p");
        export_session_trace("s");
        export_session_trace_async("s");
        search_sessions(anything());
        whoami();
        get_sampler("s");
        get_sampler_async("s");
        get_audit_log(anything(), None);
        get_audit_log_async(anything(), None);
        get_billing_usage("a", "b");
        get_billing_usage_async("a", "b");
        get_current_checkpoint_storage_usage(None);
        get_current_checkpoint_storage_usage_async(None);
    }
    AdminClient {
        get_audit_log(anything(), None);
        get_audit_log_async(anything(), None);
        get_billing_usage("a", "b");
        get_billing_usage_async("a", "b");
        get_current_checkpoint_storage_usage(None);
        get_current_checkpoint_storage_usage_async(None);
    }
}

/// Members of the official SDK that are not methods here, and what is in their place.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("ServiceClient", "holder", "the connection is not for users"),
    ("TrainingClient", "forward_backward_custom", "takes a closure: its own tests call it"),
    ("SamplingClient", "create", "an associated function"),
    ("SamplingClient", "from_sampler_handle", "an associated function"),
    ("SamplingClient", "on_queue_state_change", "observers are told, not overridden"),
];

/// The 65 public members of SDK 0.38.0, `_async` twins aside, and `get_telemetry`, which all clients have.
const OFFICIAL: &[(&str, &str)] = &[
    (
        "ServiceClient",
        "holder get_console_url get_server_capabilities create_lora_training_client \
      copy_weights create_training_client_from_state create_training_client_from_state_with_optimizer \
      create_sampling_client create_custom_loss create_rest_client close",
    ),
    (
        "TrainingClient",
        "get_console_url forward forward_backward forward_backward_custom optim_step \
      save_state load_state load_state_with_optimizer save_weights_for_sampler save_weights_external \
      get_info create_sampling_client save_weights_and_get_sampling_client",
    ),
    (
        "SamplingClient",
        "create sample compute_logprobs get_base_model get_sampler_handle \
      from_sampler_handle on_queue_state_change",
    ),
    (
        "RestClient",
        "get_server_capabilities get_training_run get_training_run_by_tinker_path \
      get_weights_info_by_tinker_path list_training_runs list_checkpoints get_external_weights_urls \
      delete_checkpoint delete_checkpoint_from_tinker_path get_audit_log copy_weights \
      publish_checkpoint_from_tinker_path unpublish_checkpoint_from_tinker_path \
      set_checkpoint_ttl_from_tinker_path list_user_checkpoints get_session list_sessions \
      assign_session_project export_session_trace whoami get_sampler get_billing_usage \
      get_current_checkpoint_storage_usage search_sessions",
    ),
    ("AdminClient", "get_audit_log get_billing_usage get_current_checkpoint_storage_usage"),
];

#[test]
fn the_documentation_of_the_service_lists_its_asynchronous_names() {
    let text = include_str!("../../src/service.rs");
    let documentation: String =
        text.lines().take_while(|line| !line.starts_with("pub struct ServiceClient")).collect();
    for (client, name) in METHODS {
        let is_made = *client == "ServiceClient"
            && name.starts_with("create_")
            && name.ends_with("client_async");
        if is_made || *name == "get_server_capabilities_async" {
            assert!(documentation.contains(name), "{name}");
        }
    }
}

#[test]
fn all_official_members_are_here() {
    let official = OFFICIAL
        .iter()
        .flat_map(|(client, names)| names.split_whitespace().map(|name| (*client, name)));
    let missing: Vec<_> = official
        .filter(|member| !METHODS.contains(member))
        .filter(|(client, name)| {
            !OTHERWISE.iter().any(|(of, other, _)| (of, other) == (client, name))
        })
        .collect();
    assert_eq!(missing, []);
}

#[test]
fn all_methods_that_were_recorded_are_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings/0.38.0");
    let mut recorded = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let names = text.split("\"x-sdk-method\": \"").skip(1);
        recorded.extend(names.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert!(recorded.len() > 30, "{recorded:?}");
    for name in recorded {
        let (client, method) = name.split_once('.').unwrap();
        let is_known = METHODS.contains(&(client, method))
            || OTHERWISE.iter().any(|(of, other, _)| (*of, *other) == (client, method));
        assert!(is_known, "{name}");
    }
}

#[test]
fn clients_are_shared_between_threads() {
    fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    fn is_sendable<T: Send + 'static>() {}
    is_shareable::<ServiceClient>();
    is_shareable::<TrainingClient>();
    is_shareable::<SamplingClient>();
    is_shareable::<RestClient>();
    is_shareable::<AdminClient>();
    is_shareable::<Config>();
    is_shareable::<Error>();
    is_sendable::<ApiFuture<TrainingClient>>();
    is_sendable::<MockServer>();
}
