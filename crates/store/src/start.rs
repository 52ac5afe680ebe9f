//! Ids of samples: they name the start they belong to and are signed for their tenant.
//!
//! So a poll tells a sample of an earlier start, which its owner should send again, from an id that was
//! never given out or belongs to somebody else.

use std::collections::HashMap;

use tinsmith_types::ids::{RequestId, TenantId};
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
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        let secret = *blake3::hash(&[one.into_bytes(), two.into_bytes()].concat()).as_bytes();
        Self { current: Uuid::new_v4().simple().to_string(), secret, all: HashMap::new() }
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Takes up the starts that the database knows, this one among them.
    pub(crate) fn know(&mut self, starts: Vec<(String, [u8; 32])>) {
        self.all.extend(starts);
    }

    pub(crate) fn sample_id(&self, tenant: &TenantId) -> RequestId {
        let random = Uuid::new_v4().simple().to_string();
        let signature = sign(&self.secret, tenant, &random);
        RequestId(format!("smp-{}-{random}-{signature}", self.current))
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

fn sign(secret: &[u8; 32], tenant: &TenantId, random: &str) -> String {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(random.as_bytes());
    hasher.update(tenant.0.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}
