//! One file from one URL: from where it was broken off, and checked.

use std::{io, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Client, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED,
        RANGE,
    },
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt as _,
};

use super::staging::{Known, Staging, file_error};
use crate::{Error, Result, http::Http};

/// Attempts one after another that bring nothing.
const ATTEMPTS_MAX: u32 = 6;
/// The first pause after such an attempt; each further one doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// What says nothing for this long is broken.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The size and the checksum of what came may be wrong once, as when a file was broken off by a crash.
const RESTARTS_MAX: u32 = 1;

/// Fetches files. URLs are signed: no key is sent along.
pub(super) struct Transfer<'a> {
    http: &'a Http,
    client: Client,
}

/// What was found out while fetching.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub(super) resumed_bytes: u64,
    pub(super) checksums: usize,
}

/// What a file's bytes hash to, in hexadecimal digits.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Checksum {
    Blake3(String),
    Sha256(String),
}

/// How an attempt went.
enum Attempt {
    /// All that the server says is here.
    Whole,
    /// Broken off, after so many bytes.
    Broken { came: u64, error: Error },
}

impl<'a> Transfer<'a> {
    pub(super) fn new(http: &'a Http) -> Result<Self> {
        Ok(Self { http, client: http.download_client(IDLE_MAX)? })
    }

    /// Fetches `url` to `file` from its beginning: the size in bytes.
    pub(super) async fn fetch_small(&self, url: &str, file: &Path) -> Result<u64> {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::validation(format!("{} is no name of a file", file.display())))?;
        let partial = file.with_file_name(format!(".{name}.partial"));
        let mut idle = 0;
        loop {
            let mut growing = Growing { file: open(&partial, 0).await?, at: 0 };
            let error = match self.client.get(url).send().await {
                Ok(response) if response.status().is_success() => {
                    let total = total(&response, 0);
                    match growing.take(response, &partial, &|_| {}).await? {
                        Some(error) => error,
                        None if total.is_none_or(|total| total == growing.at) => break,
                        None => Error::Response { message: format!("{name} ended too early") },
                    }
                }
                Ok(response) if response.status().is_server_error() => refusal(response).await,
                Ok(response) => return Err(refusal(response).await),
                Err(error) => cause(&error),
            };
            idle += 1;
            if idle >= ATTEMPTS_MAX {
                return Err(error);
            }
            self.http.clock().sleep(PAUSE * 2_u32.pow(idle)).await;
        }
        tokio::fs::rename(&partial, file)
            .await
            .map_err(|error| file_error("write", file, &error))?;
        Ok(size(file).await)
    }

    /// Fetches `url` to `file` of the staging, or what is missing of it.
    pub(super) async fn fetch(
        &self,
        url: &str,
        staging: &mut Staging,
        file: &Path,
        fetched: &mut Fetched,
        told: &impl Fn(u64, Option<u64>),
    ) -> Result<()> {
        let place = staging.place(file)?;
        let mut known = staging.known(file);
        let here = size(&place).await;
        if known.whole && known.size_bytes.is_none_or(|size| size == here) {
            fetched.resumed_bytes += here;
            fetched.checksums += usize::from(known.checksum.is_some());
            told(here, Some(here));
            return Ok(());
        }
        let (mut idle, mut restarts, mut is_first) = (0, 0, true);
        loop {
            let (reused, attempt) = self.attempt(url, staging, file, &place, told).await?;
            fetched.resumed_bytes += if is_first { reused } else { 0 };
            is_first = false;
            match attempt {
                Attempt::Broken { came, error } => {
                    // What comes without a version is thrown away by the next attempt.
                    let is_progress = came > 0 && staging.known(file).version.is_some();
                    idle = if is_progress { 0 } else { idle + 1 };
                    if idle >= ATTEMPTS_MAX {
                        return Err(error);
                    }
                    tracing::debug!(%error, file = %file.display(), "a download was broken off");
                    self.http.clock().sleep(PAUSE * 2_u32.pow(idle)).await;
                }
                Attempt::Whole => {
                    known = staging.known(file);
                    match check(&known, &place).await {
                        Ok(()) => break,
                        Err(error) if restarts >= RESTARTS_MAX => return Err(error),
                        Err(error) => {
                            restarts += 1;
                            tracing::warn!(%error, "a file is fetched anew");
                            staging.note(file, Known::default())?;
                        }
                    }
                }
            }
        }
        fetched.checksums += usize::from(known.checksum.is_some());
        staging.note(file, Known { whole: true, ..known })
    }

    /// Asks for what is missing, and appends what comes: the bytes of before that it goes on from, and how it went.
    async fn attempt(
        &self,
        url: &str,
        staging: &mut Staging,
        file: &Path,
        place: &Path,
        told: &impl Fn(u64, Option<u64>),
    ) -> Result<(u64, Attempt)> {
        let known = staging.known(file);
        // Without its version, what is here might be of another file.
        let here = if known.version.is_some() { size(place).await } else { 0 };
        let mut request = self.client.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(version) = known.version.as_ref().filter(|_| here > 0) {
            request = request.header(RANGE, format!("bytes={here}-")).header(IF_RANGE, version);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok((0, Attempt::Broken { came: 0, error: cause(&error) })),
        };
        let start = match start(&response, here, &known) {
            Start::At(start) => start,
            Start::Whole => return Ok((here, Attempt::Whole)),
            Start::Again => {
                staging.note(file, Known::default())?;
                let message = format!("{} is another file than before", file.display());
                return Ok((0, Attempt::Broken { came: 0, error: Error::Connection { message } }));
            }
            Start::NotNow => {
                let message = format!("the server answers {}", response.status());
                return Ok((0, Attempt::Broken { came: 0, error: Error::Connection { message } }));
            }
            Start::Refused => return Err(refusal(response).await),
        };
        let total = total(&response, start);
        let checksum =
            checksum(response.headers()).or_else(|| known.checksum.filter(|_| start > 0));
        let version = version(response.headers()).or_else(|| known.version.filter(|_| start > 0));
        staging.note(file, Known { version, size_bytes: total, checksum, whole: false })?;
        let mut growing = Growing { file: open(place, start).await?, at: start };
        told(start, total);
        let broken_off = growing.take(response, place, &|at| told(at, total)).await?;
        let at = growing.at;
        if let Some(error) = broken_off {
            return Ok((start, Attempt::Broken { came: at - start, error }));
        }
        if total.is_some_and(|total| at < total) {
            let message = format!("{} ended too early", file.display());
            return Ok((
                start,
                Attempt::Broken { came: at - start, error: Error::Connection { message } },
            ));
        }
        Ok((start, Attempt::Whole))
    }
}

