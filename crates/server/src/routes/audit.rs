//! The audit log, as its owner reads it.

use axum::{Json, extract::State};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use serde_json::Value;
use tinsmith_store::AuditEntry;
use tinsmith_types::{
    audit::{AuditLogEntry, AuditLogResponse, AuditQuery},
    ids::TenantId,
};

use crate::{
    error::{Error, Result},
    identity,
    page::Parameters,
    state::{Shared, Tenant},
};

/// `GET audit`: one day, midnight to midnight UTC.
pub(crate) async fn list(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Parameters(query): Parameters<AuditQuery>,
) -> Result<Json<AuditLogResponse>> {
    let prefix = prefix(query.event_type.as_deref().unwrap_or("all"))?;
    let window = match query.day {
        Some(day) => window(&day)?,
        None => day(app.clock.now().to_zoned(TimeZone::UTC).date())
            .ok_or_else(|| Error::Internal { detail: "the clock is out of range".to_owned() })?,
    };
    let most = app.config.audit_entries_max;
    let mut found =
        app.store.audit_entries(&tenant, window, prefix, most.saturating_add(1)).await?;
    let truncated = found.len() > most as usize;
    if truncated {
        found.remove(0);
    }
    let entries = found.into_iter().map(entry).collect();
    Ok(Json(AuditLogResponse { entries, truncated }))
}

/// How the events of a type begin.
fn prefix(event_type: &str) -> Result<&'static str> {
    Ok(match event_type {
        "all" => "",
        "checkpoints" => "checkpoint_",
        "projects" => "project_",
        "teams" => "team_",
        "organizations" => "organization_",
        other => {
            let detail = format!(
                "event_type {other:?} is not known; use all, checkpoints, projects, teams or organizations"
            );
            return Err(Error::invalid("invalid_event_type", detail));
        }
    })
}

fn window(text: &str) -> Result<(Timestamp, Timestamp)> {
    let date: Option<Date> = text.parse().ok();
    date.and_then(day).ok_or_else(|| {
        Error::invalid("invalid_day", format!("day {text:?} is no date; give YYYY-MM-DD"))
    })
}

/// The day's midnights.
fn day(date: Date) -> Option<(Timestamp, Timestamp)> {
    let midnight = |date: Date| Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp());
    Some((midnight(date)?, midnight(date.checked_add(1.day()).ok()?)?))
}

fn entry(entry: AuditEntry) -> AuditLogEntry {
    let mut details = entry.details;
    if let Some(Value::String(actor)) = details.get_mut("actor") {
        *actor = identity::user_urn(&TenantId::from(actor.as_str()));
    }
    let of_checkpoint = entry.event.starts_with("checkpoint_");
    let text = |name: &str| {
        let text = details.get(name).and_then(Value::as_str).map(str::to_owned);
        text.filter(|_| of_checkpoint)
    };
    AuditLogEntry {
        timestamp: entry.at.to_string(),
        model_id: text("model_id"),
        tinker_path: text("tinker_path"),
        purpose: text("purpose"),
        event: entry.event,
        event_details: details,
    }
}
