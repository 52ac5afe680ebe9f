//! Memory: floats that start on cache lines, rows padded to whole vectors.
//!
//! Rows stand `stride` floats apart, their features rounded up to sixteen. What stands in the padding
//! is unspecified: no op lets it reach a feature.

use std::{
    alloc::{Layout, alloc_zeroed},
    cell::Cell,
    fmt,
    ops::Range,
};

use tinsmith_backend::{Error, PairShape, RawMatrix, Result};

#[cfg(target_arch = "x86_64")]
use crate::sets::bf16_amx::adapter::PackedLora;
use crate::{lanes::LANES, pool::Pool, sets::KernelSet, weight::decode};

/// Floats on cache lines, exactly as many as were asked for at most; new floats are zero.
///
/// Large ones take up memory as they are touched: the system's zero pages come only to allocations without
/// an alignment of their own, so the first float on a cache line is found by hand.
#[derive(Default)]
pub(crate) struct Buffer {
    memory: Vec<f32>,
    /// Where the first cache line begins.
    first: usize,
    /// Whole lines.
    floats: usize,
}

impl Buffer {
    pub(crate) const EMPTY: Self = Self { memory: Vec::new(), first: 0, floats: 0 };

    pub(crate) fn zeros(floats: usize) -> Result<Self> {
        if floats == 0 {
            return Ok(Self::EMPTY);
        }
        let none = Error::OutOfMemory { bytes: floats.saturating_mul(size_of::<f32>()) };
        let Some(floats) = floats.checked_next_multiple_of(LANES) else { return Err(none) };
        let Ok(layout) = Layout::array::<f32>(floats.saturating_add(LANES)) else {
            return Err(none);
        };
        // SAFETY: the layout has a size. A vector's memory is the global allocator's, in the layout of
        // its capacity; all bits zero are zeros.
        let memory = unsafe {
            let memory = alloc_zeroed(layout).cast::<f32>();
            if memory.is_null() {
                return Err(none);
            }
            Vec::from_raw_parts(memory, floats + LANES, floats + LANES)
        };
        let first = memory.as_ptr().align_offset(LANES * size_of::<f32>());
        Ok(Self { memory, first, floats })
    }

    /// Makes room for at least `floats` floats; contents become unspecified. What was there is freed
    /// first.
    pub(crate) fn try_renew(&mut self, floats: usize) -> Result<()> {
        if floats > self.floats {
            *self = Self::EMPTY;
            *self = Self::zeros(floats)?;
        }
        Ok(())
    }

    /// As [`Buffer::try_renew`], where an op has no way to fail.
    pub(crate) fn renew(&mut self, floats: usize) {
        self.try_renew(floats).expect("the planned memory is there");
    }

    /// Makes room for at least `floats` floats and keeps what is there.
    pub(crate) fn grow(&mut self, floats: usize) {
        if floats > self.floats {
            let mut grown = Self::zeros(floats).expect("the planned memory is there");
            grown.floats_mut()[..self.floats].copy_from_slice(self.floats());
            *self = grown;
        }
    }

    /// Asks the system for the memory of some floats at once, which takes a fraction of the time that it takes page by
    /// page as they are written. What they hold stays; where the system cannot, nothing happens.
    pub(crate) fn make_present(&mut self, floats: Range<usize>) {
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let part = &mut self.floats_mut()[floats];
            let first = part.as_ptr().addr() / PAGE * PAGE;
            let bytes = (part.as_ptr().addr() + size_of_val(part) - first).next_multiple_of(PAGE);
            // SAFETY: the pages hold this buffer's memory and perhaps that of its neighbours; the call
            // changes no content.
            unsafe { libc::madvise(first as *mut libc::c_void, bytes, libc::MADV_POPULATE_WRITE) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = floats;
    }

    pub(crate) fn pointer(&self) -> *const f32 {
        self.floats().as_ptr()
    }

    pub(crate) fn pointer_mut(&mut self) -> *mut f32 {
        self.floats_mut().as_mut_ptr()
    }

    pub(crate) fn floats(&self) -> &[f32] {
        &self.memory[self.first..self.first + self.floats]
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.first..self.first + self.floats]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} floats", self.floats)
    }
}

