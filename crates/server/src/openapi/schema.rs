//! The JSON schema of a type, found by reading a value of it from a deserializer that notes what is asked
//! for. Where a type asks for anything, the ways in which JSON can go are tried in turn.

use std::collections::BTreeMap;

use serde::{
    Deserializer,
    de::{
        DeserializeSeed, EnumAccess, Error as _, IntoDeserializer as _, MapAccess, SeqAccess,
        VariantAccess, Visitor, value::Error,
    },
};
use serde_json::{Map, Value, json};
use tinsmith_types::json::Request;

/// Readings of one type before its schema is given up, which is then that of any object.
const READINGS_MAX: usize = 500;
/// Lists and objects in one another; types that hold themselves end here.
const DEPTH_MAX: usize = 10;

/// Texts that types with a form of their own may want: base64 and a name, a path, a time.
const TEXTS: [&str; 3] = ["abcd", "tinker://run/weights/name", "2026-01-01T00:00:00Z"];
/// Keys that objects without fields may want.
const KEYS: [&str; 2] = ["key", "tokens"];

/// The schema of a request. Fields that have to be there are `required`.
pub(super) fn of<T: Request>() -> Value {
    let Some((mut schema, choices)) = find::<T>() else { return json!({"type": "object"}) };
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let is_required = |field: &&String| {
        let left_out = Some(field.as_str());
        read::<T>(&mut Reading { choices: &choices, made: Vec::new(), left_out }).is_none()
    };
    let required: Vec<&String> = fields.keys().filter(is_required).collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// The schema, and the choices with which a value could be read.
fn find<T: Request>() -> Option<(Value, BTreeMap<String, usize>)> {
    let mut choices = BTreeMap::new();
    for _ in 0..READINGS_MAX {
        let mut reading = Reading { choices: &choices, made: Vec::new(), left_out: None };
        if let Some(schema) = read::<T>(&mut reading) {
            return Some((schema, choices));
        }
        // The last choice that has another way takes it; what was chosen after it is chosen anew.
        let made = reading.made;
        let last = made.iter().rposition(|made| made.choice + 1 < made.ways)?;
        choices = made.iter().take(last + 1).map(|made| (made.at.clone(), made.choice)).collect();
        *choices.get_mut(&made[last].at)? += 1;
    }
    None
}

fn read<T: Request>(reading: &mut Reading<'_>) -> Option<Value> {
    let mut schema = Value::Null;
    T::deserialize(Tracer { reading, schema: &mut schema, at: String::new() }).ok()?;
    Some(schema)
}

/// One attempt to read a value.
struct Reading<'a> {
    /// Which way to take where there are several, by place; elsewhere the first.
    choices: &'a BTreeMap<String, usize>,
    made: Vec<Made>,
    /// A field of the outermost object that is not there.
    left_out: Option<&'a str>,
}

/// What was chosen at a place, and of how many.
struct Made {
    at: String,
    choice: usize,
    ways: usize,
}

/// Reads a value that is made up as it is asked for.
struct Tracer<'a, 'b> {
    reading: &'a mut Reading<'b>,
    schema: &'a mut Value,
    /// Where it stands in the whole: names after slashes.
    at: String,
}

/// Chooses at a place between ways of some kind.
fn choose(reading: &mut Reading<'_>, at: &str, kind: &str, ways: usize) -> usize {
    let at = format!("{at}#{kind}");
    let choice = reading.choices.get(&at).copied().unwrap_or(0);
    reading.made.push(Made { at, choice, ways });
    choice
}

