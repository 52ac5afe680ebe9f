//! What a model reads: text as token ids, pictures, audio features.

use bytes::Bytes;
use tinsmith_tokenizer::Tokenizer;
use tinsmith_types::{
    model_input as wire,
    proto::{self, pack::pack_i32},
};

use crate::{Error, Result};

/// What a token of a prompt is taken for where bytes in flight are counted.
const PROMPT_BYTES_PER_TOKEN: usize = 10;
/// What a token takes in a training request.
const TOKEN_BYTES: usize = 4;

/// A prompt, or the input side of a datum: pieces, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelInput {
    chunks: Vec<ModelInputChunk>,
}

/// A piece of a [`ModelInput`].
#[derive(Clone, Debug, PartialEq)]
pub enum ModelInputChunk {
    /// Token ids; may be empty.
    EncodedText {
        /// Token ids.
        tokens: Vec<u32>,
    },
    /// A picture.
    Image {
        /// The file's bytes.
        data: Bytes,
        /// What kind of file.
        format: ImageFormat,
        /// How many tokens it is taken for: the server refuses it where the model takes it for another number.
        expected_tokens: Option<u32>,
    },
    /// A picture that the server fetches. Cannot be trained on.
    ImageAssetPointer {
        /// Path or URL.
        location: String,
        /// What kind of file.
        format: ImageFormat,
        /// As in [`ModelInputChunk::Image`].
        expected_tokens: Option<u32>,
    },
    /// Audio features: a serialized tensor.
    Dmel {
        /// Its bytes.
        dmel: Bytes,
    },
}

/// Kinds of picture files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ImageFormat {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
}

impl ImageFormat {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
        }
    }

    /// The format that a file's first bytes tell.
    pub fn of(data: &[u8]) -> Option<Self> {
        if data.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Some(Self::Png);
        }
        data.starts_with(b"\xff\xd8\xff").then_some(Self::Jpeg)
    }
}

impl ModelInputChunk {
    /// A picture file, PNG or JPEG by its first bytes.
    ///
    /// # Errors
    ///
    /// Bytes of neither.
    pub fn image(data: impl Into<Bytes>, expected_tokens: Option<u32>) -> Result<Self> {
        let data = data.into();
        let format = ImageFormat::of(&data);
        let format =
            format.ok_or_else(|| Error::validation("an image is neither a PNG nor a JPEG file"))?;
        Ok(Self::Image { data, format, expected_tokens })
    }

    /// How many tokens it takes.
    ///
    /// # Errors
    ///
    /// A picture without `expected_tokens`, audio that is no tensor.
    pub fn length(&self) -> Result<usize> {
        match self {
            Self::EncodedText { tokens } => Ok(tokens.len()),
            Self::Image { expected_tokens, .. }
            | Self::ImageAssetPointer { expected_tokens, .. } => match expected_tokens {
                Some(tokens) => Ok(*tokens as usize),
                None => Err(Error::validation(
                    "an image needs expected_tokens for its length to be known",
                )),
            },
            Self::Dmel { dmel } => first_extent(dmel)
                .ok_or_else(|| Error::validation("a dmel chunk does not hold a serialized tensor")),
        }
    }

    fn bytes(&self, per_token: usize) -> usize {
        match self {
            Self::EncodedText { tokens } => tokens.len() * per_token,
            Self::Image { data, .. } => data.len(),
            Self::ImageAssetPointer { location, .. } => location.len(),
            Self::Dmel { dmel } => dmel.len(),
        }
    }

    fn wire(self) -> Result<wire::Chunk> {
        let count = |tokens: Option<u32>| {
            let count = tokens.map(i32::try_from).transpose();
            count.map_err(|_| {
                Error::validation("an image has more expected_tokens than can be sent")
            })
        };
        Ok(match self {
            Self::EncodedText { tokens } => wire::Chunk::EncodedText { tokens: signed(&tokens)? },
            Self::Image { data, format, expected_tokens } => wire::Chunk::Image {
                data,
                format: format.as_str().to_owned(),
                expected_tokens: count(expected_tokens)?,
            },
            Self::ImageAssetPointer { location, format, expected_tokens } => {
                wire::Chunk::ImageAssetPointer {
                    location,
                    format: format.as_str().to_owned(),
                    expected_tokens: count(expected_tokens)?,
                }
            }
            Self::Dmel { dmel } => wire::Chunk::Dmel { dmel },
        })
    }
}

