//! Whose a credential is. That the signature under it holds was verified by s3s.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use holdfast_core::{Principal, PrincipalKind};
use s3s::{
    S3Error, S3ErrorCode, S3Result,
    auth::{Credentials, S3Auth, SecretKey},
};

use super::AccessKey;
use crate::{
    call::{Arrived, Caller},
    error::{Error, Result},
};

/// The credentials of the service, by their ids.
pub(crate) struct Directory {
    keys: HashMap<String, (AccessKey, Principal)>,
}

impl Directory {
    pub(crate) fn new(keys: Vec<AccessKey>) -> Self {
        let known = keys.into_iter().map(|key| {
            // Owners of buckets are compared to the letter.
            let principal = Principal::verified_exactly(PrincipalKind::Service, "s3", &key.principal);
            (key.id.clone(), (key, principal))
        });
        Self { keys: known.collect() }
    }

    /// The caller, by what s3s has verified. Without credentials nobody asks.
    pub(crate) fn caller(&self, verified: Option<&Credentials>, arrived: &Arrived) -> Result<Caller> {
        let known = verified.and_then(|verified| self.keys.get(&verified.access_key));
        let (key, principal) = known.ok_or(Error::Denied)?;
        let request = Arc::clone(&arrived.facts);
        let caller = Caller { principal: principal.clone(), access_key: key.id.clone(), request };
        arrived.came_from(&caller);
        Ok(caller)
    }
}

/// What s3s asks for to verify a signature.
pub(super) struct Secrets(pub Arc<Directory>);

#[async_trait]
impl S3Auth for Secrets {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let (known, _) = self.0.keys.get(access_key).ok_or_else(|| {
            let message = "The AWS access key ID you provided does not exist in our records.";
            S3Error::with_message(S3ErrorCode::InvalidAccessKeyId, message)
        })?;
        Ok(SecretKey::from(known.secret.as_str()))
    }
}
