//! Arrays of a loss's inputs and outputs: dense, or a matrix that lists some of its values (CSR).

use tinsmith_types::{
    proto::{
        self, Dtype,
        pack::{pack_f32, pack_i64},
        tensor::Encoding,
    },
    tensor::{self as wire, DataType, Values},
};

use crate::{Error, Result};

/// Most values that a sparse tensor is expanded to: a few bytes can name any extent.
const DENSE_CELLS_MAX: usize = 1 << 28;
/// What a value of an index costs on the wire.
const INDEX_BYTES: usize = 8;

/// An array of int64 or float32, row after row. It always is what it says: values fill the shape, and the
/// indices of a sparse one are those of a CSR matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    values: Values,
    shape: Vec<usize>,
    sparse: Option<Csr>,
}

#[derive(Clone, Debug, PartialEq)]
struct Csr {
    /// Where each row's values begin; rows + 1.
    crow: Vec<usize>,
    /// The column of each value.
    col: Vec<usize>,
}

impl TensorData {
    /// A dense array; `shape` has the extent of each dimension.
    ///
    /// # Errors
    ///
    /// Values that do not fill the shape.
    pub fn new(values: Values, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        if cells(&shape) != Some(values.len()) {
            let message = format!("a tensor has {} values; its shape is {shape:?}", values.len());
            return Err(Error::validation(message));
        }
        Ok(Self { values, shape, sparse: None })
    }

    /// One dimension of float32.
    pub fn from_f32(values: impl Into<Vec<f32>>) -> Self {
        Self::flat(Values::Float32(values.into()))
    }

    /// One dimension of int64.
    pub fn from_i64(values: impl Into<Vec<i64>>) -> Self {
        Self::flat(Values::Int64(values.into()))
    }

    /// Token ids, as int64.
    pub fn from_tokens(tokens: &[u32]) -> Self {
        Self::from_i64(tokens.iter().map(|token| i64::from(*token)).collect::<Vec<_>>())
    }

    /// A matrix of float32.
    ///
    /// # Errors
    ///
    /// Rows of different lengths.
    pub fn from_rows_f32(rows: &[Vec<f32>]) -> Result<Self> {
        let shape = rectangle(rows.iter().map(Vec::len))?;
        Self::new(Values::Float32(rows.concat()), shape)
    }

    /// A matrix of int64.
    ///
    /// # Errors
    ///
    /// Rows of different lengths.
    pub fn from_rows_i64(rows: &[Vec<i64>]) -> Result<Self> {
        let shape = rectangle(rows.iter().map(Vec::len))?;
        Self::new(Values::Int64(rows.concat()), shape)
    }

    /// A matrix of `[rows, columns]` that lists only `values`: those of row `r` are at `crow[r]..crow[r + 1]`,
    /// each in the column that `col` has at the same place. Columns ascend within a row.
    ///
    /// # Errors
    ///
    /// Indices that are not those of such a matrix.
    pub fn from_csr(
        values: Values,
        crow: Vec<usize>,
        col: Vec<usize>,
        [rows, columns]: [usize; 2],
    ) -> Result<Self> {
        if cells(&[rows, columns]).is_none() {
            return Err(Error::validation(format!(
                "a sparse tensor of {rows} x {columns} is too large"
            )));
        }
        if crow.len().checked_sub(1) != Some(rows) {
            let message = "sparse_crow_indices need one value more than rows";
            return Err(Error::validation(format!("{message}: {} for {rows} rows", crow.len())));
        }
        if crow[0] != 0 || crow[rows] != col.len() || !crow.is_sorted() {
            let message = "sparse_crow_indices must ascend from 0 to the number of";
            return Err(Error::validation(format!("{message} sparse_col_indices, {}", col.len())));
        }
        if values.len() != col.len() {
            let (values, columns) = (values.len(), col.len());
            let message = format!("a sparse tensor has {values} values in {columns} places");
            return Err(Error::validation(message));
        }
        for (row, bounds) in crow.windows(2).enumerate() {
            let own = &col[bounds[0]..bounds[1]];
            if let Some(column) = own.iter().find(|column| **column >= columns) {
                let message = format!("row {row} of a sparse tensor lists column {column}");
                return Err(Error::validation(format!("{message} of {columns}")));
            }
            if own.windows(2).any(|pair| pair[0] >= pair[1]) {
                let message = "has columns that do not ascend, or one twice";
                return Err(Error::validation(format!("row {row} of a sparse tensor {message}")));
            }
        }
        Ok(Self { values, shape: vec![rows, columns], sparse: Some(Csr { crow, col }) })
    }

    fn flat(values: Values) -> Self {
        Self { shape: vec![values.len()], values, sparse: None }
    }

