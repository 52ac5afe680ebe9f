//! `tinsmith usage`: what was used, by the hour, and which checkpoints are kept.

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tinsmith_store::{Clock as _, SystemClock};
use tinsmith_types::billing::{StorageResponse, UsageInfo, UsageResponse};

use crate::{
    remote::Remote,
    table::{Output, Table, count, or_dash, size, time},
};

const HOUR_SECONDS: i64 = 3600;
/// What is shown where no time is given: a week.
const WINDOW: SignedDuration = SignedDuration::from_hours(7 * 24);

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// From then on: 2026-01-02, or an hour as in RFC 3339. Without it, a week back.
    #[arg(value_parser = hour)]
    from: Option<Timestamp>,
    /// To before then. Without it, the end of this hour.
    #[arg(value_parser = hour)]
    to: Option<Timestamp>,
    /// The checkpoints that are kept now, instead.
    #[arg(long, conflicts_with_all = ["from", "to"])]
    checkpoints: bool,
    /// Only checkpoints of this project.
    #[arg(long, requires = "checkpoints")]
    project_id: Option<String>,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { from, to, checkpoints, project_id, remote, output } = arguments;
    let admin = remote.admin()?;
    if *checkpoints {
        let call = admin.get_current_checkpoint_storage_usage(project_id.as_deref());
        let kept = remote.wait("list what is kept", call)?;
        return output.show(&kept, &kept_table(&kept));
    }
    let now = SystemClock::new().now().as_second();
    let this_hour = now - now.rem_euclid(HOUR_SECONDS);
    let end = Timestamp::from_second(this_hour + HOUR_SECONDS).context("read the clock")?;
    let to = to.unwrap_or(end);
    let from = from.unwrap_or(to - WINDOW);
    ensure!(from < to, "list what was used from {from} to {to}: give the earlier time first");
    let call = admin.get_billing_usage(&from.to_string(), &to.to_string());
    let used = remote.wait("list what was used", call)?;
    let json = json!({
        "data": used.data, "sessions": used.sessions, "cost_data_through": used.cost_data_through
    });
    output.show(&json, &used_table(&used))
}

fn used_table(used: &UsageResponse) -> Table {
    let columns = ["hour", "base model", "what", "amount", "session", "cost"];
    let mut table = Table::new(&columns).title(count(used.data.len(), "row"));
    for event in &used.data {
        let (what, amount) = match &event.event_info {
            UsageInfo::Training { token_count } => ("training", format!("{token_count} tokens")),
            UsageInfo::SamplingPrefill { cached: false, token_count } => {
                ("prompts", format!("{token_count} tokens"))
            }
            UsageInfo::SamplingPrefill { cached: true, token_count } => {
                ("prompts, cached", format!("{token_count} tokens"))
            }
            UsageInfo::SamplingSample { token_count } => {
                ("samples", format!("{token_count} tokens"))
            }
            UsageInfo::Checkpoint { count } => ("checkpoints", count.to_string()),
            UsageInfo::Storage { gigabyte_hours, .. } => {
                ("storage", format!("{gigabyte_hours:.3} GB h"))
            }
        };
        table.row(vec![
            time(&event.bucket_start),
            or_dash(event.base_model.as_ref()),
            what.to_owned(),
            amount,
            or_dash(event.session_id.as_ref()),
            or_dash(event.estimated_cost_usd.map(|usd| format!("${usd:.4}"))),
        ]);
    }
    table
}

fn kept_table(kept: &StorageResponse) -> Table {
    let mut table = Table::new(&["project", "owner", "checkpoints", "size", "cost a month"]);
    for item in &kept.data {
        let owner = item.user_name.as_ref().or(item.user_email.as_ref());
        table.row(vec![
            or_dash(item.project_id.as_ref()),
            or_dash(owner),
            item.checkpoint_count.to_string(),
            size(item.size_bytes),
            or_dash(item.estimated_monthly_cost_usd.map(|usd| format!("${usd:.2}"))),
        ]);
    }
    table
}

/// A time on an hour: the API counts by the hour.
fn hour(text: &str) -> Result<Timestamp> {
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time: Timestamp =
        full.parse().ok().context("give it as 2026-01-02, or as 2026-01-02T03:00:00Z")?;
    ensure!(time.as_second() % HOUR_SECONDS == 0, "give an hour: usage is counted by the hour");
    Ok(time)
}
