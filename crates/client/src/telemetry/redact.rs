//! Makes secrets unreadable.

use serde_json::Value;

const HIDDEN: &str = "[redacted]";
/// Parts of names whose values are secret.
const SECRET_NAMES: [&str; 8] =
    ["key", "token", "secret", "password", "authorization", "cookie", "credential", "jwt"];
/// How secrets begin.
const SECRET_BEGINS: [&str; 5] = ["tml-", "eyJ", "sk-", "hf_", "Bearer "];

/// The same value without what looks like a secret, by its name or by its beginning.
pub(crate) fn redacted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let hide = |(name, value): (String, Value)| {
                let lower = name.to_ascii_lowercase();
                let is_secret = SECRET_NAMES.iter().any(|secret| lower.contains(secret));
                // Numbers of tokens are no tokens.
                let value =
                    if is_secret && value.is_string() { HIDDEN.into() } else { redacted(value) };
                (name, value)
            };
            Value::Object(fields.into_iter().map(hide).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(redacted).collect()),
        Value::String(text) => Value::String(without_secrets(&text)),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_)) => plain,
    }
}

fn without_secrets(text: &str) -> String {
    if !SECRET_BEGINS.iter().any(|begin| text.contains(begin)) {
        return text.to_owned();
    }
    let hide = |word: &str| {
        let bare = word.trim_start_matches(|letter: char| !letter.is_alphanumeric());
        let is_secret = SECRET_BEGINS.iter().any(|begin| bare.starts_with(begin.trim_end()));
        if is_secret { HIDDEN.to_owned() } else { word.to_owned() }
    };
    let mut after_bearer = false;
    let words = text.split(' ').map(|word| {
        let hidden = if after_bearer { HIDDEN.to_owned() } else { hide(word) };
        after_bearer = word.ends_with("Bearer");
        hidden
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let value = json!({
            "headers": { "X-API-Key": "abc", "accept": "json" },
            "note": "sent with tml-1234 and `eyJhbGciOi.x`, Authorization: Bearer abcdef",
            "list": ["hf_abc", 7],
            "max_tokens": 64,
        });
        let text = redacted(value).to_string();
        for secret in ["abc\"", "tml-1234", "eyJhbGciOi", "abcdef", "hf_abc"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert!(text.contains("\"max_tokens\":64") && text.contains("json"), "{text}");
    }
}
