//! The ledger: tokens, checkpoints and storage, by hour, session and base model.
//!
//! What a run uses is counted in the commit of the request that used it, so that it is never counted twice
//! nor lost. What samples use gathers in memory and is written every few seconds to minutes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tinsmith_types::ids::{SamplingSessionId, SessionId, TenantId};

use crate::{
    Result, Store,
    spans::SampleSpan,
    sqlite::{self, ledger, spans},
    store::Shared,
};

/// What is counted. Stable: these names stand in the database.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageKind {
    /// Tokens of forward and backward passes.
    Training,
    /// Prompt tokens that were computed for samples.
    Prefill,
    /// Prompt tokens of samples that were found in the prefix cache.
    PrefillCached,
    /// Tokens drawn.
    Sample,
    /// Checkpoints saved.
    Checkpoint,
    /// Bytes times seconds of checkpoints.
    Storage,
}

/// What one sample used, in tokens.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SampleUsage {
    /// Of the prompt, computed.
    pub prefill: u64,
    /// Of the prompt, found in the prefix cache.
    pub prefill_cached: u64,
    /// Drawn, in all sequences.
    pub sampled: u64,
}

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    /// When the hour begins.
    pub hour: Timestamp,
    /// The session that asked for it, if it is known.
    pub session_id: Option<SessionId>,
    /// The base model, if it is known.
    pub base_model: Option<String>,
    /// The project of the session now.
    pub project_id: Option<String>,
    /// The session's notes: a JSON object or null.
    pub user_metadata: serde_json::Value,
    /// What was used.
    pub kind: UsageKind,
    /// How much of it: tokens, checkpoints or byte-seconds.
    pub quantity: u64,
}

/// The checkpoints of a project.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StorageRow {
    /// The project.
    pub project_id: String,
    /// How many there are.
    pub checkpoints: u64,
    /// Their bytes.
    pub size_bytes: u64,
}

impl Store {
    /// What the tenant used in the hours from `from` up to `until`, by hour and then by descending quantity,
    /// up to this moment; at most `limit` rows.
    pub async fn usage(
        &self,
        tenant: &TenantId,
        (from, until): (Timestamp, Timestamp),
        limit: u32,
    ) -> Result<Vec<UsageRow>> {
        self.settle_ledger().await?;
        let tenant = tenant.clone();
        self.read(move |conn| ledger::usage(conn, &tenant, (from, until), limit)).await
    }

    /// The tenant's checkpoints by project, of one project or of all.
    pub async fn storage(
        &self,
        tenant: &TenantId,
        project: Option<&str>,
    ) -> Result<Vec<StorageRow>> {
        let (tenant, project) = (tenant.clone(), project.map(str::to_owned));
        let now = self.shared().clock.now();
        self.read(move |conn| ledger::storage(conn, &tenant, project.as_deref(), now)).await
    }

    /// Brings the ledger and the spans of samples up to this moment.
    pub(crate) async fn settle_ledger(&self) -> Result<()> {
        let ended = self.shared().index().samples.take_ended();
        let now = (self.shared().clock.now(), self.shared().clock.monotonic());
        let written = ended.clone();
        let apply = move |tx: &mut sqlite::Tx<'_>| {
            write(tx.conn, &written, now)?;
            tx.accrue_storage()
        };
        let result = self.write(apply, |_, ()| {}).await;
        if result.is_err() {
            self.shared().index().samples.put_back_ended(ended);
        }
        result
    }
}

/// What samples have left behind since the last time that it was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended {
    pub(crate) spans: Vec<SampleSpan>,
    /// By the beginning of the hour, in microseconds.
    pub(crate) usage: BTreeMap<(TenantId, SamplingSessionId, i64), SampleUsage>,
}

impl Ended {
    /// Adds what one sample used.
    pub(crate) fn spend(
        &mut self,
        (tenant, sampler, hour): (&TenantId, &SamplingSessionId, i64),
        usage: SampleUsage,
    ) {
        let sum = self.usage.entry((tenant.clone(), sampler.clone(), hour)).or_default();
        sum.prefill += usage.prefill;
        sum.prefill_cached += usage.prefill_cached;
        sum.sampled += usage.sampled;
    }
}

/// Writes it at the end.
pub(crate) fn flush(conn: &Connection, shared: &Shared) {
    let ended = shared.index().samples.take_ended();
    let now = (shared.clock.now(), shared.clock.monotonic());
    if let Err(error) = write(conn, &ended, now) {
        tracing::warn!(%error, "the last samples are not in the ledger");
    }
}

fn write(conn: &Connection, ended: &Ended, now: (Timestamp, std::time::Duration)) -> Result<()> {
    for ((tenant, sampler, hour), usage) in &ended.usage {
        let place = (tenant, sampler, *hour);
        ledger::add_sampled(conn, place, UsageKind::Prefill, usage.prefill)?;
        ledger::add_sampled(conn, place, UsageKind::PrefillCached, usage.prefill_cached)?;
        ledger::add_sampled(conn, place, UsageKind::Sample, usage.sampled)?;
    }
    for span in &ended.spans {
        spans::insert(conn, span, now)?;
    }
    Ok(())
}