    /// The type of the values.
    pub fn dtype(&self) -> DataType {
        match self.values {
            Values::Int64(_) => DataType::Int64,
            Values::Float32(_) => DataType::Float32,
        }
    }

    /// Extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values, those that are not listed included.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether some values may not be listed.
    pub fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// The values that are listed: all of a dense array.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Row pointers and columns of a sparse one.
    pub fn indices(&self) -> Option<(&[usize], &[usize])> {
        self.sparse.as_ref().map(|csr| (&*csr.crow, &*csr.col))
    }

    /// All values of a dense float32 array, row after row.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.values {
            Values::Float32(values) if self.sparse.is_none() => Some(values),
            Values::Float32(_) | Values::Int64(_) => None,
        }
    }

    /// All values of a dense int64 array, row after row.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.values {
            Values::Int64(values) if self.sparse.is_none() => Some(values),
            Values::Float32(_) | Values::Int64(_) => None,
        }
    }

    /// The rows of a float32 matrix, or one row of what has one dimension; `pad` stands where nothing is listed.
    ///
    /// # Errors
    ///
    /// Integers, other numbers of dimensions, or more than 2^28 values.
    pub fn to_rows_f32(&self, pad: i64) -> Result<Vec<Vec<f32>>> {
        let dense = self.to_dense(pad)?;
        let ([columns] | [_, columns]) = *dense.shape() else {
            return Err(Error::validation(format!(
                "a tensor of the shape {:?} has no rows",
                self.shape
            )));
        };
        let values =
            dense.as_f32().ok_or_else(|| Error::validation("a tensor is int64, not float32"))?;
        if columns == 0 {
            return Ok(vec![Vec::new(); if dense.shape.len() == 1 { 1 } else { dense.shape[0] }]);
        }
        Ok(values.chunks(columns).map(<[f32]>::to_vec).collect())
    }

    /// The same with all values listed; `pad` for those that were not.
    ///
    /// # Errors
    ///
    /// More than 2^28 values.
    pub fn to_dense(&self, pad: i64) -> Result<Self> {
        let Some(csr) = &self.sparse else { return Ok(self.clone()) };
        if self.len() > DENSE_CELLS_MAX {
            let message = format!("a sparse tensor of the shape {:?} is too large", self.shape);
            return Err(Error::validation(format!("{message} to be written out")));
        }
        let values = match &self.values {
            Values::Int64(values) => Values::Int64(csr.expand(values, pad, &self.shape)),
            Values::Float32(values) => {
                Values::Float32(csr.expand(values, as_f32(pad), &self.shape))
            }
        };
        Ok(Self { values, shape: self.shape.clone(), sparse: None })
    }

    /// The same without the values that are `pad`, if it is a matrix and that makes it smaller: fewer
    /// than one value in two is then listed. Servers take what is not listed for 0.
    pub fn to_sparse(&self, pad: i64) -> Self {
        let ([rows, columns], None) = (&*self.shape, &self.sparse) else { return self.clone() };
        let kept: Vec<bool> = match &self.values {
            Values::Int64(values) => values.iter().map(|value| *value != pad).collect(),
            Values::Float32(values) => values.iter().map(|value| *value != as_f32(pad)).collect(),
        };
        let listed = kept.iter().filter(|kept| **kept).count();
        if rows + 1 + 2 * listed >= self.len() {
            return self.clone();
        }
        let mut csr = Csr { crow: vec![0], col: Vec::with_capacity(listed) };
        for row in kept.chunks(*columns) {
            csr.col.extend(row.iter().enumerate().filter(|(_, kept)| **kept).map(|(at, _)| at));
            csr.crow.push(csr.col.len());
        }
        Self { values: pick(&self.values, &kept), shape: self.shape.clone(), sparse: Some(csr) }
    }

    /// Rows `from..to` of the first dimension.
    pub(crate) fn rows(&self, from: usize, to: usize) -> Self {
        let mut shape = self.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = to - from;
        }
        if let Some(csr) = &self.sparse {
            let (first, last) = (csr.crow[from], csr.crow[to]);
            let crow = csr.crow[from..=to].iter().map(|at| at - first).collect();
            let sparse = Some(Csr { crow, col: csr.col[first..last].to_vec() });
            return Self { values: slice(&self.values, first, last), shape, sparse };
        }
        let row: usize = self.shape.iter().skip(1).product();
        Self { values: slice(&self.values, from * row, to * row), shape, sparse: None }
    }

    /// What it takes on the wire, nearly.
    pub(crate) fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Int64(values) => size_of_val(&**values),
            Values::Float32(values) => size_of_val(&**values),
        };
        let indices = self.sparse.as_ref().map_or(0, |csr| csr.crow.len() + csr.col.len());
        values + INDEX_BYTES * indices
    }

    /// Its protobuf form.
    pub(crate) fn to_proto(&self) -> proto::Tensor {
        let (bytes, dtype) = match &self.values {
            Values::Int64(values) => (pack_i64(values), Dtype::Int64),
            Values::Float32(values) => (pack_f32(values), Dtype::Float32),
        };
        let encoding = match &self.sparse {
            Some(csr) => Encoding::SparseCsr(proto::SparseCsr {
                values: bytes,
                crow_indices: pack_i64(&wide(&csr.crow)),
                col_indices: pack_i64(&wide(&csr.col)),
            }),
            None => Encoding::Dense(bytes),
        };
        let shape = wide(&self.shape);
        proto::Tensor { encoding: Some(encoding), dtype: dtype.into(), shape }
    }
}

