//! `forward` and `forward_backward`: batches that travel in chunks.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tinsmith_types::{
    ids::{ModelId, SeqId},
    proto,
    training::{
        ForwardBackwardInput, ForwardBackwardOutput as WireOutput, ForwardBackwardRequest,
        ForwardRequest,
    },
};

use super::{
    ForwardBackwardOutput, TrainingClient,
    chunks::{ChunkLimits, combine},
};
use crate::{
    ApiFuture, Datum, Error, Loss, PollOptions, Result,
    api::Submitted,
    http::{Call, Http, Pool},
    poll::{Answer, Wanted},
};

/// Compressing takes longer than sending below this.
const COMPRESSED_BYTES_MIN: usize = 4096;
const ZSTD_LEVEL: i32 = 1;

/// A part of a batch.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) data: Vec<Datum>,
    bytes: u64,
}

impl Chunk {
    pub(super) fn new(data: Vec<Datum>) -> Self {
        Self { bytes: data.iter().map(size).sum(), data }
    }
}

fn size(datum: &Datum) -> u64 {
    datum.estimated_bytes() as u64
}

/// What all chunks of a batch have in common.
#[derive(Debug)]
pub(super) struct Batch {
    http: Http,
    model_id: ModelId,
    loss: Loss,
    forward_only: bool,
    is_parallel: bool,
}

impl TrainingClient {
    /// Logprobs of the datums' targets; leaves the pending gradient alone.
    ///
    /// # Errors
    ///
    /// Datums that do not fit the loss are refused before anything is sent, with the place.
    pub fn forward(
        &self,
        data: Vec<Datum>,
        loss: impl Into<Loss>,
    ) -> ApiFuture<ForwardBackwardOutput> {
        self.run(data, loss.into(), true)
    }

    /// Logprobs, loss and metrics; adds the loss's gradient to the pending one.
    ///
    /// # Errors
    ///
    /// As [`Self::forward`]; a loss or gradient that is not finite.
    pub fn forward_backward(
        &self,
        data: Vec<Datum>,
        loss: impl Into<Loss>,
    ) -> ApiFuture<ForwardBackwardOutput> {
        self.run(data, loss.into(), false)
    }

    fn run(
        &self,
        data: Vec<Datum>,
        loss: Loss,
        forward_only: bool,
    ) -> ApiFuture<ForwardBackwardOutput> {
        let chunks = match self.chunks(data, &loss) {
            Ok(chunks) => chunks,
            Err(error) => return self.http().start(async { Err(error) }),
        };
        let batch = Arc::new(self.batch(loss, forward_only));
        let waiting = Arc::clone(&batch);
        let poll = self.poll_options().clone();
        self.submit(
            chunks.len(),
            move |first| batch.send(first, chunks),
            move |submitted| async move { waiting.wait(submitted, poll).await },
        )
    }

    /// What the requests of a batch have in common.
    pub(super) fn batch(&self, loss: Loss, forward_only: bool) -> Batch {
        let config = self.http().known_server().map(|server| &server.config);
        Batch {
            http: self.http().clone(),
            model_id: self.inner.model_id.clone(),
            loss,
            forward_only,
            is_parallel: config.and_then(|config| config.parallel_fwdbwd_chunks).unwrap_or(true),
        }
    }

    /// A batch in parts that the server takes.
    ///
    /// # Errors
    ///
    /// No datums, or some that do not fit the loss. Nothing is numbered before it is known to be sendable: a number
    /// that is never sent would hold up all that follow.
    pub(super) fn chunks(&self, data: Vec<Datum>, loss: &Loss) -> Result<Vec<Chunk>> {
        if data.is_empty() {
            return Err(Error::validation("a batch needs at least one datum"));
        }
        loss.check(&data)?;
        let config = self.http().known_server().map(|server| &server.config);
        let chunks = ChunkLimits::of(config).split(data, size);
        Ok(chunks.into_iter().map(Chunk::new).collect())
    }
}

impl Batch {
    /// Sends all chunks; those behind the first go at the same time, where the server takes them so.
    pub(super) async fn send(
        self: Arc<Self>,
        first: i64,
        chunks: Vec<Chunk>,
    ) -> Result<Vec<Submitted>> {
        let mut numbered = (first..).zip(chunks);
        let Some((number, head)) = numbered.next() else { return Ok(Vec::new()) };
        let mut submitted = Vec::new();
        if !self.is_parallel {
            submitted.push(self.send_one(number, head).await?);
            for (number, chunk) in numbered {
                submitted.push(self.send_one(number, chunk).await?);
            }
            return Ok(submitted);
        }
        let rest: Vec<_> = numbered
            .map(|(number, chunk)| {
                let batch = Arc::clone(&self);
                self.http.begin(async move { batch.send_one(number, chunk).await })
            })
            .collect();
        let mut later = Vec::new();
        for sent in rest {
            later.push(sent.await);
        }
        submitted.push(self.send_one(number, head).await?);
        for sent in later {
            submitted.push(sent?);
        }
        Ok(submitted)
    }