thread_local! {
    static SCRATCH: Cell<Buffer> = const { Cell::new(Buffer::EMPTY) };
    static ROUNDED: Cell<Buffer> = const { Cell::new(Buffer::EMPTY) };
}

/// Lends this thread's scratch, with at least `floats` floats of any content.
pub(crate) fn with_scratch<R>(floats: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    SCRATCH.with(|cell| lend(cell, floats, work))
}

/// The same, of memory for one product's rounded rows: tasks may take scratch meanwhile.
pub(crate) fn with_rounded<R>(floats: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    ROUNDED.with(|cell| lend(cell, floats, work))
}

fn lend<R>(cell: &Cell<Buffer>, floats: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    let mut buffer = cell.take();
    buffer.renew(floats);
    let result = work(buffer.pointer_mut());
    cell.set(buffer);
    result
}

/// Features, rounded up to whole vectors.
pub(crate) fn padded(features: usize) -> usize {
    features.next_multiple_of(LANES)
}

/// Floats from one row to the next: one line more where rows a power of two apart would otherwise meet
/// in the same sets of the caches.
fn row_stride(features: usize) -> usize {
    let stride = padded(features);
    if features > 0 && stride.is_multiple_of(256) { stride + LANES } else { stride }
}

/// A matrix that tasks read.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub(crate) pointer: *const f32,
    pub(crate) stride: usize,
}

// SAFETY: a view is an address; whoever reads through it answers for what stands there.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The matrix without its first rows.
    ///
    /// # Safety
    ///
    /// It has that many rows.
    pub(crate) unsafe fn skip_rows(self, rows: usize) -> Self {
        Self { pointer: self.at(rows, 0), stride: self.stride }
    }

    /// # Safety
    ///
    /// The element lies in the matrix.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, column: usize) -> *const f32 {
        self.pointer.add(row * self.stride + column)
    }
}

/// A matrix that tasks write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct ViewMut {
    pub(crate) pointer: *mut f32,
    pub(crate) stride: usize,
}

// SAFETY: a view is an address; whoever writes through it answers for who else does.
unsafe impl Send for ViewMut {}
// SAFETY: as above.
unsafe impl Sync for ViewMut {}

impl ViewMut {
    /// The matrix without its first rows.
    ///
    /// # Safety
    ///
    /// It has that many rows.
    pub(crate) unsafe fn skip_rows(self, rows: usize) -> Self {
        Self { pointer: self.at(rows, 0), stride: self.stride }
    }

    /// # Safety
    ///
    /// The element lies in the matrix.
    #[inline(always)]
    pub(crate) unsafe fn at(self, row: usize, column: usize) -> *mut f32 {
        self.pointer.add(row * self.stride + column)
    }
}

/// A place for each task's result.
pub(crate) struct Cells<T>(pub(crate) *mut T);

// SAFETY: each task writes its own cells, which the slice's owner reads after the tasks.
unsafe impl<T: Send> Sync for Cells<T> {}

impl<T> Cells<T> {
    pub(crate) fn new(cells: &mut [T]) -> Self {
        Self(cells.as_mut_ptr())
    }

    /// # Safety
    ///
    /// The cell lies in the slice, and is this task's.
    pub(crate) unsafe fn put(&self, index: usize, value: T) {
        *self.0.add(index) = value;
    }

    /// # Safety
    ///
    /// The cells lie in the slice, and are this task's.
    #[expect(clippy::mut_from_ref, reason = "no two tasks have the same cells")]
    pub(crate) unsafe fn part(&self, range: &Range<usize>) -> &mut [T] {
        std::slice::from_raw_parts_mut(self.0.add(range.start), range.len())
    }
}

/// Activations, `[rows, features]`.
#[derive(Debug)]
pub struct Rows {
    pub(crate) data: Buffer,
    pub(crate) rows: usize,
    pub(crate) features: usize,
    pub(crate) stride: usize,
}

