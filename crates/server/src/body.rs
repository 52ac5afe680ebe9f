//! Reads request bodies within limits, before anything is buffered or allocated for them.
//!
//! Every byte that is held is paid for from one budget; what a body declares about its own size is
//! never believed.

use std::{
    io::Read,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::{Body, BodyDataStream},
    extract::{FromRequest, MatchedPath},
    http::{self, HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tinsmith_types::json::{self, Request};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::Config,
    error::{Error, Result},
    negotiate,
    state::Shared,
};

/// Bodies below this are decoded where they are; larger ones would hold up other connections.
const INLINE_DECODE_BYTES_MAX: usize = 64 * 1024;

/// What is kept of a body that is too large: enough to tell which request it is.
const HEAD_BYTES: usize = 1024;

/// Decompressed bytes between two looks at the limits.
const DECOMPRESS_STEP_BYTES: usize = 256 * 1024;

/// A body's plain bytes, decompressed.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) bytes: Bytes,
    pub(crate) is_protobuf: bool,
    hold: Hold,
}

/// The part of the byte budget that a request holds until it is answered.
#[derive(Debug)]
pub(crate) struct Hold {
    _permit: OwnedSemaphorePermit,
}

/// A body that was read before its request was passed on to the handler; the first to ask takes it.
#[derive(Clone, Debug)]
pub(crate) struct AlreadyRead(Arc<Mutex<Option<Result<Plain>>>>);

impl AlreadyRead {
    pub(crate) fn new(body: Result<Plain>) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    fn take(&self) -> Option<Result<Plain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A decoded JSON body.
#[derive(Debug)]
pub(crate) struct Json<T> {
    pub(crate) value: T,
    _hold: Hold,
}

impl<T: Request + Send + 'static> FromRequest<Shared> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: http::Request<Body>, app: &Shared) -> Result<Self> {
        let path = matched_path(&request);
        let plain = Plain::from_request(request, app).await?;
        let (value, hold) = plain.json(app, &path).await?;
        Ok(Self { value, _hold: hold })
    }
}

impl Plain {
    /// The body of an endpoint that takes JSON only.
    pub(crate) async fn json<T: Request + Send + 'static>(
        self,
        app: &Shared,
        path: &str,
    ) -> Result<(T, Hold)> {
        if self.is_protobuf {
            return Err(Error::malformed("this endpoint takes JSON, not protobuf"));
        }
        Ok((json(app, path, self.bytes).await?, self.hold))
    }

    /// A body that is made here, paid for as one that is read.
    pub(crate) fn made(app: &Shared, bytes: Bytes, is_protobuf: bool) -> Result<Self> {
        let hold = Hold { _permit: acquire(&app.body_budget, bytes.len())? };
        Ok(Self { bytes, is_protobuf, hold })
    }
}

impl FromRequest<Shared> for Plain {
    type Rejection = Error;

    async fn from_request(request: http::Request<Body>, app: &Shared) -> Result<Self> {
        if let Some(read) = request.extensions().get::<AlreadyRead>().and_then(AlreadyRead::take) {
            return read;
        }
        let (parts, body) = request.into_parts();
        let is_protobuf = negotiate::sends_protobuf(&parts.headers);
        let is_zstd = is_zstd(&parts.headers)?;
        let (bytes, permit) = read(app, &parts.headers, body).await?;
        if !is_zstd {
            return Ok(Self { bytes, is_protobuf, hold: Hold { _permit: permit } });
        }
        let (config, budget) = (app.config.clone(), Arc::clone(&app.body_budget));
        let (bytes, permit) =
            off_thread(usize::MAX, move || decompress(&config, &budget, &bytes, permit)).await??;
        Ok(Self { bytes, is_protobuf, hold: Hold { _permit: permit } })
    }
}

/// The route's pattern, for log lines that must not vary with ids.
pub(crate) fn matched_path(request: &http::Request<Body>) -> String {
    request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(String::new, |path| path.as_str().to_owned())
}

/// Decodes JSON; errors name the place.
pub(crate) async fn json<T: Request + Send + 'static>(
    app: &Shared,
    path: &str,
    bytes: Bytes,
) -> Result<T> {
    let read = off_thread(bytes.len(), move || json::read::<T>(&bytes)).await??;
    for field in read.unknown_fields {
        app.note_unknown_field(path, &field);
    }
    Ok(read.request)
}

