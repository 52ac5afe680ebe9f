//! `create_custom_loss`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{LossId, SessionId};
use crate::json::Request;

/// Body of `POST create_custom_loss`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_custom_loss")]
pub struct CreateCustomLossRequest {
    /// The session whose runs may use it.
    pub session_id: SessionId,
    /// Counts the session's losses, from 0.
    pub custom_loss_seq_id: i64,
    /// The function's name, for people.
    pub name: String,
    /// In the graph's order, `logprobs` first.
    pub inputs: Vec<CustomLossInput>,
    /// What torch.fx traced: `{"format": 1, "nodes": […]}`.
    pub graph: Value,
}

impl Request for CreateCustomLossRequest {}

/// An input of a custom loss.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct CustomLossInput {
    /// `logprobs`, or a name among a datum's `loss_fn_inputs`.
    pub name: String,
    /// 0: a scalar, 1: `[T]`, 2: `[T, K]`.
    pub rank: u8,
}

/// Result of `create_custom_loss`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename = "create_custom_loss")]
pub struct CreateCustomLossResponse {
    /// What `forward_backward` requests name it by.
    pub loss_id: LossId,
}
