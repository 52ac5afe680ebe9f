//! The one thread that writes: it commits whatever gathered while its last commit ran.

use std::{
    fmt,
    sync::{Arc, mpsc},
    thread::{Builder, JoinHandle},
};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{Error, Result, spool::Spool, sqlite::Tx, store::Shared};

/// What the writer is told.
pub(crate) enum Message {
    /// A write that shares its commit with others.
    Write(Box<dyn Write>),
    /// Work between commits, when every reference is on disk.
    Alone(Alone),
    Stop,
}

type Alone = Box<dyn FnOnce(&Connection, &Spool, &Shared) + Send>;

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::Alone(_) => "Alone",
            Self::Stop => "Stop",
        })
    }
}

/// A write, from its transaction to its reply.
pub(crate) trait Write: Send {
    fn apply(&mut self, tx: &mut Tx<'_>) -> Applied;
    /// Called once the group is on disk, or is known not to be.
    fn finish(self: Box<Self>, shared: &Shared, committed: &Result<()>);
}

/// What became of a write inside its transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Applied {
    Kept,
    /// It failed on its own account and must leave no trace.
    Undone,
    Fatal,
}

/// A [`Write`] made of two closures.
pub(crate) struct WriteJob<T, A, P> {
    pub(crate) apply: Option<A>,
    /// Shows the committed change to the index.
    pub(crate) publish: P,
    pub(crate) applied: Option<Result<T>>,
    pub(crate) reply: oneshot::Sender<Result<T>>,
    /// Keeps the queue bounded.
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl<T, A, P> Write for WriteJob<T, A, P>
where
    T: Send,
    A: FnOnce(&mut Tx<'_>) -> Result<T> + Send,
    P: FnOnce(&Shared, &T) + Send,
{
    fn apply(&mut self, tx: &mut Tx<'_>) -> Applied {
        let Some(apply) = self.apply.take() else { return Applied::Undone };
        let applied = self.applied.insert(apply(tx));
        match applied {
            Ok(_) => Applied::Kept,
            Err(Error::Fatal) => Applied::Fatal,
            Err(_) => Applied::Undone,
        }
    }

    fn finish(self: Box<Self>, shared: &Shared, committed: &Result<()>) {
        let result = match (self.applied, committed) {
            (Some(Ok(value)), Ok(())) => {
                (self.publish)(shared, &value);
                Ok(value)
            }
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error.copy()),
            (None, Ok(())) => Err(Error::Fatal),
        };
        // Whoever asked may have gone.
        drop(self.reply.send(result));
    }
}

/// Starts the thread.
pub(crate) fn start(
    conn: Connection,
    spool: Spool,
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Message>,
) -> Result<JoinHandle<()>> {
    let writer = Writer { conn, spool, shared, messages };
    Ok(Builder::new().name("store-writer".to_owned()).spawn(move || writer.run())?)
}

struct Writer {
    conn: Connection,
    spool: Spool,
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Message>,
}

impl Writer {
    /// Returns after a stop or a fatal error, or when every handle is gone. The messages that are left
    /// are dropped, which tells their senders.
    fn run(mut self) {
        let mut held = None;
        while !self.shared.stopped() {
            let Some(message) = held.take().or_else(|| self.messages.recv().ok()) else { break };
            match message {
                Message::Write(first) => {
                    let (group, next) = self.gather(first);
                    held = next;
                    self.commit(group);
                }
                Message::Alone(work) => work(&self.conn, &self.spool, &self.shared),
                Message::Stop => break,
            }
        }
        self.shared.stop();
    }

    /// The writes that wait already, and the message that ended the row of them.
    fn gather(&self, first: Box<dyn Write>) -> (Vec<Box<dyn Write>>, Option<Message>) {
        let mut group = vec![first];
        while group.len() < self.shared.config.group_requests_max {
            match self.messages.try_recv() {
                Ok(Message::Write(write)) => group.push(write),
                Ok(other @ (Message::Alone(_) | Message::Stop)) => return (group, Some(other)),
                Err(_) => break,
            }
        }
        (group, None)
    }

    fn commit(&mut self, mut group: Vec<Box<dyn Write>>) {
        let committed = self.apply(&mut group);
        if let Err(error) = &committed {
            tracing::error!(error = %error, writes = group.len(), "commit failed");
            let rolled_back =
                self.conn.is_autocommit() || self.conn.execute_batch("ROLLBACK").is_ok();
            if matches!(error, Error::Fatal) || !rolled_back {
                self.shared.stop();
            }
        }
        for write in group {
            write.finish(&self.shared, &committed);
        }
    }

    fn apply(&mut self, group: &mut [Box<dyn Write>]) -> Result<()> {
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        for write in group {
            self.conn.prepare_cached("SAVEPOINT one")?.execute([])?;
            let now = self.shared.clock.now();
            let mut tx = Tx { conn: &self.conn, spool: &mut self.spool, shared: &self.shared, now };
            let applied = write.apply(&mut tx);
            if self.conn.is_autocommit() {
                // SQLite ends the transaction by itself where the disk is full.
                return Err(Error::Io(std::io::ErrorKind::StorageFull.into()));
            }
            match applied {
                Applied::Kept => {}
                Applied::Undone => {
                    self.conn.prepare_cached("ROLLBACK TO one")?.execute([])?;
                }
                Applied::Fatal => return Err(Error::Fatal),
            }
            self.conn.prepare_cached("RELEASE one")?.execute([])?;
        }
        self.spool.sync()?;
        Ok(self.conn.execute_batch("COMMIT")?)
    }
}
