//! The buffers of the reference backend: vectors of f64 with their shape.

use half::{bf16, f16};

use crate::{ATTENTION_TILE, Dtype, Footprint, RawMatrix};

/// What a thing takes up: its numbers, without what loops hold in passing.
pub(super) fn bytes(of: Footprint) -> usize {
    let numbers = match of {
        Footprint::Weight { outputs, inputs, .. } => outputs * inputs,
        Footprint::Vector(features) => features,
        Footprint::Rows { rows, features } => rows * features,
        Footprint::Lora(pair) | Footprint::Pair(pair) => pair.rank * (pair.inputs + pair.outputs),
        Footprint::Cache { blocks, layers, shape } => {
            2 * blocks * ATTENTION_TILE * layers * shape.kv_heads * shape.head_dim
        }
        Footprint::Scratch(_) => 0,
    };
    numbers * size_of::<f64>()
}

/// Activations, `[rows, features]`.
#[derive(Clone, Debug)]
pub struct Rows {
    features: usize,
    rows: usize,
    values: Vec<f64>,
}

impl Rows {
    /// Rows from their elements, row-major.
    pub fn new(features: usize, values: &[f64]) -> Self {
        Self { features, rows: values.len() / features, values: values.to_vec() }
    }

    pub(super) fn unwritten(rows: usize, features: usize) -> Self {
        Self { features, rows, values: vec![f64::NAN; rows * features] }
    }

    pub(super) fn reshape(&mut self, rows: usize, features: usize) {
        self.rows = rows;
        self.features = features;
        self.values.clear();
        self.values.resize(rows * features, f64::NAN);
    }

    /// Features of a row.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// All elements, row-major.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// All elements, row-major.
    pub fn values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.features..][..self.features]
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.features..][..self.features]
    }
}

/// A frozen matrix, `[out, in]`.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Number of rows.
    pub outputs: usize,
    /// Number of columns.
    pub inputs: usize,
    /// All elements, row-major.
    pub values: Vec<f64>,
}

impl Weight {
    /// A matrix from its elements, row-major.
    pub fn new(inputs: usize, values: &[f64]) -> Self {
        Self { outputs: values.len() / inputs, inputs, values: values.to_vec() }
    }

    pub(super) fn from_raw(matrix: &RawMatrix<'_>) -> Self {
        Self { outputs: matrix.rows, inputs: matrix.cols, values: raw_values(matrix) }
    }

    /// One row, `[in]`.
    pub fn row(&self, output: usize) -> &[f64] {
        &self.values[output * self.inputs..][..self.inputs]
    }
}

/// A frozen vector.
#[derive(Clone, Debug)]
pub struct Vector {
    /// All elements.
    pub values: Vec<f64>,
}

impl Vector {
    /// Rounds once, since twice the bits of an f32 and two more fit an f64.
    pub(super) fn from_raw(vector: &RawMatrix<'_>, offset: f32) -> Self {
        assert_eq!(vector.rows, 1, "a vector has one row");
        let shifted = |value: f64| f64::from(rounded(value + f64::from(offset)));
        Self { values: raw_values(vector).into_iter().map(shifted).collect() }
    }
}

/// One adapter's matrices at one site.
#[derive(Clone, Debug)]
pub struct Lora {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// `[rank, in]`.
    pub a: Vec<f64>,
    /// `[out, rank]`.
    pub b: Vec<f64>,
}

impl Lora {
    /// Columns of A.
    pub fn inputs(&self) -> usize {
        self.a.len() / self.rank
    }
}

/// Two arrays in the shapes of a [`Lora`].
#[derive(Clone, Debug)]
pub struct Pair {
    /// `[rank, in]`.
    pub a: Vec<f64>,
    /// `[out, rank]`.
    pub b: Vec<f64>,
}

/// Keys and values of every layer, each `[blocks, layers, ATTENTION_TILE, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct Cache {
    layers: usize,
    features: usize,
    keys: Vec<f64>,
    values: Vec<f64>,
}

impl Cache {
    pub(super) fn zeros(blocks: usize, layers: usize, features: usize) -> Self {
        let size = blocks * layers * ATTENTION_TILE * features;
        Self { layers, features, keys: vec![0.0; size], values: vec![0.0; size] }
    }

