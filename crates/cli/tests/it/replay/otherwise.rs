//! What is answered otherwise than it was recorded, and why.

use std::collections::BTreeSet;

/// Version and operation, what is answered, and why. A star stands for anything.
const OTHERWISE: &[(&str, &str, &str)] = &[
    (
        "*/forward_backward.image",
        "* 200 {\"error\":\"data[0].model_input.chunks[1] is an image*",
        TEXT,
    ),
    ("*/forward_backward.dmel", "* 200 {\"error\":\"data[0].model_input.chunks[1] is audio*", TEXT),
    ("*/sample_image_prompt", "POST asample 400 *prompt.chunks[1] is an image*", TEXT),
    (
        "*/create_lora_training_client_dimuon",
        "POST create_model 400 *unsupported_optimizer*",
        DIMUON,
    ),
    ("*/create_lora_training_client_dimuon", "POST get_info 404 *", DIMUON),
    ("*/optim_step_dimuon", "* 200 {\"error\":\"optimizer_params.type is *dimuon*", DIMUON),
    (
        "*/forward_backward.stable_reinforce",
        "* 200 {\"error\":\"loss_fn_config.mode is no setting*",
        MADE_UP,
    ),
    ("*/behaviour.future.json_for_fwdbwd", "*x-protobuf\" instead of \"application/json\"", FAULTY),
    ("*/behaviour.sample.json_payload", "*x-protobuf\" instead of \"application/json\"", FAULTY),
    (
        "*/behaviour.pool.400_*",
        "POST create_model 400 *base_model \\\"x\\\" is not offered*",
        FAULTY,
    ),
    ("*/behaviour.train.create_model_400", "POST create_model 400 *is not offered*", FAULTY),
    ("*/behaviour.misc.session_messages", "POST create_session without *_message", MESSAGES),
    ("*/behaviour.jwt.*", "POST client/config without pjwt_auth_enabled", KEYS),
    ("*/cli.auth_whoami", "POST client/config without pjwt_auth_enabled", KEYS),
    ("*/save_weights_external", "*age_encryption_recipients[0]: it is a damaged*", FAULTY),
    ("*", "GET billing/usage/events without *", DATES),
    ("*/admin.get_audit_log__day", "GET audit without entries[]", DATES),
    ("*/admin.get_audit_log", "GET audit without entries[].purpose", PURPOSE),
    ("*/rest.search_sessions", "POST sessions/search without *", PAGE),
];

const TEXT: &str = "the models that are offered read text, and the answer says so";
const DIMUON: &str = "its definition is not public, and the answer says so";
const MADE_UP: &str = "the recorded setting or key is made up, and the answer says so";
const PURPOSE: &str = "only reading weights has one, and nobody has read any";
const PAGE: &str = "the recorded page goes on, with sessions that ended";
const DATES: &str = "what is asked for was before this server";
const FAULTY: &str = "the recorded answer, or the request, is wrong on purpose";
const MESSAGES: &str = "this server has nothing to tell";
const KEYS: &str = "keys are exchanged for tokens where a setting says so";

/// The entry that has this difference.
pub(super) fn reason(operation: &str, line: &str) -> Option<usize> {
    OTHERWISE
        .iter()
        .position(|(operations, text, _)| fits(operations, operation) && fits(text, line))
}

/// Entries that nothing needs any more.
pub(super) fn unused(used: &BTreeSet<usize>) -> Vec<String> {
    let entries = OTHERWISE.iter().enumerate();
    let entries = entries.filter(|(i, _)| !used.contains(i));
    entries.map(|(_, entry)| format!("is listed, and is answered as recorded: {entry:?}")).collect()
}

fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    ends.into_iter().any(|at| fits(rest, &text[at..]))
}
