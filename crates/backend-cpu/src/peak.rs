//! What the machine can do at best, to hold the ops against: multiply-adds without memory, and memory alone.
//!
//! Nothing of the engine calls this. Clocks are the caller's.

use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(target_arch = "x86_64")]
use crate::KernelSet;
use crate::{
    CpuBackend,
    lanes::{Kernel, LANES, Lanes},
};

/// Floats that one task of [`CpuBackend::read_memory`] reads: 4 MiB.
const PART: usize = 1 << 20;

impl CpuBackend {
    /// Keeps every thread busy with `rounds` of the fastest products of the kernel set, on registers alone;
    /// answers how many floating-point operations that were.
    pub fn multiply_add(&self, rounds: usize) -> usize {
        let flops = std::sync::atomic::AtomicUsize::new(0);
        self.pool.run(self.pool.threads(), &|_| {
            flops.fetch_add(self.multiply_add_here(rounds), Ordering::Relaxed);
        });
        flops.into_inner()
    }

    fn multiply_add_here(&self, rounds: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.set == KernelSet::Bf16Amx {
            // SAFETY: the set is available, or there would be no such backend.
            return unsafe { multiply_tiles(rounds) };
        }
        let mut flops = 0;
        // SAFETY: the path is available; the kernel reaches nothing but its own fields.
        unsafe { self.path.run(MultiplyAdd { rounds, flops: &mut flops }) };
        flops
    }

    /// Reads all of `memory` once, on all threads.
    pub fn read_memory(&self, memory: &[f32]) {
        let sum = AtomicU32::new(0);
        self.pool.run(memory.len().div_ceil(PART), &|part| {
            let part = &memory[part * PART..memory.len().min((part + 1) * PART)];
            let whole = part.len() / LANES * LANES;
            let mut answer = 0.0;
            // SAFETY: the path is available, and the part holds so many floats.
            unsafe {
                self.path.run(Read { from: part.as_ptr(), count: whole, answer: &mut answer });
            };
            sum.fetch_add(answer.to_bits(), Ordering::Relaxed);
        });
        std::hint::black_box(sum.into_inner());
    }
}

struct MultiplyAdd<'a> {
    rounds: usize,
    flops: &'a mut usize,
}

impl Kernel for MultiplyAdd<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        if L::WIDE {
            chains::<L, 12>(&self);
        } else {
            chains::<L, 6>(&self);
        }
        let chains = if L::WIDE { 12 } else { 6 };
        *self.flops = self.rounds * chains * LANES * 2;
    }
}

/// `CHAINS` sums that do not wait for each other: more than a multiply-add takes cycles times how many
/// begin in one, and few enough to stay in registers.
#[inline(always)]
unsafe fn chains<L: Lanes, const CHAINS: usize>(kernel: &MultiplyAdd<'_>) {
    let (factor, addend) =
        (L::splat(std::hint::black_box(0.5)), L::splat(std::hint::black_box(1.0)));
    let mut sums = [addend; CHAINS];
    for _ in 0..kernel.rounds {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, addend);
        }
    }
    let mut all = addend;
    for sum in sums {
        all = all.add(sum);
    }
    std::hint::black_box(all.sum());
}

/// Rounds of four products of whole tiles; answers the floating-point operations.
///
/// # Safety
///
/// The CPU has AMX and the process its permission.
#[cfg(target_arch = "x86_64")]
unsafe fn multiply_tiles(rounds: usize) -> usize {
    /// Sixteen rows of 32 inputs by sixteen columns.
    const PRODUCT: usize = 2 * 16 * 32 * 16;
    /// What `ldtilecfg` reads: palette 1, eight tiles of sixteen rows of 64 bytes.
    #[repr(C, align(64))]
    struct Shapes([u8; 64]);
    let mut shapes = Shapes([0; 64]);
    shapes.0[0] = 1;
    for tile in 0..8 {
        shapes.0[16 + 2 * tile] = 64;
        shapes.0[48 + tile] = 16;
    }
    std::arch::asm!(
        "ldtilecfg [{shapes}]",
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "tilezero tmm4",
        "tilezero tmm5",
        "tilezero tmm6",
        "tilezero tmm7",
        "2:",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "dec {rounds}",
        "jnz 2b",
        "tilerelease",
        shapes = in(reg) &raw const shapes,
        rounds = inout(reg) rounds.max(1) => _,
        options(nostack),
    );
    rounds.max(1) * 4 * PRODUCT
}

/// Sums `count` floats, a multiple of [`LANES`].
struct Read<'a> {
    from: *const f32,
    count: usize,
    answer: &'a mut f32,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut sums = [L::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * LANES <= self.count {
            for (chain, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(L::load(self.from.add(i + chain * LANES)));
            }
            i += 4 * LANES;
        }
        let [a, b, c, d] = sums;
        *self.answer = a.add(b).add(c.add(d)).sum();
    }
}

#[cfg(test)]
mod tests {
    use crate::{Config, CpuBackend, KernelSet, Kernels, Path};

    #[test]
    fn every_set_and_path_counts_its_work() {
        for set in KernelSet::ALL {
            for path in Path::ALL {
                let Ok(kernels) = Kernels::new(set, path) else { continue };
                let cpu = CpuBackend::new(Config { threads: 2, kernels }).unwrap();
                let flops = cpu.multiply_add(10);
                assert!(flops > 0 && flops.is_multiple_of(20), "{kernels}: {flops}");
                cpu.read_memory(&[1.0; 100]);
            }
        }
    }
}
