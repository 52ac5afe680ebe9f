//! What was used, from the store's ledger, and what it costs at the prices of now.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::HeaderMap};
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use tinsmith_store::{UsageKind, UsageRow};
use tinsmith_types::{
    billing::{
        StorageItem, StorageQuery, StorageResponse, UsageEvent, UsageInfo, UsageQuery,
        UsageResponse, UsageSession,
    },
    ids::TenantId,
};

use crate::{
    check,
    error::{Error, Result},
    identity, negotiate,
    page::Parameters,
    prices::{Priced, Prices},
    state::{Shared, Tenant},
};

/// Hours of a window, at most: 14 days.
const WINDOW_HOURS_MAX: i64 = 14 * 24;
const HOUR: SignedDuration = SignedDuration::from_hours(1);
/// Hours of a month, as storage is priced.
const MONTH_HOURS: f64 = 720.0;
const GIGABYTE: f64 = 1e9;

/// `GET billing/usage/events`.
pub(crate) async fn usage(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    Parameters(query): Parameters<UsageQuery>,
) -> Result<Json<UsageResponse>> {
    let window = window(&query, app.clock.now())?;
    let rows_max = app.config.usage_rows_max;
    let rows = app.store.usage(&tenant, window, rows_max.saturating_add(1)).await?;
    if rows.len() > rows_max as usize {
        let detail = format!("the window has more than {rows_max} rows; ask for a shorter one");
        return Err(Error::invalid("window_too_large", detail));
    }
    let knows_free = !negotiate::fails_on_free(&headers);
    let mut sessions = BTreeMap::new();
    let mut data = Vec::with_capacity(rows.len());
    for mut row in rows {
        if let Some(session) = &row.session_id {
            let notes = std::mem::take(&mut row.user_metadata);
            sessions
                .entry(session.0.clone())
                .or_insert_with(|| UsageSession { user_metadata: check::as_metadata(notes) });
        }
        data.push(event(&tenant, &app.config.prices, row, knows_free));
    }
    Ok(Json(UsageResponse { data, sessions, cost_data_through: None }))
}

/// `GET billing/usage/checkpoints/current`.
pub(crate) async fn storage(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    Parameters(query): Parameters<StorageQuery>,
) -> Result<Json<StorageResponse>> {
    let rate = app.config.prices.of(Priced::Storage, None);
    let project = query.project_id.filter(|project| !project.is_empty());
    let rows = app.store.storage(&tenant, project.as_deref()).await?;
    let data = rows.into_iter().map(|row| {
        let size_gigabytes = float(row.size_bytes) / GIGABYTE;
        StorageItem {
            project_id: Some(row.project_id),
            org_user_urn: Some(identity::user_urn(&tenant)),
            user_email: Some(identity::email(&tenant)),
            user_name: Some(tenant.0.clone()),
            checkpoint_count: row.checkpoints,
            size_bytes: row.size_bytes,
            size_gigabytes,
            estimated_monthly_cost_usd: Some(size_gigabytes * rate),
        }
    });
    Ok(Json(StorageResponse {
        effective_rate_usd_per_gigabyte_month: Some(rate),
        data: data.collect(),
    }))
}

/// Two full hours, the second after the first and not too far.
fn window(query: &UsageQuery, now: Timestamp) -> Result<(Timestamp, Timestamp)> {
    let from = time("starting_on", query.starting_on.as_deref())?;
    let until = time("ending_before", query.ending_before.as_deref())?;
    let hours = until.duration_since(from).as_hours();
    if from >= until || hours > WINDOW_HOURS_MAX {
        let detail = "ending_before must be after starting_on, by 14 days at most";
        return Err(Error::invalid("invalid_window", detail));
    }
    if from > now {
        return Err(Error::invalid("invalid_window", "starting_on must not be in the future"));
    }
    Ok((from, until))
}

