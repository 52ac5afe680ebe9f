//! Tokens that stand for a key for a while: JWTs (RFC 7519) signed by HMAC-SHA256 with a key of the data
//! directory, so that they hold over restarts.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tinsmith_types::ids::TenantId;

use crate::{
    error::{Error, Result},
    identity,
    state::App,
};

/// The only header that is ever signed, so that there is no choice of algorithms.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Clients read who they are from a token that they were given directly only if its issuer begins so.
const ISSUER: &str = "passport-tinsmith";

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    iss: String,
    sub: String,
    org_id: String,
    email: String,
    /// Seconds since the Unix epoch.
    iat: i64,
    /// Seconds since the Unix epoch.
    exp: i64,
}

/// Whether a credential claims to be a token.
pub(crate) fn is_token(credential: &str) -> bool {
    credential.starts_with("eyJ")
}

/// A token for the tenant, from now on for `config.token_life`.
pub(crate) fn mint(app: &App, tenant: &TenantId) -> String {
    let now = app.clock.now();
    let life = SignedDuration::try_from(app.config.token_life).unwrap_or(SignedDuration::MAX);
    let exp = now.saturating_add(life).unwrap_or(jiff::Timestamp::MAX).as_second();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub: identity::user_urn(tenant),
        org_id: tenant.0.clone(),
        email: identity::email(tenant),
        iat: now.as_second(),
        exp,
    };
    let claims = serde_json::to_vec(&claims).unwrap_or_default();
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
    let signature = mac(app, &signed).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Whose token it is.
///
/// # Errors
/// 401 that asks for a new exchange: the token is not from here, or has expired.
pub(crate) fn check(app: &App, token: &str) -> Result<TenantId> {
    let refuse = |detail: &str| Err(Error::InvalidToken { detail: detail.to_owned() });
    let Some(claims) = read(app, token) else {
        return refuse("the token is not signed by this server; exchange your key for one");
    };
    if app.clock.now().as_second() >= claims.exp {
        return refuse("the token has expired; exchange your key for a new one");
    }
    Ok(TenantId(claims.org_id))
}

fn read(app: &App, token: &str) -> Option<Claims> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    // Compared in constant time.
    mac(app, signed).verify_slice(&signature).ok()?;
    if URL_SAFE_NO_PAD.decode(header).ok()? != HEADER.as_bytes() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

fn mac(app: &App, signed: &str) -> Hmac<Sha256> {
    let key = app.store.secret("auth tokens");
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac
}
