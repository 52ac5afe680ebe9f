//! Whose key this is, and whether the server is there.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use tinsmith_types::{
    auth::{AuthTokenRequest, AuthTokenResponse},
    service::Health,
};

use super::RestClient;
use crate::{ApiFuture, Error, Result};

/// Whose key a client has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Whoami {
    /// URN of the user.
    pub user_urn: String,
    /// URN of the organization that the key acts in.
    pub org_urn: String,
    /// The user's address; a key of no person has none.
    pub email: Option<String>,
}

impl RestClient {
    /// Whose key the client has, as the server says when it exchanges the key for a token.
    pub fn whoami(&self) -> ApiFuture<Whoami> {
        let http = self.http.clone();
        self.http.start(async move {
            let answer: AuthTokenResponse = http.post("auth/token", &AuthTokenRequest {}).await?;
            whoami(&answer.jwt)
        })
    }

    /// Whether the server is there: `ok`.
    pub fn health_check(&self) -> ApiFuture<Health> {
        self.get("healthz".to_owned(), Vec::new())
    }
}

/// What a token says of whose it is. Its signature is the server's to check.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    org_id: String,
    #[serde(default)]
    email: Option<String>,
}

fn whoami(jwt: &str) -> Result<Whoami> {
    let bad = |why: &str| Error::Response { message: format!("the token of auth/token {why}") };
    let payload = jwt.split('.').nth(1).ok_or_else(|| bad("has no second part"))?;
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('='));
    let payload = payload.map_err(|_| bad("is not in base64"))?;
    let claims: Claims = serde_json::from_slice(&payload)
        .map_err(|error| bad(&format!("does not say whose it is: {error}")))?;
    Ok(Whoami {
        user_urn: claims.sub,
        org_urn: format!("tml:organization:{}", claims.org_id),
        email: claims.email.filter(|email| !email.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_says_whose_it_is() {
        let read = whoami(&token(r#"{"sub":"tml:user:1","org_id":"7","email":"","exp":1}"#));
        let (user_urn, org_urn) = ("tml:user:1".to_owned(), "tml:organization:7".to_owned());
        assert_eq!(read.unwrap(), Whoami { user_urn, org_urn, email: None });
        for bad in ["", "a.b", &token("[]"), &token("{}")] {
            assert!(matches!(whoami(bad), Err(Error::Response { .. })), "{bad:?}");
        }
    }
}
