//! Frozen matrices, packed once as the kernel set wants them.
//!
//! f32: panels of sixteen outputs, `[panel][input][16]`. bf16: the same panels with two inputs in each
//! word, `[panel][pair of inputs][16]`, the even input in the low half, as `vdpbf16ps` and AMX's tiles
//! read them; each panel is filled up with zeros to whole tiles of 32 inputs.

use std::sync::OnceLock;

use half::{bf16, f16};
use tinsmith_backend::{Dtype, RawMatrix, Result};

use crate::{
    buffer::{Buffer, View, padded},
    gemm::Operand,
    lanes::LANES,
    pool::Pool,
    sets::{
        KernelSet,
        packed::{Rounded, whole_pairs},
    },
};

/// A frozen matrix `[outputs, inputs]`.
#[derive(Debug)]
pub struct Weight {
    set: KernelSet,
    panels: Buffer,
    transposed: OnceLock<Buffer>,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

impl Weight {
    pub(crate) fn new(raw: &RawMatrix<'_>, set: KernelSet, pool: &Pool) -> Result<Self> {
        let (outputs, inputs) = (raw.rows, raw.cols);
        assert_eq!(raw.bytes.len(), outputs * inputs * raw.dtype.size(), "bytes fit the shape");
        let mut panels = Buffer::zeros(packed_words(set, outputs, inputs))?;
        let to = view_mut(set, &mut panels, inputs);
        pool.run(outputs.div_ceil(LANES), &|panel| {
            for lane in 0..LANES.min(outputs - panel * LANES) {
                let first = (panel * LANES + lane) * inputs;
                // SAFETY: the panel lies in the buffer and belongs to this task alone.
                unsafe {
                    match set.weights() {
                        Dtype::Bf16 => {
                            for input in 0..inputs {
                                *half_at(to, (panel, input, lane)) =
                                    decode_half(raw, first + input);
                            }
                        }
                        Dtype::F32 | Dtype::F16 => {
                            for input in 0..inputs {
                                *float_at(to, (panel, input, lane)) = decode(raw, first + input);
                            }
                        }
                    }
                }
            }
        });
        Ok(Self { set, panels, transposed: OnceLock::new(), outputs, inputs })
    }

    /// What a product multiplies `x` by.
    pub(crate) fn operand(&self) -> Operand {
        operand(self.set, self.panels())
    }

    /// The matrix `[inputs, outputs]` in the same layout, made when first asked for.
    pub(crate) fn transposed(&self, pool: &Pool) -> Operand {
        operand(self.set, self.transposed_panels(pool))
    }

    /// The panels alone.
    pub(crate) fn panels(&self) -> View {
        view(self.set, &self.panels, self.inputs)
    }

    /// The transposed matrix's panels, made when first asked for.
    pub(crate) fn transposed_panels(&self, pool: &Pool) -> View {
        let transposed = self.transposed.get_or_init(|| self.transpose(pool));
        view(self.set, transposed, self.outputs)
    }

    fn transpose(&self, pool: &Pool) -> Buffer {
        let mut transposed = Buffer::default();
        transposed.renew(packed_words(self.set, self.inputs, self.outputs));
        let to = view_mut(self.set, &mut transposed, self.outputs);
        let from = view(self.set, &self.panels, self.inputs);
        pool.run(self.inputs.div_ceil(LANES), &|panel| {
            for output in 0..self.outputs {
                for lane in 0..LANES.min(self.inputs - panel * LANES) {
                    let input = panel * LANES + lane;
                    let (place, other) =
                        ((output / LANES, input, output % LANES), (panel, output, lane));
                    // SAFETY: both elements lie in their buffers; the panel belongs to this task.
                    unsafe {
                        match self.set.weights() {
                            Dtype::Bf16 => {
                                *half_at(to, other) = *half_at(from, place);
                            }
                            Dtype::F32 | Dtype::F16 => {
                                *float_at(to, other) = *float_at(from, place);
                            }
                        }
                    }
                }
            }
        });
        transposed
    }

    /// `to = scale * row`, for the inputs of one output.
    pub(crate) fn read_row(&self, output: usize, to: &mut [f32], scale: f32) {
        assert!(output < self.outputs, "the token is in the table");
        // SAFETY: the output is one of the matrix, whose buffers are only read.
        unsafe {
            match self.set.weights() {
                Dtype::Bf16 => self.read_halves(output, (to, scale)),
                Dtype::F32 | Dtype::F16 => self.read_floats(output, (to, scale)),
            }
        }
    }

