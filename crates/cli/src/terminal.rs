//! The only place that prints.

use std::io::{IsTerminal as _, Write as _};

/// A line of output.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // A closed pipe (`tinsmith … | head`) is no fault.
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// A line about what went wrong.
pub(crate) fn problem(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// Whether a person watches.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
