//! Made-up data, the same on every machine and in every run.

use half::{bf16, f16};

use crate::{Backend, Dtype, RawMatrix};

/// A stream of numbers: `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(super) struct Inputs(u64);

impl Inputs {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next_u64() % u64::from(limit)).expect("less than 32 bits")
    }

    /// In `[0, 1)`, with 24 bits.
    pub(super) fn uniform(&mut self) -> f32 {
        let bits = u32::try_from(self.next_u64() >> 40).expect("24 bits");
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32 exactly")]
        let integer = bits as f32;
        integer / 16_777_216.0
    }

    /// `count` numbers in `[-scale, scale)`.
    pub(super) fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| (self.uniform() * 2.0 - 1.0) * scale).collect()
    }
}

/// The features of one row; rows of one seed differ, and the same row is the same everywhere.
pub(super) fn row(seed: u64, index: usize, features: usize) -> Vec<f32> {
    let index = u64::try_from(index).expect("rows fit 64 bits");
    let mut mixed = Inputs::new(seed ^ index.wrapping_mul(0x2545_f491_4f6c_dd1d));
    Inputs::new(mixed.next_u64()).values(features, 1.0)
}

/// A matrix in the bytes of a model file.
#[derive(Debug)]
pub(super) struct Matrix {
    bytes: Vec<u8>,
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

impl Matrix {
    pub(super) fn new(values: &[f32], dtype: Dtype, cols: usize) -> Self {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        Self { bytes, dtype, rows: values.len() / cols, cols }
    }

    /// `[rows, cols]`, scaled so that a product with a row is of magnitude 1.
    pub(super) fn random(seed: u64, dtype: Dtype, rows: usize, cols: usize) -> Self {
        let values = Inputs::new(seed).values(rows * cols, inverse_root(cols) * 3.0);
        Self::new(&values, dtype, cols)
    }

    pub(super) fn raw(&self) -> RawMatrix<'_> {
        let Self { bytes, dtype, rows, cols } = self;
        RawMatrix { bytes, dtype: *dtype, rows: *rows, cols: *cols }
    }

    pub(super) fn weight<B: Backend>(&self, backend: &mut B) -> B::Weight {
        backend.weight(&self.raw()).expect("the suite's matrices are small")
    }

    pub(super) fn vector<B: Backend>(&self, backend: &mut B) -> B::Vector {
        self.vector_plus(backend, 0.0)
    }

    pub(super) fn vector_plus<B: Backend>(&self, backend: &mut B, offset: f32) -> B::Vector {
        backend.vector(&self.raw(), offset).expect("the suite's vectors are small")
    }
}

pub(super) fn inverse_root(count: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "it scales made-up numbers")]
    let count = count as f32;
    1.0 / count.sqrt()
}

/// A buffer that holds `values`.
pub(super) fn upload<B: Backend>(backend: &mut B, features: usize, values: &[f32]) -> B::Rows {
    let mut buffer = blank(backend, values.len() / features, features);
    backend.write_rows(&mut buffer, values);
    buffer
}

/// A buffer whose contents are unspecified, for an op to overwrite.
pub(super) fn blank<B: Backend>(backend: &mut B, rows: usize, features: usize) -> B::Rows {
    backend.rows(rows, features).expect("the suite's buffers are small")
}
