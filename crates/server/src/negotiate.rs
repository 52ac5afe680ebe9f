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
