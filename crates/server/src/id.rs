//! What this side makes up: ids of sequences, and seeds that clients leave open.

use tinsmith_types::ids::{RequestId, SequenceId};

/// The ids of the sequences that a sample will have.
pub(crate) fn sequence_ids(request: &RequestId, num_samples: u32) -> Vec<SequenceId> {
    (0..num_samples as usize).map(|index| SequenceId::of(request, index)).collect()
}

/// A seed that the client did not give. The sign bit stays free: seeds travel as JSON integers.
pub(crate) fn draw_seed() -> u64 {
    // A version 4 UUID has six fixed bits; these two halves have none at the same place.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    (high.rotate_left(32) ^ low) >> 1
}
