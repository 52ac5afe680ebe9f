//! How many samples are under way at a time, and when one is sent again.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tinsmith_types::{ids::RequestId, sampling::SampleRequest};
use tokio::sync::Semaphore;

use super::{SampleOptions, SampleResponse, SampleRetry, SamplingClient, SamplingOptions};
use crate::{
    Error, PollOptions, Result,
    api::Submitted,
    future::Waiting,
    http::{BILLING_PAUSE, Call, Http, Pool, Server, billing_pause_max, retry},
    poll::Wanted,
};

const CONCURRENT_SAMPLES: usize = 2000;
/// Submissions at a time.
const SUBMISSIONS: usize = 400;
/// Submissions at a time after the server was busy.
const THROTTLED_SUBMISSIONS: usize = 10;
/// How long it counts as busy.
const THROTTLED: Duration = Duration::from_secs(10);
/// What a byte counts for meanwhile.
const THROTTLED_FACTOR: u64 = 20;
/// A prompt of more bytes waits longer when the server is busy.
const LARGE_PROMPT_BYTES: u64 = 128 << 10;
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const BUSY_PAUSE_LARGE: Duration = Duration::from_secs(5);

/// The flow of one client's samples.
pub(super) struct Dispatch {
    retry: SampleRetry,
    poll: PollOptions,
    in_flight: Semaphore,
    /// Its permits.
    most: usize,
    submissions: Semaphore,
    throttled: Semaphore,
    /// When a sample last came back.
    progress: Mutex<Instant>,
}

