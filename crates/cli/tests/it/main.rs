//! The binary, given what it cannot use: one line that says what is wrong, and exit code 1.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod refusals;
