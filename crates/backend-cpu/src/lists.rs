//! Short lists that an op fills and empties: each thread keeps their room from op to op.

use std::{cell::Cell, thread::LocalKey};

/// Calls `work` with this thread's empty list.
pub(crate) fn with_list<T, R>(
    kept: &'static LocalKey<Cell<Vec<T>>>,
    work: impl FnOnce(&mut Vec<T>) -> R,
) -> R {
    let mut list = kept.take();
    let result = work(&mut list);
    list.clear();
    kept.set(list);
    result
}
