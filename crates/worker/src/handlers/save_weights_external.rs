//! Saves files that other programs read, in PEFT's layout; encrypted where the client names recipients.

use bytes::Bytes;
use tinsmith_engine::{Backend, Parts};
use tinsmith_seal::Recipients;
use tinsmith_store::{CheckpointKind, Failure};
use tinsmith_types::{ids::ModelId, weights::SaveWeightsExternalRequest};

use crate::{
    convert,
    finisher::{Finish, Staged, StagedEffect},
    run::{Item, Purpose},
    worker::{Worker, server_failure, user_failure},
};

pub(crate) fn run<B: Backend>(
    worker: &mut Worker<B>,
    id: &ModelId,
    item: &Item,
    request: &SaveWeightsExternalRequest,
) {
    let Purpose::Live(request_id) = &item.purpose else { return };
    let kind = CheckpointKind::ExternalWeights;
    let name = request.path.clone().unwrap_or_else(|| format!("seq-{}", item.seq_id));
    if let Some(failure) = worker.taken(id, kind, &name) {
        return worker.settle(id, item, Err(failure));
    }
    let files = worker
        .export(id, Parts { optimizer: false, gradient: false })
        .and_then(|files| sealed(files, request.age_encryption_recipients.as_deref()));
    let files = match files {
        Ok(files) => files,
        Err(failure) => return worker.settle(id, item, Err(failure)),
    };
    worker.note(id, item, true);
    let size_bytes: usize = files.files.iter().map(|(_, content)| content.len()).sum();
    let body = serde_json::json!({
        "path": format!("tinker://{id}/external_weights/{name}"),
        "size_bytes": size_bytes,
        "type": "save_weights_external",
    });
    let new = convert::checkpoint(worker, id, kind, name, request.ttl_seconds, None);
    worker.send(Finish::stage(files, request_id, &body, StagedEffect::Checkpoint(Box::new(new))));
}

/// The same files, each encrypted to all recipients and named so.
fn sealed(files: Staged, recipients: Option<&[String]>) -> Result<Staged, Failure> {
    let Some(recipients) = recipients else { return Ok(files) };
    let recipients = Recipients::parse(recipients)
        .map_err(|error| user_failure(format!("age_encryption_recipients: failed to {error}")))?;
    let seal = |(name, plain): (String, Bytes)| {
        let sealed = recipients.encrypt(&plain);
        let sealed = sealed.map_err(|error| server_failure(format!("could not {error}")))?;
        Ok((format!("{name}{}", tinsmith_seal::SUFFIX), Bytes::from(sealed)))
    };
    let Staged { manifest, files } = files;
    Ok(Staged { manifest, files: files.into_iter().map(seal).collect::<Result<_, Failure>>()? })
}
