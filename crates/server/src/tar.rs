//! The frame of a tar archive: what stands before, between and after its files (POSIX ustar).

use bytes::{BufMut, Bytes, BytesMut};

const BLOCK: usize = 512;
/// Larger sizes do not fit the octal field.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// What stands before a file of `size` bytes. `name` is plain and short (at most 100 bytes are kept). Times
/// and owners are left out: the same files give the same archive.
pub(crate) fn header(name: &str, size: u64) -> Bytes {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= OCTAL_MAX {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU's way: a set bit, then the number in base 256.
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Bytes::copy_from_slice(&block)
}

/// What fills the last block of a file of `size` bytes.
pub(crate) fn padding(size: u64) -> Bytes {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    zeros((BLOCK - over) % BLOCK)
}

/// What stands after the last file.
pub(crate) fn end() -> Bytes {
    zeros(2 * BLOCK)
}

fn zeros(count: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(count);
    bytes.put_bytes(0, count);
    bytes.freeze()
}
