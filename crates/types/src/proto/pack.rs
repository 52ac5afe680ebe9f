//! The little-endian arrays inside the messages.

use bytes::{BufMut, Bytes, BytesMut};

use super::{BatchedTensor, Dtype, SparseCsr, Tensor, tensor};
use crate::Error;

macro_rules! packed {
    ($($pack:ident, $unpack:ident: $type:ty, $put:ident;)*) => {$(
        #[doc = concat!("Lays `", stringify!($type), "` values out as bytes.")]
        pub fn $pack(values: &[$type]) -> Bytes {
            let mut bytes = BytesMut::with_capacity(size_of_val(values));
            for value in values {
                bytes.$put(*value);
            }
            bytes.freeze()
        }

        #[doc = concat!("Reads `", stringify!($type), "` values.")]
        ///
        /// # Errors
        ///
        /// [`Error::Value`] where the bytes end inside a value.
        pub fn $unpack(bytes: &[u8]) -> Result<Vec<$type>, Error> {
            let (values, rest) = bytes.as_chunks();
            if !rest.is_empty() {
                return Err(Error::value(
                    "array",
                    format!("{} bytes are no whole number of {}", bytes.len(), stringify!($type)),
                ));
            }
            Ok(values.iter().map(|value| <$type>::from_le_bytes(*value)).collect())
        }
    )*};
}

packed! {
    pack_i32, unpack_i32: i32, put_i32_le;
    pack_i64, unpack_i64: i64, put_i64_le;
    pack_f32, unpack_f32: f32, put_f32_le;
}

impl Tensor {
    /// All values of a float32 array. `values` fill `shape`.
    pub fn dense_f32(values: &[f32], shape: Vec<i64>) -> Self {
        Self::dense(pack_f32(values), Dtype::Float32, shape)
    }

    /// All values of an int64 array. `values` fill `shape`.
    pub fn dense_i64(values: &[i64], shape: Vec<i64>) -> Self {
        Self::dense(pack_i64(values), Dtype::Int64, shape)
    }

    fn dense(bytes: Bytes, dtype: Dtype, shape: Vec<i64>) -> Self {
        Self { encoding: Some(tensor::Encoding::Dense(bytes)), dtype: dtype.into(), shape }
    }

    /// The stored values' bytes, whichever layout.
    pub fn stored(&self) -> &[u8] {
        match &self.encoding {
            None => &[],
            Some(tensor::Encoding::Dense(bytes)) => bytes,
            Some(tensor::Encoding::SparseCsr(SparseCsr { values, .. })) => values,
        }
    }
}

impl BatchedTensor {
    /// One float32 array for each datum. All have the shape `[any, trailing_shape…]`.
    pub fn from_f32<'a>(
        datums: impl IntoIterator<Item = &'a [f32]>,
        trailing_shape: Vec<i64>,
    ) -> Self {
        let mut data = BytesMut::new();
        let mut offsets = BytesMut::new();
        offsets.put_u64_le(0);
        for values in datums {
            for value in values {
                data.put_f32_le(*value);
            }
            offsets.put_u64_le(data.len() as u64);
        }
        Self {
            data: data.freeze(),
            offsets: offsets.freeze(),
            dtype: Dtype::Float32.into(),
            trailing_shape,
        }
    }

    /// The bytes of each datum's array, without copying.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] where the offsets do not divide the data.
    pub fn datums(&self) -> Result<Vec<Bytes>, Error> {
        let offsets = unpack_i64(&self.offsets).map_err(|e| e.within(|| "offsets".to_owned()))?;
        offsets
            .windows(2)
            .map(|pair| {
                let (begin, end) = (usize::try_from(pair[0]).ok()?, usize::try_from(pair[1]).ok()?);
                (begin <= end && end <= self.data.len()).then(|| self.data.slice(begin..end))
            })
            .collect::<Option<_>>()
            .ok_or_else(|| {
                let message = format!("do not divide {} bytes: {offsets:?}", self.data.len());
                Error::value("offsets", message)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_little_endian() {
        assert_eq!(pack_i32(&[1, -1])[..], [1, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(unpack_i32(&pack_i32(&[1, i32::MIN])).unwrap(), [1, i32::MIN]);
        assert_eq!(unpack_i64(&pack_i64(&[1, i64::MIN])).unwrap(), [1, i64::MIN]);
        assert_eq!(unpack_f32(&pack_f32(&[1.5, -0.25])).unwrap(), [1.5, -0.25]);
        assert_eq!(
            unpack_f32(&[0; 7]).unwrap_err().to_string(),
            "read array: 7 bytes are no whole number of f32"
        );
    }

    #[test]
    fn batched_offsets_are_bytes() {
        let batch = BatchedTensor::from_f32([&[1.0, 2.0][..], &[], &[3.0]], Vec::new());
        assert_eq!(unpack_i64(&batch.offsets).unwrap(), [0, 8, 8, 12]);
        let datums = batch.datums().unwrap();
        assert_eq!(datums.iter().map(Bytes::len).collect::<Vec<_>>(), [8, 0, 4]);
        let faulty = BatchedTensor { offsets: pack_i64(&[0, 16]), ..batch };
        assert_eq!(
            faulty.datums().unwrap_err().to_string(),
            "read offsets: do not divide 12 bytes: [0, 16]"
        );
    }
}