fn wide(values: &[usize]) -> Vec<i64> {
    let each = |value: &usize| i64::try_from(*value).expect("no array in memory has 2^63 values");
    values.iter().map(each).collect()
}

impl Csr {
    fn expand<T: Copy>(&self, listed: &[T], pad: T, shape: &[usize]) -> Vec<T> {
        let columns = shape[1];
        let mut all = vec![pad; shape[0] * columns];
        for (row, bounds) in self.crow.windows(2).enumerate() {
            for at in bounds[0]..bounds[1] {
                all[row * columns + self.col[at]] = listed[at];
            }
        }
        all
    }
}

#[expect(clippy::cast_precision_loss, reason = "pads are small whole numbers")]
fn as_f32(pad: i64) -> f32 {
    pad as f32
}

fn cells(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |cells, extent| cells.checked_mul(*extent))
}

fn rectangle(mut lengths: impl ExactSizeIterator<Item = usize>) -> Result<Vec<usize>> {
    let rows = lengths.len();
    let columns = lengths.next().unwrap_or(0);
    match lengths.position(|length| length != columns) {
        Some(row) => {
            let row = row + 1;
            Err(Error::validation(format!(
                "row {row} of a matrix is not as long as row 0, {columns} values"
            )))
        }
        None => Ok(vec![rows, columns]),
    }
}

fn pick(values: &Values, kept: &[bool]) -> Values {
    fn of<T: Copy>(values: &[T], kept: &[bool]) -> Vec<T> {
        values.iter().zip(kept).filter(|(_, kept)| **kept).map(|(value, _)| *value).collect()
    }
    match values {
        Values::Int64(values) => Values::Int64(of(values, kept)),
        Values::Float32(values) => Values::Float32(of(values, kept)),
    }
}

fn slice(values: &Values, from: usize, to: usize) -> Values {
    match values {
        Values::Int64(values) => Values::Int64(values[from..to].to_vec()),
        Values::Float32(values) => Values::Float32(values[from..to].to_vec()),
    }
}

impl From<Vec<f32>> for TensorData {
    fn from(values: Vec<f32>) -> Self {
        Self::from_f32(values)
    }
}

impl From<&[f32]> for TensorData {
    fn from(values: &[f32]) -> Self {
        Self::from_f32(values)
    }
}

impl From<Vec<i64>> for TensorData {
    fn from(values: Vec<i64>) -> Self {
        Self::from_i64(values)
    }
}

impl From<&[i64]> for TensorData {
    fn from(values: &[i64]) -> Self {
        Self::from_i64(values)
    }
}

impl From<Vec<u32>> for TensorData {
    fn from(tokens: Vec<u32>) -> Self {
        Self::from_tokens(&tokens)
    }
}

impl From<&[u32]> for TensorData {
    fn from(tokens: &[u32]) -> Self {
        Self::from_tokens(tokens)
    }
}

impl From<TensorData> for wire::TensorData {
    fn from(tensor: TensorData) -> Self {
        let mut made = Self::dense(tensor.values, wide(&tensor.shape));
        if let Some(csr) = tensor.sparse {
            made.sparse_crow_indices = Some(wide(&csr.crow));
            made.sparse_col_indices = Some(wide(&csr.col));
        }
        made
    }
}

impl TryFrom<wire::TensorData> for TensorData {
    type Error = Error;