impl Rows {
    pub(crate) fn new(rows: usize, features: usize) -> Result<Self> {
        let stride = row_stride(features);
        Ok(Self { data: Buffer::zeros(rows * stride)?, rows, features, stride })
    }

    /// Floats that rows of this shape take up.
    pub(crate) fn floats(rows: usize, features: usize) -> usize {
        rows * row_stride(features)
    }

    pub(crate) fn empty() -> Self {
        Self { data: Buffer::default(), rows: 0, features: 0, stride: 0 }
    }

    /// Takes another shape; contents become unspecified.
    pub(crate) fn reshape(&mut self, rows: usize, features: usize) {
        (self.rows, self.features, self.stride) = (rows, features, row_stride(features));
        self.data.renew(rows * self.stride);
    }

    pub(crate) fn view(&self) -> View {
        View { pointer: self.data.pointer(), stride: self.stride }
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut {
        ViewMut { pointer: self.data.pointer_mut(), stride: self.stride }
    }

    /// Features of one row.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data.floats()[row * self.stride..][..self.features]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data.floats_mut()[row * self.stride..][..self.features]
    }

    pub(crate) fn read(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows * self.features);
        for row in 0..self.rows {
            values.extend_from_slice(self.row(row));
        }
        values
    }

    pub(crate) fn write(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.rows * self.features, "values fill the buffer");
        for row in 0..self.rows {
            let from = &values[row * self.features..][..self.features];
            self.row_mut(row).copy_from_slice(from);
        }
    }

    /// [`Self::zero`] on all threads.
    pub(crate) fn zero_on(&mut self, pool: &Pool) {
        let (rows, stride, view) = (self.rows, self.stride, self.view_mut());
        pool.run_rows(rows, rows * stride * 2, &|part| {
            // SAFETY: the rows lie in the buffer, and each belongs to one task.
            unsafe {
                let part =
                    std::slice::from_raw_parts_mut(view.at(part.start, 0), part.len() * stride);
                part.fill(0.0);
            }
        });
    }

    pub(crate) fn zero(&mut self) {
        let used = self.rows * self.stride;
        self.data.floats_mut()[..used].fill(0.0);
    }
}

/// A frozen vector.
#[derive(Debug)]
pub struct Vector {
    pub(crate) data: Buffer,
}

impl Vector {
    pub(crate) fn new(raw: &RawMatrix<'_>, offset: f32) -> Result<Self> {
        let mut data = Buffer::zeros(raw.rows * raw.cols)?;
        for (i, value) in data.floats_mut()[..raw.rows * raw.cols].iter_mut().enumerate() {
            *value = decode(raw, i) + offset;
        }
        Ok(Self { data })
    }
}

/// One adapter's matrices at one site.
#[derive(Debug)]
pub struct Lora {
    /// What trains: A as `[rank, inputs]`, B as `[rank, outputs]`.
    pub(crate) trained: Pair,
    copies: Copies,
}

/// The matrices as products take them, made again when they change.
#[derive(Debug)]
enum Copies {
    Floats {
        /// A as `[inputs, rank]`, for `x Aᵀ`.
        down: Buffer,
        /// B as `[outputs, rank]`, for `dy B`.
        up_transposed: Buffer,
    },
    #[cfg(target_arch = "x86_64")]
    Tiles(PackedLora),
}

impl Lora {
    pub(crate) fn new(
        (a, b): (&[f32], &[f32]),
        rank: usize,
        (set, pool): (KernelSet, &Pool),
    ) -> Result<Self> {
        assert!(rank > 0, "an adapter has a rank");
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        let mut trained = Pair::new(rank, inputs, outputs)?;
        trained.write(a, b);
        let copies = match set {
            #[cfg(target_arch = "x86_64")]
            KernelSet::Bf16Amx => Copies::Tiles(PackedLora::new(&trained.a, &trained.b)?),
            #[cfg(not(target_arch = "x86_64"))]
            KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => Copies::Floats {
                down: Buffer::zeros(inputs * padded(rank))?,
                up_transposed: Buffer::zeros(outputs * padded(rank))?,
            },
        };
        let mut lora = Self { trained, copies };
        lora.refresh(pool);
        Ok(lora)
    }

