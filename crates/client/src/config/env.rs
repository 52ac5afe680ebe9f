//! What the environment says.

use std::env::VarError;

use super::ConfigBuilder;
use crate::{Error, Result};

type Read<'a> = dyn Fn(&str) -> Result<String, VarError> + 'a;

/// Reads variables, of the process or of a test.
pub(super) struct Environment<'a> {
    read: Box<Read<'a>>,
}

impl<'a> Environment<'a> {
    #[expect(clippy::disallowed_methods, reason = "this is where users' configuration is read")]
    pub(super) fn of_process() -> Self {
        Self::new(|name| std::env::var(name))
    }

    fn new(read: impl Fn(&str) -> Result<String, VarError> + 'a) -> Self {
        Self { read: Box::new(read) }
    }

    /// None where it is not set, or empty.
    fn get(&self, name: &str) -> Result<Option<String>> {
        match (self.read)(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(VarError::NotPresent) => Ok(None),
            Err(error) => Err(Error::validation(format!("read the variable {name}: {error}"))),
        }
    }

    pub(super) fn builder(&self) -> Result<ConfigBuilder> {
        let mut builder = ConfigBuilder::default();
        if let Some(url) = self.get("TINKER_BASE_URL")? {
            builder = builder.base_url(url);
        }
        match self.get("TINKER_API_KEY")? {
            Some(key) => builder = builder.api_key(key),
            None if is_local(&builder.inner.base_url) => {}
            None => {
                let message = format!(
                    "the variable TINKER_API_KEY is not set, and {} is not on this machine: \
                     set it to a key of that server (`export TINKER_API_KEY=…`)",
                    builder.inner.base_url
                );
                return Err(Error::validation(message));
            }
        }
        if let Some(project) = self.get("TINKER_PROJECT_ID")? {
            builder = builder.project_id(project);
        }
        if let Some(tags) = self.get("TINKER_TAGS")? {
            let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
            builder = builder.tags(tags);
        }
        if let Some(telemetry) = self.get("TINKER_TELEMETRY")? {
            builder = builder.telemetry(flag("TINKER_TELEMETRY", &telemetry)?);
        }
        if let Some(proxy) = self.get("TINSMITH_PROXY")? {
            builder = builder.proxy(proxy);
        }
        for (variable, header) in [
            ("CLOUDFLARE_ACCESS_CLIENT_ID", "CF-Access-Client-Id"),
            ("CLOUDFLARE_ACCESS_CLIENT_SECRET", "CF-Access-Client-Secret"),
        ] {
            if let Some(value) = self.get(variable)? {
                builder = builder.default_header(header, value);
            }
        }
        Ok(builder)
    }
}

fn flag(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Error::validation(format!("{name} is `{value}`: write 1 or 0"))),
    }
}

/// Servers on this machine work without keys unless they were given one.
fn is_local(base_url: &str) -> bool {
    let host = reqwest::Url::parse(base_url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.is_some_and(|host| {
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn config(variables: &[(&str, &str)]) -> Result<Config> {
        let read = |name: &str| {
            let found = variables.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
        };
        Environment::new(read).builder()?.build()
    }

    #[test]
    fn nothing_set_is_the_server_on_this_machine() {
        assert_eq!(config(&[]).unwrap().base_url(), "http://localhost:8000");
        assert!(config(&[("TINKER_BASE_URL", "http://[::1]:9000")]).is_ok());
    }

    #[test]
    fn another_machine_needs_a_key_and_the_error_says_which_variable() {
        let url = ("TINKER_BASE_URL", "https://example.com");
        let message = config(&[url]).unwrap_err().to_string();
        assert!(message.contains("TINKER_API_KEY") && message.contains("export"), "{message}");
        assert!(config(&[url, ("TINKER_API_KEY", "any text")]).is_ok());
    }

    #[test]
    fn the_other_variables_are_read() {
        let config = config(&[
            ("TINKER_TAGS", "a, b,"),
            ("TINKER_PROJECT_ID", "p"),
            ("TINKER_TELEMETRY", "true"),
            ("CLOUDFLARE_ACCESS_CLIENT_ID", "c"),
        ])
        .unwrap();
        assert_eq!(config.inner.tags, ["a", "b"]);
        assert_eq!(config.inner.project_id.as_deref(), Some("p"));
        assert!(config.inner.telemetry);
        assert_eq!(config.inner.default_headers[0].0, "CF-Access-Client-Id");
    }

    #[test]
    fn a_flag_that_is_none_is_named() {
        let message = config(&[("TINKER_TELEMETRY", "maybe")]).unwrap_err().to_string();
        assert!(message.contains("TINKER_TELEMETRY is `maybe`"), "{message}");
    }
}
