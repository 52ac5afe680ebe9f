//! What a model reads: text, pictures, audio features. Old SDKs leave out a chunk's `type`: then its
//! fields tell.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Error;
use crate::proto::pack::pack_i32;
use crate::proto::{self, chunk};

/// A prompt, or the input side of a datum.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ModelInput {
    /// Its pieces, in order.
    pub chunks: Vec<Chunk>,
}

/// A piece of a [`ModelInput`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Chunk {
    /// Tokens; may be empty.
    EncodedText {
        /// Token ids.
        tokens: Vec<i32>,
    },
    /// A picture.
    Image {
        /// The file's bytes; base64 in JSON.
        #[serde(serialize_with = "as_base64")]
        data: Bytes,
        /// `png` or `jpeg`.
        format: String,
        /// How many tokens the client takes it for.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_tokens: Option<i32>,
    },
    /// A picture that is stored elsewhere. Has no protobuf form.
    ImageAssetPointer {
        /// Where it is stored.
        location: String,
        /// `png` or `jpeg`.
        format: String,
        /// How many tokens the client takes it for.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected_tokens: Option<i32>,
    },
    /// Audio features.
    Dmel {
        /// A tensor container; base64 in JSON.
        #[serde(serialize_with = "as_base64")]
        dmel: Bytes,
    },
}

fn as_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes))
}

/// Every field that any chunk has.
#[derive(Default)]
struct Fields {
    kind: Option<String>,
    tokens: Option<Tokens>,
    data: Option<Base64>,
    location: Option<String>,
    format: Option<String>,
    expected_tokens: Option<i32>,
    dmel: Option<Base64>,
}

/// SDK 0.3.0 also has `tokens` in pictures, as a count.
enum Tokens {
    Ids(Vec<i32>),
    Count,
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ChunkVisitor)
    }
}

struct ChunkVisitor;

impl<'de> de::Visitor<'de> for ChunkVisitor {
    type Value = Chunk;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chunk of model input")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Chunk, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "type" => fields.kind = map.next_value()?,
                "tokens" => fields.tokens = map.next_value()?,
                "data" => fields.data = map.next_value()?,
                "location" => fields.location = map.next_value()?,
                "format" => fields.format = map.next_value()?,
                "expected_tokens" => fields.expected_tokens = map.next_value()?,
                "dmel" => fields.dmel = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        fields.into_chunk()
    }
}

impl Fields {
    fn into_chunk<E: de::Error>(self) -> Result<Chunk, E> {
        let kind = match &self.kind {
            Some(kind) => kind.as_str(),
            None if self.data.is_some() => "image",
            None if self.location.is_some() => "image_asset_pointer",
            None if self.dmel.is_some() => "dmel",
            None if self.tokens.is_some() => "encoded_text",
            None => {
                return Err(E::custom(
                    "a chunk without `type` needs one of `tokens`, `data`, `location` and `dmel`",
                ));
            }
        };
        let expected_tokens = self.expected_tokens;
        match kind {
            "encoded_text" => match self.tokens {
                Some(Tokens::Ids(tokens)) => Ok(Chunk::EncodedText { tokens }),
                Some(Tokens::Count) => Err(E::custom("`tokens` of a text must be a list")),
                None => Err(E::missing_field("tokens")),
            },
            "image" => Ok(Chunk::Image {
                data: self.data.ok_or_else(|| E::missing_field("data"))?.0,
                format: self.format.ok_or_else(|| E::missing_field("format"))?,
                expected_tokens,
            }),
            "image_asset_pointer" => Ok(Chunk::ImageAssetPointer {
                location: self.location.ok_or_else(|| E::missing_field("location"))?,
                format: self.format.ok_or_else(|| E::missing_field("format"))?,
                expected_tokens,
            }),
            "dmel" => {
                Ok(Chunk::Dmel { dmel: self.dmel.ok_or_else(|| E::missing_field("dmel"))?.0 })
            }
            other => Err(E::unknown_variant(
                other,
                &["encoded_text", "image", "image_asset_pointer", "dmel"],
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of token ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tokens, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Tokens::Ids(ids))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Tokens, E> {
                Ok(Tokens::Count)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

struct Base64(Bytes);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Base64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64, E> {
                BASE64.decode(text).map(|bytes| Base64(bytes.into())).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl TryFrom<Chunk> for proto::Chunk {
    type Error = Error;

    fn try_from(piece: Chunk) -> Result<Self, Error> {
        let piece = match piece {
            Chunk::EncodedText { tokens } => {
                chunk::Chunk::EncodedText(proto::EncodedTextChunk { tokens: pack_i32(&tokens) })
            }
            Chunk::Image { data, format, expected_tokens } => {
                chunk::Chunk::Image(proto::ImageChunk {
                    data,
                    format,
                    expected_tokens,
                    override_dimensions: None,
                })
            }
            Chunk::ImageAssetPointer { .. } => {
                return Err(Error::value("chunk", "`image_asset_pointer` cannot be trained on"));
            }
            Chunk::Dmel { dmel } => chunk::Chunk::Dmel(proto::DmelChunk { dmel }),
        };
        Ok(Self { chunk: Some(piece) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: serde_json::Value) -> Result<Chunk, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn type_is_told_by_the_fields() {
        let text = Chunk::EncodedText { tokens: vec![1, 2] };
        assert_eq!(read(json!({"tokens": [1, 2]})), Ok(text.clone()));
        assert_eq!(read(json!({"tokens": [1, 2], "type": null})), Ok(text));
        assert_eq!(
            read(json!({"data": "AQI=", "format": "png", "height": 4, "width": 4, "tokens": 7})),
            Ok(Chunk::Image {
                data: Bytes::from_static(&[1, 2]),
                format: "png".into(),
                expected_tokens: None,
            })
        );
        assert_eq!(
            read(json!({"location": "l", "format": "png", "expected_tokens": 3})),
            Ok(Chunk::ImageAssetPointer {
                location: "l".into(),
                format: "png".into(),
                expected_tokens: Some(3),
            })
        );
        assert_eq!(read(json!({"dmel": "AQ=="})), Ok(Chunk::Dmel { dmel: vec![1].into() }));
    }

    #[test]
    fn faulty_chunks_are_named() {
        let check = |json, expected: &str| assert_eq!(read(json), Err(expected.to_owned()));
        check(
            json!({}),
            "a chunk without `type` needs one of `tokens`, `data`, `location` and `dmel`",
        );
        check(json!({"type": "encoded_text"}), "missing field `tokens`");
        check(json!({"tokens": 5}), "`tokens` of a text must be a list");
        check(
            json!({"tokens": "hello"}),
            "invalid type: string \"hello\", expected a list of token ids",
        );
        check(json!({"data": "*", "format": "png"}), "Invalid symbol 42, offset 0.");
        check(
            json!({"type": "video"}),
            "unknown variant `video`, expected one of `encoded_text`, `image`, \
             `image_asset_pointer`, `dmel`",
        );
        check(json!([1]), "invalid type: sequence, expected a chunk of model input");
    }
}
