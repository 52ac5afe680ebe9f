//! A few threads with a read-only connection each.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::Builder,
};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{Error, Result, sqlite::open_reader};

/// Reads rarely wait for the disk: two threads keep a slow one from holding up the rest.
const THREADS: usize = 2;
/// Reads that wait for a thread; more wait outside the queue.
const QUEUE: usize = 256;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Handle of the threads; they end when it goes.
pub(crate) struct Readers {
    queue: mpsc::Sender<(Read, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let (queue, reads) = mpsc::channel::<(Read, OwnedSemaphorePermit)>();
        let reads = Arc::new(Mutex::new(reads));
        for number in 0..THREADS {
            let conn = open_reader(path)?;
            let reads = Arc::clone(&reads);
            let next = move || reads.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
            Builder::new().name(format!("store-reader-{number}")).spawn(move || {
                while let Some((read, _permit)) = next() {
                    read(&conn);
                }
            })?;
        }
        Ok(Self { queue, room: Arc::new(Semaphore::new(QUEUE)) })
    }

    /// Runs `read` on one of the threads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| Error::Fatal)?;
        let (reply, result) = oneshot::channel();
        let read: Read = Box::new(move |conn| drop(reply.send(read(conn))));
        self.queue.send((read, permit)).map_err(|_| Error::Fatal)?;
        result.await.map_err(|_| Error::Fatal)?
    }
}
