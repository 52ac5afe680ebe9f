//! What names a block: the weights and the tenant that it was computed for, and every token up to its end.
//!
//! A name is a hash over the name before it and the block's own tokens, beginning with a [`root`]. Two
//! blocks of the same name hold the same bits, wherever and however they were computed; names collide
//! only where BLAKE3 does.

use tinsmith_backend::ATTENTION_TILE;

use crate::Files;

/// The name of a block, or of the empty beginning before the first one.
pub(crate) type Key = [u8; 32];

/// Which weights a sampler has, so that equal ones are known to be equal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Version {
    /// The base model alone.
    Base,
    /// An adapter made from files of this digest.
    Files(Key),
    /// An adapter that nothing else is known to equal: its number.
    Own(u64),
}

/// The beginning of every sequence that the tenant `scope` draws from these weights.
pub(crate) fn root(scope: &str, version: Version) -> Key {
    let mut hasher = blake3::Hasher::new();
    let (kind, digest) = match version {
        Version::Base => (0, [0; 32]),
        Version::Files(digest) => (1, digest),
        Version::Own(number) => {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            (2, digest)
        }
    };
    // The parts before the scope have a fixed length, so that no two roots share a text.
    hasher.update(&[kind]).update(&digest).update(scope.as_bytes());
    hasher.finalize().into()
}

/// The digest of an adapter's files.
pub(crate) fn digest(files: &Files) -> Key {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in files {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    hasher.finalize().into()
}

/// The name of the block of `tokens`, [`ATTENTION_TILE`] of them, after the block named `before`.
pub(crate) fn next(before: &Key, tokens: &[u32]) -> Key {
    assert_eq!(tokens.len(), ATTENTION_TILE, "only full blocks have names");
    let mut text = [0; 32 + 4 * ATTENTION_TILE];
    text[..32].copy_from_slice(before);
    for (to, token) in text[32..].chunks_exact_mut(4).zip(tokens) {
        to.copy_from_slice(&token.to_le_bytes());
    }
    blake3::hash(&text).into()
}

/// The names of the full blocks of `tokens`.
pub(crate) fn keys(root: &Key, tokens: &[u32]) -> Vec<Key> {
    let mut before = *root;
    let name = |block| {
        before = next(&before, block);
        before
    };
    tokens.chunks_exact(ATTENTION_TILE).map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn whatever_differs_gives_another_name() {
        let versions = [
            Version::Base,
            Version::Files([0; 32]),
            Version::Files([1; 32]),
            Version::Own(0),
            Version::Own(1),
        ];
        let tokens: Vec<u32> = (0..64).collect();
        let mut other = tokens.clone();
        other[0] = 99;
        let mut names = BTreeSet::new();
        for scope in ["", "a", "b", "ab"] {
            for version in versions {
                let root = root(scope, version);
                assert!(names.insert(root));
                for tokens in [&tokens, &other] {
                    // The second blocks have the same tokens and other ones before them.
                    assert_eq!(keys(&root, tokens), keys(&root, tokens));
                    names.extend(keys(&root, tokens));
                }
            }
        }
        assert_eq!(names.len(), 4 * 5 * (1 + 4));
        assert_eq!(keys(&[0; 32], &tokens[..63]).len(), 1);
    }

    #[test]
    fn files_are_told_apart() {
        let files = |entries: &[(&str, &[u8])]| -> Files {
            entries.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
        };
        let all = [
            files(&[("a", b"bc")]),
            files(&[("ab", b"c")]),
            files(&[("a", b""), ("b", b"c")]),
            files(&[("a", b"bd")]),
        ];
        let digests: BTreeSet<Key> = all.iter().map(digest).collect();
        assert_eq!(digests.len(), all.len());
    }
}