    pub(super) fn copy_block(&mut self, from: u32, to: u32) {
        let size = self.block_floats();
        let (from, to) = (from as usize * size, to as usize * size);
        self.keys.copy_within(from..from + size, to);
        self.values.copy_within(from..from + size, to);
    }

    pub(super) fn block_bytes(&self) -> usize {
        2 * self.block_floats() * size_of::<f64>()
    }

    /// Keys, then values.
    pub(super) fn read_block(&self, block: u32, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.block_bytes(), "a block is read whole");
        let size = self.block_floats();
        let floats = block as usize * size..(block as usize + 1) * size;
        let values = self.keys[floats.clone()].iter().chain(&self.values[floats]);
        for (to, value) in bytes.chunks_exact_mut(size_of::<f64>()).zip(values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn write_block(&mut self, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.block_bytes(), "a block is written whole");
        let size = self.block_floats();
        let floats = block as usize * size..(block as usize + 1) * size;
        let values = self.keys[floats.clone()].iter_mut().chain(&mut self.values[floats]);
        for (value, from) in values.zip(bytes.as_chunks().0) {
            *value = f64::from_le_bytes(*from);
        }
    }

    fn block_floats(&self) -> usize {
        self.layers * ATTENTION_TILE * self.features
    }

    pub(super) fn key(&self, layer: usize, blocks: &[u32], position: usize) -> &[f64] {
        &self.keys[self.offset(layer, blocks, position)..][..self.features]
    }

    pub(super) fn value(&self, layer: usize, blocks: &[u32], position: usize) -> &[f64] {
        &self.values[self.offset(layer, blocks, position)..][..self.features]
    }

    pub(super) fn write(
        &mut self,
        (layer, blocks, position): (usize, &[u32], usize),
        key: &[f64],
        value: &[f64],
    ) {
        let offset = self.offset(layer, blocks, position);
        self.keys[offset..][..self.features].copy_from_slice(key);
        self.values[offset..][..self.features].copy_from_slice(value);
    }

    fn offset(&self, layer: usize, blocks: &[u32], position: usize) -> usize {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let block = blocks[position / ATTENTION_TILE] as usize;
        let token = (block * self.layers + layer) * ATTENTION_TILE + position % ATTENTION_TILE;
        token * self.features
    }
}

pub(super) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub(super) fn copy_from_f32(to: &mut [f64], from: &[f32]) {
    assert_eq!(to.len(), from.len(), "a buffer is filled whole");
    for (to, from) in to.iter_mut().zip(from) {
        *to = f64::from(*from);
    }
}

pub(super) fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().copied().map(rounded).collect()
}

pub(super) fn round_to_f32(to: &mut [f32], from: &[f64]) {
    assert_eq!(to.len(), from.len(), "a buffer is filled whole");
    for (to, from) in to.iter_mut().zip(from) {
        *to = rounded(*from);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is asked for")]
pub(super) fn rounded(value: f64) -> f32 {
    value as f32
}

fn raw_values(matrix: &RawMatrix<'_>) -> Vec<f64> {
    let size = matrix.dtype.size();
    assert_eq!(matrix.bytes.len(), matrix.rows * matrix.cols * size, "bytes of the matrix");
    let element = |bytes: &[u8]| match matrix.dtype {
        Dtype::F32 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Dtype::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
    };
    matrix.bytes.chunks_exact(size).map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend as _, ReferenceBackend};

    #[test]
    fn every_dtype_is_read() {
        use crate::Dtype;
        for (dtype, bytes) in [
            (Dtype::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0][..]),
            (Dtype::F16, &[0, 0x3e, 0, 0xc0]),
            (Dtype::Bf16, &[0xc0, 0x3f, 0, 0xc0]),
        ] {
            let raw = RawMatrix { bytes, dtype, rows: 1, cols: 2 };
            assert_eq!(ReferenceBackend.vector(&raw, 0.0).unwrap().values, [1.5, -2.0]);
            assert_eq!(ReferenceBackend.vector(&raw, 1.0).unwrap().values, [2.5, -1.0]);
        }
    }
}
