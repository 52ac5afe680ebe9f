//! Where the stored values of a tensor lie: all of them in order, or some of a matrix (CSR).

use super::{BatchedTensor, SparseCsr, Tensor, pack::unpack_i64, tensor::Encoding};
use crate::{Error, proto::ArrayRecord};

/// The shape of an array, and where its stored values lie in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// Where each stored value lies in the array row after row; `None`: all are stored.
    places: Option<Vec<usize>>,
}

impl Layout {
    /// Number of values of the array.
    pub fn cells(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of values that are stored.
    pub fn stored(&self) -> usize {
        self.places.as_ref().map_or_else(|| self.cells(), Vec::len)
    }

    /// Whether values may be left out.
    pub fn is_sparse(&self) -> bool {
        self.places.is_some()
    }

    /// All values, row after row; those that are not stored are `elsewhere`. Takes [`Layout::cells`] values
    /// of memory, which a sparse tensor of a few bytes can make any number: to be checked before.
    ///
    /// # Panics
    ///
    /// Where `stored` are not [`Layout::stored`] values.
    pub fn expand<T: Copy>(&self, stored: Vec<T>, elsewhere: T) -> Vec<T> {
        assert!(stored.len() == self.stored(), "as many values as places");
        let Some(places) = &self.places else { return stored };
        let mut all = vec![elsewhere; self.cells()];
        for (place, value) in places.iter().zip(stored) {
            all[*place] = value;
        }
        all
    }
}

impl Tensor {
    /// Where the stored values lie. How many there are is not looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for extents that no array has, and indices that are not those of a CSR matrix: a row
    /// lists its columns in ascending order, each once.
    pub fn layout(&self) -> Result<Layout, Error> {
        let extent = |extent: &i64| usize::try_from(*extent).ok();
        let shape: Option<Vec<usize>> = self.shape.iter().map(extent).collect();
        let cells = shape.as_ref().and_then(|shape| {
            shape.iter().try_fold(1_usize, |cells, extent| cells.checked_mul(*extent))
        });
        let (Some(shape), Some(_)) = (shape, cells) else {
            return Err(Error::value("shape", format!("{:?} is of no array", self.shape)));
        };
        let places = match &self.encoding {
            Some(Encoding::SparseCsr(csr)) => Some(places(csr, &shape)?),
            Some(Encoding::Dense(_)) | None => None,
        };
        Ok(Layout { shape, places })
    }
}

fn places(csr: &SparseCsr, shape: &[usize]) -> Result<Vec<usize>, Error> {
    let &[rows, columns] = shape else {
        let message = format!("{shape:?} of a sparse tensor must have two dimensions");
        return Err(Error::value("shape", message));
    };
    let crow_error = |message: String| Error::value("sparse_crow_indices", message);
    let col_error = |message: String| Error::value("sparse_col_indices", message);
    let starts = unpack_i64(&csr.crow_indices).map_err(|error| crow_error(error.to_string()))?;
    let listed = unpack_i64(&csr.col_indices).map_err(|error| col_error(error.to_string()))?;
    if starts.len().checked_sub(1) != Some(rows) {
        let message = format!("has {} values; {rows} rows need one more than that", starts.len());
        return Err(crow_error(message));
    }
    let end = i64::try_from(listed.len()).unwrap_or(i64::MAX);
    if starts[0] != 0 || starts[rows] != end || !starts.is_sorted() {
        let message = format!("must ascend from 0 to {end}, the number of sparse_col_indices");
        return Err(crow_error(message));
    }
    let mut places = Vec::with_capacity(listed.len());
    for (row, bounds) in starts.windows(2).enumerate() {
        let [first, last] = [bounds[0], bounds[1]].map(|bound| usize::try_from(bound).unwrap_or(0));
        let own = &listed[first..last];
        for column in own {
            match usize::try_from(*column).ok().filter(|column| *column < columns) {
                Some(column) => places.push(row * columns + column),
                None => {
                    let message = format!("row {row} lists column {column} of {columns}");
                    return Err(col_error(message));
                }
            }
        }
        if let Some(pair) = own.windows(2).find(|pair| pair[0] >= pair[1]) {
            let message = if pair[0] == pair[1] {
                format!("row {row} lists column {} twice", pair[0])
            } else {
                format!("row {row} lists column {} after {}; they must ascend", pair[1], pair[0])
            };
            return Err(col_error(message));
        }
    }
    Ok(places)
}

impl ArrayRecord {
    /// One float32 array under `name` for each datum, given with its shape less the first extent. A record
    /// is rectangular: another begins where that shape changes.
    pub fn of_f32<'a>(
        name: &str,
        arrays: impl IntoIterator<Item = (&'a [f32], &'a [i64])>,
    ) -> Vec<Self> {
        let arrays: Vec<_> = arrays.into_iter().collect();
        let alike = arrays.chunk_by(|(_, one), (_, other)| one == other);
        let record = |arrays: &[(&[f32], &[i64])]| {
            let values = arrays.iter().map(|(values, _)| *values);
            let tensor = BatchedTensor::from_f32(values, arrays[0].1.to_vec());
            Self {
                type_tag: String::new(),
                fields: [(name.to_owned(), tensor)].into(),
                num_datums: i64::try_from(arrays.len()).expect("no array has 2^63 elements"),
            }
        };
        alike.map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Dtype, pack::pack_i64};

