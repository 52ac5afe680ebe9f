//! Exactly what travels over HTTP: JSON and protobuf, every SDK generation. No behaviour.

pub mod ids;
