//! How many bytes things take up, by the very functions that size them.

use tinsmith_backend::{Footprint, PairShape, ScratchShape, StepKind};

use crate::{
    CpuBackend, attention, attention_backward,
    buffer::{Rows, padded},
    gemm,
    rope::Turns,
    score, select,
    sets::{KernelSet, packed::Layout},
    weight::packed_words,
};

pub(crate) fn bytes(cpu: &CpuBackend, of: Footprint) -> usize {
    let floats = match of {
        Footprint::Weight { outputs, inputs, trained } => {
            let transposed = if trained { packed_words(cpu.set, inputs, outputs) } else { 0 };
            packed_words(cpu.set, outputs, inputs) + transposed
        }
        Footprint::Vector(features) => padded(features),
        Footprint::Rows { rows, features } => Rows::floats(rows, features),
        Footprint::Lora(shape) => {
            pair_floats(&shape) + (shape.inputs + shape.outputs) * padded(shape.rank)
        }
        Footprint::Pair(shape) => pair_floats(&shape),
        Footprint::Cache { blocks, layers, shape } => {
            blocks * layers * shape.kv_heads * attention::tile_floats(shape.head_dim)
        }
        Footprint::Scratch(shape) => {
            shared_floats(cpu.set, &shape) + cpu.pool.threads() * thread_floats(&shape)
        }
    };
    floats * size_of::<f32>()
}

fn pair_floats(shape: &PairShape) -> usize {
    Rows::floats(shape.rank, shape.inputs) + Rows::floats(shape.rank, shape.outputs)
}

/// What the backend holds once.
fn shared_floats(set: KernelSet, shape: &ScratchShape) -> usize {
    let hidden = Rows::floats(shape.rows, shape.rank);
    let chunk = shape.rows.min(score::chunk_rows(shape.vocabulary));
    let logits = Rows::floats(chunk, shape.vocabulary);
    let turns = shape.ropes * Turns::floats(shape.longest, shape.attention.head_dim);
    let packed = attention::packed_floats(shape.rows, shape.sequences, &shape.attention);
    let layout = |rows: usize| match set {
        KernelSet::F32 | KernelSet::W16Avx2 => None,
        KernelSet::Bf16Avx512 => Some(Layout::of_pairs(rows)),
        KernelSet::Bf16Amx => Some(Layout::Tiles),
    };
    let words = |rows, inputs| layout(rows).map_or(0, |layout| layout.words(rows, inputs));
    let rounded = match shape.kind {
        StepKind::Forward | StepKind::Infer => words(shape.rows, shape.widest),
        // Logits' gradients as well.
        StepKind::ForwardBackward => {
            words(shape.rows, shape.widest).max(words(chunk, shape.vocabulary))
        }
    };
    rounded
        + hidden
        + logits
        + turns
        + match shape.kind {
            StepKind::Forward => packed,
            // `dy B` as well.
            StepKind::ForwardBackward => packed + hidden,
            StepKind::Infer => 0,
        }
}

/// What one thread holds: the most that any op asks for.
fn thread_floats(shape: &ScratchShape) -> usize {
    let head_dim = shape.attention.head_dim;
    let always = gemm::SCRATCH_FLOATS
        .max(attention::scratch_floats(head_dim))
        .max(score::scratch_floats(shape.vocabulary));
    match shape.kind {
        StepKind::Forward => always,
        StepKind::ForwardBackward => {
            always.max(attention_backward::scratch_floats(shape.longest, head_dim))
        }
        StepKind::Infer => always.max(select::scratch_floats(shape.vocabulary)),
    }
}
