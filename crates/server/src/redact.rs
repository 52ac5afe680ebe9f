//! Takes credentials out of what clients report, wherever they stand in it.

use serde_json::Value;

/// What stands in the place of a credential.
const REDACTED: &str = "[redacted]";

/// How credentials begin: API keys, and tokens of the form of a JWT.
const PREFIXES: [&str; 2] = ["tml-", "eyJ"];

/// The text without credentials.
pub(crate) fn text(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, prefix)) = next(rest) {
        let (before, found) = rest.split_at(at);
        clean.push_str(before);
        let end = found.find(|c: char| !is_part(c)).unwrap_or(found.len());
        clean.push_str(prefix);
        if end > prefix.len() {
            clean.push_str(REDACTED);
        }
        rest = &found[end.max(prefix.len())..];
    }
    clean.push_str(rest);
    clean
}

/// The value without credentials, and without what headers and fields hold that are named as if they had one.
pub(crate) fn value(given: &Value) -> Value {
    match given {
        Value::String(given) => Value::String(text(given)),
        Value::Array(items) => Value::Array(items.iter().map(value).collect()),
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(name, field)| (text(name), self::field(name, field))).collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) => given.clone(),
    }
}

fn field(name: &str, given: &Value) -> Value {
    let holds_text = matches!(given, Value::String(_) | Value::Array(_) | Value::Object(_));
    if holds_text && is_secret(name) { Value::String(REDACTED.to_owned()) } else { value(given) }
}

/// Counts of tokens are no secret, and are numbers anyway.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let parts =
        ["api-key", "apikey", "authorization", "cookie", "secret", "password", "credential", "jwt"];
    parts.iter().any(|part| name.contains(part)) || name == "token" || name.ends_with("-token")
}

fn next(text: &str) -> Option<(usize, &'static str)> {
    let found = PREFIXES.iter().filter_map(|prefix| Some((text.find(prefix)?, *prefix)));
    found.min_by_key(|(at, _)| *at)
}

fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | '+' | '/')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_go_from_texts() {
        let check = |given: &str, expected: &str| assert_eq!(text(given), expected);
        check("nothing here", "nothing here");
        check("key tml-abc_D-9, eyJh.eyJi.sig!", "key tml-[redacted], eyJ[redacted]!");
        check("tml-atml-b tml-", "tml-[redacted] tml-");
        check("é tml-ü eyJ", "é tml-ü eyJ");
        check("x=tml-secret", "x=tml-[redacted]");
    }

    #[test]
    fn credentials_go_from_values() {
        let given = json!({
            "request_headers": {"X-API-Key": "anything", "authorization": ["Bearer x"], "accept": "a"},
            "X-Tinker-Weights-Access-Token": "t", "prompt_tokens": 3, "token": 4, "tokens": ["a"],
            "note": ["tml-k", {"k": "eyJa.b.c"}],
        });
        let expected = json!({
            "request_headers": {"X-API-Key": "[redacted]", "authorization": "[redacted]", "accept": "a"},
            "X-Tinker-Weights-Access-Token": "[redacted]", "prompt_tokens": 3, "token": 4, "tokens": ["a"],
            "note": ["tml-[redacted]", {"k": "eyJ[redacted]"}],
        });
        assert_eq!(value(&given), expected);
    }
}
