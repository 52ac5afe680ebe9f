//! Counts the parts of a protobuf body before anything is allocated for them.
//!
//! Two bytes can stand for an empty message of a hundred bytes in memory, so that a limit of the body's
//! size alone does not limit what decoding it takes.

use crate::error::{Error, Result};

/// The messages that hold repeated fields, of those in a `ForwardBackwardRequest`.
#[derive(Clone, Copy)]
enum Message {
    Request,
    Datum,
    /// A named tensor of a datum.
    Input,
    Tensor,
}

impl Message {
    /// The message in a field, if its own fields are to be counted.
    fn inside(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Request, 3) => Some(Self::Datum),
            (Self::Datum, 2) => Some(Self::Input),
            (Self::Input, 2) => Some(Self::Tensor),
            (Self::Request | Self::Datum | Self::Input | Self::Tensor, _) => None,
        }
    }
}

/// Refuses a `ForwardBackwardRequest` with more than `parts_max` fields and extents in all.
///
/// # Errors
/// 400 for too many, and for bytes that are no protobuf.
pub(crate) fn check(body: &[u8], parts_max: usize) -> Result<()> {
    let mut parts = 0;
    count(body, Message::Request, &mut parts, parts_max)
}

/// The run and the number in a `ForwardBackwardRequest`, which stand before the data. What is broken
/// behind them does not matter.
pub(crate) fn place(mut body: &[u8]) -> Option<(String, i64)> {
    let (mut model_id, mut seq_id) = (None, None);
    while model_id.is_none() || seq_id.is_none() {
        match varint(&mut body).ok()? {
            0x0a => {
                let length = usize::try_from(varint(&mut body).ok()?).ok()?;
                model_id = Some(str::from_utf8(take(&mut body, length).ok()?).ok()?.to_owned());
            }
            0x10 => seq_id = Some(i64::try_from(varint(&mut body).ok()?).ok()?),
            _ => return None,
        }
    }
    model_id.zip(seq_id)
}

fn count(mut bytes: &[u8], message: Message, parts: &mut usize, parts_max: usize) -> Result<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = key >> 3;
        let content: &[u8] = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                &[]
            }
            1 => take(&mut bytes, 8)?,
            2 => {
                let length = varint(&mut bytes)?;
                take(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX))?
            }
            5 => take(&mut bytes, 4)?,
            other => return Err(broken(&format!("wire type {other}"))),
        };
        *parts += 1;
        if let (Message::Tensor, 4) = (message, field) {
            // Packed extents: one byte is eight in memory.
            *parts += content.len();
        }
        if *parts > parts_max {
            let detail = format!("protobuf body has more than {parts_max} parts");
            return Err(Error::invalid("too_many_parts", detail));
        }
        if let Some(inside) = message.inside(field) {
            count(content, inside, parts, parts_max)?;
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or_else(|| broken("it ends inside a number"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(broken("a number has more than 64 bits"))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, rest) =
        bytes.split_at_checked(length).ok_or_else(|| broken("it ends inside a field"))?;
    *bytes = rest;
    Ok(taken)
}

fn broken(what: &str) -> Error {
    Error::malformed(format!("failed to read the protobuf body: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &[u8], parts_max: usize) -> String {
        check(body, parts_max).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn empty_datums_are_counted() {
        assert_eq!(error(&[0x1a, 0].repeat(10), 10), "fine");
        assert_eq!(error(&[0x1a, 0].repeat(11), 10), "protobuf body has more than 10 parts");
    }

    #[test]
    fn chunks_of_a_datum_are_counted() {
        let mut body = vec![0x1a, 20];
        body.extend([0x0a, 0].repeat(10));
        assert_eq!(error(&body, 11), "fine");
        assert_eq!(error(&body, 10), "protobuf body has more than 10 parts");
    }

    #[test]
    fn extents_of_a_tensor_are_counted() {
        // datum { loss_fn_inputs { value { shape: [1; 20] } } }
        let mut body = vec![0x1a, 26, 0x12, 24, 0x12, 22, 0x22, 20];
        body.extend([1; 20]);
        assert_eq!(error(&body, 24), "fine");
        assert_eq!(error(&body, 23), "protobuf body has more than 23 parts");
    }

    #[test]
    fn place_is_read_before_what_is_broken() {
        let head = [0x0a, 1, b'm', 0x10, 0x96, 0x01];
        assert_eq!(place(&head), Some(("m".to_owned(), 150)));
        assert_eq!(place(&[&head[..], &[0x1a, 0xff]].concat()), Some(("m".to_owned(), 150)));
        for length in 0..head.len() {
            assert_eq!(place(&head[..length]), None, "{length}");
        }
        assert_eq!(place(&[0x0a, 1, 0xff, 0x10, 1]), None);
        assert_eq!(place(&[0x1a, 0, 0x0a, 1, b'm', 0x10, 1]), None);
    }

    #[test]
    fn broken_bodies_are_refused() {
        let check = |body: &[u8]| error(body, 10).replace("failed to read the protobuf body: ", "");
        assert_eq!(check(&[0x1a]), "it ends inside a number");
        assert_eq!(check(&[0x1a, 5, 0]), "it ends inside a field");
        assert_eq!(check(&[0x0b]), "wire type 3");
        assert_eq!(check(&[0xff; 11]), "a number has more than 64 bits");
    }
}
