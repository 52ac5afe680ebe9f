//! Reading JSON requests: permissive towards fields that are not known, strict towards names that are
//! known to be mistaken. A request lists those in its [`Request::MISTAKEN`].

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Error;

/// The body of a JSON request.
pub trait Request: DeserializeOwned {
    /// Fields that people write by mistake, as dotted paths, each with the right name.
    const MISTAKEN: &'static [(&'static str, &'static str)] = &[];
}

/// A request, and what in its body means nothing to us.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<T> {
    /// The request.
    pub request: T,
    /// Dotted paths of unknown fields, in order, each once; list positions are left out. At most
    /// [`UNKNOWN_FIELDS_MAX`].
    pub unknown_fields: Vec<String>,
}

/// More unknown fields than this in one body are not listed.
pub const UNKNOWN_FIELDS_MAX: usize = 32;

/// Reads a request. Null counts as absent, `type` is not looked at.
///
/// # Errors
///
/// [`Error::Json`] with the path of the value at fault; [`Error::MistakenField`].
///
/// ```
/// use tinsmith_types::json;
/// use tinsmith_types::sampling::SampleRequest;
///
/// let body = br#"{"prompt": {"chunks": [{"tokens": [1, 2]}]}, "sampling_params": {"max_new_tokens": 9}}"#;
/// let error = json::read::<SampleRequest>(body).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "read the JSON body: `sampling_params.max_new_tokens` is not a field here; use `max_tokens`"
/// );
/// ```
pub fn read<T: Request>(body: &[u8]) -> Result<Read<T>, Error> {
    if !body.trim_ascii_start().starts_with(b"{") {
        let message = "a request is a JSON object".to_owned();
        return Err(Error::Json { at: String::new(), message });
    }
    let mut unknown_fields = Vec::new();
    let mut mistaken = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        let field = dotted(&path);
        if let Some((_, name)) = T::MISTAKEN.iter().find(|(mistake, _)| *mistake == field) {
            if mistaken.is_none() && !is_null(body, &field) {
                mistaken = Some((field, *name));
            }
        } else if field.rsplit('.').next() != Some("type")
            && unknown_fields.len() < UNKNOWN_FIELDS_MAX
            && !unknown_fields.contains(&field)
        {
            unknown_fields.push(field);
        }
    };
    let mut track = serde_path_to_error::Track::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let request = serde_ignored::deserialize(
        serde_path_to_error::Deserializer::new(&mut deserializer, &mut track),
        &mut note,
    );
    if let Some((field, use_instead)) = mistaken {
        return Err(Error::MistakenField { field, use_instead });
    }
    let at = track.path().to_string();
    let request = request.map_err(|error| Error::Json { at, message: error.to_string() })?;
    deserializer
        .end()
        .map_err(|error| Error::Json { at: String::new(), message: error.to_string() })?;
    Ok(Read { request, unknown_fields })
}

fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Map { parent, key } => {
            let parent = dotted(parent);
            if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") }
        }
        Path::Seq { parent, .. }
        | Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => dotted(parent),
    }
}

/// Rare and only on the way to an error, so the body is read a second time. Inside a list, nothing is
/// found, and a null is taken for a value.
fn is_null(body: &[u8], field: &str) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body.pointer(&format!("/{}", field.replace('.', "/"))).is_some_and(Value::is_null)
}

#[cfg(test)]
mod tests {
    use crate::sampling::SampleRequest;
    use crate::weights::LoadWeightsRequest;

    use super::*;

    fn error<T: Request + std::fmt::Debug>(body: &str) -> String {
        read::<T>(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn mistaken_names_are_refused_with_the_right_one() {
        for name in ["load_optimizer", "load_optimizer_state"] {
            assert_eq!(
                error::<LoadWeightsRequest>(&format!(r#"{{"path": "p", "{name}": true}}"#)),
                format!("read the JSON body: `{name}` is not a field here; use `optimizer`")
            );
        }
        assert_eq!(
            error::<SampleRequest>(r#"{"prompt": {"chunks": []}, "n": 4}"#),
            "read the JSON body: `n` is not a field here; use `num_samples`"
        );
    }

    #[test]
    fn mistaken_name_wins_over_a_missing_field() {
        assert_eq!(
            error::<SampleRequest>(r#"{"n": 4}"#),
            "read the JSON body: `n` is not a field here; use `num_samples`"
        );
    }

    #[test]
    fn mistaken_name_with_null_counts_as_absent() {
        let read = read::<LoadWeightsRequest>(br#"{"path": "p", "load_optimizer": null}"#);
        assert!(!read.unwrap().request.optimizer);
    }

    #[test]
    fn unknown_fields_are_collected_once() {
        let body = br#"{"type": "sample", "colour": 1,
            "prompt": {"chunks": [{"tokens": [1], "x": 1}, {"tokens": [1], "x": 2}]},
            "sampling_params": {"min_p": 0.1}}"#;
        let read = read::<SampleRequest>(body).unwrap();
        assert_eq!(read.unknown_fields, ["colour", "prompt.chunks.x", "sampling_params.min_p"]);
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(
            error::<SampleRequest>(
                r#"{"prompt": {"chunks": []}, "sampling_params": {"temperature": "hot"}}"#
            ),
            "read the JSON body: `sampling_params.temperature`: invalid type: string \"hot\", \
             expected f64 at line 1 column 67"
        );
        assert_eq!(
            error::<LoadWeightsRequest>("{} x"),
            "read the JSON body: missing field `path` at line 1 column 2"
        );
        assert_eq!(
            error::<LoadWeightsRequest>(r#"{"path": "p"} x"#),
            "read the JSON body: trailing characters at line 1 column 15"
        );
    }
}
