//! What has had its time goes.

use std::time::Duration;

use jiff::Timestamp;

use crate::{Error, Result, Store, sqlite};

impl Store {
    /// Drops what has expired: silent sessions and, a while later, their samplers; parked requests
    /// whose gap was not filled; results, samples and checkpoints past their time; blobs and spool
    /// segments that nothing refers to. To be called every few seconds to minutes.
    pub async fn sweep(&self) -> Result<()> {
        let shared = self.shared();
        let config = &shared.config;
        self.sweep_sessions().await?;
        self.fail_gaps().await?;
        self.sweep_kept_samples().await?;
        if let Some(before) = shared.clock.monotonic().checked_sub(config.sample_retention) {
            shared.index().samples.sweep(before);
            // Who comes back within this time hears of results that have gone meanwhile.
            let forgotten = before.saturating_sub(config.sample_retention);
            shared.index().samples.feeds.tidy(forgotten);
        }
        let results_before = micros_before(shared.clock.now(), config.result_retention);
        while self.write(move |tx| tx.drop_results(results_before), |_, _| {}).await? > 0 {}
        let silent_before = micros_before(shared.clock.now(), config.session_expiry);
        // Before the samplers that they belong to go.
        self.settle_ledger().await?;
        let now = shared.clock.now();
        let audit_before = micros_before(now, config.audit_retention);
        let usage_before = micros_before(now, config.usage_retention);
        let audit_max = i64::try_from(config.audit_entries_max).unwrap_or(i64::MAX);
        let spans_max = i64::try_from(config.sample_spans_max).unwrap_or(i64::MAX);
        self.write(
            move |tx| {
                tx.drop_audit(audit_before, audit_max)?;
                tx.drop_usage(usage_before)?;
                tx.drop_spans(usage_before, spans_max)?;
                tx.drop_session_keys()?;
                tx.drop_expired_checkpoints()?;
                tx.drop_sample_blocks()?;
                tx.drop_custom_losses(silent_before)?;
                tx.drop_samplers(silent_before)
            },
            |_, ()| {},
        )
        .await?;
        // Between commits every reference is on disk: nothing that a row names can be deleted.
        let (blobs, segments) = self
            .alone(|conn, spool, shared| {
                let grace = shared.config.blob_grace;
                let referenced = |blob: &_| sqlite::is_referenced(conn, blob);
                let blobs = shared.blobs.sweep(shared.clock.monotonic(), grace, referenced)?;
                Ok((blobs, spool.sweep(&sqlite::referenced_segments(conn)?)?))
            })
            .await?;
        if blobs.len() + segments > 0 {
            let blobs = blobs.len();
            tracing::info!(blobs, spool.segments = segments, "unreferenced files deleted");
        }
        // Large files take a while, and the writer has better things to do.
        let delete = move || blobs.iter().try_for_each(std::fs::remove_dir_all);
        Ok(tokio::task::spawn_blocking(delete).await.map_err(|_| Error::Fatal)??)
    }
}

fn micros_before(now: Timestamp, age: Duration) -> i64 {
    now.as_microsecond().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
}
