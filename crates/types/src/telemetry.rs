//! `telemetry`: what clients report about themselves. Events can carry API keys in `event_data`, so
//! none may be stored or logged as it comes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::defaults::null_as_default;
use crate::json::Request;

/// Body of `POST telemetry`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct TelemetryRequest {
    /// At most 100.
    #[serde(default, deserialize_with = "null_as_default")]
    pub events: Vec<Event>,
    /// Operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Version of the client's SDK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sdk_version: Option<String>,
    /// A session, or `sessionless-<uuid>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// One for each client process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_uuid: Option<String>,
}

impl Request for TelemetryRequest {}

/// Something that happened in a client.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Event {
    /// `SESSION_START`, `SESSION_END`, `UNHANDLED_EXCEPTION` or `GENERIC_EVENT`.
    pub event: String,
    /// A UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Counts up within a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_session_index: Option<i64>,
    /// `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// `SESSION_END`: how long it was, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// `UNHANDLED_EXCEPTION`: its class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_type: Option<String>,
    /// `UNHANDLED_EXCEPTION`: its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// `UNHANDLED_EXCEPTION`: where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// `GENERIC_EVENT`: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_name: Option<String>,
    /// `GENERIC_EVENT`: anything, request headers included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_data: Option<Value>,
}

/// Answer of `POST telemetry`: `{"status":"accepted"}`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize, Serialize)]
#[serde(tag = "status", rename = "accepted")]
pub struct TelemetryResponse {}