    fn try_from(tensor: wire::TensorData) -> Result<Self> {
        let narrow = |values: Vec<i64>| -> Result<Vec<usize>> {
            let each = values.into_iter().map(usize::try_from).collect::<Result<_, _>>();
            each.map_err(|_| Error::Response { message: "a tensor has a negative extent".into() })
        };
        let shape = match tensor.shape {
            Some(shape) => narrow(shape)?,
            None => vec![tensor.data.len()],
        };
        let made = match (tensor.sparse_crow_indices, tensor.sparse_col_indices) {
            (Some(crow), Some(col)) => match *shape {
                [rows, columns] => {
                    Self::from_csr(tensor.data, narrow(crow)?, narrow(col)?, [rows, columns])
                }
                _ => Err(Error::validation("a sparse tensor needs a shape of two dimensions")),
            },
            (None, None) => Self::new(tensor.data, shape),
            (Some(_), None) | (None, Some(_)) => Err(Error::validation(
                "a sparse tensor needs sparse_crow_indices and sparse_col_indices",
            )),
        };
        made.map_err(|error| {
            let Error::Validation { message } = error else { return error };
            Error::Response { message }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(tensor: Result<TensorData>) -> String {
        tensor.unwrap_err().to_string().trim_start_matches("check the arguments: ").to_owned()
    }

    #[test]
    fn values_fill_the_shape() {
        let tensor = TensorData::new(Values::Float32(vec![1.0; 6]), [2, 3]).unwrap();
        assert_eq!(
            (tensor.len(), tensor.shape(), tensor.dtype()),
            (6, &[2, 3][..], DataType::Float32)
        );
        assert_eq!(
            refused(TensorData::new(Values::Int64(vec![1]), [2, 3])),
            "a tensor has 1 values; its shape is [2, 3]"
        );
        assert_eq!(
            refused(TensorData::from_rows_f32(&[vec![1.0], vec![1.0, 2.0]])),
            "row 1 of a matrix is not as long as row 0, 1 values"
        );
        assert_eq!(TensorData::from_rows_i64(&[vec![1], vec![2]]).unwrap().shape(), [2, 1]);
    }

    #[test]
    fn sparse_indices_are_checked() {
        let csr = |crow: &[usize], col: &[usize]| {
            let values = Values::Int64(vec![7; col.len()]);
            TensorData::from_csr(values, crow.to_vec(), col.to_vec(), [2, 3])
        };
        let tensor = csr(&[0, 1, 2], &[2, 0]).unwrap();
        assert_eq!(tensor.to_dense(-1).unwrap().as_i64().unwrap(), [-1, -1, 7, 7, -1, -1]);
        assert_eq!(
            refused(csr(&[0, 1], &[0])),
            "sparse_crow_indices need one value more than rows: 2 for 2 rows"
        );
        assert!(refused(csr(&[0, 2, 1], &[0, 1])).contains("must ascend from 0"));
        assert_eq!(refused(csr(&[0, 1, 1], &[3])), "row 0 of a sparse tensor lists column 3 of 3");
        assert!(refused(csr(&[0, 2, 2], &[1, 1])).contains("do not ascend, or one twice"));
        let huge = TensorData::from_csr(Values::Int64(vec![]), vec![0, 0], vec![], [1, 1 << 40]);
        assert!(refused(huge.unwrap().to_dense(0)).contains("too large to be written out"));
    }

    #[test]
    fn sparse_only_where_that_is_smaller() {
        let mut rows = vec![vec![0.0; 4]; 4];
        rows[1][2] = 3.0;
        let dense = TensorData::from_rows_f32(&rows).unwrap();
        let sparse = dense.to_sparse(0);
        assert_eq!(sparse.indices().unwrap(), (&[0, 0, 1, 1, 1][..], &[2][..]));
        assert_eq!(sparse.to_rows_f32(0).unwrap(), rows);
        assert_eq!(sparse.rows(1, 3).to_dense(0).unwrap(), dense.rows(1, 3));
        assert!(!TensorData::from_rows_f32(&[vec![1.0, 2.0]]).unwrap().to_sparse(0).is_sparse());
        assert!(!TensorData::from_f32([0.0; 9]).to_sparse(0).is_sparse(), "no matrix");
        assert_eq!(sparse.bytes(), 4 + 8 * 6);
    }

    fn matrix() -> impl Strategy<Value = (Vec<Vec<i64>>, i64)> {
        let rows = (0..6_usize, 1..6_usize).prop_flat_map(|(rows, columns)| {
            let row = prop::collection::vec(-1..3_i64, columns);
            prop::collection::vec(row, rows)
        });
        (rows, -1..2_i64)
    }

    proptest! {
        #[test]
        fn sparse_and_wire_lose_nothing((rows, pad) in matrix()) {
            let dense = TensorData::from_rows_i64(&rows).unwrap();
            let sparse = dense.to_sparse(pad);
            prop_assert_eq!(&sparse.to_dense(pad).unwrap(), &dense);
            let wired = wire::TensorData::from(sparse.clone());
            prop_assert_eq!(&proto::Tensor::try_from(wired.clone()).unwrap(), &sparse.to_proto());
            prop_assert_eq!(&TensorData::try_from(wired).unwrap(), &sparse);
            let tensor = wire::TensorData::try_from(&sparse.to_proto()).unwrap();
            prop_assert_eq!(TensorData::try_from(tensor).unwrap(), sparse);
        }
    }
}
