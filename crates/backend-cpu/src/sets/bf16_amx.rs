//! The set `bf16-amx`: tiles of bf16, multiplied and summed in f32 by `tdpbf16ps`.
//!
//! An element is one chain, 32 inputs at a time: each instruction sums the products of its sixteen even
//! inputs and of its sixteen odd ones, each a chain from zero, adds the two, and adds that to the element;
//! it takes denormals for zero. What a chain begins with and goes over stands in `job.rs` (linear ops)
//! and `gradient.rs` (adapters' gradients); how rows are grouped changes none.

use std::{
    arch::x86_64::{__cpuid_count, _xgetbv},
    sync::OnceLock,
};

pub(crate) mod adapter;
pub(crate) mod gradient;
pub(crate) mod job;
mod kernel;
pub(crate) mod linear;
mod round;
mod sums;

/// Whether the CPU has the instructions, the system keeps their registers, and lets this process use
/// them: that is asked for once.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && system_keeps_tiles() && ask_for_tiles())
}

fn has_instructions() -> bool {
    /// AMX-BF16 and AMX-TILE.
    const BITS: u32 = 1 << 22 | 1 << 24;
    __cpuid_count(0, 0).eax >= 7
        && __cpuid_count(7, 0).edx & BITS == BITS
        && is_x86_feature_detected!("avx512bw")
}

fn system_keeps_tiles() -> bool {
    /// The tile configuration and the tiles.
    const BITS: u64 = 1 << 17 | 1 << 18;
    #[target_feature(enable = "xsave")]
    unsafe fn enabled() -> u64 {
        _xgetbv(0)
    }
    // `xsave` is detected only where the system has enabled `xgetbv` too.
    // SAFETY: as just asked.
    is_x86_feature_detected!("xsave") && unsafe { enabled() } & BITS == BITS
}

/// Linux gives the tiles' registers to a process that asks.
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes what registers the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}
