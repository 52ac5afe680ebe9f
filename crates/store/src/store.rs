//! The handle, and how a store is opened and stopped. The methods stand in a file for each group.

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use rusqlite::Connection;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::{
    Clock, Config, Error, Result,
    blobs::Blobs,
    data_dir::DataDir,
    index::{Arrival, Index},
    ledger,
    samples::Samples,
    sessions::LiveSessions,
    spool::Spool,
    sqlite::{
        self, Tx,
        readers::Readers,
        requests, runs,
        writer::{self, Message, WriteJob},
    },
    start::{Starts, fresh_secret},
};

/// A cheap handle; clones share one store. The store stops when the last one goes.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// What ends with the last handle.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) readers: Readers,
    /// Writes that may still be queued.
    room: Arc<Semaphore>,
    messages: mpsc::Sender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Goes last: unlocks the directory.
    data_dir: DataDir,
}

/// What the handle and the writer thread share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) starts: Starts,
    /// Of the data directory, the same at every start.
    root_secret: [u8; 32],
    pub(crate) blobs: Blobs,
    pub(crate) spool_dir: PathBuf,
    pub(crate) sessions: LiveSessions,
    /// Told when something can be claimed.
    pub(crate) work: Notify,
    index: Mutex<Index>,
    stopped: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("start", &self.starts.current).finish_non_exhaustive()
    }
}

impl Shared {
    /// Held for bookkeeping only, never across a wait or a write.
    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.work.notify_waiters();
    }
}

impl Store {
    /// Opens the data directory, which must not be open elsewhere, and recovers what is in it: every
    /// request that has no result yet can be claimed again.
    ///
    /// # Errors
    /// [`Error::Refused`] where the directory is in use, of a newer version, or on a network file
    /// system.
    pub fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Self> {
        let data_dir = DataDir::open(&config)?;
        let durable = data_dir.durable;
        let conn = sqlite::open_writer(&data_dir.database(), durable)?;
        let spool = Spool::open(data_dir.spool(), config.spool_segment_bytes_max, durable)?;
        let blobs = Blobs::open(data_dir.blobs(), durable, clock.monotonic())?;
        data_dir.sync()?;

        let mut starts = Starts::new();
        starts.know(sqlite::begin_start(&conn, &starts.current, starts.secret(), clock.now())?);
        let index = recover(&conn, &config, &*clock, starts.count())?;
        let root_secret = sqlite::root_secret(&conn, &fresh_secret())?;
        let sessions = LiveSessions::recover(&conn, clock.now())?;
        let readers = Readers::start(&data_dir.database())?;
        let room = Arc::new(Semaphore::new(config.write_queue_max));
        let shared = Arc::new(Shared {
            config,
            clock,
            starts,
            root_secret,
            blobs,
            spool_dir: data_dir.spool(),
            sessions,
            work: Notify::new(),
            index: Mutex::new(index),
            stopped: AtomicBool::new(false),
        });
        let (messages, received) = mpsc::channel();
        let writer = writer::start(conn, spool, Arc::clone(&shared), received)?;
        let writer = Mutex::new(Some(writer));
        let inner = Inner { shared, readers, room, messages, writer, data_dir };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Names this start; part of the ids of samples.
    pub fn start_id(&self) -> &str {
        &self.shared().starts.current
    }

    /// How long a session may be silent before it expires.
    pub fn session_expiry(&self) -> std::time::Duration {
        self.shared().config.session_expiry
    }

    /// A secret for one purpose, the same at every start of this data directory. Whoever knows it knows
    /// nothing of those for other purposes.
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(&format!("tinsmith 2026 {purpose}"), &self.shared().root_secret)
    }

    /// An empty file in the data directory that has no name: it goes with its last handle, whatever happens.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses it.
    pub fn scratch_file(&self) -> Result<File> {
        Ok(self.inner.data_dir.scratch_file()?)
    }

    /// Whether writes are accepted: false after a fatal error and after [`Self::close`].
    pub fn ready(&self) -> bool {
        !self.shared().stopped()
    }

    /// Writes down what is in memory only, finishes the queued writes and stops the writer. Blocks
    /// until that is done.
    pub fn close(&self) {
        self.inner.close();
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// Runs `apply` in the next group's transaction, then `publish` once that is on disk.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        apply: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
        publish: impl FnOnce(&Shared, &T) + Send + 'static,
    ) -> Result<T> {
        let room = Arc::clone(&self.inner.room);
        let permit = room.acquire_owned().await.map_err(|_| Error::Fatal)?;
        let (reply, result) = oneshot::channel();
        let job = WriteJob { apply: Some(apply), publish, applied: None, reply, _permit: permit };
        self.inner.send(Message::Write(Box::new(job)))?;
        result.await.map_err(|_| Error::Fatal)?
    }

    /// Runs `work` on the writer thread between two commits.
    pub(crate) async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &Spool, &Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, result) = oneshot::channel();
        self.inner.send(Message::Alone(Box::new(move |conn, spool, shared| {
            drop(reply.send(work(conn, spool, shared)));
        })))?;
        result.await.map_err(|_| Error::Fatal)?
    }

    /// Runs `read` on a connection that sees every commit so far.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.readers.read(read).await
    }
}

impl Inner {
    fn send(&self, message: Message) -> Result<()> {
        if self.shared.stopped() {
            return Err(Error::Fatal);
        }
        self.messages.send(message).map_err(|_| Error::Fatal)
    }

    fn close(&self) {
        let flush = Message::Alone(Box::new(|conn, _, shared| {
            shared.sessions.flush(conn);
            ledger::flush(conn, shared);
        }));
        // Either fails only where the writer has stopped already.
        drop(self.send(flush).and_then(|()| self.send(Message::Stop)));
        self.join();
    }

    fn join(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("writer panicked");
        }
    }
}

impl Drop for Inner {
    /// The directory is unlocked only after the last write.
    fn drop(&mut self) {
        drop(self.messages.send(Message::Stop));
        self.join();
    }
}

/// Finds out whose turn it is.
fn recover(conn: &Connection, config: &Config, clock: &dyn Clock, starts: u64) -> Result<Index> {
    // A start has room for so many samples, and cursors stay whole numbers in every language.
    let samples = Samples::new(config.samples_max, config.sample_bytes_max, starts << 32);
    let mut index = Index::new(samples, config.cache_bytes_max);
    for (model, next) in runs::next_seqs(conn)? {
        index.add_run(&model, next);
    }
    let now = clock.monotonic();
    let mut models = HashSet::new();
    let mut unfinished = 0;
    for (known, length) in requests::unsettled(conn)? {
        models.insert(known.model.clone());
        let requests::Known { tenant, request_id, model, seq, kind, pending } = known;
        if pending {
            unfinished += 1;
            let arrival = Arrival { tenant, model, seq, request_id, kind, length, body: None };
            index.arrived(arrival, now);
        } else {
            index.consumed(&model, seq, now);
        }
    }
    if unfinished > 0 {
        tracing::info!(requests = unfinished, runs = models.len(), "unfinished requests recovered");
    }
    Ok(index)
}
