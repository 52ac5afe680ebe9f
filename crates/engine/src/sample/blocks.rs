//! The blocks of the key-value cache: counted, named, and found again by name.
//!
//! Sequences share the blocks that they have in common. A full block has a name ([`super::prefix`]); when
//! its last holder lets go it stays as it is, to be found again, until room is needed: the one that was let
//! go first goes first, so that what is kept takes nothing from those who need blocks.

use std::collections::HashMap;

use super::{
    prefix::Key,
    scheduler::Move,
    spill::{Kept, Slots},
};

/// No neighbour in the list of unheld blocks.
const NONE: u32 = u32::MAX;

/// Which blocks are free, who holds the others, and what is in them.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// By block.
    entries: Vec<Entry>,
    /// Unheld and without a name; taken from the end.
    free: Vec<u32>,
    by_name: HashMap<Key, u32>,
    /// The ends of the list of named blocks that nobody holds.
    oldest: u32,
    newest: u32,
    num_kept: usize,
    /// Blocks whose content went to make room.
    pub(crate) evicted: u64,
    /// Where wanted content goes when its block is needed.
    pub(crate) slots: Slots,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    holders: u32,
    kept: Option<Kept>,
    /// Neighbours in the list of unheld named blocks.
    older: u32,
    newer: u32,
}

impl Blocks {
    pub(crate) fn new(count: usize, slots: usize) -> Self {
        let entry = Entry { holders: 0, kept: None, older: NONE, newer: NONE };
        let blocks = u32::try_from(count).expect("the configuration was checked");
        Self {
            entries: vec![entry; count],
            free: (0..blocks).rev().collect(),
            // Twice the room that is needed: the map never grows.
            by_name: HashMap::with_capacity(2 * count),
            oldest: NONE,
            newest: NONE,
            num_kept: 0,
            evicted: 0,
            slots: Slots::new(slots),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Blocks that nobody holds, those that are kept for later included.
    pub(crate) fn num_free(&self) -> usize {
        self.free.len() + self.num_kept
    }

    /// Blocks that nobody holds and that can be found by name.
    pub(crate) fn num_kept(&self) -> usize {
        self.num_kept
    }

    /// An unheld block of any content, now with one holder. What it held and somebody wants is moved first.
    pub(crate) fn take(&mut self, moves: &mut Vec<Move>) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.evict(moves)?,
        };
        self.entries[block as usize].holders = 1;
        Some(block)
    }

    /// One more holder.
    pub(crate) fn share(&mut self, block: u32) {
        let Entry { holders, kept, .. } = self.entries[block as usize];
        assert!(holders > 0 || kept.is_some(), "a free block cannot be shared");
        if holders == 0 {
            self.unlink(block);
        }
        self.entries[block as usize].holders += 1;
    }

    /// One holder less.
    pub(crate) fn release(&mut self, block: u32) {
        let entry = &mut self.entries[block as usize];
        assert!(entry.holders > 0, "a free block cannot be released");
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        if entry.kept.is_some() {
            self.link(block);
        } else {
            self.free.push(block);
        }
    }

    /// Whether it has more than one holder: writing into it needs a copy.
    pub(crate) fn is_shared(&self, block: u32) -> bool {
        self.entries[block as usize].holders > 1
    }

    /// The block of this name.
    pub(crate) fn find(&self, name: &Key) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Names a held block, so that it can be found. Another block of that name is given instead: it holds the
    /// same bits.
    pub(crate) fn name(&mut self, block: u32, mut kept: Kept) -> Option<u32> {
        let entry = &mut self.entries[block as usize];
        assert!(entry.holders > 0 && entry.kept.is_none(), "a block is named once, by its holder");
        if let Some(&other) = self.by_name.get(&kept.name) {
            return Some(other);
        }
        // What was spilled has been computed again: a name stands in one place only.
        if let Some((_, spilled)) = self.slots.take(&kept.name) {
            kept.wanted += spilled.wanted;
        }
        self.by_name.insert(kept.name, block);
        entry.kept = Some(kept);
        None
    }

