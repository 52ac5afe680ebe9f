//! Samples whose clients do not send them again: they outlive a restart, and so do their results.
//!
//! Whoever serves such a sample draws it as any other, and writes its end down here.

use bytes::Bytes;
use tinsmith_types::ids::{ModelId, RequestId, SamplingSessionId, TenantId};

use crate::{Outcome, Result, Store, sqlite::kept_samples};

/// A sampler that is made for single samples.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeptSampler {
    /// The sampler.
    pub sampler: SamplingSessionId,
    /// What it samples from, by any name; samples of the same share it.
    pub source: String,
    /// The run and the request of it that makes the sampler, if one does.
    pub saved_by: Option<(ModelId, RequestId)>,
}

/// A sample that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptSample {
    /// What it is drawn from.
    pub sampler: KeptSampler,
    /// Canonical encoding of the decoded request.
    pub body: Bytes,
    /// How it ended, in the form that whoever ended it chose.
    pub outcome: Option<Outcome>,
}

impl Store {
    /// Keeps a sample, and its sampler as long as there are samples for it.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) where the sampler is gone and nothing will make it;
    /// [`Error::Full`](crate::Error::Full) where too much is kept that has not ended.
    pub async fn keep_sample(
        &self,
        tenant: &TenantId,
        sampler: KeptSampler,
        body: Bytes,
    ) -> Result<RequestId> {
        let tenant = tenant.clone();
        self.write(move |tx| tx.keep_sample(&tenant, &sampler, &body), |_, _| {}).await
    }

    /// A sample that is kept.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) for an id that was not given to this tenant, or whose
    /// retention is over.
    pub async fn kept_sample(&self, tenant: &TenantId, id: &RequestId) -> Result<KeptSample> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.read(move |conn| kept_samples::sample(conn, &tenant, &id)).await
    }

    /// The newest sampler of a source that is as good as a new one: nothing was asked of its run since.
    pub async fn kept_sampler(
        &self,
        tenant: &TenantId,
        source: &str,
    ) -> Result<Option<KeptSampler>> {
        let (tenant, source) = (tenant.clone(), source.to_owned());
        self.read(move |conn| kept_samples::sampler(conn, &tenant, &source)).await
    }

    /// Ends a kept sample; one that has ended stays as it is.
    pub async fn finish_kept_sample(
        &self,
        tenant: &TenantId,
        id: &RequestId,
        outcome: Outcome,
    ) -> Result<()> {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.write(move |tx| tx.finish_kept_sample(&tenant, &id, &outcome), |_, ()| {}).await
    }

    /// Drops samples that ended long ago, those that nobody asked for any more, and samplers without samples.
    pub(crate) async fn sweep_kept_samples(&self) -> Result<()> {
        let config = &self.shared().config;
        let (finished, all) = (config.sample_retention, config.result_retention);
        self.write(move |tx| tx.drop_kept_samples(finished, all), |_, ()| {}).await
    }
}
