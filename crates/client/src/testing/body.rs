//! The body of an answer: whole, in small pieces with pauses, or cut off in the middle.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// For the transport to send what it has.
const FLUSH: Duration = Duration::from_millis(20);

/// How a body is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Bytes at once.
    pub(super) piece: usize,
    /// Between pieces.
    pub(super) pause: Duration,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct AnswerBody {
    rest: Bytes,
    /// Bytes that are announced and never sent: the connection breaks off instead.
    missing: usize,
    pace: Option<Pace>,
    pausing: Option<Pin<Box<Sleep>>>,
    is_flushed: bool,
}

impl AnswerBody {
    pub(super) fn new(bytes: Bytes, pace: Option<Pace>) -> Self {
        Self { rest: bytes, missing: 0, pace, pausing: None, is_flushed: false }
    }

    /// The first half of it, and then nothing.
    pub(super) fn cut_off(bytes: &Bytes) -> Self {
        let half = bytes.len() / 2;
        let missing = bytes.len() - half;
        Self { rest: bytes.slice(..half), missing, pace: None, pausing: None, is_flushed: false }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(pausing) = &mut self.pausing {
            ready!(pausing.as_mut().poll(context));
            self.pausing = None;
        }
        if self.rest.is_empty() && self.missing > 0 && !self.is_flushed {
            // What was sent shall be on its way before the connection breaks off.
            self.is_flushed = true;
            self.pausing = Some(Box::pin(sleep(FLUSH)));
            return self.poll_frame(context);
        }
        if self.rest.is_empty() {
            let broken = || io::Error::new(io::ErrorKind::ConnectionReset, "cut off on purpose");
            return Poll::Ready((self.missing > 0).then(|| Err(broken())));
        }
        let length = self.pace.map_or(self.rest.len(), |pace| pace.piece.clamp(1, self.rest.len()));
        let piece = self.rest.split_to(length);
        if let (Some(pace), false) = (self.pace, self.rest.is_empty()) {
            self.pausing = Some(Box::pin(sleep(pace.pause)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.missing == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.rest.len() + self.missing) as u64)
    }
}
