//! Role: wire-compatible with Azure Key Vault Managed HSM.
//!
//! Reading order: [`route`](Route) (path to operation), `wire` (Key Vault's words), `authn` (tokens to principals), `rbac`
//! (principals to permits), `ops` (what is done), `error` (what is told), `dialect` (the stages of a request, in their order).
//! The role sees the HSM, the store and the audit log through the seams of `holdfast-core` only.

mod audit_readers;
mod authn;
mod client;
mod code;
mod dialect;
mod error;
#[cfg(forgery)]
mod forgeries;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keys;
mod ops;
mod query;
mod rbac;
mod records;
mod release_policy;
mod retention;
mod rotation;
mod route;
mod service;
mod usable;
mod wire;

use std::{sync::Arc, time::Duration};

pub use authn::{Authenticator, Fetch, HostNames, HostPort, IssuerConfig};
pub use client::{KekClient, ServiceIdentity};
pub use code::{Code, InnerCode};
pub use error::ApiError;
use holdfast_core::{Ambient, AuditSink, Hsm, HsmAdmin, Store, StoreError, Troubles};
use holdfast_service::{Spine, Trace};
use http::StatusCode;
use keys::{KeyRing, KeyRingLimits};
use ops::Settings;
pub use rbac::{ADMINISTRATOR, AUDIT_READER, CRYPTO_OFFICER, CRYPTO_SERVICE_ENCRYPTION_USER, CRYPTO_USER};
use rbac::{Rbac, RoleAssignment};
use retention::Retention;
pub use route::{CryptoOperation, Route, Scope};

/// What the role stands on.
pub struct Seams {
    /// Uses keys.
    pub hsm: Arc<dyn Hsm>,
    /// Makes keys.
    pub admin: Arc<dyn HsmAdmin>,
    /// Durable records.
    pub store: Arc<dyn Store>,
    /// The audit log.
    pub audit: Arc<dyn AuditSink>,
    /// Clock and entropy.
    pub ambient: Arc<dyn Ambient>,
}

/// Bounds on what one request or instance may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Request body.
    pub body_bytes_max: usize,
    /// Time for the body to arrive.
    pub body_timeout: Duration,
    /// Keys, soft-deleted ones included.
    pub keys_max: usize,
    /// Versions of one key.
    pub versions_max: usize,
    /// Keys held open (parsed) in memory.
    pub open_keys_max: usize,
}

impl Default for Limits {
    /// 100 versions as in the real service; many more keys than its 5000.
    fn default() -> Self {
        Self {
            body_bytes_max: 1024 * 1024,
            body_timeout: Duration::from_secs(10),
            keys_max: 1_000_000,
            versions_max: 100,
            open_keys_max: 2048,
        }
    }
}

/// What is fixed when the instance is first opened.
#[derive(Clone, Debug)]
pub struct Founding {
    /// Days that a deleted key can be recovered: 7 to 90.
    pub soft_delete_retention_days: u32,
    /// Whether deleted keys stay until then, whoever asks. Can be turned on later, never off.
    pub purge_protection: bool,
    /// Principal (object id) and role (GUID), assigned at `/` on first start only.
    pub first_assignments: Vec<(String, &'static str)>,
}

/// Why the role does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A first start without an administrator would make an HSM that nobody can ever use.
    #[error("a new HSM needs at least one initial administrator")]
    NoAdministrator,
    /// A record cannot be read.
    #[error("a stored record cannot be read: {0}")]
    Record(String),
    /// Retention out of bounds.
    #[error("soft-delete retention must be 7 to 90 days")]
    Retention,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One Managed HSM instance.
pub struct ManagedHsm {
    authenticator: Authenticator,
    hosts: HostNames,
    rbac: Rbac,
    keys: Arc<KeyRing>,
    settings: Settings,
    retention: Retention,
    limits: Limits,
    hsm: Arc<dyn Hsm>,
    admin: Arc<dyn HsmAdmin>,
    store: Arc<dyn Store>,
    audit: Arc<dyn AuditSink>,
    ambient: Arc<dyn Ambient>,
    spine: Spine,
    /// Automatic acts that fail, by name and key.
    troubles: Troubles,
}

impl ManagedHsm {
    /// Opens the instance: founds it on first start, then reads its index into memory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        seams: Seams,
        authenticator: Authenticator,
        hosts: HostNames,
        founding: &Founding,
        limits: Limits,
    ) -> Result<Self, OpenError> {
        let Seams { hsm, admin, store, audit, ambient } = seams;
        let wanted =
            Retention { days: founding.soft_delete_retention_days, purge_protection: founding.purge_protection };
        if !(7..=90).contains(&wanted.days) {
            return Err(OpenError::Retention);
        }
        let first_assignments: Vec<_> = founding
            .first_assignments
            .iter()
            .map(|(principal, role)| RoleAssignment {
                id: guid(ambient.random()),
                principal_id: principal.to_ascii_lowercase(),
                definition_id: (*role).to_owned(),
                scope: Scope::Instance,
            })
            .collect();
        let event = |operation| {
            let facts = ops::Facts { rule: Some("the configuration".into()), ..ops::Facts::default() };
            Trace::automatic(guid(ambient.random()), operation, "/").event(ambient.now(), &facts, StatusCode::OK)
        };
        let retention = retention::open(store.as_ref(), wanted, ambient.now(), &first_assignments, event).await?;
        let rbac = Rbac::open(store.as_ref()).await?;
        let settings = Settings::open(store.as_ref()).await?;
        let ring_limits = KeyRingLimits {
            keys_max: limits.keys_max,
            versions_max: limits.versions_max,
            open_keys_max: limits.open_keys_max,
        };
        let keys = KeyRing::open(Arc::clone(&store), Arc::clone(&hsm), Arc::clone(&ambient), ring_limits).await?;
        // Connections bound how many requests are at work: each has one.
        let spine = Spine::new(Arc::clone(&audit), Arc::clone(&ambient), Arc::clone(store.gate()), None);
        Ok(Self {
            authenticator,
            hosts,
            rbac,
            keys: Arc::new(keys),
            settings,
            retention,
            limits,
            hsm,
            admin,
            store,
            audit,
            ambient,
            spine,
            troubles: Troubles::default(),
        })
    }

    /// How many keys there are, soft-deleted ones included.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.count()
    }
}

/// A random UUID (RFC 9562, version 4) in its usual form.
pub(crate) fn guid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = holdfast_core::KeyVersionId::from_bytes(bytes).to_string();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
