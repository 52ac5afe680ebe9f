//! The order of examples, from a seed.

use crate::{Error, Result};

/// How rows become batches.
///
/// ```
/// use tinsmith::dataset::{Batching, Dataset};
///
/// let rows = Dataset::from(vec![1, 2, 3, 4, 5]);
/// let batches = rows.batches(Batching::new(2)?.seed(7).epochs(2));
/// assert_eq!(batches.steps(), 6);
/// # Ok::<(), tinsmith::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Batching {
    size: usize,
    seed: Option<u64>,
    epochs: usize,
    drops_last: bool,
    from_step: usize,
}

impl Batching {
    /// Batches of `size` rows, of one epoch in the order of the rows. The last one has what is left.
    ///
    /// # Errors
    ///
    /// A size of 0.
    pub fn new(size: usize) -> Result<Self> {
        if size == 0 {
            return Err(Error::validation("a batch needs at least one row"));
        }
        Ok(Self { size, seed: None, epochs: 1, drops_last: false, from_step: 0 })
    }

    /// Another order in each epoch, always the same from one seed.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// How often each row comes.
    #[must_use]
    pub fn epochs(self, epochs: usize) -> Self {
        Self { epochs, ..self }
    }

    /// Leaves out the last batch of an epoch where it is not full.
    #[must_use]
    pub fn drop_last(self) -> Self {
        Self { drops_last: true, ..self }
    }

    /// Goes on with this batch, counted from 0: where a run is resumed.
    #[must_use]
    pub fn starting_at(self, step: usize) -> Self {
        Self { from_step: step, ..self }
    }
}

/// Batches of rows, epoch after epoch.
#[derive(Clone, Debug)]
pub struct Batches<'a, T> {
    rows: &'a [T],
    batching: Batching,
    step: usize,
    /// The rows' order in an epoch.
    order: Vec<usize>,
    /// Which epoch that is.
    epoch: Option<usize>,
}

impl<'a, T> Batches<'a, T> {
    pub(super) fn new(rows: &'a [T], batching: Batching) -> Self {
        Self { rows, batching, step: batching.from_step, order: Vec::new(), epoch: None }
    }

    /// Batches of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        let size = self.batching.size;
        if self.batching.drops_last {
            self.rows.len() / size
        } else {
            self.rows.len().div_ceil(size)
        }
    }

    /// Batches of all epochs, those before the first one given too.
    pub fn steps(&self) -> usize {
        self.steps_per_epoch().saturating_mul(self.batching.epochs)
    }
}

impl<'a, T> Iterator for Batches<'a, T> {
    type Item = Vec<&'a T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.step >= self.steps() {
            return None;
        }
        let (epoch, at) = (self.step / self.steps_per_epoch(), self.step % self.steps_per_epoch());
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.order = (0..self.rows.len()).collect();
            if let Some(seed) = self.batching.seed {
                shuffle(&mut self.order, mix(seed.wrapping_add(mix(epoch as u64))));
            }
        }
        self.step += 1;
        let from = at * self.batching.size;
        let to = self.rows.len().min(from + self.batching.size);
        Some(self.order[from..to].iter().map(|row| &self.rows[*row]).collect())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.steps().saturating_sub(self.step);
        (left, Some(left))
    }
}

impl<T> ExactSizeIterator for Batches<'_, T> {}

/// Puts `items` into another order (Fisher and Yates), with the numbers of `SplitMix64` (Steele, Lea and Flood 2014).
pub(super) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for end in (1..items.len()).rev() {
        state = state.wrapping_add(GOLDEN);
        let bound = u128::from(end as u64 + 1);
        let drawn = (u128::from(mix(state)) * bound) >> u64::BITS;
        items.swap(end, usize::try_from(drawn).expect("a place in the slice"));
    }
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
