//! Arrays in JSON, and their protobuf form.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::Error;
use crate::proto::pack::{pack_f32, pack_i64, unpack_f32, unpack_i32, unpack_i64};
use crate::proto::tensor::Encoding;
use crate::proto::{self, Dtype};

/// An array: all values row-major, or the stored ones of a matrix (CSR).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorData {
    /// The values.
    pub data: Values,
    /// Their type.
    pub dtype: DataType,
    /// Extent of each dimension; none: one dimension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<i64>>,
    /// CSR: where each row's values begin; rows + 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse_crow_indices: Option<Vec<i64>>,
    /// CSR: the column of each value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse_col_indices: Option<Vec<i64>>,
}

/// Element type of a [`TensorData`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// Integers.
    Int64,
    /// Numbers of single precision.
    Float32,
}

/// The values of a [`TensorData`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Values {
    /// Integers.
    Int64(Vec<i64>),
    /// Numbers of single precision.
    Float32(Vec<f32>),
}

impl Values {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Int64(values) => values.len(),
            Self::Float32(values) => values.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl TensorData {
    /// A dense array.
    pub fn dense(data: Values, shape: Vec<i64>) -> Self {
        let dtype = match data {
            Values::Int64(_) => DataType::Int64,
            Values::Float32(_) => DataType::Float32,
        };
        let shape = Some(shape);
        Self { data, dtype, shape, sparse_crow_indices: None, sparse_col_indices: None }
    }
}

/// The type of the values is known only after the whole object.
#[derive(Deserialize)]
struct Wire {
    data: Vec<Number>,
    dtype: DataType,
    #[serde(default)]
    shape: Option<Vec<i64>>,
    #[serde(default)]
    sparse_crow_indices: Option<Vec<i64>>,
    #[serde(default)]
    sparse_col_indices: Option<Vec<i64>>,
}

impl<'de> Deserialize<'de> for TensorData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { data, dtype, shape, sparse_crow_indices, sparse_col_indices } =
            Wire::deserialize(deserializer)?;
        let data = match dtype {
            DataType::Float32 => Values::Float32(data.into_iter().map(Number::to_f32).collect()),
            DataType::Int64 => Values::Int64(
                data.into_iter()
                    .map(Number::to_i64)
                    .collect::<Result<_, _>>()
                    .map_err(de::Error::custom)?,
            ),
        };
        Ok(Self { data, dtype, shape, sparse_crow_indices, sparse_col_indices })
    }
}

#[derive(Clone, Copy)]
enum Number {
    Integer(i64),
    Float(f64),
}

impl Number {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to single precision is the type")]
    fn to_f32(self) -> f32 {
        match self {
            Self::Integer(value) => value as f32,
            Self::Float(value) => value as f32,
        }
    }

