//! KEKs of several key services behind one seam: each URL goes to the service that knows it.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_core::{KekError, KekService, WrappedDek};
use holdfast_crypto::SecretBytes;

/// The services, in the order in which they are asked whether they know a KEK.
pub(crate) struct KekServices(pub Vec<Arc<dyn KekService>>);

impl KekServices {
    fn of(&self, kek_url: &str) -> Result<&dyn KekService, KekError> {
        let found = self.0.iter().find(|service| service.knows(kek_url));
        found.map(AsRef::as_ref).ok_or_else(|| KekError::NotFound(kek_url.into()))
    }
}

#[async_trait]
impl KekService for KekServices {
    async fn wrap(&self, kek_url: &str, dek: &SecretBytes) -> Result<WrappedDek, KekError> {
        self.of(kek_url)?.wrap(kek_url, dek).await
    }

    async fn unwrap(&self, wrapped: &WrappedDek) -> Result<SecretBytes, KekError> {
        self.of(&wrapped.kek_url)?.unwrap(wrapped).await
    }

    async fn newest_version(&self, kek_url: &str) -> Result<String, KekError> {
        self.of(kek_url)?.newest_version(kek_url).await
    }

    fn knows(&self, kek_url: &str) -> bool {
        self.of(kek_url).is_ok()
    }

    fn without_version(&self, kek_url: &str) -> String {
        self.of(kek_url).map_or_else(|_| kek_url.to_owned(), |service| service.without_version(kek_url))
    }
}
