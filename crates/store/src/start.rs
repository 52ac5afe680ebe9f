//! Ids of samples: they name the start they belong to and are signed for their tenant.
//!
//! So a poll tells a sample of an earlier start, which its owner should send again, from an id that was
//! never given out or belongs to somebody else.

use std::collections::HashMap;

use tinsmith_types::ids::{RequestId, SamplingSessionId, SeqId, TenantId};
use uuid::Uuid;

/// This start and, by id, the secrets of all starts of the data directory.
#[derive(Debug)]
pub(crate) struct Starts {
    pub(crate) current: String,
    secret: [u8; 32],
    all: HashMap<String, [u8; 32]>,
}

impl Starts {
    /// A fresh id and secret.
    pub(crate) fn new() -> Self {
        let current = Uuid::new_v4().simple().to_string();
        Self { current, secret: fresh_secret(), all: HashMap::new() }
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Takes up the starts that the database knows, this one among them.
    pub(crate) fn know(&mut self, starts: Vec<(String, [u8; 32])>) {
        self.all.extend(starts);
    }

    /// How many there were, this one among them.
    pub(crate) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    /// The id of a sample without a number.
    pub(crate) fn sample_id(&self, tenant: &TenantId) -> RequestId {
        let random = Uuid::new_v4().simple().to_string();
        id(&self.current, &self.secret, tenant, &random)
    }

    /// The id that a start gave, or would have given, to the sample of this number: who has lost all else can
    /// still name it.
    pub(crate) fn sample_id_of(
        &self,
        start: &str,
        tenant: &TenantId,
        sampler: &SamplingSessionId,
        seq: SeqId,
    ) -> Option<RequestId> {
        let secret = self.all.get(start)?;
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(&seq.0.to_le_bytes()).update(sampler.0.as_bytes());
        let name = hasher.finalize().to_hex()[..32].to_owned();
        Some(id(start, secret, tenant, &name))
    }

    /// Whether some start gave this id to this tenant.
    pub(crate) fn gave(&self, tenant: &TenantId, id: &RequestId) -> bool {
        let Some(rest) = id.0.strip_prefix("smp-") else { return false };
        let mut parts = rest.splitn(3, '-');
        let (Some(start), Some(random), Some(signature)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        self.all.get(start).is_some_and(|secret| sign(secret, tenant, random) == signature)
    }
}

fn id(start: &str, secret: &[u8; 32], tenant: &TenantId, name: &str) -> RequestId {
    let signature = sign(secret, tenant, name);
    RequestId(format!("smp-{start}-{name}-{signature}"))
}

/// A secret that nobody can guess: 244 random bits.
pub(crate) fn fresh_secret() -> [u8; 32] {
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    *blake3::hash(&[one.into_bytes(), two.into_bytes()].concat()).as_bytes()
}

fn sign(secret: &[u8; 32], tenant: &TenantId, random: &str) -> String {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(random.as_bytes());
    hasher.update(tenant.0.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}
