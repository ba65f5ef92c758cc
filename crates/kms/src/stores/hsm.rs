//! A Managed HSM as a custom key store: the outer layer is under a key of the message's own, which the HSM wraps.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_core::{Ambient, DekWrapAlgorithm, KekError, KekService, WrappedDek};
use holdfast_crypto::{SealingKey, SecretBytes, aead::SEAL_RANDOM_BYTES};
use tokio::sync::Semaphore;

use super::{About, KekMaker, Link, LinkFault, StoreLimits};

pub(super) struct HsmLink {
    url: String,
    keks: Arc<dyn KekService>,
    maker: Arc<dyn KekMaker>,
    limits: StoreLimits,
    places: Semaphore,
    ambient: Arc<dyn Ambient>,
}

fn fault(error: KekError) -> LinkFault {
    match error {
        KekError::Denied(why) => LinkFault::Denied(why),
        KekError::Disabled(why) | KekError::InvalidUsage(why) => LinkFault::KeyUnusable(why),
        KekError::NotFound(_) => LinkFault::KeyNotFound,
        KekError::Rejected => LinkFault::InvalidCiphertext,
        KekError::Unclear(why) => LinkFault::InvalidResponse(why),
        KekError::Throttled => LinkFault::Throttled,
        KekError::Unavailable(why) => LinkFault::Unreachable(why),
    }
}

impl HsmLink {
    pub(super) fn new(
        url: String,
        keks: Arc<dyn KekService>,
        maker: Arc<dyn KekMaker>,
        limits: StoreLimits,
        ambient: Arc<dyn Ambient>,
    ) -> Self {
        Self { url, keks, maker, limits, places: Semaphore::new(limits.in_flight_max), ambient }
    }

    fn kek_url(&self, key: &str) -> String {
        format!("{}/keys/{key}", self.url)
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, KekError>>) -> Result<T, LinkFault> {
        let _place = self.places.try_acquire().map_err(|_| LinkFault::Busy)?;
        let done = tokio::time::timeout(self.limits.budget, work).await;
        done.map_or(Err(LinkFault::TimedOut), |result| result.map_err(fault))
    }

    fn message_key(dek: &SecretBytes) -> Result<SealingKey, LinkFault> {
        SealingKey::new(dek).map_err(|error| LinkFault::InvalidResponse(error.to_string()))
    }
}

/// An outer layer (`docs/formats/kms-ciphertext.md`): length and name of the wrap algorithm, length and version of the key in the HSM,
/// length and bytes of the wrapped key, the sealed message.
fn encode(wrapped: &WrappedDek, version: &str, sealed: &[u8]) -> Vec<u8> {
    let algorithm = wrapped.algorithm.as_str().as_bytes();
    let mut out = vec![algorithm.len() as u8];
    out.extend_from_slice(algorithm);
    out.push(version.len() as u8);
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(&(wrapped.wrapped.len() as u16).to_be_bytes());
    out.extend_from_slice(&wrapped.wrapped);
    out.extend_from_slice(sealed);
    out
}

fn decode(bytes: &[u8]) -> Option<(DekWrapAlgorithm, &str, &[u8], &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (algorithm, rest) = rest.split_at_checked(usize::from(*len))?;
    let algorithm = DekWrapAlgorithm::parse(std::str::from_utf8(algorithm).ok()?)?;
    let (len, rest) = rest.split_first()?;
    let (version, rest) = rest.split_at_checked(usize::from(*len))?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (wrapped, sealed) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    Some((algorithm, std::str::from_utf8(version).ok()?, wrapped, sealed))
}

#[async_trait]
impl Link for HsmLink {
    async fn health(&self, _: About<'_>) -> Result<(), LinkFault> {
        // A key that nobody has: the answer says that the HSM is there and takes us.
        match self.within(self.keks.newest_version(&self.kek_url("holdfast-health"))).await {
            Ok(_) | Err(LinkFault::KeyNotFound) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    async fn check_key(&self, key: &str, _: About<'_>) -> Result<(), LinkFault> {
        // Making an RSA key takes longer than using one: the budget is for the latter.
        self.maker.ensure_kek(&self.kek_url(key)).await.map_err(fault)
    }

    async fn encrypt(&self, key: &str, inner: &[u8], aad: &[u8], _: About<'_>) -> Result<Vec<u8>, LinkFault> {
        let mut dek = SecretBytes::zeroed(32);
        self.ambient.fill(dek.expose_mut());
        let wrapped = self.within(self.keks.wrap(&self.kek_url(key), &dek)).await?;
        let version = wrapped.kek_url.rsplit('/').next().unwrap_or_default();
        let mut random = [0; SEAL_RANDOM_BYTES];
        self.ambient.fill(&mut random);
        let sealed = Self::message_key(&dek)?.seal(random, aad, inner);
        let sealed = sealed.map_err(|error| LinkFault::InvalidResponse(error.to_string()))?;
        Ok(encode(&wrapped, version, &sealed))
    }

    async fn decrypt(&self, key: &str, outer: &[u8], aad: &[u8], _: About<'_>) -> Result<Vec<u8>, LinkFault> {
        let (algorithm, version, wrapped, sealed) = decode(outer).ok_or(LinkFault::InvalidCiphertext)?;
        let kek_url = format!("{}/{version}", self.kek_url(key));
        let wrapped = WrappedDek { kek_url, algorithm, wrapped: wrapped.to_vec() };
        let dek = self.within(self.keks.unwrap(&wrapped)).await?;
        let inner = Self::message_key(&dek)?.open(aad, sealed).map_err(|_| LinkFault::InvalidCiphertext)?;
        Ok(inner.expose().to_vec())
    }

    fn wants_proof(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_layer() {
        let wrapped =
            WrappedDek { kek_url: String::new(), algorithm: DekWrapAlgorithm::A256Kw, wrapped: b"wrapped".to_vec() };
        let bytes = encode(&wrapped, "v1", b"sealed");
        assert_eq!(bytes, b"\x06A256KW\x02v1\x00\x07wrappedsealed");
        let (algorithm, version, wrapped, sealed) = decode(&bytes).unwrap();
        assert_eq!(
            (algorithm, version, wrapped, sealed),
            (DekWrapAlgorithm::A256Kw, "v1", &b"wrapped"[..], &b"sealed"[..])
        );
        assert!((0..bytes.len() - 6).all(|at| decode(&bytes[..at]).is_none()));
    }
}
