//! What runs between the tasks of an op: sampling, while a long training step is under way.
//!
//! The pool asks after every task that its caller has run. What is due then runs on the caller's thread,
//! with ops of a sibling, which has working memory of its own and calls the same threads.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use tinsmith_backend::{Between, Nothing};

/// Where a pool finds it.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Hook>>>);

struct Hook(*mut (dyn Between + 'static));

// SAFETY: what is lent may be sent, and whoever holds the lock is alone with it.
unsafe impl Send for Hook {}

impl Slot {
    /// Has `between` run while `work` does.
    pub(crate) fn lend<R>(&self, between: &mut dyn Between, work: impl FnOnce() -> R) -> R {
        let pointer: *mut (dyn Between + '_) = between;
        // SAFETY: only the lifetime is forgotten; the slot is emptied before this returns or unwinds.
        let pointer: *mut (dyn Between + 'static) = unsafe { std::mem::transmute(pointer) };
        self.put(Some(Hook(pointer)));
        let lent = Lent(self);
        let result = work();
        drop(lent);
        result
    }

    /// Calls `work` with what is in the slot.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut dyn Between) -> R) -> R {
        let mut slot = match self.0.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
            Err(TryLockError::WouldBlock) => return work(&mut Nothing),
        };
        match &mut *slot {
            // SAFETY: the lock is held, and it is lent until it can be taken out under the lock.
            Some(Hook(pointer)) => work(unsafe { &mut **pointer }),
            None => work(&mut Nothing),
        }
    }

    fn put(&self, hook: Option<Hook>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = hook;
    }
}

struct Lent<'a>(&'a Slot);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.put(None);
    }
}
