//! Sends files, whole or from where a client broke off, without holding them in memory.

use std::{collections::VecDeque, fs::File, io, ops::Range, os::unix::fs::FileExt, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use tinsmith_store::FileRecord;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    error::{Error, Result},
    state::Shared,
};

/// Bytes that are read from the disk at once.
const CHUNK_BYTES: u64 = 256 * 1024;

/// A part of what is sent.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Bytes),
    /// Its hash is checked where it is sent from its first byte to its last.
    File(File, FileRecord),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, record) => record.size_bytes,
        }
    }
}

/// Answers with the pieces one after another, or with the part of them that `Range` asks for.
///
/// `etag` names the content: a client that goes on sends it back in `If-Range`.
///
/// # Errors
/// 429 where all places for downloads stay taken.
pub(crate) async fn send(
    app: &Shared,
    headers: &HeaderMap,
    pieces: Vec<Piece>,
    etag: &str,
) -> Result<Response> {
    let total: u64 = pieces.iter().map(Piece::len).sum();
    let etag = format!("\"{etag}\"");
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_same = text(header::IF_RANGE).is_none_or(|given| given == etag);
    let range = text(header::RANGE).filter(|_| is_same).and_then(|range| wanted(range, total));
    let mut reply = HeaderMap::new();
    reply.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    reply.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    reply.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply.extend(HeaderValue::from_str(&etag).map(|etag| (header::ETAG, etag)));
    let (status, range) = match range {
        None => (StatusCode::OK, 0..total),
        Some(range) if range.is_empty() => {
            let place = format!("bytes */{total}");
            reply.extend(HeaderValue::from_str(&place).map(|at| (header::CONTENT_RANGE, at)));
            reply.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, reply).into_response());
        }
        Some(range) => {
            let place = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            reply.extend(HeaderValue::from_str(&place).map(|at| (header::CONTENT_RANGE, at)));
            (StatusCode::PARTIAL_CONTENT, range)
        }
    };
    reply.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    let waiting = Arc::clone(&app.downloads).acquire_owned();
    let permit = tokio::time::timeout(app.config.poll_wait_max, waiting).await;
    let Ok(Ok(permit)) = permit else {
        return Err(Error::Full { what: "the number of downloads at one time" });
    };
    let sending = Sending::new(pieces, range, permit);
    Ok((status, reply, Body::from_stream(stream::unfold(sending, Sending::next))).into_response())
}

/// The bytes of one range of `total`, empty where it lies outside; `None` for what is no single range.
fn wanted(range: &str, total: u64) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=")?.trim().split_once('-')?;
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        return Some(total.saturating_sub(count)..total);
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() {
        total
    } else {
        let last: u64 = last.parse().ok()?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(total)
    };
    Some(first.min(end)..end)
}

/// What is left to send.
struct Sending {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent, or left out.
    at: u64,
    left: u64,
    /// Of the first piece, where it is sent from its first byte on.
    hasher: Option<blake3::Hasher>,
    _permit: OwnedSemaphorePermit,
}

impl Sending {
    fn new(pieces: Vec<Piece>, range: Range<u64>, permit: OwnedSemaphorePermit) -> Self {
        let mut pieces = VecDeque::from(pieces);
        let mut at = range.start;
        while let Some(piece) = pieces.front()
            && at >= piece.len()
            && pieces.len() > 1
        {
            at -= piece.len();
            pieces.pop_front();
        }
        let hasher = (at == 0).then(blake3::Hasher::new);
        Self { pieces, at, left: range.end - range.start, hasher, _permit: permit }
    }

    /// The next bytes. An error breaks the connection off, so that the client sees that some are missing.
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        loop {
            if self.left == 0 {
                return None;
            }
            let piece = self.pieces.front()?;
            if self.at < piece.len() {
                break;
            }
            self.pieces.pop_front();
            (self.at, self.hasher) = (0, Some(blake3::Hasher::new()));
        }
        match self.read().await {
            Ok(bytes) => Some((Ok(bytes), self)),
            Err(error) => {
                tracing::error!(%error, "a download was broken off");
                self.left = 0;
                Some((Err(error), self))
            }
        }
    }

    async fn read(&mut self) -> io::Result<Bytes> {
        let Some(piece) = self.pieces.front() else { return Ok(Bytes::new()) };
        let count = (piece.len() - self.at).min(self.left).min(CHUNK_BYTES);
        let size = usize::try_from(count).map_err(io::Error::other)?;
        let bytes = match piece {
            Piece::Bytes(bytes) => {
                let at = usize::try_from(self.at).map_err(io::Error::other)?;
                bytes.slice(at..at + size)
            }
            Piece::File(file, record) => {
                let (file, at, hasher) = (file.try_clone()?, self.at, self.hasher.take());
                let (bytes, hasher) = read_at(file, at, size, hasher).await?;
                if self.at + count == record.size_bytes
                    && hasher.as_ref().is_some_and(|h| h.finalize().to_hex()[..] != record.blake3)
                {
                    return Err(io::Error::other("a file's content is not what was written"));
                }
                self.hasher = hasher;
                bytes
            }
        };
        self.at += count;
        self.left -= count;
        Ok(bytes)
    }
}

/// Reads and hashes where that holds up no other connection.
async fn read_at(
    file: File,
    at: u64,
    size: usize,
    hasher: Option<blake3::Hasher>,
) -> io::Result<(Bytes, Option<blake3::Hasher>)> {
    let work = move || {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, at)?;
        let mut hasher = hasher;
        if let Some(hasher) = &mut hasher {
            hasher.update(&bytes);
        }
        Ok((Bytes::from(bytes), hasher))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("bytes=0-", Some(0..10)),
            ("bytes=0-0", Some(0..1)),
            ("bytes=3-5", Some(3..6)),
            ("bytes=3-99", Some(3..10)),
            ("bytes=-4", Some(6..10)),
            ("bytes=-99", Some(0..10)),
            ("bytes=10-", Some(10..10)),
            ("bytes=99-100", Some(10..10)),
            ("bytes=-0", Some(10..10)),
            ("bytes=5-3", None),
            ("bytes=1-2,4-5", None),
            ("bytes=a-b", None),
            ("bytes=-", None),
            ("lines=1-2", None),
        ] {
            assert_eq!(wanted(range, 10), expected, "{range}");
        }
    }
}
