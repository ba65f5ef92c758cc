//! Whose a credential is. That the signature under it holds was verified by s3s.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_core::{Principal, PrincipalKind};
use holdfast_crypto::{HashAlgorithm, SecretBytes, kdf::MacKey};
use holdfast_service::SigningSecret;
use s3s::{
    S3Error, S3ErrorCode, S3Result,
    auth::{Credentials, S3Auth, SecretKey},
};

use super::AccessKey;
use crate::{
    call::{Arrived, Facts},
    error::{Error, Result},
};

/// Who asks: somebody whose signature holds. Only a [`Directory`] makes one.
#[derive(Clone)]
pub(crate) struct Caller {
    principal: Principal,
    access_key: String,
    request: Arc<Facts>,
}

impl Caller {
    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The name that owners of buckets have.
    pub(crate) fn name(&self) -> &str {
        self.principal.object_id()
    }

    /// By which credential.
    pub(crate) fn access_key(&self) -> &str {
        &self.access_key
    }

    /// By which request, from where.
    pub(crate) fn request(&self) -> &Facts {
        &self.request
    }
}

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

    /// Every credential, and whose it is.
    pub(super) fn signers(&self) -> impl Iterator<Item = (String, Arc<SigningSecret>, Principal)> {
        self.keys.iter().map(|(id, (key, principal))| {
            let secret = SigningSecret::new(SecretBytes::copy_of(key.secret.as_bytes()));
            (id.clone(), Arc::new(secret), principal.clone())
        })
    }

    /// The caller, by what s3s has verified, which has the secret that it was verified with. Without credentials nobody asks.
    pub(crate) fn caller(&self, verified: Option<&Credentials>, arrived: &Arrived) -> Result<Caller> {
        let verified = verified.ok_or(Error::Denied)?;
        let is_its = |(key, _): &(AccessKey, Principal)| *key.secret == *verified.secret_key.expose();
        let known = self.keys.get(&verified.access_key).filter(|known| is_its(known)).ok_or(Error::Denied)?;
        Ok(Self::proved(known, arrived))
    }

    /// Who signed a form, by the names of its fields in lower case, if the signature holds. s3s verifies it again, and when it was made; but
    /// what it refuses a form for is of somebody who is known, and it takes in the files of forms that nobody signed.
    pub(super) fn signer(&self, fields: &[(String, String)], arrived: &Arrived) -> Option<Caller> {
        let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let secret = |id: &str| self.keys.get(id).map(|(key, _)| key.secret.as_bytes());
        let policy = field("policy")?.as_bytes();
        let (id, key, signature) = if let Some(signature) = field("x-amz-signature") {
            let (id, scope) = field("x-amz-credential")?.split_once('/')?;
            let mut key = MacKey::new(HashAlgorithm::Sha256, &[b"AWS4", secret(id)?].concat());
            for part in scope.split('/') {
                key = MacKey::new(HashAlgorithm::Sha256, &key.sign(&[part.as_bytes()]));
            }
            (id, key, unhex(signature)?)
        } else {
            let id = field("awsaccesskeyid")?;
            (id, MacKey::of_old(secret(id)?), BASE64.decode(field("signature")?).ok()?)
        };
        let known = self.keys.get(id)?;
        key.verify(policy, &signature).then(|| Self::proved(known, arrived))
    }

    fn proved((key, principal): &(AccessKey, Principal), arrived: &Arrived) -> Caller {
        let request = Arc::clone(&arrived.facts);
        let caller = Caller { principal: principal.clone(), access_key: key.id.clone(), request };
        arrived.came_from(&caller);
        caller
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| {
        let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
        Some((high? << 4 | low?) as u8)
    };
    pairs.iter().map(byte).collect()
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