    unsafe fn read_halves(&self, output: usize, (to, scale): (&mut [f32], f32)) {
        let Some(transposed) = self.transposed.get() else {
            let panels = view(self.set, &self.panels, self.inputs);
            for (pair, to) in to.chunks_mut(2).enumerate() {
                let word = *panels.at(output / LANES, pair * LANES + output % LANES).cast::<u32>();
                for (to, bits) in to.iter_mut().zip([word << 16, word & 0xffff_0000]) {
                    *to = scale * f32::from_bits(bits);
                }
            }
            return;
        };
        // A panel has sixteen inputs, side by side.
        let panels = view(self.set, transposed, self.outputs);
        let shift = if output.is_multiple_of(2) { 16 } else { 0 };
        for (panel, to) in to.chunks_mut(LANES).enumerate() {
            let words = panels.at(panel, output / 2 * LANES).cast::<[u32; LANES]>();
            for (to, word) in to.iter_mut().zip(words.read_unaligned()) {
                *to = scale * f32::from_bits(word << shift & 0xffff_0000);
            }
        }
    }

    unsafe fn read_floats(&self, output: usize, (to, scale): (&mut [f32], f32)) {
        let Some(transposed) = self.transposed.get() else {
            let panels = view(self.set, &self.panels, self.inputs);
            for (input, to) in to.iter_mut().enumerate() {
                *to = scale * *panels.at(output / LANES, input * LANES + output % LANES);
            }
            return;
        };
        let panels = view(self.set, transposed, self.outputs);
        for (panel, to) in to.chunks_mut(LANES).enumerate() {
            let values = panels.at(panel, output * LANES).cast::<[f32; LANES]>();
            for (to, value) in to.iter_mut().zip(values.read_unaligned()) {
                *to = scale * value;
            }
        }
    }
}

/// Words that a packed matrix takes up.
pub(crate) fn packed_words(set: KernelSet, outputs: usize, inputs: usize) -> usize {
    padded(outputs) * depth(set, inputs)
}

/// Words of a panel's lane: one an input in f32, one a pair of inputs in bf16.
fn depth(set: KernelSet, inputs: usize) -> usize {
    match set.weights() {
        Dtype::Bf16 => whole_pairs(inputs),
        Dtype::F32 | Dtype::F16 => inputs,
    }
}

fn view(set: KernelSet, panels: &Buffer, inputs: usize) -> View {
    View { pointer: panels.pointer(), stride: depth(set, inputs) * LANES }
}

fn view_mut(set: KernelSet, panels: &mut Buffer, inputs: usize) -> View {
    View { pointer: panels.pointer_mut(), stride: depth(set, inputs) * LANES }
}

fn operand(set: KernelSet, panels: View) -> Operand {
    match set {
        KernelSet::F32 => Operand::Floats { panels, step: LANES },
        KernelSet::W16Avx2 => Operand::Widened { panels },
        KernelSet::Bf16Avx512 => Operand::Pairs { panels, x: Rounded::none() },
        KernelSet::Bf16Amx => unreachable!("the set multiplies on tiles"),
    }
}

/// An element of packed panels: panel, input, lane.
type Place = (usize, usize, usize);

/// # Safety
///
/// The place lies in the panels.
unsafe fn float_at(panels: View, (panel, input, lane): Place) -> *mut f32 {
    panels.at(panel, input * LANES + lane).cast_mut()
}

/// # Safety
///
/// The place lies in the panels, which hold pairs.
unsafe fn half_at(panels: View, (panel, input, lane): Place) -> *mut u16 {
    panels.at(panel, input / 2 * LANES + lane).cast_mut().cast::<u16>().add(input % 2)
}

/// A stored element as f32.
pub(crate) fn decode(raw: &RawMatrix<'_>, index: usize) -> f32 {
    match raw.dtype {
        Dtype::F32 => {
            let bytes = &raw.bytes[4 * index..][..4];
            f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        }
        Dtype::F16 => f16::from_bits(stored_half(raw, index)).to_f32(),
        Dtype::Bf16 => bf16::from_bits(stored_half(raw, index)).to_f32(),
    }
}

/// A stored element as bf16: as it is, or rounded to the nearest, ties to even.
fn decode_half(raw: &RawMatrix<'_>, index: usize) -> u16 {
    match raw.dtype {
        Dtype::Bf16 => stored_half(raw, index),
        Dtype::F32 | Dtype::F16 => bf16::from_f32(decode(raw, index)).to_bits(),
    }
}

fn stored_half(raw: &RawMatrix<'_>, index: usize) -> u16 {
    u16::from_le_bytes([raw.bytes[2 * index], raw.bytes[2 * index + 1]])
}
