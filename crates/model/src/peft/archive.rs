//! Named pairs of f32 matrices in a safetensors file.

use std::collections::HashMap;

use safetensors::{Dtype, tensor::Metadata, tensor::TensorView};

use super::tensor_name;
use crate::{
    Error, Result,
    tensors::{bytes_of, float_dtype, read_header, widen},
};

/// Gathers tensors and writes them.
#[derive(Default)]
pub(super) struct Writer {
    tensors: Vec<(String, [usize; 2], Vec<u8>)>,
}

impl Writer {
    /// A `[rank, inputs]` and B `[outputs, rank]`.
    pub(super) fn add_pair(
        &mut self,
        prefix: &str,
        module: &str,
        rank: usize,
        (first, second): &(Vec<f32>, Vec<f32>),
    ) {
        let name = |which: &str| format!("{prefix}{}", tensor_name(module, which));
        self.tensors.push((name("A"), [rank, first.len() / rank], bytes_of(first)));
        self.tensors.push((name("B"), [second.len() / rank, rank], bytes_of(second)));
    }

    /// The file, with one note in its header. The same content gives the same bytes.
    pub(super) fn finish(self, key: &str, note: &str) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
            (name, view.expect("bytes and shape come from the same matrix"))
        });
        let notes = HashMap::from([(key.to_owned(), note.to_owned())]);
        safetensors::serialize(views, Some(notes)).expect("sizes of real buffers do not overflow")
    }
}

/// A safetensors file whose header has been checked.
pub(super) struct Archive<'a> {
    file: &'static str,
    data: &'a [u8],
    metadata: Metadata,
}

impl<'a> Archive<'a> {
    pub(super) fn open(file: &'static str, bytes: &'a [u8]) -> Result<Self> {
        let (begin, metadata) =
            read_header(bytes).map_err(|problem| Error::Adapter(format!("{file} {problem}")))?;
        Ok(Self { file, data: &bytes[begin..], metadata })
    }

    /// Every tensor's name, in the order of the file.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// A note in the header.
    pub(super) fn note(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// A `[rank, inputs]` and B `[outputs, rank]` of a module, checked and widened to f32.
    pub(super) fn pair(
        &self,
        prefix: &str,
        module: &str,
        (outputs, inputs): (usize, usize),
        rank: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let name = |which: &str| format!("{prefix}{}", tensor_name(module, which));
        Ok((self.values(&name("A"), [rank, inputs])?, self.values(&name("B"), [outputs, rank])?))
    }

    /// Refuses a tensor of another shape.
    pub(super) fn check_shape(&self, name: &str, shape: [usize; 2]) -> Result<()> {
        let info = self.metadata.info(name);
        let info = info.ok_or_else(|| self.refuse(name, "is missing"))?;
        if info.shape != shape {
            let problem = format!("has shape {:?}, but {shape:?} is asked for", info.shape);
            return Err(self.refuse(name, &problem));
        }
        Ok(())
    }

    fn values(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        self.check_shape(name, shape)?;
        let info = self.metadata.info(name).expect("its shape was just checked");
        let Some(dtype) = float_dtype(info.dtype) else {
            let problem = format!("has dtype {:?}, but F32, F16 or BF16 is asked for", info.dtype);
            return Err(self.refuse(name, &problem));
        };
        let (from, to) = info.data_offsets;
        let values = widen(&self.data[from..to], dtype);
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("has {} at element {index}", values[index]);
            return Err(self.refuse(name, &problem));
        }
        Ok(values)
    }

    fn refuse(&self, name: &str, problem: &str) -> Error {
        Error::Adapter(format!("{}: tensor `{name}` {problem}", self.file))
    }
}