impl ModelInput {
    /// Token ids.
    pub fn from_ints(tokens: impl Into<Vec<u32>>) -> Self {
        Self { chunks: vec![ModelInputChunk::EncodedText { tokens: tokens.into() }] }
    }

    /// A text, with the special tokens that the model expects around one.
    ///
    /// # Errors
    ///
    /// Text that the tokenizer refuses.
    pub fn from_text(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let tokens =
            tokenizer.encode(text, true).map_err(|error| Error::validation(error.to_string()))?;
        Ok(Self::from_ints(tokens))
    }

    /// [`ModelInput::from_text`] with the tokenizer of a model by its name, which is read anew each time:
    /// [`load_tokenizer`](crate::load_tokenizer) gives one to keep.
    ///
    /// # Errors
    ///
    /// As [`load_tokenizer`](crate::load_tokenizer) and [`ModelInput::from_text`].
    pub fn from_text_for(model_name: &str, text: &str) -> Result<Self> {
        let id = crate::tokenizer::tokenizer_id(model_name, None);
        Self::from_text(&*crate::load_tokenizer(&id)?, text)
    }

    /// No pieces.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The pieces.
    pub fn chunks(&self) -> &[ModelInputChunk] {
        &self.chunks
    }

    /// The same with a piece at its end.
    #[must_use]
    pub fn append(mut self, chunk: ModelInputChunk) -> Self {
        self.chunks.push(chunk);
        self
    }

    /// The same with a token at its end.
    #[must_use]
    pub fn append_int(self, token: u32) -> Self {
        self.append(ModelInputChunk::EncodedText { tokens: vec![token] })
    }

    /// All token ids.
    ///
    /// # Errors
    ///
    /// Pieces that are not text.
    pub fn to_ints(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for (index, chunk) in self.chunks.iter().enumerate() {
            let ModelInputChunk::EncodedText { tokens } = chunk else {
                return Err(Error::validation(format!(
                    "chunk {index} of a model input is not text"
                )));
            };
            all.extend(tokens);
        }
        Ok(all)
    }

    /// How many tokens of context it takes.
    ///
    /// # Errors
    ///
    /// As [`ModelInputChunk::length`].
    pub fn length(&self) -> Result<usize> {
        self.chunks.iter().map(ModelInputChunk::length).sum()
    }

    /// What a prompt is counted as where the bytes of prompts in flight are limited.
    pub fn estimated_bytes(&self) -> usize {
        self.bytes(PROMPT_BYTES_PER_TOKEN)
    }

    /// What it takes in a training request.
    pub(crate) fn training_bytes(&self) -> usize {
        self.bytes(TOKEN_BYTES)
    }

