//! The header `Prefer` (RFC 7240): whether a client wants to wait.

use std::time::Duration;

use axum::http::HeaderMap;

/// What a client prefers; of two that contradict each other, the first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Prefer {
    /// Says nothing, or nothing that is known.
    Nothing,
    /// `respond-async`: an answer at once.
    RespondAsync,
    /// `wait`, or `wait=SECONDS`: the result, if it is there in time.
    Wait(Option<Duration>),
}

impl Prefer {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        headers
            .get_all("prefer")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(|preference| {
                let preference = preference.split(';').next().unwrap_or_default();
                let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
                let seconds = value.trim().trim_matches('"').parse().ok();
                match name.trim().to_ascii_lowercase().as_str() {
                    "respond-async" => Some(Self::RespondAsync),
                    "wait" => Some(Self::Wait(seconds.map(Duration::from_secs))),
                    _ => None,
                }
            })
            .unwrap_or(Self::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read() {
        let check = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", value.parse().unwrap());
            Prefer::read(&headers)
        };
        assert_eq!(check("respond-async"), Prefer::RespondAsync);
        assert_eq!(check("Respond-Async, wait=10"), Prefer::RespondAsync);
        assert_eq!(check("handling=strict, wait"), Prefer::Wait(None));
        assert_eq!(check("wait=\"3\""), Prefer::Wait(Some(Duration::from_secs(3))));
        assert_eq!(check("wait=soon"), Prefer::Wait(None));
        assert_eq!(check("return=minimal"), Prefer::Nothing);
        assert_eq!(Prefer::read(&HeaderMap::new()), Prefer::Nothing);
    }
}