/// A file that an answer is written to.
struct Growing {
    file: File,
    /// Bytes in it.
    at: u64,
}

impl Growing {
    /// Appends what comes; why it was broken off.
    async fn take(
        &mut self,
        mut response: Response,
        place: &Path,
        told: &impl Fn(u64),
    ) -> Result<Option<Error>> {
        let broken_off = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let written = self.file.write_all(&chunk).await;
                    written.map_err(|error| file_error("write", place, &error))?;
                    self.at += chunk.len() as u64;
                    told(self.at);
                }
                Ok(None) => break None,
                Err(error) => break Some(cause(&error)),
            }
        };
        // What is written is on the disk before it is taken for granted.
        self.file.flush().await.map_err(|error| file_error("write", place, &error))?;
        self.file.sync_all().await.map_err(|error| file_error("write", place, &error))?;
        Ok(broken_off)
    }
}

/// What an answer means for the bytes that are here.
enum Start {
    /// Its bytes go here.
    At(u64),
    Whole,
    Again,
    NotNow,
    Refused,
}

fn start(response: &Response, here: u64, known: &Known) -> Start {
    let status = response.status();
    match status {
        StatusCode::OK => Start::At(0),
        StatusCode::PARTIAL_CONTENT => match content_range(response.headers()) {
            Some((first, _)) if first == here => Start::At(here),
            _ => Start::Again,
        },
        StatusCode::RANGE_NOT_SATISFIABLE if known.size_bytes == Some(here) => Start::Whole,
        StatusCode::RANGE_NOT_SATISFIABLE => Start::Again,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Start::NotNow,
        status if status.is_server_error() => Start::NotNow,
        _ => Start::Refused,
    }
}

