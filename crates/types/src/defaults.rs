//! Values of fields that are left out or null. Old SDKs send null for what was not set, and leave out
//! what has its default.

use serde::{Deserialize, Deserializer};

/// For `#[serde(default, deserialize_with = "null_as_default")]`.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Python's NaN and infinities travel as null: where a number is never left null, it is what they mean.
pub(crate) fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A module for each field whose default is not that of its type: `missing` for `default`, and
/// `deserialize` for `deserialize_with`.
macro_rules! defaults {
    ($($field:ident: $type:ty = $value:expr;)*) => {$(
        pub(crate) mod $field {
            use serde::{Deserialize, Deserializer};

            pub(crate) fn missing() -> $type {
                $value
            }

            pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<$type, D::Error>
            where
                D: Deserializer<'de>,
            {
                Ok(Option::deserialize(deserializer)?.unwrap_or_else(missing))
            }
        }
    )*};
}

defaults! {
    num_samples: u32 = 1;
    rank: u32 = 32;
    search_limit: u32 = 50;
    temperature: f64 = 1.0;
    top_k: i32 = -1;
    top_p: f64 = 1.0;
    yes: bool = true;
}

/// The same for fields whose null is a NaN.
macro_rules! numbers {
    ($($field:ident = $value:expr;)*) => {$(
        pub(crate) mod $field {
            pub(crate) fn missing() -> f64 {
                $value
            }
        }
    )*};
}

numbers! {
    beta1 = 0.9;
    beta2 = 0.95;
    eps = 1e-12;
    learning_rate = 1e-4;
}
