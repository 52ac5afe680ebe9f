//! Where blocks go that a waiting sequence wants back and that others need now: slots in a file.
//!
//! [`Slots`] decides what stands in which slot; [`Spill`] moves the bytes. A slot that cannot be written or
//! read back to the bit costs nothing but time: its tokens are computed again.

use std::{collections::HashMap, fmt, io};

use tinsmith_backend::{ATTENTION_TILE, Backend};
use tinsmith_model::config::DecoderConfig;

use super::prefix::Key;

/// Failures of the file after which it is left alone.
const FAULTS_MAX: u64 = 8;

/// A file for blocks of keys and values, of the engine's own.
pub trait SpillFile: fmt::Debug + Send {
    /// Writes all bytes at an offset, beyond the end too.
    ///
    /// # Errors
    /// As the file has them; what then stands there is unspecified.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Fills `bytes` from an offset.
    ///
    /// # Errors
    /// As the file has them, and where it ends before.
    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl SpillFile for std::fs::File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }
}

/// What a block or a slot holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) name: Key,
    /// The beginning of its sequences.
    pub(crate) root: Key,
    /// Sequences that gave it back and will need it again.
    pub(crate) wanted: u32,
}

/// Which slots are free, and what is in the others.
#[derive(Debug)]
pub(crate) struct Slots {
    count: usize,
    /// By slot, as far as any was used.
    kept: Vec<Option<Kept>>,
    /// Used before; taken from the end.
    free: Vec<u32>,
    by_name: HashMap<Key, u32>,
    /// Takes in nothing more.
    closed: bool,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self { count, kept: Vec::new(), free: Vec::new(), by_name: HashMap::new(), closed: false }
    }

    /// Whether anything can be kept.
    pub(crate) fn is_open(&self) -> bool {
        self.count > 0 && !self.closed
    }

    /// Takes in nothing more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn num_used(&self) -> usize {
        self.by_name.len()
    }

    /// A slot for what is to be kept and is not kept yet, if there is one.
    pub(crate) fn put(&mut self, kept: Kept) -> Option<u32> {
        if self.closed {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.kept.len() < self.count => {
                self.kept.push(None);
                u32::try_from(self.kept.len() - 1).ok()?
            }
            None => return None,
        };
        self.by_name.insert(kept.name, slot);
        self.kept[slot as usize] = Some(kept);
        Some(slot)
    }

    /// Takes the content of this name out of its slot.
    pub(crate) fn take(&mut self, name: &Key) -> Option<(u32, Kept)> {
        let slot = self.by_name.remove(name)?;
        self.free.push(slot);
        self.kept[slot as usize].take().map(|kept| (slot, kept))
    }

    pub(crate) fn contains(&self, name: &Key) -> bool {
        self.by_name.contains_key(name)
    }

    /// One sequence less wants what has this name.
    pub(crate) fn unwant(&mut self, name: &Key) {
        let Some(&slot) = self.by_name.get(name) else { return };
        let Some(kept) = &mut self.kept[slot as usize] else { return };
        kept.wanted = kept.wanted.saturating_sub(1);
        if kept.wanted == 0 {
            self.take(name);
        }
    }

    /// Frees all slots whose content was computed after this root.
    pub(crate) fn forget(&mut self, root: &Key) {
        for slot in 0..self.kept.len() {
            if let Some(kept) = self.kept[slot].filter(|kept| kept.root == *root) {
                self.take(&kept.name);
            }
        }
    }
}

/// The file, and what was written into it.
#[derive(Debug)]
pub(crate) struct Spill {
    file: Option<Box<dyn SpillFile>>,
    /// By slot: the digest of its bytes; `None`: nothing that can be read.
    digests: Vec<Option<Key>>,
    /// One block.
    bytes: Vec<u8>,
    pub(crate) spilled: u64,
    pub(crate) reloaded: u64,
    pub(crate) faults: u64,
}

