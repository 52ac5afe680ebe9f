//! Reads on what a refusal left of a request's body: a client that is still sending would see a broken
//! connection, and try again for minutes, instead of the answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{
    body::{Body, BodyDataStream, HttpBody as _},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use crate::state::Shared;

/// Bodies are read on to so many times the limit of a body.
const DISCARDED_TIMES_MAX: usize = 8;

/// Wraps all handlers. What is discarded is bounded in bytes, and in time as bodies are.
pub(crate) async fn drain(State(app): State<Shared>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Rest(Arc::new(Mutex::new(Some(body.into_data_stream()))));
    let mut rest = Rest(Arc::clone(&body.0));
    let response = next.run(Request::from_parts(parts, Body::from_stream(body))).await;
    if !response.status().is_success() {
        let bytes_max = app.config.body_bytes_max.saturating_mul(DISCARDED_TIMES_MAX);
        let discarding = async {
            let mut discarded = 0;
            while let (true, Some(Ok(part))) = (discarded <= bytes_max, rest.next().await) {
                discarded += part.len();
            }
        };
        // What is too slow is cut off: the answer is the same.
        drop(tokio::time::timeout(app.config.body_timeout, discarding).await);
    }
    response
}

/// A body of which two can read. None: it has ended.
struct Rest(Arc<Mutex<Option<BodyDataStream>>>);

impl Stream for Rest {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = body.as_mut() else { return Poll::Ready(None) };
        let polled = stream.poll_next_unpin(context);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            *body = None;
        }
        polled
    }
}