    fn bytes(&self, per_token: usize) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes(per_token)).sum()
    }

    /// Its JSON form.
    ///
    /// # Errors
    ///
    /// Token ids beyond those of the wire.
    pub fn json(self) -> Result<wire::ModelInput> {
        let chunks = self.chunks.into_iter().map(ModelInputChunk::wire);
        Ok(wire::ModelInput { chunks: chunks.collect::<Result<_>>()? })
    }

    /// Its protobuf form.
    ///
    /// # Errors
    ///
    /// As [`Self::json`]; a picture that the server would have to fetch.
    pub(crate) fn into_proto(self) -> Result<Vec<proto::Chunk>> {
        let chunks = self.chunks.into_iter().enumerate().map(|(index, chunk)| {
            if let ModelInputChunk::EncodedText { tokens } = &chunk {
                let text = proto::EncodedTextChunk { tokens: pack_i32(&signed(tokens)?) };
                return Ok(proto::Chunk { chunk: Some(proto::chunk::Chunk::EncodedText(text)) });
            }
            chunk.wire()?.try_into().map_err(|error: tinsmith_types::Error| {
                Error::validation(format!("model_input.chunks[{index}]: {error}"))
            })
        });
        chunks.collect()
    }

    /// At most `tokens_max` tokens of its beginning, or of its end. Only text is cut: a picture that does not fit is left out
    /// with all that is beyond it.
    pub(crate) fn cut(&self, tokens_max: usize, keeps_end: bool) -> Result<Self> {
        let mut left = tokens_max;
        let mut kept = Vec::new();
        let mut take = |chunk: &ModelInputChunk| -> Result<bool> {
            let length = chunk.length()?;
            if length <= left {
                left -= length;
                kept.push(chunk.clone());
                return Ok(true);
            }
            if let ModelInputChunk::EncodedText { tokens } = chunk
                && left > 0
            {
                let part = if keeps_end { &tokens[length - left..] } else { &tokens[..left] };
                kept.push(ModelInputChunk::EncodedText { tokens: part.to_vec() });
            }
            Ok(false)
        };
        let mut forward = self.chunks.iter();
        while let Some(chunk) = if keeps_end { forward.next_back() } else { forward.next() } {
            if !take(chunk)? {
                break;
            }
        }
        if keeps_end {
            kept.reverse();
        }
        Ok(Self { chunks: kept })
    }
}

/// Token ids travel as i32.
pub(crate) fn signed(tokens: &[u32]) -> Result<Vec<i32>> {
    let convert = |token: &u32| {
        i32::try_from(*token)
            .map_err(|_| Error::validation(format!("the token id {token} is too large")))
    };
    tokens.iter().map(convert).collect()
}

/// The first extent of a serialized tensor: perhaps a mark, a byte for the type, the number of dimensions and
/// each extent as LEB128.
fn first_extent(bytes: &[u8]) -> Option<usize> {
    const MARK: u8 = 254;
    const TYPES: u8 = 8;
    let bytes = bytes.strip_prefix(&[MARK]).unwrap_or(bytes);
    let (kind, bytes) = bytes.split_first()?;
    let mut bytes = bytes.iter();
    let mut number = || {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = *bytes.next()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return usize::try_from(value).ok();
            }
        }
        None
    };
    let rank = number()?;
    (*kind < TYPES && rank > 0).then(number).flatten()
}

impl From<Vec<u32>> for ModelInput {
    fn from(tokens: Vec<u32>) -> Self {
        Self::from_ints(tokens)
    }
}

impl From<&[u32]> for ModelInput {
    fn from(tokens: &[u32]) -> Self {
        Self::from_ints(tokens)
    }
}

impl From<&Vec<u32>> for ModelInput {
    fn from(tokens: &Vec<u32>) -> Self {
        Self::from_ints(tokens.as_slice())
    }
}

impl<const N: usize> From<&[u32; N]> for ModelInput {
    fn from(tokens: &[u32; N]) -> Self {
        Self::from_ints(tokens.as_slice())
    }
}

impl<const N: usize> From<[u32; N]> for ModelInput {
    fn from(tokens: [u32; N]) -> Self {
        Self::from_ints(tokens)
    }
}

impl From<&Self> for ModelInput {
    fn from(input: &Self) -> Self {
        input.clone()
    }
}

impl From<ModelInputChunk> for ModelInput {
    fn from(chunk: ModelInputChunk) -> Self {
        Self { chunks: vec![chunk] }
    }
}

