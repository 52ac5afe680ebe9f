//! What its clients ask besides.

use axum::{Json, http::StatusCode};
use serde_json::{Value, json};

use crate::{
    check::datums,
    error::{Error, Result},
};

/// `GET list_loss_functions`.
pub(crate) async fn loss_functions() -> Json<Value> {
    Json(json!({"loss_functions": datums::names()}))
}

/// `POST register_custom_loss`: such a body is a program, which is never run.
pub(crate) async fn register_custom_loss() -> Result<Json<Value>> {
    let detail = "pickled losses are not taken: reading one runs whatever is in it; send the loss as a graph of \
                  tensor operations to /api/v1/create_custom_loss, as TrainingClient does by itself, or use one \
                  of /list_loss_functions";
    Err(Error::invalid("pickle_refused", detail))
}

/// `GET favicon.ico`: there is none.
pub(crate) async fn favicon() -> StatusCode {
    StatusCode::NO_CONTENT
}
