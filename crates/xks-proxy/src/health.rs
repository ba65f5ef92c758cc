//! Health of the HSMs: what was last seen, and a real encryption and decryption under a key of the proxy's own.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use holdfast_core::{
    Action, Decision, ExternalKeyId, ExternalOperation, ExternalOutcome, HsmError, HsmHealth, HsmState, Intent,
    Principal, Resource, TokenObject, authorize,
};
use holdfast_crypto::SecretBytes;
use metrics::gauge;

use crate::XksProxy;

/// A result older than this says nothing any more (XKS proxy API 1.0.3).
const AGE_MAX: Duration = Duration::from_secs(60);
const PLAINTEXT: &[u8] = b"holdfast health check";

/// What a deep check found.
#[derive(Clone, Debug)]
pub struct DeepHealth {
    checked: Instant,
    failure: Option<String>,
}

/// Allows the proxy's own health key, and nothing else.
struct OwnKey(ExternalKeyId);

impl holdfast_core::Policy for OwnKey {
    fn decide(&self, principal: &Principal, intent: &Intent) -> Decision {
        let own = intent.resource == Resource::ExternalKey(self.0.clone());
        if own && *principal == Principal::system() {
            Decision::Allow("health check".into())
        } else {
            Decision::Deny("not the health key".into())
        }
    }
}

impl XksProxy {
    /// How an HSM user is: the worse of what its link says and what the last deep check found.
    #[must_use]
    pub fn health_of(&self, name: &str) -> HsmHealth {
        let Some(hsm) = self.hsms.get(name) else {
            return HsmHealth {
                state: HsmState::Unavailable,
                model: "unknown".into(),
                detail: "not configured".into(),
            };
        };
        let mut health = hsm.health();
        let deep = self.deep.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(DeepHealth { checked, failure: Some(why) }) = deep
            && checked.elapsed() <= AGE_MAX
        {
            health.state = HsmState::Unavailable;
            health.detail = why;
        }
        health
    }

    /// HSM users in which the proxy has a key of its own.
    #[must_use]
    pub fn hsms_with_health_key(&self) -> Vec<String> {
        self.health_keys.keys().cloned().collect()
    }

    /// Encrypts and decrypts under the proxy's own key in an HSM, and remembers how it went.
    pub async fn check_deeply(&self, name: &str) {
        let Some(object) = self.health_keys.get(name) else { return };
        let result = self.round_trip(name, object).await;
        let failure = result.err().map(|error| format!("the health key: {error}"));
        let deep = DeepHealth { checked: Instant::now(), failure };
        self.deep.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), deep);
    }

    async fn round_trip(&self, name: &str, object: &TokenObject) -> Result<(), HsmError> {
        let hsm = self.hsms.get(name).ok_or(HsmError::NotFound)?;
        let key = ExternalKeyId::parse("holdfast-health").map_err(|_| HsmError::NotFound)?;
        let policy = OwnKey(key.clone());
        let permit = |action| {
            let intent = Intent { action, resource: Resource::ExternalKey(key.clone()) };
            authorize(&policy, &Principal::system(), intent).map_err(|_| HsmError::OperationNotAllowed)
        };
        let budget = self.limits.hsm_budget;
        let encrypt = ExternalOperation::GcmEncrypt {
            plaintext: SecretBytes::copy_of(PLAINTEXT),
            aad: Vec::new(),
            integrity: None,
        };
        let sealed = hsm.perform(permit(Action::KeyEncrypt)?, &key, object, encrypt, budget).await?;
        let ExternalOutcome::Ciphertext { iv, ciphertext, tag, .. } = sealed else {
            return Err(HsmError::Failed("it did not encrypt"));
        };
        let decrypt = ExternalOperation::GcmDecrypt { iv, aad: Vec::new(), ciphertext, tag };
        match hsm.perform(permit(Action::KeyDecrypt)?, &key, object, decrypt, budget).await? {
            ExternalOutcome::Plaintext(plaintext) if plaintext.ct_eq(PLAINTEXT) => Ok(()),
            _ => Err(HsmError::Failed("it did not decrypt to the same")),
        }
    }

    /// Gauges that say how things are, by the names that AWS's users know.
    pub fn update_gauges(&self) {
        for name in self.hsms.keys() {
            let now = self.health_of(name).state;
            for state in [HsmState::Active, HsmState::Degraded, HsmState::Unavailable] {
                let labels = [("hsm", name.clone()), ("state", state.as_str().to_ascii_lowercase())];
                gauge!("holdfast_xks_external_key_manager_states", &labels).set(f64::from(u8::from(now == state)));
            }
        }
        let governed = self.governed();
        let now = self.ambient.now().unix_secs();
        for store in governed.policy.stores() {
            // The newest is the one in use, as far as the proxy can know.
            if let Some(newest) = governed.credentials_of(&store.name).last() {
                let days = (now - newest.created.unix_secs()) as f64 / 86_400.0;
                gauge!("holdfast_xks_proxy_credential_age_days", "store" => store.name.clone()).set(days);
            }
        }
        gauge!("holdfast_xks_kill_switches").set(governed.kills.iter().count() as f64);
    }
}