impl FromIterator<ModelInputChunk> for ModelInput {
    fn from_iter<I: IntoIterator<Item = ModelInputChunk>>(chunks: I) -> Self {
        Self { chunks: chunks.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

    fn image(expected_tokens: Option<u32>) -> ModelInputChunk {
        ModelInputChunk::image(PNG, expected_tokens).unwrap()
    }

    #[test]
    fn tokens_go_in_and_come_out() {
        let input = ModelInput::from_ints([1, 2]).append_int(3);
        assert_eq!(input.to_ints().unwrap(), [1, 2, 3]);
        assert_eq!((input.length().unwrap(), input.chunks().len()), (3, 2));
        assert_eq!(ModelInput::empty().length().unwrap(), 0);
        assert_eq!(ModelInput::from(&[4, 5]), ModelInput::from(vec![4, 5]));
        let mixed = input.append(image(Some(7)));
        assert_eq!(mixed.length().unwrap(), 10);
        let message = mixed.to_ints().unwrap_err().to_string();
        assert_eq!(message, "check the arguments: chunk 2 of a model input is not text");
    }

    #[test]
    fn text_is_tokenized_for_a_model() {
        let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nano");
        let tokenizer = crate::load_tokenizer(nano).unwrap();
        let input = ModelInput::from_text(&tokenizer, "Tin, 世界.").unwrap();
        assert_eq!(tokenizer.decode(&input.to_ints().unwrap()).unwrap(), "Tin, 世界.");
        assert_eq!(ModelInput::from_text_for(nano, "Tin, 世界.").unwrap(), input);
        let message = ModelInput::from_text_for("nowhere", "a").unwrap_err().to_string();
        assert!(message.contains("nowhere"), "{message}");
    }

    #[test]
    fn pictures_know_their_format() {
        let jpeg = ModelInputChunk::image(&b"\xff\xd8\xff\xe0"[..], None).unwrap();
        assert!(matches!(jpeg, ModelInputChunk::Image { format: ImageFormat::Jpeg, .. }));
        assert!(ModelInputChunk::image(&b"GIF89a"[..], None).is_err());
        assert!(jpeg.length().unwrap_err().to_string().contains("needs expected_tokens"));
        let json = serde_json::to_value(ModelInput::from(image(Some(3))).json().unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"chunks": [{"type": "image", "data": "iVBORw0KGgpyZXN0", "format": "png",
                "expected_tokens": 3}]})
        );
    }

    #[test]
    fn assets_are_sampled_from_and_not_trained_on() {
        let input = ModelInput::from(ModelInputChunk::ImageAssetPointer {
            location: "s3://b/k".to_owned(),
            format: ImageFormat::Png,
            expected_tokens: None,
        });
        assert!(input.clone().json().is_ok());
        let message = input.into_proto().unwrap_err().to_string();
        assert!(message.contains("model_input.chunks[0]"), "{message}");
        assert!(message.contains("cannot be trained on"), "{message}");
    }

    #[test]
    fn audio_has_the_length_of_its_tensor() {
        let length = |bytes: &'static [u8]| {
            ModelInputChunk::Dmel { dmel: Bytes::from_static(bytes) }.length().ok()
        };
        assert_eq!(length(&[254, 1, 2, 0xac, 0x02, 80, 0, 0]), Some(300));
        assert_eq!(length(&[1, 2, 5, 80]), Some(5));
        assert_eq!(length(&[9, 2, 5, 80]), None, "no such type");
        assert_eq!(length(&[1, 2, 0x80]), None, "cut off");
        assert_eq!(length(&[1, 0]), None, "no dimension");
        assert_eq!(length(&[]), None);
    }

    #[test]
    fn only_text_is_cut() {
        let input = ModelInput::from_ints([1, 2, 3]).append(image(Some(4))).append_int(5);
        let cut = |max, keeps_end| input.cut(max, keeps_end).unwrap();
        assert_eq!(cut(8, false), input);
        assert_eq!(cut(7, false).length().unwrap(), 7);
        assert_eq!(cut(6, false), ModelInput::from([1, 2, 3]), "half a picture is none");
        assert_eq!(cut(2, false), ModelInput::from([1, 2]));
        assert_eq!(cut(4, true), ModelInput::from([5]));
        assert_eq!(cut(6, true).length().unwrap(), 6);
        assert_eq!(cut(0, true), ModelInput::empty());
    }

    #[test]
    fn ids_beyond_the_wire_stay_here() {
        let error = ModelInput::from([u32::MAX]).into_proto().unwrap_err().to_string();
        assert_eq!(error, "check the arguments: the token id 4294967295 is too large");
    }
}
