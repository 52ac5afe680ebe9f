//! Safetensors with our own limits: the header is capped and checked before anything is allocated.

use safetensors::{Dtype as FileDtype, SafeTensorError, SafeTensors, tensor::Metadata};
use tinsmith_backend::Dtype;

/// Largest header that is read, in bytes; that of a model with a hundred thousand tensors is smaller.
const HEADER_BYTES_MAX: u64 = 8 << 20;

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// Reads and checks the header; gives where the data begins. The error says what is wrong with the file.
pub(crate) fn read_header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("has {} bytes and is no safetensors file", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(format!(
            "has a header of {length} bytes (at most {HEADER_BYTES_MAX} are read); it may not be a \
             safetensors file"
        ));
    }
    let (length, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| describe(&error, bytes.len()))?;
    Ok((LENGTH_BYTES + length, metadata))
}

/// The floating-point type of a tensor that we read; `None` for all others.
pub(crate) fn float_dtype(dtype: FileDtype) -> Option<Dtype> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "another crate's list of every dtype there is"
    )]
    match dtype {
        FileDtype::F32 => Some(Dtype::F32),
        FileDtype::F16 => Some(Dtype::F16),
        FileDtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Widens little-endian numbers to f32.
pub(crate) fn widen(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let pairs = |convert: fn([u8; 2]) -> f32| {
        bytes.as_chunks::<2>().0.iter().map(|pair| convert(*pair)).collect()
    };
    match dtype {
        Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        }
        Dtype::F16 => pairs(|pair| half::f16::from_le_bytes(pair).to_f32()),
        Dtype::Bf16 => pairs(|pair| half::bf16::from_le_bytes(pair).to_f32()),
    }
}

/// Whether no number of these is NaN or infinite: those have an exponent of ones only.
pub(crate) fn all_finite(bytes: &[u8], dtype: Dtype) -> bool {
    let pairs = |exponent: u16| {
        let finite = |pair: &[u8; 2]| u16::from_le_bytes(*pair) & exponent != exponent;
        bytes.as_chunks::<2>().0.iter().all(finite)
    };
    match dtype {
        Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().all(|word| f32::from_le_bytes(*word).is_finite())
        }
        Dtype::F16 => pairs(0x7c00),
        Dtype::Bf16 => pairs(0x7f80),
    }
}

/// Little-endian bytes of f32 numbers.
pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(values));
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn describe(error: &SafeTensorError, len: usize) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest speaks for itself")]
    match error {
        SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
            format!(
                "is truncated or has been changed: its {len} bytes are not as many as its header says; \
             download or write it again"
            )
        }
        error => format!("is not a sound safetensors file ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_numbers_of_every_type() {
        let check = |bytes: &[&[u8]], dtype| all_finite(&bytes.concat(), dtype);
        assert!(check(&[&f32::MAX.to_le_bytes(), &(-0.0_f32).to_le_bytes()], Dtype::F32));
        assert!(!check(&[&1.0_f32.to_le_bytes(), &f32::INFINITY.to_le_bytes()], Dtype::F32));
        assert!(check(&[&half::f16::MAX.to_le_bytes()], Dtype::F16));
        assert!(!check(&[&half::f16::NEG_INFINITY.to_le_bytes()], Dtype::F16));
        assert!(check(&[&half::bf16::MIN.to_le_bytes()], Dtype::Bf16));
        assert!(!check(&[&half::bf16::NAN.to_le_bytes()], Dtype::Bf16));
    }
}
