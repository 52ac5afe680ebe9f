//! Names of files as a server gives them: none of them may lead out of the directory.

use std::path::{Component, Path, PathBuf};

use crate::{Error, Result};

/// Longest path within a checkpoint, in bytes.
const NAME_BYTES_MAX: usize = 1024;

/// The path within the checkpoint that `name` means.
pub(super) fn relative(name: &str) -> Result<PathBuf> {
    let bad = |why: &str| {
        let name: String = name.chars().take(100).collect();
        Error::Response {
            message: format!("a file of the checkpoint is named {name:?}, which {why}"),
        }
    };
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) || name.contains('\\') {
        return Err(bad("no file may be named"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(bad("lies outside of it"));
            }
        }
    }
    if path.as_os_str().is_empty() || name.ends_with('/') {
        return Err(bad("is no name of a file"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_the_directory() {
        let good =
            [("a.json", "a.json"), ("dir/a.json", "dir/a.json"), ("./a", "a"), ("a..b", "a..b")];
        for (name, expected) in good {
            assert_eq!(relative(name).unwrap(), Path::new(expected), "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "../a",
            "a/../../b",
            "a/..",
            "..",
            ".",
            "dir/",
            "a\\b",
            "a\nb",
            "a\0",
        ] {
            let error = relative(name).unwrap_err();
            assert!(matches!(error, Error::Response { .. }), "{name:?}: {error}");
        }
    }
}