/// Runs what takes long for `bytes` of input where it cannot hold up other connections.
pub(crate) async fn off_thread<R: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R> {
    if bytes <= INLINE_DECODE_BYTES_MAX {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Internal { detail: format!("decoding ended early: {error}") })
}

fn is_zstd(headers: &HeaderMap) -> Result<bool> {
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"" | b"identity") => Ok(false),
        Some(b"zstd") => Ok(true),
        Some(other) => Err(Error::invalid(
            "unsupported_content_encoding",
            format!(
                "content-encoding {:?} is not supported; known: zstd",
                String::from_utf8_lossy(other)
            ),
        )),
    }
}

async fn read(
    app: &Shared,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, OwnedSemaphorePermit)> {
    let limit = app.config.body_timeout;
    let mut stream = body.into_data_stream();
    let reading = async {
        match read_within(app, headers, &mut stream).await {
            // It was refused by its length alone; which request it is stands at its beginning.
            Err(Error::BodyTooLarge { bytes_max, stage, head }) if head.is_empty() => {
                let part = stream.next().await.and_then(Result::ok).unwrap_or_default();
                Err(Error::BodyTooLarge { bytes_max, stage, head: beginning(&part) })
            }
            other => other,
        }
    };
    tokio::time::timeout(limit, reading).await.map_err(|_| Error::BodyTimeout { limit })?
}

async fn read_within(
    app: &Shared,
    headers: &HeaderMap,
    stream: &mut BodyDataStream,
) -> Result<(Bytes, OwnedSemaphorePermit)> {
    let bytes_max = app.config.body_bytes_max;
    let too_large =
        |read: &[u8]| Error::BodyTooLarge { bytes_max, stage: "as sent", head: beginning(read) };
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|declared: usize| declared > bytes_max) {
        return Err(too_large(&[]));
    }
    let mut permit = acquire(&app.body_budget, declared.unwrap_or(0))?;
    let mut paid = declared.unwrap_or(0);
    let mut bytes = BytesMut::new();
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| Error::malformed(format!("body ended early: {error}")))?;
        if bytes.len() + part.len() > bytes_max {
            return Err(too_large(if bytes.is_empty() { &part } else { &bytes }));
        }
        bytes.extend_from_slice(&part);
        if bytes.len() > paid {
            permit.merge(acquire(&app.body_budget, bytes.len() - paid)?);
            paid = bytes.len();
        }
    }
    Ok((bytes.freeze(), permit))
}

/// Takes permits for so many bytes, at least one.
fn acquire(budget: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let permits = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
    Arc::clone(budget)
        .try_acquire_many_owned(permits)
        .map_err(|_| Error::Full { what: "the budget of request bodies" })
}

fn beginning(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&bytes[..HEAD_BYTES.min(bytes.len())])
}

/// Decompresses with a hard bound on what comes out, whatever the frame declares.
fn decompress(
    config: &Config,
    budget: &Arc<Semaphore>,
    compressed: &[u8],
    mut permit: OwnedSemaphorePermit,
) -> Result<(Bytes, OwnedSemaphorePermit)> {
    let malformed = |error: std::io::Error| Error::malformed(format!("zstd: {error}"));
    let mut decoder = zstd::stream::read::Decoder::new(compressed).map_err(malformed)?;
    decoder.window_log_max(config.zstd_window_log_max).map_err(malformed)?;
    let mut plain = Vec::new();
    loop {
        let step = u64::try_from(DECOMPRESS_STEP_BYTES).unwrap_or(u64::MAX);
        let count = decoder.by_ref().take(step).read_to_end(&mut plain).map_err(malformed)?;
        if count == 0 {
            return Ok((plain.into(), permit));
        }
        if plain.len() > config.decompressed_bytes_max {
            let bytes_max = config.decompressed_bytes_max;
            let head = beginning(&plain);
            return Err(Error::BodyTooLarge { bytes_max, stage: "after decompression", head });
        }
        permit.merge(acquire(budget, count)?);
    }
}
