//! The files of checkpoints, for programs that have no key: by links that expire.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::fmt::rfc2822::DateTimePrinter;
use tinsmith_store::{BlobId, CheckpointRecord, FileRecord};
use tinsmith_types::{
    checkpoints::{CheckpointArchiveUrlResponse, ExternalWeightsUrlsResponse},
    ids::TenantId,
    path::CheckpointKind,
};

use crate::{
    download::{self, Piece},
    error::{Error, Result},
    links::{Base, Signed, sign},
    routes::checkpoints::{Place, kind},
    segments::Path,
    state::{Shared, Tenant},
    tar,
};

/// The last file of an archive, empty: whoever finds it has all of them.
const COMPLETE: &str = "checkpoint_complete";

/// What a file's bytes hash to, in hexadecimal digits.
const CHECKSUM: HeaderName = HeaderName::from_static("x-checksum-blake3");

/// `GET training_runs/{run_id}/checkpoints/external_weights/{name}/external_weights_urls`.
pub(crate) async fn external_weights_urls(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    base: Base,
    Path((run, kind_name, name)): Place,
) -> Result<Json<ExternalWeightsUrlsResponse>> {
    let wanted: CheckpointKind = kind_name.parse()?;
    if wanted != CheckpointKind::ExternalWeights {
        let detail = format!(
            "{wanted}/{name} is no export; save_weights_external makes one that can be downloaded"
        );
        return Err(Error::invalid("not_external", detail));
    }
    let checkpoint = app.store.checkpoint(&tenant, &run, kind(wanted), &name).await?;
    let manifest = app.store.manifest(&checkpoint.blob).await?;
    note_read(&app, &tenant, &checkpoint).await?;
    // All expire together, even if the clock goes on between two of them.
    let mut expires = None;
    let urls = manifest.files.keys().map(|file| {
        let link = sign(&app, &base, &format!("/api/v1/downloads/{}/{file}", checkpoint.blob));
        let first = *expires.get_or_insert(link.expires);
        expires = Some(first.min(link.expires));
        (file.clone(), link.url)
    });
    let urls = urls.collect();
    let expires = expires.unwrap_or_else(|| app.clock.now()).to_string();
    Ok(Json(ExternalWeightsUrlsResponse { urls, expires }))
}

/// `GET training_runs/{run_id}/checkpoints/{kind}/{name}/archive`, for SDKs up to 0.35: they do not follow the
/// redirect and hand its target out.
pub(crate) async fn archive_url(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    base: Base,
    Path((run, kind_name, name)): Place,
) -> Result<Response> {
    let checkpoint = app.store.checkpoint(&tenant, &run, kind(kind_name.parse()?), &name).await?;
    note_read(&app, &tenant, &checkpoint).await?;
    let link = sign(&app, &base, &format!("/api/v1/archives/{}", checkpoint.blob));
    let internal = |error: String| Error::Internal { detail: error };
    let expires = DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&link.expires)
        .map_err(|error| internal(error.to_string()))?;
    let header =
        |text: &str| HeaderValue::from_str(text).map_err(|error| internal(error.to_string()));
    let headers = [(header::LOCATION, header(&link.url)?), (header::EXPIRES, header(&expires)?)];
    let body =
        CheckpointArchiveUrlResponse { url: link.url.clone(), expires: link.expires.to_string() };
    Ok((StatusCode::FOUND, headers, Json(body)).into_response())
}

/// `GET downloads/{blob}/{file}`: one file.
pub(crate) async fn file(
    _: Signed,
    State(app): State<Shared>,
    headers: HeaderMap,
    Path((blob, name)): Path<(String, String)>,
) -> Result<Response> {
    let blob = BlobId(blob);
    offered(&app, &blob).await?;
    let mut manifest = app.store.manifest(&blob).await?;
    let Some(record) = manifest.files.remove(&name) else {
        return Err(Error::NotFound { what: format!("file {name}") });
    };
    let etag = record.blake3.clone();
    let piece = open(&app, &blob, &name, record).await?;
    let mut response = download::send(&app, &headers, vec![piece], &etag).await?;
    // Of the whole file, for clients that check it where only a part is sent too.
    response.headers_mut().extend(HeaderValue::from_str(&etag).map(|hash| (CHECKSUM, hash)));
    Ok(response)
}

/// `GET archives/{blob}`: all files as a tar.
pub(crate) async fn archive(
    _: Signed,
    State(app): State<Shared>,
    headers: HeaderMap,
    Path(blob): Path<String>,
) -> Result<Response> {
    let blob = BlobId(blob);
    offered(&app, &blob).await?;
    let manifest = app.store.manifest(&blob).await?;
    let mut pieces = Vec::new();
    for (name, record) in manifest.files {
        let size = record.size_bytes;
        pieces.push(Piece::Bytes(tar::header(&name, size)));
        pieces.push(open(&app, &blob, &name, record).await?);
        pieces.push(Piece::Bytes(tar::padding(size)));
    }
    pieces.push(Piece::Bytes(tar::header(COMPLETE, 0)));
    pieces.push(Piece::Bytes(tar::end()));
    download::send(&app, &headers, pieces, &format!("{blob}.tar")).await
}

/// Who gets links can read the files, and hand them on: that is what the audit log tells.
async fn note_read(app: &Shared, reader: &TenantId, checkpoint: &CheckpointRecord) -> Result<()> {
    let CheckpointRecord { tenant, model_id, kind, name, .. } = checkpoint;
    Ok(app.store.audit_read((tenant, reader), (model_id, *kind, name), "download").await?)
}

/// A link holds no longer than the checkpoint that it was made for, or another one of the same content.
async fn offered(app: &Shared, blob: &BlobId) -> Result<()> {
    if app.store.is_checkpoint(blob).await? {
        return Ok(());
    }
    Err(Error::NotFound { what: "the checkpoint of this URL".to_owned() })
}

async fn open(app: &Shared, blob: &BlobId, name: &str, record: FileRecord) -> Result<Piece> {
    Ok(Piece::File(app.store.open_file(blob, name).await?, record))
}