/// Without a zone it is UTC.
fn time(name: &str, text: Option<&str>) -> Result<Timestamp> {
    let invalid = |detail: String| Error::invalid("invalid_window", detail);
    let text = text.ok_or_else(|| invalid(format!("{name} is required: an RFC 3339 time")))?;
    let zoned = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok();
    let time = text.parse::<Timestamp>().ok().or_else(|| Some(zoned()?.timestamp()));
    let time = time.ok_or_else(|| {
        invalid(format!("{name} {text:?} is no time; give RFC 3339, such as 2026-07-13T00:00:00Z"))
    })?;
    let micros = time.as_microsecond();
    if micros.rem_euclid(i64::try_from(HOUR.as_micros()).unwrap_or(i64::MAX)) == 0 {
        return Ok(time);
    }
    Err(invalid(format!("{name} {text:?} must be a full hour in UTC")))
}

fn event(tenant: &TenantId, prices: &Prices, row: UsageRow, knows_free: bool) -> UsageEvent {
    let (count, base_model) = (row.quantity, row.base_model);
    let price = |what| prices.of(what, base_model.as_deref());
    let (event_info, tokens, storage) = match row.kind {
        UsageKind::Training => {
            (UsageInfo::Training { token_count: count }, Some(price(Priced::Training)), None)
        }
        UsageKind::Prefill => {
            let info = UsageInfo::SamplingPrefill { cached: false, token_count: count };
            (info, Some(price(Priced::Prefill)), None)
        }
        UsageKind::PrefillCached => {
            let info = UsageInfo::SamplingPrefill { cached: true, token_count: count };
            (info, Some(price(Priced::PrefillCached)), None)
        }
        UsageKind::Sample => {
            (UsageInfo::SamplingSample { token_count: count }, Some(price(Priced::Sample)), None)
        }
        UsageKind::Checkpoint => (UsageInfo::Checkpoint { count }, None, None),
        UsageKind::Storage => {
            let gigabyte_hours = float(count) / GIGABYTE / HOUR.as_secs_f64();
            let info = UsageInfo::Storage { free: knows_free.then_some(false), gigabyte_hours };
            (info, None, Some((price(Priced::Storage), gigabyte_hours)))
        }
    };
    let of_tokens = tokens.map(|rate| rate * float(count) / 1e6);
    let of_storage = storage.map(|(rate, gigabyte_hours)| rate * gigabyte_hours / MONTH_HOURS);
    UsageEvent {
        bucket_start: row.hour.to_string(),
        bucket_end: row.hour.saturating_add(HOUR).unwrap_or(Timestamp::MAX).to_string(),
        base_model,
        user_id: Some(identity::user_urn(tenant)),
        user_name: Some(tenant.0.clone()),
        session_id: row.session_id.map(|id| id.0),
        project_id: row.project_id,
        estimated_cost_usd: of_tokens.or(of_storage),
        effective_rate_usd_per_million_tokens: tokens,
        effective_rate_usd_per_gigabyte_month: storage.map(|(rate, _)| rate),
        event_info,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53, and people read them")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_of_full_hours() {
        let check = |from: &str, until: &str| {
            let query = UsageQuery {
                starting_on: (!from.is_empty()).then(|| from.to_owned()),
                ending_before: Some(until.to_owned()),
            };
            let now = "2026-07-20T12:30:00Z".parse().unwrap();
            window(&query, now).map_or_else(
                |error| error.to_string(),
                |(from, until)| format!("{from} to {until}"),
            )
        };
        let day = "2026-07-13T00:00:00Z to 2026-07-14T00:00:00Z";
        assert_eq!(check("2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z"), day);
        assert_eq!(check("2026-07-13T02:00:00+02:00", "2026-07-14T00:00:00"), day);
        assert_eq!(check("2026-07-13", "2026-07-14"), day);
        for (from, until, part) in [
            ("", "2026-07-14T00:00:00Z", "starting_on is required"),
            ("x", "2026-07-14T00:00:00Z", "is no time"),
            ("2026-07-13T00:30:00Z", "2026-07-14T00:00:00Z", "full hour"),
            ("2026-07-14T00:00:00Z", "2026-07-14T00:00:00Z", "must be after"),
            ("2026-07-01T00:00:00Z", "2026-07-15T01:00:00Z", "14 days"),
            ("2026-07-21T00:00:00Z", "2026-07-22T00:00:00Z", "future"),
        ] {
            let message = check(from, until);
            assert!(message.contains(part), "{message}");
        }
    }
}
