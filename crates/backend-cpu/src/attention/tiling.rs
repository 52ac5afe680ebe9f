//! How a tile of keys and values lies, by kernel set.

use tinsmith_backend::{ATTENTION_TILE, AttentionShape};

#[cfg(target_arch = "x86_64")]
use super::amx;
use crate::{buffer::padded, sets::KernelSet};

/// The layouts of a tile of one key-value head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tiling {
    /// f32: K transposed, `[head_dim][32]`, so that lanes are keys, then V, `[32][head_dim padded]`.
    Floats,
    /// bf16, as AMX's tiles read them.
    Pairs,
}

impl Tiling {
    pub(crate) fn of(set: KernelSet) -> Self {
        match set {
            KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => Self::Floats,
            KernelSet::Bf16Amx => Self::Pairs,
        }
    }

    /// Words of 32 bits in one tile.
    pub(crate) fn words(self, head_dim: usize) -> usize {
        match self {
            Self::Floats => ATTENTION_TILE * (head_dim + padded(head_dim)),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => amx::tile_words(head_dim),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Pairs => unreachable!("{NONE}"),
        }
    }

    /// Queries that one task takes through the tiles together.
    pub(super) fn queries(self, shape: &AttentionShape) -> usize {
        match self {
            Self::Floats => super::QUERIES,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => amx::queries(shape),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Pairs => unreachable!("{NONE} {shape:?}"),
        }
    }

    /// Floats of one task's scratch.
    pub(crate) fn scratch_floats(self, head_dim: usize) -> usize {
        match self {
            Self::Floats => super::Scratch::floats(head_dim),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => amx::scratch_floats(head_dim),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Pairs => unreachable!("{NONE}"),
        }
    }

    /// Writes one token's key and value into a tile.
    ///
    /// # Safety
    ///
    /// The pointers reach a tile and `head_dim` floats.
    pub(super) unsafe fn write_token(
        self,
        tile: *mut f32,
        slot: usize,
        (k, v): (*const f32, *const f32),
        head_dim: usize,
    ) {
        match self {
            Self::Floats => {
                for d in 0..head_dim {
                    *tile.add(d * ATTENTION_TILE + slot) = *k.add(d);
                }
                let values = tile.add(ATTENTION_TILE * head_dim + slot * padded(head_dim));
                std::ptr::copy_nonoverlapping(v, values, head_dim);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => amx::write_token(tile, slot, (k, v), head_dim),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Pairs => unreachable!("{NONE}"),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
const NONE: &str = "no set with such tiles is available on this CPU";
