//! The blocks of the key-value cache, counted.
//!
//! Sequences share blocks whose tokens they have in common; a block is free when its last holder lets go.
//! A cache of prefixes across requests would be one more holder, with a table from content to block.

/// Which blocks are free, and how many holders the others have.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// By block.
    holders: Vec<u32>,
    /// Taken from the end.
    free: Vec<u32>,
}

impl Blocks {
    pub(crate) fn new(count: usize) -> Self {
        let count = u32::try_from(count).expect("the configuration was checked");
        Self { holders: vec![0; count as usize], free: (0..count).rev().collect() }
    }

    pub(crate) fn count(&self) -> usize {
        self.holders.len()
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    /// A free block, now with one holder.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.holders[block as usize] = 1;
        Some(block)
    }

    /// One more holder.
    pub(crate) fn share(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "a free block cannot be shared");
        *holders += 1;
    }

    /// One holder less.
    pub(crate) fn release(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "a free block cannot be released");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(block);
        }
    }

    /// Whether it has more than one holder: writing into it needs a copy.
    pub(crate) fn is_shared(&self, block: u32) -> bool {
        self.holders[block as usize] > 1
    }
}
