//! What each op took, gathered while the engine runs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// An op, with the shape of its matrix where it has one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Op {
    pub(super) name: &'static str,
    /// Inputs and outputs.
    pub(super) shape: Option<(usize, usize)>,
}

/// What an op took, all its calls together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) calls: u64,
    pub(super) time: Duration,
    /// Floating-point operations of products and sums of products; 0 where there are none to speak of.
    pub(super) flops: usize,
}

pub(super) type Costs = BTreeMap<Op, Cost>;

/// What was noted since it was last taken; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Arc<Mutex<Costs>>);

impl Notes {
    pub(super) fn take(&self) -> Costs {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn add(&self, op: Op, time: Duration, flops: usize) {
        let mut costs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = costs.entry(op).or_default();
        cost.calls += 1;
        cost.time += time;
        cost.flops += flops;
    }
}
