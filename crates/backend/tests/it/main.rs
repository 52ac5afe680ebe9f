//! The tests of the crate's public face.

mod finite_differences;