    fn sparse(shape: &[i64], crow: &[i64], col: &[i64]) -> Tensor {
        let csr = SparseCsr {
            values: pack_i64(col),
            crow_indices: pack_i64(crow),
            col_indices: pack_i64(col),
        };
        Tensor {
            encoding: Some(Encoding::SparseCsr(csr)),
            dtype: Dtype::Int64.into(),
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn sparse_values_find_their_places() {
        let layout = sparse(&[3, 4], &[0, 2, 2, 3], &[1, 3, 0]).layout().unwrap();
        assert_eq!((layout.cells(), layout.stored()), (12, 3));
        assert_eq!(layout.expand(vec![7, 8, 9], 0), [0, 7, 0, 8, 0, 0, 0, 0, 9, 0, 0, 0]);
        let empty = sparse(&[2, 2], &[0, 0, 0], &[]).layout().unwrap();
        assert_eq!(empty.expand(Vec::<f32>::new(), 0.0), [0.0; 4]);
        let dense = Tensor::dense_i64(&[1, 2, 3, 4], vec![2, 2]).layout().unwrap();
        assert_eq!(dense.expand(vec![1, 2, 3, 4], 0), [1, 2, 3, 4]);
        assert!(layout.is_sparse() && !dense.is_sparse());
    }

    #[test]
    fn malformed_indices_are_named() {
        let check = |tensor: Tensor, expected: &str| {
            assert_eq!(tensor.layout().unwrap_err().to_string(), expected);
        };
        let crow = "read sparse_crow_indices: ";
        let col = "read sparse_col_indices: ";
        check(
            sparse(&[2, 2], &[0, 1], &[0]),
            &format!("{crow}has 2 values; 2 rows need one more than that"),
        );
        check(
            sparse(&[2, 2], &[], &[]),
            &format!("{crow}has 0 values; 2 rows need one more than that"),
        );
        let ascend = |end: usize| {
            format!("{crow}must ascend from 0 to {end}, the number of sparse_col_indices")
        };
        check(sparse(&[2, 2], &[0, 2, 1], &[0]), &ascend(1));
        check(sparse(&[2, 2], &[0, 1, 3], &[0, 1]), &ascend(2));
        check(sparse(&[2, 2], &[1, 1, 2], &[0, 1]), &ascend(2));
        check(sparse(&[2, 2], &[0, -1, 1], &[0]), &ascend(1));
        check(sparse(&[2, 2], &[0, 5, 1], &[0]), &ascend(1));
        check(sparse(&[2, 2], &[0, 0, 1], &[2]), &format!("{col}row 1 lists column 2 of 2"));
        check(sparse(&[2, 2], &[0, 0, 1], &[-1]), &format!("{col}row 1 lists column -1 of 2"));
        check(sparse(&[1, 3], &[0, 2], &[1, 1]), &format!("{col}row 0 lists column 1 twice"));
        check(
            sparse(&[1, 3], &[0, 2], &[2, 1]),
            &format!("{col}row 0 lists column 1 after 2; they must ascend"),
        );
        check(sparse(&[-1, 3], &[0], &[]), "read shape: [-1, 3] is of no array");
        check(
            sparse(&[1 << 40, 1 << 40], &[0], &[]),
            "read shape: [1099511627776, 1099511627776] is of no array",
        );
        check(
            sparse(&[4], &[0], &[]),
            "read shape: [4] of a sparse tensor must have two dimensions",
        );
    }

    #[test]
    fn records_begin_where_the_shape_changes() {
        let arrays: [(&[f32], &[i64]); 4] =
            [(&[1.0, 2.0], &[]), (&[3.0], &[]), (&[4.0, 5.0], &[2]), (&[6.0], &[])];
        let records = ArrayRecord::of_f32("logprobs", arrays);
        let counts: Vec<_> = records.iter().map(|record| record.num_datums).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert_eq!(records[1].fields["logprobs"].trailing_shape, [2]);
        assert!(ArrayRecord::of_f32("logprobs", []).is_empty());
    }
}