/// The size of the whole file.
fn total(response: &Response, start: u64) -> Option<u64> {
    if start > 0 {
        return content_range(response.headers()).and_then(|(_, total)| total);
    }
    text(response.headers(), CONTENT_LENGTH.as_str())?.parse().ok()
}

/// The first byte and the whole size of `bytes first-last/size`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) =
        text(headers, CONTENT_RANGE.as_str())?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

/// What tells the file from another under the same URL: a weak `ETag` does not.
fn version(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, ETAG.as_str()).filter(|etag| !etag.starts_with("W/"));
    etag.or_else(|| text(headers, LAST_MODIFIED.as_str())).map(str::to_owned)
}

/// `x-checksum-blake3`, as Tinsmith sends, or SHA-256 as RFC 9530 writes it in `repr-digest`.
fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    let is_hash =
        |hash: &&str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(hash) = text(headers, "x-checksum-blake3").filter(is_hash) {
        return Some(Checksum::Blake3(hash.to_lowercase()));
    }
    let digests = text(headers, "repr-digest")?.split(',').map(str::trim);
    let sha = digests.filter_map(|digest| digest.strip_prefix("sha-256=:")).next()?;
    let bytes = STANDARD.decode(sha.strip_suffix(':')?).ok().filter(|bytes| bytes.len() == 32)?;
    Some(Checksum::Sha256(hex(&bytes)))
}

/// Whether all is here, unharmed.
async fn check(known: &Known, place: &Path) -> Result<()> {
    let here = size(place).await;
    let bad = |what: String| {
        Err(Error::Response { message: format!("{} came with {what}", place.display()) })
    };
    if let Some(size) = known.size_bytes.filter(|size| *size != here) {
        return bad(format!("{here} bytes instead of {size}"));
    }
    let Some(expected) = known.checksum.clone() else { return Ok(()) };
    let path = place.to_owned();
    let hash = tokio::task::spawn_blocking(move || hash(&path, &expected).map(|is| (is, expected)));
    let hash = hash.await.map_err(|_| Error::Stopped)?;
    let (is, expected) = hash.map_err(|error| file_error("read", place, &error))?;
    if is == expected {
        Ok(())
    } else {
        bad(format!("the checksum {is:?} instead of {expected:?}"))
    }
}

/// The checksum of a file, of the same kind as another.
fn hash(path: &Path, kind: &Checksum) -> io::Result<Checksum> {
    let mut file = std::fs::File::open(path)?;
    Ok(match kind {
        Checksum::Blake3(_) => {
            let mut hasher = blake3::Hasher::new();
            io::copy(&mut file, &mut hasher)?;
            Checksum::Blake3(hasher.finalize().to_hex().to_string())
        }
        Checksum::Sha256(_) => {
            let mut hasher = Sha256::new();
            io::copy(&mut file, &mut hasher)?;
            Checksum::Sha256(hex(&hasher.finalize()))
        }
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

async fn size(place: &Path) -> u64 {
    tokio::fs::metadata(place).await.map_or(0, |metadata| metadata.len())
}

/// The file, with `start` bytes in it, to append to.
async fn open(place: &Path, start: u64) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true);
    let options = if start > 0 { options.append(true) } else { options.write(true).truncate(true) };
    options.open(place).await.map_err(|error| file_error("open", place, &error))
}

/// What a bad answer says.
async fn refusal(response: Response) -> Error {
    let (status, headers) = (response.status(), response.headers().clone());
    match response.bytes().await {
        Ok(bytes) => crate::http::refused(&crate::http::Reply { status, headers, bytes }),
        Err(error) => cause(&error),
    }
}

fn cause(error: &reqwest::Error) -> Error {
    // The URL is signed: whoever reads it could fetch the file.
    let message = crate::http::chain(error);
    let message = match error.url() {
        Some(url) => message.replace(url.as_str(), "…"),
        None => message,
    };
    Error::Connection { message }
}