impl Spill {
    /// Without a file, there must be no slots.
    pub(crate) fn new(file: Option<Box<dyn SpillFile>>, block_bytes: usize) -> Self {
        let bytes = vec![0; if file.is_some() { block_bytes } else { 0 }];
        Self { file, digests: Vec::new(), bytes, spilled: 0, reloaded: 0, faults: 0 }
    }

    /// Whether the file has failed too often.
    pub(crate) fn is_broken(&self) -> bool {
        self.faults >= FAULTS_MAX
    }

    /// Writes a block into a slot. Where that fails, the slot cannot be read.
    pub(crate) fn write<B: Backend>(
        &mut self,
        backend: &mut B,
        cache: &B::Cache,
        (block, slot): (u32, u32),
    ) {
        backend.read_block(cache, block, &mut self.bytes);
        let offset = u64::from(slot) * self.bytes.len() as u64;
        self.discard(slot);
        let Some(file) = &mut self.file else { return };
        match file.write_at(&self.bytes, offset) {
            Ok(()) => {
                self.digests[slot as usize] = Some(blake3::hash(&self.bytes).into());
                self.spilled += 1;
            }
            Err(error) => {
                self.faults += 1;
                tracing::warn!(%error, "could not spill keys and values: they are computed again");
            }
        }
    }

    /// Makes a slot unreadable.
    pub(crate) fn discard(&mut self, slot: u32) {
        if self.digests.len() <= slot as usize {
            self.digests.resize(slot as usize + 1, None);
        }
        self.digests[slot as usize] = None;
    }

    /// Fills a block from a slot. False: the block holds nothing.
    pub(crate) fn read<B: Backend>(
        &mut self,
        backend: &mut B,
        cache: &mut B::Cache,
        (slot, block): (u32, u32),
    ) -> bool {
        let Some(expected) = self.digests[slot as usize].take() else { return false };
        let offset = u64::from(slot) * self.bytes.len() as u64;
        let Some(file) = &mut self.file else { return false };
        let read = file.read_at(&mut self.bytes, offset);
        let problem = match read {
            Ok(()) if Key::from(blake3::hash(&self.bytes)) == expected => None,
            Ok(()) => Some("they are not what was written".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            self.faults += 1;
            tracing::warn!(
                problem,
                "could not reload spilled keys and values: they are computed again"
            );
            return false;
        }
        backend.write_block(cache, block, &self.bytes);
        self.reloaded += 1;
        true
    }
}

/// Whether moving a block out and in again is less work than computing its tokens: what a token costs in the
/// linear layers, against its bytes, twice. Attention comes on top, so that this errs towards computing.
pub(crate) fn pays(config: &DecoderConfig, block_bytes: usize, flops_per_byte_min: usize) -> bool {
    let (hidden, q, kv) = (config.hidden, config.q_features(), config.kv_features());
    let weights = config.layers * hidden * (2 * q + 2 * kv + 3 * config.ffn);
    let flops = 2 * weights * ATTENTION_TILE;
    flops >= flops_per_byte_min.saturating_mul(2 * block_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: u8, wanted: u32) -> Kept {
        Kept { name: [number; 32], root: [number % 2; 32], wanted }
    }

    #[test]
    fn slots_are_bounded_and_come_back() {
        let mut slots = Slots::new(2);
        let first = slots.put(kept(1, 2)).unwrap();
        let second = slots.put(kept(2, 1)).unwrap();
        assert_ne!(first, second);
        assert_eq!((slots.put(kept(3, 1)), slots.num_used()), (None, 2));
        slots.unwant(&[2; 32]);
        assert_eq!(slots.put(kept(3, 2)), Some(second), "what nobody wants goes");
        slots.unwant(&[3; 32]);
        assert!(slots.contains(&[3; 32]));
        slots.forget(&[1; 32]);
        assert_eq!(slots.num_used(), 0);
        slots.close();
        assert_eq!(slots.put(kept(4, 1)), None);
    }
}
