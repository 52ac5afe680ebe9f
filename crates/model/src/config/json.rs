//! `config.json`, read field by field.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// `config.json` with typed access; every error names the file and the field.
#[derive(Debug)]
pub struct ConfigJson {
    path: PathBuf,
    value: Value,
    /// Where `value` stands in the file, with a dot at its end.
    prefix: String,
}

impl ConfigJson {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        if !path.exists() {
            let problem = "there is no such file; name a directory in the format of Hugging Face: \
                           config.json, tokenizer.json, model.safetensors or its shards";
            return Err(Error::model(&path, problem));
        }
        let bytes =
            std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::model(&path, format!("is not JSON ({error})")))?;
        if !value.is_object() {
            return Err(Error::model(&path, "is not a JSON object"));
        }
        Ok(Self { path, value, prefix: String::new() })
    }

    /// The object at a field, with the same access.
    pub fn section(&self, field: &str) -> Result<Self> {
        let value = self.required(field)?.clone();
        if !value.is_object() {
            return Err(self.wrong(field, "an object", &value));
        }
        Ok(Self { path: self.path.clone(), value, prefix: format!("{}{field}.", self.prefix) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value at a dotted path; `None` where it is missing or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        let value = field.split('.').try_fold(&self.value, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }

    /// A count that must be there.
    pub fn size(&self, field: &str) -> Result<usize> {
        let value = self.required(field)?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(field, "a whole number", value))
    }

    /// A number that must be there.
    pub fn number(&self, field: &str) -> Result<f64> {
        let value = self.required(field)?;
        value.as_f64().ok_or_else(|| self.wrong(field, "a number", value))
    }

    /// A switch; off where it is missing.
    pub fn flag(&self, field: &str) -> Result<bool> {
        self.flag_or(field, false)
    }

    /// A switch; `default` where it is missing or null.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false", value)),
        }
    }

    /// A count; `default` where it is missing or null.
    pub fn size_or(&self, field: &str, default: usize) -> Result<usize> {
        if self.get(field).is_some() { self.size(field) } else { Ok(default) }
    }

    /// A number; `default` where it is missing or null.
    pub fn number_or(&self, field: &str, default: f64) -> Result<f64> {
        if self.get(field).is_some() { self.number(field) } else { Ok(default) }
    }

    /// Whether `field` is there and null, which for some settings means "off" and not "as usual".
    pub fn is_null(&self, field: &str) -> bool {
        self.value.get(field).is_some_and(Value::is_null)
    }

    /// A text that must be there.
    pub fn text(&self, field: &str) -> Result<&str> {
        let value = self.required(field)?;
        value.as_str().ok_or_else(|| self.wrong(field, "a text", value))
    }

    /// Refuses the model because of what `field` says.
    pub fn unsupported(&self, field: &str, why: &str) -> Error {
        let value = self.get(field).map_or_else(|| "null".to_owned(), Value::to_string);
        Error::model(&self.path, format!("`{}{field}` is {value}: {why}", self.prefix))
    }

    fn required(&self, field: &str) -> Result<&Value> {
        let missing = || Error::model(&self.path, format!("`{}{field}` is missing", self.prefix));
        self.get(field).ok_or_else(missing)
    }

    fn wrong(&self, field: &str, expected: &str, value: &Value) -> Error {
        Error::model(&self.path, format!("`{}{field}` is {value}, not {expected}", self.prefix))
    }
}