    /// Some clients write whole numbers as `1.0`.
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
    fn to_i64(self) -> Result<i64, String> {
        match self {
            Self::Integer(value) => Ok(value),
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 2_f64.powi(53) => {
                Ok(value as i64)
            }
            Self::Float(value) => Err(format!("{value} is not an int64")),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number::Integer(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                i64::try_from(value)
                    .map(Number::Integer)
                    .map_err(|_| E::custom(format!("{value} does not fit an int64")))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
                Ok(Number::Float(value))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl TryFrom<TensorData> for proto::Tensor {
    type Error = Error;

    fn try_from(tensor: TensorData) -> Result<Self, Error> {
        let (bytes, dtype) = match &tensor.data {
            Values::Int64(values) => (pack_i64(values), Dtype::Int64),
            Values::Float32(values) => (pack_f32(values), Dtype::Float32),
        };
        let encoding = match (&tensor.sparse_crow_indices, &tensor.sparse_col_indices) {
            (None, None) => Encoding::Dense(bytes),
            (Some(crow), Some(col)) => Encoding::SparseCsr(proto::SparseCsr {
                values: bytes,
                crow_indices: pack_i64(crow),
                col_indices: pack_i64(col),
            }),
            (Some(_), None) | (None, Some(_)) => {
                return Err(Error::value(
                    "tensor",
                    "has one of `sparse_crow_indices` and `sparse_col_indices`, and needs both",
                ));
            }
        };
        let shape = match tensor.shape {
            Some(shape) => shape,
            None if matches!(encoding, Encoding::SparseCsr(_)) => {
                return Err(Error::value("tensor", "is sparse and needs a `shape`"));
            }
            None => vec![extent(tensor.data.len())],
        };
        Ok(Self { encoding: Some(encoding), dtype: dtype.into(), shape })
    }
}

impl TryFrom<&proto::Tensor> for TensorData {
    type Error = Error;

    fn try_from(tensor: &proto::Tensor) -> Result<Self, Error> {
        let mut made = Self::dense(values(tensor.stored(), tensor.dtype)?, tensor.shape.clone());
        if let Some(Encoding::SparseCsr(csr)) = &tensor.encoding {
            made.sparse_crow_indices = Some(unpack_i64(&csr.crow_indices)?);
            made.sparse_col_indices = Some(unpack_i64(&csr.col_indices)?);
        }
        Ok(made)
    }
}

/// One datum's array of a batch, `bytes` being its part of the data.
pub(crate) fn datum_tensor(
    bytes: &Bytes,
    batch: &proto::BatchedTensor,
) -> Result<TensorData, Error> {
    let data = values(bytes, batch.dtype)?;
    let row: i64 = batch.trailing_shape.iter().product();
    let rows = extent(data.len()).checked_div(row).unwrap_or(0);
    let mut shape = vec![rows];
    shape.extend(&batch.trailing_shape);
    if shape.iter().product::<i64>() != extent(data.len()) {
        let message = format!("{} values do not fill rows of {row}", data.len());
        return Err(Error::value("array", message));
    }
    Ok(TensorData::dense(data, shape))
}

/// The two narrower types of results widen.
fn values(bytes: &[u8], dtype: i32) -> Result<Values, Error> {
    Ok(match Dtype::try_from(dtype) {
        Ok(Dtype::Float32) => Values::Float32(unpack_f32(bytes)?),
        Ok(Dtype::Int64) => Values::Int64(unpack_i64(bytes)?),
        Ok(Dtype::Int32) => Values::Int64(unpack_i32(bytes)?.into_iter().map(i64::from).collect()),
        Ok(Dtype::Bfloat16) => Values::Float32(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|half| f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16))
                .collect(),
        ),
        Ok(Dtype::Unspecified) | Err(_) => {
            return Err(Error::value("tensor", format!("has the unknown dtype {dtype}")));
        }
    })
}

fn extent(len: usize) -> i64 {
    i64::try_from(len).expect("no array in memory has 2^63 values")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: serde_json::Value) -> Result<TensorData, serde_json::Error> {
        serde_json::from_value(json)
    }

    #[test]
    fn type_may_come_after_the_values() {
        let tensor = read(json!({"data": [1, 2.5], "dtype": "float32"})).unwrap();
        assert_eq!(tensor.data, Values::Float32(vec![1.0, 2.5]));
        let tensor = read(json!({"data": [1, 2.0], "dtype": "int64", "shape": null})).unwrap();
        assert_eq!(tensor.data, Values::Int64(vec![1, 2]));
        assert_eq!(proto::Tensor::try_from(tensor).unwrap().shape, [2]);
    }

    #[test]
    fn wrong_values_are_named() {
        let message = |json| read(json).unwrap_err().to_string();
        assert_eq!(message(json!({"data": [1.5], "dtype": "int64"})), "1.5 is not an int64");
        assert_eq!(
            message(json!({"data": [null], "dtype": "float32"})),
            "invalid type: null, expected a number"
        );
        assert_eq!(
            message(json!({"data": [], "dtype": "int8"})),
            "unknown variant `int8`, expected `int64` or `float32`"
        );
    }

    #[test]
    fn sparse_goes_to_protobuf_and_back() {
        let json = json!({"data": [5, 6], "dtype": "int64", "shape": [2, 3],
            "sparse_crow_indices": [0, 1, 2], "sparse_col_indices": [0, 2]});
        let tensor = read(json.clone()).unwrap();
        let proto = proto::Tensor::try_from(tensor.clone()).unwrap();
        assert_eq!(TensorData::try_from(&proto).unwrap(), tensor);
        assert_eq!(serde_json::to_value(&tensor).unwrap(), json);

        let half = TensorData { sparse_col_indices: None, ..tensor.clone() };
        assert_eq!(
            proto::Tensor::try_from(half).unwrap_err().to_string(),
            "read tensor: has one of `sparse_crow_indices` and `sparse_col_indices`, and needs both"
        );
        let shapeless = TensorData { shape: None, ..tensor };
        assert_eq!(
            proto::Tensor::try_from(shapeless).unwrap_err().to_string(),
            "read tensor: is sparse and needs a `shape`"
        );
    }

    #[test]
    fn bfloat16_widens() {
        let bytes = [0x80, 0x3f, 0x20, 0xc0];
        let values = values(&bytes, Dtype::Bfloat16.into()).unwrap();
        assert_eq!(values, Values::Float32(vec![1.0, -2.5]));
    }
}