    /// An unheld block that takes back the spilled content of this name, now with one holder.
    pub(crate) fn reload(&mut self, name: &Key, moves: &mut Vec<Move>) -> Option<u32> {
        if !self.slots.contains(name) {
            return None;
        }
        // The block first: what it holds may have to be spilled, into another slot than the one that is read.
        let block = self.take(moves)?;
        let (slot, kept) = self.slots.take(name)?;
        moves.push(Move::Reload { slot, block });
        self.by_name.insert(kept.name, block);
        self.entries[block as usize].kept = Some(kept);
        Some(block)
    }

    /// Takes a block's name away: it does not hold what the name says.
    pub(crate) fn unname(&mut self, block: u32) {
        let Some(kept) = self.entries[block as usize].kept else { return };
        self.by_name.remove(&kept.name);
        if self.entries[block as usize].holders == 0 {
            self.unlink(block);
            self.free.push(block);
        }
        self.entries[block as usize].kept = None;
    }

    /// One more sequence waits for the content of a named block.
    pub(crate) fn want(&mut self, block: u32) {
        if let Some(kept) = &mut self.entries[block as usize].kept {
            kept.wanted += 1;
        }
    }

    /// One sequence less waits for the content of this name.
    pub(crate) fn unwant(&mut self, name: &Key) {
        match self.by_name.get(name) {
            Some(&block) => {
                if let Some(kept) = &mut self.entries[block as usize].kept {
                    kept.wanted = kept.wanted.saturating_sub(1);
                }
            }
            None => self.slots.unwant(name),
        }
    }

    /// Forgets everything that was computed after this root.
    pub(crate) fn forget(&mut self, root: &Key) {
        for block in 0..self.entries.len() {
            if self.entries[block].kept.is_some_and(|kept| kept.root == *root) {
                self.unname(u32::try_from(block).expect("blocks are counted in 32 bits"));
            }
        }
        self.slots.forget(root);
    }

    /// Makes room of the unheld block that was let go first.
    fn evict(&mut self, moves: &mut Vec<Move>) -> Option<u32> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        if let Some(kept) = self.entries[block as usize].kept.take() {
            self.by_name.remove(&kept.name);
            self.evicted += 1;
            if kept.wanted > 0
                && let Some(slot) = self.slots.put(kept)
            {
                moves.push(Move::Spill { block, slot });
            }
        }
        Some(block)
    }

    /// Appends a block to the list of unheld ones.
    fn link(&mut self, block: u32) {
        let older = std::mem::replace(&mut self.newest, block);
        let entry = &mut self.entries[block as usize];
        (entry.older, entry.newer) = (older, NONE);
        match self.entries.get_mut(older as usize) {
            Some(older) => older.newer = block,
            None => self.oldest = block,
        }
        self.num_kept += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Entry { older, newer, .. } = self.entries[block as usize];
        match self.entries.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        self.num_kept -= 1;
    }
}

#[cfg(test)]
impl Blocks {
    /// Every block is held as `holders` say, or is in the one list that it belongs to.
    pub(crate) fn check(&self, holders: &std::collections::BTreeMap<u32, u32>) {
        let mut unheld = self.free.clone();
        assert!(self.free.iter().all(|block| self.entries[*block as usize].kept.is_none()));
        let (mut older, mut block) = (NONE, self.oldest);
        while let Some(entry) = self.entries.get(block as usize) {
            assert_eq!(entry.older, older);
            assert!(entry.kept.is_some());
            unheld.push(block);
            (older, block) = (block, entry.newer);
        }
        assert_eq!(self.newest, older);
        assert_eq!(unheld.len(), self.num_free());
        unheld.extend(holders.keys());
        unheld.sort_unstable();
        let blocks: Vec<u32> = (0..).take(self.count()).collect();
        assert_eq!(unheld, blocks, "every block stands in one place");
        for (block, entry) in (0..).zip(&self.entries) {
            assert_eq!(entry.holders, holders.get(&block).copied().unwrap_or(0));
            if let Some(kept) = entry.kept {
                assert_eq!(self.by_name.get(&kept.name), Some(&block));
                assert!(!self.slots.contains(&kept.name), "a name stands in one place");
            }
        }
        let named = self.entries.iter().filter(|entry| entry.kept.is_some()).count();
        assert_eq!(self.by_name.len(), named);
    }
}