impl Dispatch {
    pub(super) fn new(http: &Http, options: &SamplingOptions) -> Self {
        let config = http.known_server().map(|server| &server.config);
        let mut retry = options.retry.unwrap_or_default();
        retry.enabled &= config.and_then(|config| config.sample_no_retries) != Some(true);
        let said = config.and_then(|config| config.sample_max_concurrent_requests);
        let said = said.and_then(|samples| usize::try_from(samples).ok());
        let most = retry.max_connections.or(said).unwrap_or(CONCURRENT_SAMPLES);
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            retry,
            poll: options.poll.clone().unwrap_or_else(|| http.config.poll_options().clone()),
            in_flight: Semaphore::new(most),
            most,
            submissions: Semaphore::new(SUBMISSIONS),
            throttled: Semaphore::new(THROTTLED_SUBMISSIONS),
            progress: Mutex::new(http.clock().now()),
        }
    }

    /// Samples, and samples anew where a sample was lost.
    pub(super) async fn run(
        &self,
        client: &SamplingClient,
        mut request: SampleRequest,
        bytes: u64,
        options: &SampleOptions,
    ) -> Result<SampleResponse> {
        let clock = client.http().clock();
        let _in_flight = self.in_flight.acquire().await.map_err(|_| Error::Stopped)?;
        if self.in_flight.available_permits() + 1 == self.most {
            // Time in which nothing was asked for does not count.
            self.note_progress(clock.now());
        }
        let poll = options.poll_options(&self.poll);
        let mut attempts = 0;
        loop {
            request.seq_id = Some(client.number().await?);
            let error = match self.attempt(client, &request, bytes, &poll).await {
                Ok(response) => {
                    self.note_progress(clock.now());
                    return Ok(response);
                }
                Err(error) => error,
            };
            if !self.retry.enabled || !is_lost(&error) {
                return Err(error);
            }
            let last = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            if clock.now().saturating_duration_since(last) >= self.retry.progress_timeout {
                let limit = self.retry.progress_timeout;
                let message = format!("no sample came back for {limit:?}; the last error: {error}");
                return Err(Error::Connection { message });
            }
            tracing::debug!(%error, sampler = client.sampling_session_id(), "sampling again");
            let policy = retry::RetryPolicy {
                base_delay: self.retry.base_delay,
                max_delay: self.retry.max_delay,
                jitter: self.retry.jitter,
                ..retry::RetryPolicy::default()
            };
            clock.sleep(policy.delay(attempts, retry::random())).await;
            attempts += 1;
        }
    }

    fn note_progress(&self, now: Instant) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    async fn attempt(
        &self,
        client: &SamplingClient,
        request: &SampleRequest,
        bytes: u64,
        poll: &PollOptions,
    ) -> Result<SampleResponse> {
        let http = client.http();
        let submitted = self.submit(http, request, bytes, poll.timeout).await?;
        let ids = submitted.future().and_then(|future| future.sample_sequence_ids.clone());
        let wanted = Wanted { is_protobuf: true, is_stoppable: true, ..Wanted::json("Sample") };
        let id = submitted.future().map(|future| future.request_id.clone());
        let (Some(feed), Some(id)) = (client.feed(poll).await?, id) else {
            return SampleResponse::of(submitted.result(http, wanted, poll).await?, ids.as_deref());
        };
        let stoppable = http.stoppable(&wanted);
        let waiting = Waiting::on(&id, stoppable);
        let size = self.within(http, poll, &id, feed.ended(&id)).await?;
        drop(waiting);
        // Its size is known: there is no need to ask for it.
        let _room = match size {
            Some(size) => Some(http.server().await?.answer_bytes.take(size).await),
            None => None,
        };
        let wanted = Wanted { is_announced: size.is_some(), ..wanted };
        let answer = submitted.result(http, wanted, poll).await?;
        feed.received(id);
        SampleResponse::of(answer, ids.as_deref())
    }

    /// The result's limit of time, for what comes before the first poll.
    async fn within<T>(
        &self,
        http: &Http,
        poll: &PollOptions,
        id: &RequestId,
        end: impl Future<Output = T>,
    ) -> Result<T> {
        let Some(limit) = poll.timeout else { return Ok(end.await) };
        tokio::select! {
            ended = end => Ok(ended),
            () = http.clock().sleep(limit) => Err(Error::Timeout {
                request_id: id.to_string(),
                exit_reason: format!("its result was waited for {limit:?}"),
            }),
        }
    }

    /// Sends one sample, again and again while the server is busy, as long as its result may take.
    async fn submit(
        &self,
        http: &Http,
        request: &SampleRequest,
        bytes: u64,
        limit_of_all: Option<Duration>,
    ) -> Result<Submitted> {
        let (clock, limit) = (http.clock(), &http.config.rate_limit);
        let server = http.server().await?;
        let call = Call::post("asample", request)?
            .pool(Pool::Sampling)
            .retries(false, false)
            .header("X-Tinker-Sampling-Backpressure", "1");
        let mut failures = 0;
        let start = clock.now();
        let mut unpaid_since = None;
        loop {
            limit.wait(clock).await;
            let error = match self.send(http, server, &call, bytes).await {
                Err(error) => error,
                sent => return sent,
            };
            let waited = clock.now().saturating_duration_since(start);
            if limit_of_all.is_some_and(|most| waited >= most) {
                return Err(error);
            }
            let pause = match error.status() {
                Some(429) => {
                    let large = bytes > LARGE_PROMPT_BYTES;
                    limit.pause(clock, if large { BUSY_PAUSE_LARGE } else { BUSY_PAUSE });
                    Duration::ZERO
                }
                Some(402) => {
                    let since = *unpaid_since.get_or_insert_with(|| clock.now());
                    let waited = clock.now().saturating_duration_since(since);
                    if waited >= billing_pause_max(&server.config) {
                        return Err(error);
                    }
                    BILLING_PAUSE
                }
                _ if is_lost(&error) => {
                    let pause = retry::outer_delay(failures);
                    failures += 1;
                    if waited + pause > http.config.inner.retry.timeout {
                        return Err(error);
                    }
                    pause
                }
                _ => return Err(error),
            };
            tracing::debug!(%error, "a sample is sent again");
            if !pause.is_zero() {
                clock.sleep(pause).await;
            }
        }
    }

    /// Sends it once, when there is room for it among those that are being sent.
    async fn send(
        &self,
        http: &Http,
        server: &Server,
        call: &Call,
        bytes: u64,
    ) -> Result<Submitted> {
        let is_throttled = http.config.rate_limit.is_recent(http.clock(), THROTTLED);
        let _permit = self.submissions.acquire().await.map_err(|_| Error::Stopped)?;
        let _few = match is_throttled {
            true => Some(self.throttled.acquire().await.map_err(|_| Error::Stopped)?),
            false => None,
        };
        let factor = if is_throttled { THROTTLED_FACTOR } else { 1 };
        let _room = server.sample_bytes.take(bytes.saturating_mul(factor)).await;
        Submitted::send(http, call).await
    }
}

/// Whether the same sample may work another time.
fn is_lost(error: &Error) -> bool {
    matches!(
        error,
        Error::Connection { .. }
            | Error::Expired { .. }
            | Error::Api { status: 408 | 409 | 429 | 500.., .. }
    )
}