macro_rules! scalars {
    ($($deserialize:ident $visit:ident $value:expr, $schema:tt;)*) => {
        $(fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            *self.schema = json!($schema);
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Tracer<'_, '_> {
    type Error = Error;

    scalars! {
        deserialize_bool visit_bool false, {"type": "boolean"};
        deserialize_i8 visit_i8 1, {"type": "integer"};
        deserialize_i16 visit_i16 1, {"type": "integer"};
        deserialize_i32 visit_i32 1, {"type": "integer"};
        deserialize_i64 visit_i64 1, {"type": "integer"};
        deserialize_u8 visit_u8 1, {"type": "integer", "minimum": 0};
        deserialize_u16 visit_u16 1, {"type": "integer", "minimum": 0};
        deserialize_u32 visit_u32 1, {"type": "integer", "minimum": 0};
        deserialize_u64 visit_u64 1, {"type": "integer", "minimum": 0};
        deserialize_f32 visit_f32 1.0, {"type": "number"};
        deserialize_f64 visit_f64 1.0, {"type": "number"};
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // What is tried is one of several that would do.
        let Self { reading, schema, at } = self;
        *schema = json!({});
        let choice = choose(reading, &at, "any", 5);
        let mut tried = Value::Null;
        let tracer = Tracer { reading, schema: &mut tried, at };
        match choice {
            0 => visitor.visit_u64(1),
            1 => tracer.deserialize_str(visitor),
            2 => tracer.deserialize_seq(visitor),
            3 => tracer.deserialize_map(visitor),
            _ => tracer.deserialize_bool(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.schema = json!({"type": "string"});
        visitor.visit_str(TEXTS[choose(self.reading, &self.at, "text", TEXTS.len())])
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        *self.schema = json!({"type": "array", "items": {}});
        visitor.visit_seq(Items { tracer: self, count: 1 })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        count: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.schema = json!({"type": "array", "items": {}});
        visitor.visit_seq(Items { tracer: self, count })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let choice = choose(self.reading, &self.at, "key", KEYS.len());
        let mut any = Value::Null;
        let Self { reading, schema, at } = self;
        *schema = json!({"type": "object"});
        // Where it matters which key it is, one of them does not say what the others hold.
        let schema = if choice == 0 { schema } else { &mut any };
        let tracer = Tracer { reading, schema, at };
        visitor.visit_map(Fields { tracer, keys: vec![KEYS[choice]], is_free: true })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.schema = json!({"type": "object", "properties": Map::new()});
        let left_out = self.reading.left_out.take();
        let keys = fields.iter().rev().filter(|field| left_out != Some(**field));
        let keys = keys.copied().collect();
        visitor.visit_map(Fields { tracer: self, keys, is_free: false })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.schema = json!({"enum": variants});
        let variant = variants.first().ok_or_else(|| Error::custom("has no variant"))?;
        visitor.visit_enum(First(variant))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        count: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(count, visitor)
    }

    serde::forward_to_deserialize_any! { char bytes byte_buf unit unit_struct identifier }
}

fn is_deep(at: &str) -> bool {
    at.matches('/').count() >= DEPTH_MAX
}

/// So many items, of one kind.
struct Items<'a, 'b> {
    tracer: Tracer<'a, 'b>,
    count: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Tracer { reading, schema, at } = &mut self.tracer;
        if self.count == 0 || is_deep(at) {
            return Ok(None);
        }
        self.count -= 1;
        let at = format!("{at}/{}", self.count);
        seed.deserialize(Tracer { reading, schema: &mut schema["items"], at }).map(Some)
    }
}

/// These keys, the last first, each with a value.
struct Fields<'a, 'b> {
    tracer: Tracer<'a, 'b>,
    keys: Vec<&'static str>,
    /// Keys are data, and say nothing of the type.
    is_free: bool,
}

impl<'de> MapAccess<'de> for Fields<'_, '_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        if is_deep(&self.tracer.at) {
            return Ok(None);
        }
        let Some(key) = self.keys.last() else { return Ok(None) };
        let key: serde::de::value::StrDeserializer<'_, Error> = (*key).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let key = self.keys.pop().ok_or_else(|| Error::custom("a value without a key"))?;
        let Tracer { reading, schema, at } = &mut self.tracer;
        let schema = if self.is_free {
            &mut schema["additionalProperties"]
        } else {
            &mut schema["properties"][key]
        };
        *schema = json!({});
        seed.deserialize(Tracer { reading, schema, at: format!("{at}/{key}") })
    }
}

/// The first variant of an enum, without content.
struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let name: serde::de::value::StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for First {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Error> {
        Err(Error::custom("a variant with content"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("a variant with content"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        Err(Error::custom("a variant with content"))
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use tinsmith_types::{sampling::SampleRequest, training::ForwardBackwardRequest};

    use super::*;

    #[test]
    fn fields_are_found_with_their_types() {
        let schema = of::<ForwardBackwardRequest>();
        assert_eq!(schema["required"], json!(["forward_backward_input", "model_id"]));
        let at = |place: &str| schema.pointer(place).unwrap().to_string();
        assert_snapshot!(at("/properties/seq_id"), @r#"{"type":"integer"}"#);
        let input = "/properties/forward_backward_input/properties";
        assert_snapshot!(at(&format!("{input}/loss_fn")), @r#"{"type":"string"}"#);
        let datum = format!("{input}/data/items/properties");
        assert_snapshot!(at(&format!("{datum}/model_input")), @r#"{"properties":{"chunks":{"items":{"type":"object"},"type":"array"}},"type":"object"}"#);
        let tensor = format!("{datum}/loss_fn_inputs/additionalProperties/properties");
        assert_snapshot!(at(&format!("{tensor}/dtype")), @r#"{"enum":["int64","float32"]}"#);

        let schema = of::<SampleRequest>();
        assert_eq!(schema["required"], json!(["prompt"]));
        let at = |place: &str| schema.pointer(place).unwrap().to_string();
        let params = "/properties/sampling_params/properties";
        assert_snapshot!(at(&format!("{params}/max_tokens")), @r#"{"minimum":0,"type":"integer"}"#);
        // A text, or a list.
        assert_snapshot!(at(&format!("{params}/stop")), @"{}");
    }
}
