//! Training data: rows of a JSONL file, datums of rows, and batches that are the same from the same seed.
//!
//! ```no_run
//! use tinsmith::{
//!     Dataset, load_tokenizer,
//!     dataset::{Batching, DatumOptions},
//! };
//!
//! let tokenizer = load_tokenizer("models/nano")?;
//! let (train, held_out) = Dataset::open("chats.jsonl")?.split(0.1, 0)?;
//! let options = DatumOptions { tokens_max: Some(2048), ..DatumOptions::default() };
//! let datums = train.try_map(|row| row.datum(&tokenizer, &options))?;
//! for batch in datums.batches(Batching::new(32)?.seed(0).epochs(3)) {
//!     println!("{} of {}, {} held out", batch.len(), datums.len(), held_out.len());
//! }
//! # Ok::<(), tinsmith::Error>(())
//! ```

use std::{fs::File, io::BufReader, path::Path};

use crate::{Error, Result};

mod batches;
mod jsonl;
mod row;

pub use batches::{Batches, Batching};
pub use row::{DatumOptions, Example, Row, TooLong};

/// Examples in memory, in the order of their file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset<T> {
    rows: Vec<T>,
}

impl Dataset<Row> {
    /// Reads a JSONL file: one JSON object a line, each with `messages` (and `tools`), `prompt` and `completion`, `prompt` with
    /// `chosen` and `rejected`, or `text`. Other keys are left alone, and so are empty lines.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or has no rows; the first line that is none of these, by its number.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file =
            File::open(path).map_err(|error| Error::validation(format!("open {name}: {error}")))?;
        Self::read(BufReader::new(file), &name)
    }

    /// [`Dataset::open`] of lines that come from elsewhere; `name` stands in messages.
    ///
    /// # Errors
    ///
    /// As [`Dataset::open`].
    pub fn read(lines: impl std::io::BufRead, name: &str) -> Result<Self> {
        let rows: Vec<Row> = jsonl::rows(lines, name).collect::<Result<_>>()?;
        if rows.is_empty() {
            return Err(Error::validation(format!("{name} has no rows")));
        }
        Ok(Self { rows })
    }
}

impl<T> Dataset<T> {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows.
    pub fn rows(&self) -> &[T] {
        &self.rows
    }

    /// What becomes of each row, such as its datum; rows that give nothing are left out.
    ///
    /// # Errors
    ///
    /// The first that fails, with the place of its row.
    pub fn try_map<U>(&self, make: impl Fn(&T) -> Result<Option<U>>) -> Result<Dataset<U>> {
        let mut rows = Vec::with_capacity(self.rows.len());
        for (index, row) in self.rows.iter().enumerate() {
            let made = make(row).map_err(|error| {
                let Error::Validation { message } = error else { return error };
                Error::validation(format!("row {} of {}: {message}", index + 1, self.rows.len()))
            })?;
            rows.extend(made);
        }
        Ok(Dataset { rows })
    }

    /// The rows in another order: the same from the same seed.
    #[must_use]
    pub fn shuffled(mut self, seed: u64) -> Self {
        batches::shuffle(&mut self.rows, seed);
        self
    }

    /// The rows but a share of them, and that share: the same from the same seed. Each part keeps its order.
    ///
    /// # Errors
    ///
    /// A share that is not in `0..=1`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of the length is at most the length"
    )]
    pub fn split(self, held_out: f64, seed: u64) -> Result<(Self, Self)> {
        if !(0.0..=1.0).contains(&held_out) {
            return Err(Error::validation(format!(
                "{held_out} is no share of the rows; 0.1 is a tenth"
            )));
        }
        let count = (self.rows.len() as f64 * held_out).round() as usize;
        let mut places: Vec<usize> = (0..self.rows.len()).collect();
        batches::shuffle(&mut places, seed);
        let mut is_held = vec![false; self.rows.len()];
        for place in &places[..count] {
            is_held[*place] = true;
        }
        let (mut kept, mut held) = (Vec::new(), Vec::new());
        for (row, is_held) in self.rows.into_iter().zip(is_held) {
            if is_held { held.push(row) } else { kept.push(row) }
        }
        Ok((Self { rows: kept }, Self { rows: held }))
    }

    /// Batches of rows, epoch after epoch.
    pub fn batches(&self, batching: Batching) -> Batches<'_, T> {
        Batches::new(&self.rows, batching)
    }
}

impl<T> From<Vec<T>> for Dataset<T> {
    fn from(rows: Vec<T>) -> Self {
        Self { rows }
    }
}

#[cfg(test)]
mod tests;