    /// Makes the copies again after `trained` changed.
    pub(crate) fn refresh(&mut self, pool: &Pool) {
        match &mut self.copies {
            Copies::Floats { down, up_transposed } => {
                transpose(down, &self.trained.a);
                transpose(up_transposed, &self.trained.b);
            }
            #[cfg(target_arch = "x86_64")]
            Copies::Tiles(packed) => packed.refresh(&self.trained.a, &self.trained.b, pool),
        }
    }

    /// Floats of the copies, for an adapter of this shape.
    pub(crate) fn copied_floats(set: KernelSet, shape: &PairShape) -> usize {
        let PairShape { rank, inputs, outputs } = *shape;
        match set {
            #[cfg(target_arch = "x86_64")]
            KernelSet::Bf16Amx => {
                PackedLora::words(rank, inputs) + PackedLora::words(rank, outputs)
            }
            #[cfg(not(target_arch = "x86_64"))]
            KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
                (inputs + outputs) * padded(rank)
            }
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.trained.a.rows
    }

    pub(crate) fn down(&self) -> View {
        View { pointer: self.floats().0.pointer(), stride: padded(self.rank()) }
    }

    pub(crate) fn up_transposed(&self) -> View {
        View { pointer: self.floats().1.pointer(), stride: padded(self.rank()) }
    }

    fn floats(&self) -> (&Buffer, &Buffer) {
        match &self.copies {
            Copies::Floats { down, up_transposed } => (down, up_transposed),
            #[cfg(target_arch = "x86_64")]
            Copies::Tiles(_) => unreachable!("tiles are multiplied on tiles"),
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn packed(&self) -> &PackedLora {
        match &self.copies {
            Copies::Tiles(packed) => packed,
            Copies::Floats { .. } => unreachable!("the set keeps adapters in tiles"),
        }
    }
}

fn transpose(to: &mut Buffer, from: &Rows) {
    let stride = padded(from.rows);
    let to = to.floats_mut();
    for row in 0..from.rows {
        for (column, &value) in from.row(row).iter().enumerate() {
            to[column * stride + row] = value;
        }
    }
}

/// Two arrays in the shapes of a [`Lora`], both with the rank first.
#[derive(Debug)]
pub struct Pair {
    /// `[rank, inputs]`.
    pub(crate) a: Rows,
    /// `[rank, outputs]`.
    pub(crate) b: Rows,
}

impl Pair {
    pub(crate) fn new(rank: usize, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { a: Rows::new(rank, inputs)?, b: Rows::new(rank, outputs)? })
    }

    pub(crate) fn read(&self) -> (Vec<f32>, Vec<f32>) {
        let (rank, outputs) = (self.b.rows, self.b.features);
        let mut b = vec![0.0; rank * outputs];
        for row in 0..rank {
            for (output, &value) in self.b.row(row).iter().enumerate() {
                b[output * rank + row] = value;
            }
        }
        (self.a.read(), b)
    }

    pub(crate) fn write(&mut self, a: &[f32], b: &[f32]) {
        self.a.write(a);
        let rank = self.b.rows;
        assert_eq!(b.len(), rank * self.b.features, "values fill the buffer");
        for row in 0..rank {
            let from = b[row..].iter().step_by(rank);
            for (to, &value) in self.b.row_mut(row).iter_mut().zip(from) {
                *to = value;
            }
        }
    }

    pub(crate) fn copy_from(&mut self, other: &Self) {
        for (to, from) in [(&mut self.a, &other.a), (&mut self.b, &other.b)] {
            to.data.floats_mut().copy_from_slice(from.data.floats());
        }
    }

    pub(crate) fn zero(&mut self) {
        self.a.zero();
        self.b.zero();
    }
}

/// The part of `range` that lies in `rows`.
pub(crate) fn overlap(range: &Range<usize>, rows: &Range<usize>) -> Range<usize> {
    let start = range.start.max(rows.start);
    start..range.end.min(rows.end).max(start)
}
