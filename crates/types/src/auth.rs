//! `auth/token` and `auth/apikey/me`.

use serde::{Deserialize, Serialize};

use crate::json::Request;

/// Body of `POST auth/token`: `{}`. The credential stands in a header.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
pub struct AuthTokenRequest {}

impl Request for AuthTokenRequest {}

/// Answer of `POST auth/token`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct AuthTokenResponse {
    /// Stands for the credential until it expires.
    pub jwt: String,
}

/// Answer of `GET auth/apikey/me`. `tinker auth login` wants every field.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ApiKeyResponse {
    /// Tells keys apart.
    pub key_id: u32,
    /// For people.
    pub name: String,
    /// For people.
    pub note: String,
    /// Whose it is.
    pub details: ApiKeyDetails,
}

/// Whose a key is.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct ApiKeyDetails {
    /// Its organization.
    pub org_details: OrgDetails,
    /// Its user.
    pub user_details: UserDetails,
}

/// An organization.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct OrgDetails {
    /// For people.
    pub name: String,
}

/// A user.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct UserDetails {
    /// Where to reach them.
    pub email: String,
}
