//! One function decides the encryption of everything that is written: [`Storage::decide`].
//!
//! Precedence: the request, then the bucket's default, then the container's DEK (SSE-S3). A request that asks for
//! encryption gets what it asks for, or an error.

use std::{sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_core::{Action, IndexWrite, KekError, WrappedDek};
use holdfast_crypto::{CryptoError, HashAlgorithm, SecretBytes, kdf, md5::Md5};
use s3s::dto;

use crate::{
    Storage,
    call::Call,
    deks::Dek,
    error::{Error, Result, damaged, from_kek, invalid_argument, invalid_request, not_implemented},
    event::About,
    grant::Known,
    record::{ContainerDek, Encryption, Envelope, Id},
    rows,
};

/// What a request says of encryption, whichever operation it is.
#[derive(Default)]
pub(crate) struct Asked {
    pub sse: Option<dto::ServerSideEncryption>,
    pub kek: Option<String>,
    pub context: Option<String>,
    pub bucket_key: Option<bool>,
    pub customer: CustomerKey,
}

/// The three headers of SSE-C.
#[derive(Default)]
pub(crate) struct CustomerKey {
    pub algorithm: Option<String>,
    pub key: Option<String>,
    pub key_md5: Option<String>,
}

/// A client's key, checked.
pub(crate) struct CheckedCustomerKey {
    pub key: SecretBytes,
    pub key_md5: String,
}

impl CustomerKey {
    /// `None` if the request names no key at all.
    pub(crate) fn check(self) -> Result<Option<CheckedCustomerKey>> {
        let Self { algorithm, key, key_md5 } = self;
        if algorithm.is_none() && key.is_none() && key_md5.is_none() {
            return Ok(None);
        }
        let (Some(algorithm), Some(key), Some(key_md5)) = (algorithm, key, key_md5) else {
            return Err(invalid_argument("SSE-C needs the customer's algorithm, key and key MD5 together"));
        };
        if algorithm != "AES256" {
            return Err(invalid_argument("The only algorithm of SSE-C is AES256"));
        }
        let decoded = BASE64.decode(&key).map(SecretBytes::take).ok().filter(|key| key.len() == 32);
        let key = decoded.ok_or_else(|| invalid_argument("The key of SSE-C is 32 bytes in base64"))?;
        if BASE64.encode(Md5::digest(key.expose())) != key_md5 {
            return Err(invalid_argument("The MD5 of the SSE-C key does not match the key"));
        }
        Ok(Some(CheckedCustomerKey { key, key_md5 }))
    }
}

/// A key that may expire while it is used.
#[derive(Clone)]
pub(crate) enum Key {
    /// From the cache; asked for again at the end of its time. Under a container's DEK each object has a key of its own,
    /// derived from it, so that one object can be given to another KEK without giving the container away.
    Held { dek: Arc<Dek>, wrapped: Arc<WrappedDek>, object_key: Option<Arc<SecretBytes>> },
    /// The client's, good for its request.
    Customer(Arc<SecretBytes>),
    /// Encryption is off.
    None,
}

impl Key {
    pub(crate) fn bytes(&self) -> Option<&SecretBytes> {
        match self {
            Self::Held { object_key: Some(key), .. } => Some(key),
            Self::Held { dek, .. } => Some(&dek.key),
            Self::Customer(key) => Some(key),
            Self::None => None,
        }
    }
}

/// The key of one object under a container's DEK.
fn object_key_of(dek: &SecretBytes, object: Id) -> Result<SecretBytes, CryptoError> {
    kdf::hkdf(HashAlgorithm::Sha256, &object.0, dek.expose(), b"holdfast object v1 key", 32)
}

/// What was decided for a new object.
pub(crate) struct Decided {
    pub encryption: Encryption,
    pub key: Key,
}

impl Decided {
    /// Whether the ETag may be the MD5 of the plaintext.
    pub(crate) fn md5_etag(&self) -> bool {
        matches!(self.encryption, Encryption::Container { kms: false, .. } | Encryption::Off)
    }
}

impl Storage {
    /// Decides the encryption of a new object in `bucket`, and has its key ready.
    pub(crate) async fn decide(&self, call: &Arc<Call>, bucket: &Known, object: Id, asked: Asked) -> Result<Decided> {
        let Asked { sse, kek, context, bucket_key, customer } = asked;
        let customer = customer.check()?;
        if let Some(customer) = customer {
            if sse.is_some() || kek.is_some() {
                return Err(invalid_argument(
                    "SSE-C and server-side encryption with the service's keys exclude each other",
                ));
            }
            if bucket.blocks_customer_keys {
                return Err(Error::DeniedBecause(
                    "Access Denied: the bucket blocks server-side encryption with customer-provided keys (SSE-C)"
                        .into(),
                ));
            }
            self.refuse_if_off()?;
            let CheckedCustomerKey { key, key_md5 } = customer;
            return Ok(Decided { encryption: Encryption::Customer { key_md5 }, key: Key::Customer(Arc::new(key)) });
        }
        if context.is_some() {
            return Err(not_implemented("Encryption contexts are not supported: Key Vault's wrapKey takes none"));
        }
        let asked_for = match sse.as_ref().map(dto::ServerSideEncryption::as_str) {
            None => None,
            Some("AES256") => Some(false),
            Some("aws:kms") => Some(true),
            Some("aws:kms:dsse") => return Err(not_implemented("aws:kms:dsse is not supported")),
            Some(_) => return Err(invalid_argument("The encryption method specified is not supported")),
        };
        if kek.is_some() && asked_for != Some(true) {
            return Err(invalid_argument("A KMS key id needs x-amz-server-side-encryption: aws:kms"));
        }
        if asked_for.is_some() {
            self.refuse_if_off()?;
        }
        if self.config.encryption_off {
            return Ok(Decided { encryption: Encryption::Off, key: Key::None });
        }
        let default = bucket.default.as_ref();
        let kms = asked_for.unwrap_or_else(|| default.is_some_and(|default| default.kms));
        if !kms {
            let container = bucket.deks.first().ok_or_else(|| damaged("a bucket", &bucket.name))?;
            let key = self.container_key(container, object).await?;
            return Ok(Decided { encryption: Encryption::Container { dek: container.id, kms: false }, key });
        }
        let default_kek = default.and_then(|default| default.kek.clone());
        let kek = kek.or(default_kek).unwrap_or_else(|| self.config.default_kek.clone());
        self.check_kek(&kek)?;
        let with_container = bucket_key.unwrap_or_else(|| default.is_some_and(|default| default.bucket_key));
        if with_container {
            let container = self.container_dek(call, bucket, &kek).await?;
            let key = self.container_key(&container, object).await?;
            return Ok(Decided { encryption: Encryption::Container { dek: container.id, kms: true }, key });
        }
        let (wrapped, dek) = self.new_dek(&kek).await?;
        let envelope = Envelope::new(&wrapped, self.now_millis());
        let encryption = Encryption::Object { dek: Id::random(self.ambient()), kek, envelope };
        Ok(Decided { encryption, key: Key::Held { dek, wrapped: Arc::new(wrapped), object_key: None } })
    }

    fn refuse_if_off(&self) -> Result<()> {
        if self.config.encryption_off {
            return Err(not_implemented("Encryption is off on this server, and the request asks for it"));
        }
        Ok(())
    }

    pub(crate) fn check_kek(&self, kek: &str) -> Result<()> {
        if self.deks.keks().knows(kek) {
            return Ok(());
        }
        Err(from_kek(KekError::NotFound(kek.chars().take(200).collect())))
    }

    /// Draws a DEK and has it wrapped: the one call to the key service that a write under its own DEK costs.
    pub(crate) async fn new_dek(&self, kek: &str) -> Result<(WrappedDek, Arc<Dek>)> {
        let mut dek = SecretBytes::zeroed(32);
        self.ambient().fill(dek.expose_mut());
        let asked = Instant::now();
        let wrapped = self.deks.keks().wrap(kek, &dek).await.map_err(from_kek)?;
        let held = self.deks.insert(&wrapped, dek, asked);
        Ok((wrapped, held))
    }

    /// A new container DEK under `kek`.
    pub(crate) async fn new_container_dek(&self, kek: &str) -> Result<ContainerDek> {
        let (wrapped, _) = self.new_dek(kek).await?;
        let envelope = Envelope::new(&wrapped, self.now_millis());
        Ok(ContainerDek { id: Id::random(self.ambient()), kek: kek.into(), envelope })
    }

    /// The bucket's DEK under `kek`, made at its first use.
    async fn container_dek(&self, call: &Arc<Call>, bucket: &Known, kek: &str) -> Result<ContainerDek> {
        if let Some(found) = bucket.deks.iter().skip(1).find(|dek| dek.kek == kek) {
            return Ok(found.clone());
        }
        let made = self.new_container_dek(kek).await?;
        let (call, known, kek) = (Arc::clone(call), bucket.clone(), kek.to_owned());
        self.transact(move |view| {
            let bucket = view.grant_same(&call, &known)?;
            let mut record = bucket.record();
            // Somebody else may have made it meanwhile.
            let (dek, writes) = match record.deks.iter().skip(1).find(|dek| dek.kek == kek) {
                Some(found) => (found.clone(), Vec::new()),
                None => {
                    record.deks.push(made.clone());
                    let row = IndexWrite::put(rows::bucket(&record.name), crate::record::encode(&record, &[]));
                    (made, vec![row])
                }
            };
            let about = About::kek(&dek.envelope.kek_url);
            Ok((dek, bucket.change_aside("CreateBucketDataKey", Action::ObjectWrite, about, writes)?))
        })
        .await
    }

    async fn container_key(&self, container: &ContainerDek, object: Id) -> Result<Key> {
        let mut key = self.held_key(&container.envelope).await?;
        if let Key::Held { dek, object_key, .. } = &mut key {
            let derived = object_key_of(&dek.key, object).map_err(|_| damaged("a container DEK", &container.kek))?;
            *object_key = Some(Arc::new(derived));
        }
        Ok(key)
    }

    /// The DEK in an envelope.
    pub(crate) async fn held_key(&self, envelope: &Envelope) -> Result<Key> {
        let wrapped = envelope.to_wrapped().ok_or_else(|| damaged("an envelope", &envelope.kek_url))?;
        let dek = self.deks.unwrap(&wrapped).await.map_err(from_kek)?;
        Ok(Key::Held { dek, wrapped: Arc::new(wrapped), object_key: None })
    }

    /// The key of something stored.
    pub(crate) async fn key_for(
        &self,
        bucket: &Known,
        encryption: &Encryption,
        object: Id,
        customer: CustomerKey,
    ) -> Result<Key> {
        let customer = customer.check()?;
        match (encryption, customer) {
            (Encryption::Customer { key_md5 }, Some(given)) => {
                if given.key_md5 != *key_md5 {
                    return Err(Error::DeniedBecause(
                        "The key given is not the one the object was stored under".into(),
                    ));
                }
                Ok(Key::Customer(Arc::new(given.key)))
            }
            (Encryption::Customer { .. }, None) => Err(invalid_request(
                "The object was stored using a form of Server Side Encryption. \
                 The correct parameters must be provided to retrieve the object.",
            )),
            (_, Some(_)) => Err(invalid_request("The object was not stored under a customer's key")),
            (Encryption::Container { dek, .. }, None) => {
                let container = bucket.deks.iter().find(|container| container.id == *dek);
                self.container_key(container.ok_or_else(|| damaged("a container DEK", &bucket.name))?, object).await
            }
            (Encryption::Object { envelope, .. }, None) => self.held_key(envelope).await,
            (Encryption::Off, None) => Ok(Key::None),
        }
    }

    /// The same key, asked for again if its time is over or all was forgotten.
    pub(crate) async fn still_allowed(&self, key: &mut Key) -> Result<(), KekError> {
        if let Key::Held { dek, wrapped, .. } = key
            && !self.deks.is_good(dek)
        {
            *dek = self.deks.unwrap(wrapped).await?;
        }
        Ok(())
    }

    /// What answers say of an object's encryption: the KEK as it was asked for, though its versions come and go.
    pub(crate) fn told(&self, call: &Call, bucket: &Known, encryption: &Encryption) -> Told {
        let mut told = Told::default();
        match encryption {
            Encryption::Container { kms: false, .. } => {
                told.sse = Some(dto::ServerSideEncryption::from_static("AES256"))
            }
            Encryption::Container { dek, kms: true } => {
                told.sse = Some(dto::ServerSideEncryption::from_static("aws:kms"));
                let find = |bucket: &Known| {
                    let container = bucket.deks.iter().find(|container| container.id == *dek);
                    container.map(|container| container.kek.clone())
                };
                // The DEK may have been made for this very request, after the bucket was looked at.
                let now = || self.look(|view| Ok(view.grant_same(call, bucket)?.known())).ok().as_ref().and_then(find);
                told.kek = find(bucket).or_else(now);
                told.bucket_key = Some(true);
            }
            Encryption::Object { kek, .. } => {
                told.sse = Some(dto::ServerSideEncryption::from_static("aws:kms"));
                told.kek = Some(kek.clone());
            }
            Encryption::Customer { key_md5 } => {
                told.customer_algorithm = Some("AES256".into());
                told.customer_key_md5 = Some(key_md5.clone());
            }
            Encryption::Off => {}
        }
        told
    }
}

/// Encryption as an answer tells it.
#[derive(Default)]
pub(crate) struct Told {
    pub sse: Option<dto::ServerSideEncryption>,
    pub kek: Option<String>,
    pub bucket_key: Option<bool>,
    pub customer_algorithm: Option<String>,
    pub customer_key_md5: Option<String>,
}
