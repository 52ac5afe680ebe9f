//! What the client sends and what it wants back, by its headers.

use axum::http::{HeaderMap, HeaderName, header};

/// The media type of protobuf bodies, both ways.
pub(crate) const PROTOBUF: &str = "application/x-protobuf";

/// Whether results that have a protobuf form shall be sent in it.
pub(crate) fn wants_protobuf(headers: &HeaderMap) -> bool {
    names_protobuf(headers, &header::ACCEPT)
}

/// Whether the request's body is protobuf.
pub(crate) fn sends_protobuf(headers: &HeaderMap) -> bool {
    names_protobuf(headers, &header::CONTENT_TYPE)
}

/// The version of the SDK that asks, by its `User-Agent`; `None` for other programs.
pub(crate) fn sdk_version(headers: &HeaderMap) -> Option<[u32; 3]> {
    let agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
    let (program, version) = agent.split_once("Tinker/Python ")?;
    if !["", "Async"].contains(&program) {
        return None;
    }
    let mut numbers = version.split('.').map(|part| {
        part[..part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len())].parse().ok()
    });
    let mut next = || numbers.next().flatten();
    Some([next()?, next()?, next().unwrap_or(0)])
}

/// Whether the program fails on usage of storage that says whether it is for free.
pub(crate) fn fails_on_free(headers: &HeaderMap) -> bool {
    sdk_version(headers).is_some_and(|version| version < [0, 31, 0])
}

/// Whether the program fails on a listing with a checkpoint of the type `external`.
pub(crate) fn fails_on_external(headers: &HeaderMap) -> bool {
    sdk_version(headers).is_some_and(|version| version < [0, 28, 1])
}

/// A name among several, and parameters after `;`, are both allowed.
fn names_protobuf(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains(PROTOBUF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_sdks_are_told_by_their_name() {
        let check = |agent: &'static str| {
            let headers = HeaderMap::from_iter([(header::USER_AGENT, agent.parse().unwrap())]);
            (sdk_version(&headers), fails_on_external(&headers))
        };
        assert_eq!(check("AsyncTinker/Python 0.38.0"), (Some([0, 38, 0]), false));
        assert_eq!(check("AsyncTinker/Python 0.28.1"), (Some([0, 28, 1]), false));
        assert_eq!(check("AsyncTinker/Python 0.28.0"), (Some([0, 28, 0]), true));
        assert_eq!(check("Tinker/Python 0.3.0rc1"), (Some([0, 3, 0]), true));
        assert_eq!(check("AsyncTinker/Python 1.2"), (Some([1, 2, 0]), false));
        assert_eq!(check("AsyncTinker/Python x"), (None, false));
        assert_eq!(check("curl/8.5"), (None, false));
    }

    #[test]
    fn accept_header() {
        let check = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_protobuf(&headers)
        };
        assert!(check("application/x-protobuf"));
        assert!(check("application/x-protobuf, application/json"));
        assert!(check("application/json, Application/X-Protobuf; q=0.5"));
        assert!(!check("application/json"));
        assert!(!check("*/*"));
        assert!(!wants_protobuf(&HeaderMap::new()));
    }
}
