//! How many bytes things take up, by the very functions that size them.

use tinsmith_backend::{Footprint, PairShape, ScratchShape, StepKind};

#[cfg(target_arch = "x86_64")]
use crate::sets::bf16_amx::{gradient::gradient_words, job::job_words};
use crate::{
    CpuBackend,
    attention::{self, Tiling},
    attention_backward,
    buffer::{Lora, Rows, padded},
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
        Footprint::Lora(shape) => pair_floats(&shape) + Lora::copied_floats(cpu.set, &shape),
        Footprint::Pair(shape) => pair_floats(&shape),
        Footprint::Cache { blocks, layers, shape } => {
            blocks * layers * shape.kv_heads * Tiling::of(cpu.set).words(shape.head_dim)
        }
        Footprint::Scratch(shape) => {
            shared_floats(cpu.set, cpu.pool.threads(), &shape)
                + cpu.pool.threads() * thread_floats(cpu.set, &shape)
        }
    };
    floats * size_of::<f32>()
}

fn pair_floats(shape: &PairShape) -> usize {
    Rows::floats(shape.rank, shape.inputs) + Rows::floats(shape.rank, shape.outputs)
}

/// What the backend holds once.
fn shared_floats(set: KernelSet, threads: usize, shape: &ScratchShape) -> usize {
    let hidden = Rows::floats(shape.rows, shape.rank);
    let chunk = shape.rows.min(score::chunk_rows(shape.vocabulary));
    let logits = Rows::floats(chunk, shape.vocabulary);
    let turns = shape.ropes * Turns::floats(shape.longest, shape.attention.head_dim);
    let packed =
        attention::packed_floats(Tiling::of(set), (shape.rows, shape.sequences), &shape.attention);
    rounded_words(set, shape, chunk)
        + hidden
        + logits
        + turns
        + match shape.kind {
            StepKind::Forward => packed,
            // `dy B` as well.
            StepKind::ForwardBackward => {
                let tokens = (shape.longest, threads);
                let shares =
                    attention_backward::shared_floats(Tiling::of(set), tokens, &shape.attention);
                packed + hidden_gradients(set) * hidden + shares
            }
            StepKind::Infer => 0,
        }
}

/// Linear maps whose `dy B` are held at once.
fn hidden_gradients(set: KernelSet) -> usize {
    match set {
        KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => 1,
        KernelSet::Bf16Amx => 3,
    }
}

/// Rows rounded to bf16; logits' gradients are rounded too.
fn rounded_words(set: KernelSet, shape: &ScratchShape, chunk: usize) -> usize {
    let backward = shape.kind == StepKind::ForwardBackward;
    match set {
        KernelSet::F32 | KernelSet::W16Avx2 => 0,
        KernelSet::Bf16Avx512 => {
            let words = |rows, inputs| Layout::of_pairs(rows).words(rows, inputs);
            let logits = if backward { words(chunk, shape.vocabulary) } else { 0 };
            words(shape.rows, shape.widest).max(logits)
        }
        #[cfg(target_arch = "x86_64")]
        KernelSet::Bf16Amx => {
            let (rows, rank, uses) = (shape.rows, shape.rank, shape.sequences);
            let widest = shape.widest;
            if !backward {
                return job_words(rows, uses, &[widest], rank);
            }
            let gradients = 6 * gradient_words(rows, shape.sequences, rank);
            // Of the linear maps whose gradients are made together: gate and up; q, k and v.
            let heads = &shape.attention;
            let [q, kv] = [heads.heads, heads.kv_heads].map(|count| count * heads.head_dim);
            let layers = job_words(rows, uses, &[widest, widest], rank);
            let layers = layers.max(job_words(rows, uses, &[q, kv, kv], rank));
            let logits = job_words(chunk, uses, &[shape.vocabulary], rank);
            layers.max(logits) + gradients
        }
        #[cfg(not(target_arch = "x86_64"))]
        KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
    }
}

/// What one thread holds: the most that any op asks for.
fn thread_floats(set: KernelSet, shape: &ScratchShape) -> usize {
    let head_dim = shape.attention.head_dim;
    let always = gemm::SCRATCH_FLOATS
        .max(Tiling::of(set).scratch_floats(head_dim))
        .max(score::scratch_floats(shape.vocabulary));
    match shape.kind {
        StepKind::Forward => always,
        StepKind::ForwardBackward => always.max(attention_backward::scratch_floats(
            Tiling::of(set),
            shape.longest,
            &shape.attention,
        )),
        StepKind::Infer => always.max(select::scratch_floats(shape.vocabulary)),
    }
}