    async fn send_one(&self, seq_id: i64, chunk: Chunk) -> Result<Submitted> {
        let server = self.http.server().await?;
        let _room = server.training_bytes.take(chunk.bytes).await;
        let compress = server.config.proto_compress_fwdbwd == Some(true);
        match self.http.takes_protobuf() {
            Some(false) => {}
            Some(true) => {
                let call = self.protobuf(seq_id, chunk.data, compress)?;
                return Submitted::send(&self.http, &call).await;
            }
            None => {
                let call = self.protobuf(seq_id, chunk.data.clone(), compress)?;
                match Submitted::send(&self.http, &call).await {
                    // A server of an older generation takes JSON only.
                    Err(Error::Api { status: 415, .. }) => self.http.set_takes_protobuf(false),
                    Err(error) => return Err(error),
                    Ok(sent) => {
                        self.http.set_takes_protobuf(true);
                        return Ok(sent);
                    }
                }
            }
        }
        Submitted::send(&self.http, &self.json(seq_id, chunk.data)?).await
    }

    fn protobuf(&self, seq_id: i64, data: Vec<Datum>, compress: bool) -> Result<Call> {
        let data = place(data.into_iter().map(Datum::into_proto))?;
        let mut request = proto::ForwardBackwardRequest {
            model_id: self.model_id.to_string(),
            seq_id: i32::try_from(seq_id).map_err(|_| Error::validation("too many requests"))?,
            data,
            loss_fn: self.loss.name().to_owned(),
            forward_only: self.forward_only,
            ..proto::ForwardBackwardRequest::default()
        };
        request.set_loss_config(self.loss.config().clone());
        let bytes = request.encode_to_vec();
        let (bytes, is_zstd) = if compress && bytes.len() >= COMPRESSED_BYTES_MIN {
            let packed = zstd::bulk::compress(&bytes, ZSTD_LEVEL)
                .map_err(|error| Error::validation(format!("compress the batch: {error}")))?;
            (packed, true)
        } else {
            (bytes, false)
        };
        let call = Call::post_protobuf("forward_backward", Bytes::from(bytes), is_zstd);
        Ok(call.pool(Pool::Training))
    }

    fn json(&self, seq_id: i64, data: Vec<Datum>) -> Result<Call> {
        let input = ForwardBackwardInput {
            data: place(data.into_iter().map(Datum::json))?,
            loss_fn: self.loss.name().to_owned(),
            loss_fn_config: Some(self.loss.config().clone()).filter(|config| !config.is_empty()),
        };
        let (model_id, seq_id) = (self.model_id.clone(), Some(SeqId(seq_id)));
        let call = if self.forward_only {
            Call::post("forward", &ForwardRequest { forward_input: input, model_id, seq_id })
        } else {
            let forward_backward_input = input;
            let request = ForwardBackwardRequest { forward_backward_input, model_id, seq_id };
            Call::post("forward_backward", &request)
        };
        Ok(call?.pool(Pool::Training))
    }

    pub(super) async fn wait(
        &self,
        submitted: Vec<Submitted>,
        poll: PollOptions,
    ) -> Result<ForwardBackwardOutput> {
        let request_type = if self.forward_only { "Forward" } else { "ForwardBackward" };
        let mut outputs = Vec::with_capacity(submitted.len());
        let waits: Vec<ApiFuture<WireOutput>> = (submitted.into_iter())
            .map(|submitted| {
                let (http, poll) = (self.http.clone(), poll.clone());
                self.http.start(async move {
                    let wanted = Wanted { is_protobuf: true, ..Wanted::json(request_type) };
                    decode(submitted.result(&http, wanted, &poll).await?)
                })
            })
            .collect();
        for wait in waits {
            outputs.push(wait.await?);
        }
        combine(outputs)?.try_into()
    }
}

fn decode(answer: Answer) -> Result<WireOutput> {
    match answer {
        Answer::Protobuf(bytes) => {
            let output = proto::ForwardBackwardOutput::decode(bytes).map_err(Error::response)?;
            Ok((&output).try_into()?)
        }
        answer @ Answer::Json(_) => answer.json(),
    }
}

/// An error of a datum says which one.
fn place<T>(data: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    data.enumerate()
        .map(|(i, datum)| {
            datum.map_err(|error| {
                if let Error::Validation { message } = error {
                    return Error::validation(format!("datum {i}: {message}"));
                }
                error
            })
        })
        .collect()
}
