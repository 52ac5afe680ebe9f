//! HTTP for the servers of this module: a listener on a free local port and a thread of its own, so that tests
//! need no runtime.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Request, Response, body::Incoming, http::request::Parts, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::body::AnswerBody;

/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 512 << 20;

/// An answer, or none: the connection is closed.
pub(super) type Answered = Pin<Box<dyn Future<Output = Option<Response<AnswerBody>>> + Send>>;

/// Answers requests.
pub(super) trait Handler: Send + Sync + 'static {
    fn handle(self: Arc<Self>, head: Parts, body: Bytes) -> Answered;
}

/// A running server. Dropping it closes its connections and ends its thread.
#[derive(Debug)]
pub(super) struct Transport {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Transport {
    pub(super) fn start(handler: Arc<impl Handler>) -> io::Result<Self> {
        let listener = StdListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let open = Arc::clone(&connections);
        let serve = async move {
            // Ends with the sender, too.
            tokio::select! {
                _ = stopped => {}
                () = accept(listener, handler, open) => {}
            }
        };
        let thread = std::thread::Builder::new()
            .name("tinsmith-mock".to_owned())
            .spawn(move || runtime.block_on(serve))?;
        Ok(Self { address, connections, stop: Some(stop), thread: Some(thread) })
    }

    /// Such as `http://127.0.0.1:34567`.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that are open now.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the mock server's thread has panicked");
        }
    }
}

async fn accept(listener: StdListener, handler: Arc<impl Handler>, open: Arc<AtomicUsize>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the mock server cannot listen");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let open = Open::new(&open);
                tokio::spawn(converse(stream, Arc::clone(&handler), open));
            }
            Err(error) => tracing::warn!(%error, "the mock server cannot accept a connection"),
        }
    }
}

async fn converse(stream: TcpStream, handler: Arc<impl Handler>, open: Open) {
    // Small answers shall not wait for acknowledgements of smaller ones.
    let undelayed = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (head, body) = request.into_parts();
            let broken = |message: &'static str| io::Error::other(message);
            let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
            let body = body.map_err(|_| broken("the request's body broke off"))?.to_bytes();
            handler.handle(head, body).await.ok_or_else(|| broken("dropped on purpose"))
        }
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    tracing::trace!(?undelayed, ?served, "a connection of the mock server has ended");
    drop(open);
}

/// Counts while it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
