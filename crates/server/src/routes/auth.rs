//! Keys and the tokens that stand for them.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use tinsmith_types::auth::{
    ApiKeyDetails, ApiKeyResponse, AuthTokenRequest, AuthTokenResponse, OrgDetails, UserDetails,
};

use crate::{
    body,
    error::{Error, Result},
    identity,
    state::{Shared, Tenant, credential},
    token,
};

/// `POST auth/token`: a token for the credential that it came with.
pub(crate) async fn token(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    _: body::Json<AuthTokenRequest>,
) -> Json<AuthTokenResponse> {
    Json(AuthTokenResponse { jwt: token::mint(&app, &tenant) })
}

/// `GET auth/apikey/me`: what `tinker auth login` shows and stores.
pub(crate) async fn own_key(
    Tenant(tenant): Tenant,
    headers: HeaderMap,
) -> Result<Json<ApiKeyResponse>> {
    let key = given(&headers)?;
    let hash = blake3::hash(key.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    Ok(Json(ApiKeyResponse {
        // Tells keys apart and gives nothing of them away.
        key_id: u32::from_be_bytes([a, b, c, d]) >> 1,
        name: tenant.0.clone(),
        note: String::new(),
        details: ApiKeyDetails {
            user_details: UserDetails { email: identity::email(&tenant) },
            org_details: OrgDetails { name: tenant.0 },
        },
    }))
}

/// `DELETE auth/apikey/me`, at logout. A server without keys has none to delete.
pub(crate) async fn delete_own_key(_: Tenant, headers: HeaderMap) -> Result<StatusCode> {
    given(&headers)?;
    Ok(StatusCode::NO_CONTENT)
}

fn given(headers: &HeaderMap) -> Result<&str> {
    credential(headers).ok_or_else(|| Error::Unauthorized {
        detail: "no key: send it in the header X-API-Key".to_owned(),
    })
}
