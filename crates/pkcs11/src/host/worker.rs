//! One session and what is done in it.

use std::sync::Arc;

use cryptoki::{
    error::Error,
    mechanism::{
        Mechanism, MechanismInfo, MechanismType,
        aead::GcmParams,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
        vendor_defined::VendorDefinedMechanism,
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use holdfast_core::{ExternalWrap, HsmError, KeyOperation, KeyOperations, TokenObject, Trouble};
use holdfast_crypto::{EncryptionPadding, SecretBytes, WrapPadding, kdf};

use super::{
    fault::{Fault, brief, classify, code_name},
    objects::{Found, ObjectCache, Search},
    token::Token,
};
use crate::{
    message::{Answer, Call, LIST_PAGE, words},
    profile::{AesWrap, GcmIv},
};

const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// IVs drawn from the token at once: a round trip to a network HSM for each would double its work.
const IV_RESERVE_BYTES: usize = 256 * IV_BYTES;

/// A session with its thread's state.
pub(super) struct Worker {
    token: Arc<Token>,
    session: Session,
    objects: Arc<ObjectCache>,
    ivs: Vec<u8>,
    lost: bool,
    /// Opening a session anew.
    trouble: Trouble,
}

/// Failed at the HSM, or refused by us.
enum Failure {
    Token(Error),
    Refused(HsmError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Token(error)
    }
}

impl From<HsmError> for Failure {
    fn from(error: HsmError) -> Self {
        Self::Refused(error)
    }
}

impl Worker {
    pub(super) fn new(token: Arc<Token>, session: Session, objects: Arc<ObjectCache>) -> Self {
        Self { token, session, objects, ivs: Vec::new(), lost: false, trouble: Trouble::default() }
    }

    /// Whether the token is gone and the process should end.
    pub(super) fn token_lost(&self) -> bool {
        self.lost
    }

    /// Does what is asked; once more if only a handle or the session had gone stale.
    pub(super) fn perform(&mut self, call: Call) -> Answer {
        let mut again = true;
        loop {
            let error = match self.attempt(&call) {
                Ok(answer) => return answer,
                Err(Failure::Refused(error)) => return Answer::Failed(error),
                Err(Failure::Token(error)) => error,
            };
            tracing::debug!(error = brief(&error), "an HSM call failed");
            let fault = classify(&error);
            if again && self.recover(fault, &call) {
                again = false;
                continue;
            }
            return Answer::Failed(self.refuse(fault, &error));
        }
    }

    /// Mends what went stale. True if the call is worth another try.
    fn recover(&mut self, fault: Fault, call: &Call) -> bool {
        match (fault, call) {
            (
                Fault::StaleObject,
                Call::Decrypt { object, .. }
                | Call::Encrypt { object, .. }
                | Call::Unwrap { object, .. }
                | Call::Wrap { object, .. },
            ) => {
                self.objects.evict(object);
                true
            }
            (Fault::StaleSession, _) => match self.token.session() {
                Ok(session) => {
                    self.session = session;
                    self.trouble.ends();
                    true
                }
                Err(why) => {
                    if self.trouble.begins() {
                        tracing::warn!(why, "a session could not be opened anew");
                    }
                    false
                }
            },
            _ => false,
        }
    }

    fn refuse(&mut self, fault: Fault, error: &Error) -> HsmError {
        match fault {
            Fault::Input => HsmError::InvalidInput(words::UNFIT),
            Fault::NoMechanism => HsmError::InvalidInput(words::NO_MECHANISM),
            Fault::NotAllowed => HsmError::OperationNotAllowed,
            Fault::StaleObject => HsmError::NotFound,
            Fault::TokenLost | Fault::StaleSession => {
                self.lost = true;
                HsmError::Unavailable(brief(error))
            }
            Fault::Other => {
                self.lost = !self.is_well();
                HsmError::Unavailable(brief(error))
            }
        }
    }

    /// Whether session and token answer as they should.
    fn is_well(&self) -> bool {
        self.token.is_present() && self.session.get_session_info().is_ok()
    }

    fn attempt(&mut self, call: &Call) -> Result<Answer, Failure> {
        match call {
            Call::Create { object, usage, value } => self.create(object, *usage, value.as_ref()),
            Call::Decrypt { object, iv, aad, ciphertext, tag } => {
                let key = self.find(object)?;
                self.decrypt(&key, iv, aad, &[ciphertext.as_slice(), tag].concat()).map(Answer::Plaintext)
            }
            Call::Describe { object } => match self.objects.search(&self.session, object)? {
                Search::One(found) => Ok(Answer::Key(found.key)),
                Search::None => Err(self.nothing_there()),
                Search::Several => Err(HsmError::InvalidInput(words::AMBIGUOUS).into()),
            },
            Call::Encrypt { object, plaintext, aad, integrity } => {
                self.encrypt(object, plaintext, aad, integrity.as_deref())
            }
            Call::List { page } => {
                let (keys, more) = self.objects.list(&self.session, *page as usize, LIST_PAGE)?;
                Ok(Answer::Keys { keys, more })
            }
            Call::Probe => {
                if self.is_well() {
                    Ok(Answer::Done)
                } else {
                    self.lost = true;
                    Err(HsmError::Unavailable("the token does not answer".into()).into())
                }
            }
            Call::Unwrap { object, wrap, wrapped } => self.unwrap(object, *wrap, wrapped),
            Call::Wrap { object, wrap, key } => self.wrap(object, *wrap, key),
        }
    }

    /// An object that is not there, or a token that is not there?
    fn nothing_there(&mut self) -> Failure {
        if self.is_well() {
            return HsmError::NotFound.into();
        }
        self.lost = true;
        HsmError::Unavailable("the token does not answer".into()).into()
    }

    fn find(&mut self, object: &TokenObject) -> Result<Found, Failure> {
        if let Some(found) = self.objects.cached(object) {
            return Ok(found);
        }
        match self.objects.search(&self.session, object)? {
            Search::One(found) => Ok(found),
            Search::None => Err(self.nothing_there()),
            Search::Several => Err(HsmError::InvalidInput(words::AMBIGUOUS).into()),
        }
    }

    fn require(&self, mechanism: MechanismType, does: impl Fn(&MechanismInfo) -> bool) -> Result<(), HsmError> {
        match self.token.mechanism(mechanism) {
            Some(info) if does(info) => Ok(()),
            _ => Err(HsmError::InvalidInput(words::NO_MECHANISM)),
        }
    }

    fn new_iv(&mut self) -> Result<[u8; IV_BYTES], Failure> {
        let mut iv = [0; IV_BYTES];
        match self.token.profile().gcm_iv {
            // Drawn by the HSM as it encrypts.
            GcmIv::Appended | GcmIv::Inside => {}
            GcmIv::System => {
                getrandom::fill(&mut iv).map_err(|_| HsmError::Unavailable("no entropy".into()))?;
            }
            GcmIv::Token => {
                if self.ivs.len() < IV_BYTES {
                    let mut reserve = vec![0; IV_RESERVE_BYTES];
                    self.session.generate_random_slice(&mut reserve)?;
                    self.ivs = reserve;
                }
                iv.copy_from_slice(&self.ivs.split_off(self.ivs.len() - IV_BYTES));
            }
        }
        Ok(iv)
    }

    fn encrypt(
        &mut self,
        object: &TokenObject,
        plaintext: &SecretBytes,
        aad: &[u8],
        integrity: Option<&[u8]>,
    ) -> Result<Answer, Failure> {
        let key = self.find(object)?;
        let needs_decrypt = integrity.is_some() && !key.key.usage.contains(KeyOperation::Decrypt);
        if needs_decrypt || !key.key.usage.contains(KeyOperation::Encrypt) {
            return Err(HsmError::OperationNotAllowed.into());
        }
        self.require(MechanismType::AES_GCM, MechanismInfo::encrypt)?;
        self.check_aad(aad)?;
        let mut iv = self.new_iv()?;
        let params = GcmParams::new(&mut iv, aad, 128.into())?;
        let mut out = self.session.encrypt(&Mechanism::AesGcm(params), key.handle, plaintext.expose())?;
        if self.token.profile().gcm_iv == GcmIv::Appended {
            let at = out.len().checked_sub(IV_BYTES).ok_or(HsmError::InvalidInput(words::SHORT))?;
            iv.copy_from_slice(&out.split_off(at));
        }
        if out.len() != plaintext.len() + TAG_BYTES {
            return Err(HsmError::InvalidInput(words::SHORT).into());
        }
        let tag = out.split_off(plaintext.len());
        // At once, over what came out of the HSM; and only then the check.
        let value = integrity.map(|prefix| kdf::sha256(&[prefix, &iv, &out, &tag]));
        if value.is_some() {
            let again = self.decrypt(&key, &iv, aad, &[out.as_slice(), &tag].concat())?;
            if !again.ct_eq(plaintext.expose()) {
                return Err(HsmError::InvalidInput(words::CHECK_FAILED).into());
            }
        }
        Ok(Answer::Ciphertext { iv: iv.to_vec(), ciphertext: out, tag, integrity: value })
    }

    fn check_aad(&self, aad: &[u8]) -> Result<(), HsmError> {
        if aad.len() > self.token.profile().gcm_aad_bytes_max {
            return Err(HsmError::InvalidInput(words::AAD_TOO_LONG));
        }
        Ok(())
    }

    fn decrypt(&mut self, key: &Found, iv: &[u8], aad: &[u8], sealed: &[u8]) -> Result<SecretBytes, Failure> {
        if !key.key.usage.contains(KeyOperation::Decrypt) {
            return Err(HsmError::OperationNotAllowed.into());
        }
        self.require(MechanismType::AES_GCM, MechanismInfo::decrypt)?;
        self.check_aad(aad)?;
        let mut iv = iv.to_vec();
        let params = GcmParams::new(&mut iv, aad, 128.into())?;
        match self.session.decrypt(&Mechanism::AesGcm(params), key.handle, sealed) {
            Ok(plaintext) => Ok(SecretBytes::take(plaintext)),
            Err(error) if self.means_rejected(&error) => Err(HsmError::Rejected.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn means_rejected(&self, error: &Error) -> bool {
        let Some(name) = code_name(error) else { return false };
        let profile = self.token.profile();
        profile.rejected.contains(&name) || (profile.rejected_if_well.contains(&name) && self.is_well())
    }

    fn create(
        &self,
        object: &TokenObject,
        usage: KeyOperations,
        value: Option<&SecretBytes>,
    ) -> Result<Answer, Failure> {
        if !matches!(self.objects.search(&self.session, object)?, Search::None) {
            return Err(HsmError::InvalidInput(words::EXISTS).into());
        }
        let may = |operation| usage.contains(operation);
        let label = object.label.clone().unwrap_or_default().into_bytes();
        let mut template = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Label(label.clone()),
            Attribute::Id(object.id.clone().unwrap_or(label)),
            Attribute::Encrypt(may(KeyOperation::Encrypt)),
            Attribute::Decrypt(may(KeyOperation::Decrypt)),
            Attribute::Wrap(may(KeyOperation::WrapKey)),
            Attribute::Unwrap(may(KeyOperation::UnwrapKey)),
            Attribute::Sign(false),
            Attribute::Verify(false),
        ];
        let session = self.token.writing_session()?;
        match value {
            None => {
                self.require(MechanismType::AES_KEY_GEN, MechanismInfo::generate)?;
                template.push(Attribute::ValueLen(32.into()));
                session.generate_key(&Mechanism::AesKeyGen, &template)?;
            }
            Some(value) => {
                template.push(Attribute::Class(ObjectClass::SECRET_KEY));
                template.push(Attribute::KeyType(KeyType::AES));
                template.push(Attribute::Value(value.expose().to_vec()));
                session.create_object(&template)?;
                erase(&mut template);
            }
        }
        Ok(Answer::Done)
    }

    fn wrap(&mut self, object: &TokenObject, wrap: ExternalWrap, key: &SecretBytes) -> Result<Answer, Failure> {
        let found = self.find(object)?;
        let ExternalWrap::Aes(padding) = wrap else {
            // Needs no private half: the caller does it with the public one.
            return Err(HsmError::InvalidInput(words::NO_MECHANISM).into());
        };
        if !found.key.usage.contains(KeyOperation::WrapKey) {
            return Err(HsmError::OperationNotAllowed.into());
        }
        let whole_blocks_only = padding == WrapPadding::Padded && self.token.profile().kwp_whole_blocks_only;
        if whole_blocks_only && !key.len().is_multiple_of(8) {
            return Err(HsmError::InvalidInput(words::NO_MECHANISM).into());
        }
        let (mechanism, kind) = self.aes_wrap_mechanism(padding);
        match self.token.profile().aes_wrap {
            AesWrap::Encrypt => {
                self.require(kind, MechanismInfo::encrypt)?;
                Ok(Answer::Wrapped(self.session.encrypt(&mechanism, found.handle, key.expose())?))
            }
            AesWrap::Object => {
                self.require(kind, MechanismInfo::wrap)?;
                Ok(Answer::Wrapped(self.wrap_object(&mechanism, found.handle, key.expose())?))
            }
        }
    }

    fn unwrap(&mut self, object: &TokenObject, wrap: ExternalWrap, wrapped: &[u8]) -> Result<Answer, Failure> {
        let found = self.find(object)?;
        let unwrapped = match wrap {
            ExternalWrap::Rsa(padding) => {
                if !found.key.usage.contains(KeyOperation::Decrypt) {
                    return Err(HsmError::OperationNotAllowed.into());
                }
                self.require(MechanismType::RSA_PKCS_OAEP, MechanismInfo::decrypt)?;
                self.session.decrypt(&Mechanism::RsaPkcsOaep(oaep(padding)?), found.handle, wrapped)
            }
            ExternalWrap::Aes(padding) => {
                if !found.key.usage.contains(KeyOperation::UnwrapKey) {
                    return Err(HsmError::OperationNotAllowed.into());
                }
                let (mechanism, kind) = self.aes_wrap_mechanism(padding);
                match self.token.profile().aes_wrap {
                    AesWrap::Encrypt => {
                        self.require(kind, MechanismInfo::decrypt)?;
                        self.session.decrypt(&mechanism, found.handle, wrapped)
                    }
                    AesWrap::Object => {
                        self.require(kind, MechanismInfo::unwrap)?;
                        self.unwrap_object(&mechanism, found.handle, wrapped)
                    }
                }
            }
        };
        match unwrapped {
            Ok(value) => Ok(Answer::Plaintext(SecretBytes::take(value))),
            Err(error) if classify(&error) == Fault::Input || self.means_rejected(&error) => {
                Err(HsmError::Rejected.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn wrap_object(&self, mechanism: &Mechanism<'_>, key: ObjectHandle, value: &[u8]) -> Result<Vec<u8>, Error> {
        let mut template = session_object();
        template.push(Attribute::Value(value.to_vec()));
        let handle = self.session.create_object(&template);
        erase(&mut template);
        let handle = handle?;
        let wrapped = self.session.wrap_key(mechanism, key, handle);
        self.discard(handle);
        wrapped
    }

    fn unwrap_object(&self, mechanism: &Mechanism<'_>, key: ObjectHandle, wrapped: &[u8]) -> Result<Vec<u8>, Error> {
        let handle = self.session.unwrap_key(mechanism, key, wrapped, &session_object())?;
        let value = self.session.get_attributes(handle, &[AttributeType::Value]);
        self.discard(handle);
        match value?.pop() {
            Some(Attribute::Value(value)) => Ok(value),
            _ => Err(Error::InvalidValue),
        }
    }

    fn discard(&self, handle: ObjectHandle) {
        if let Err(error) = self.session.destroy_object(handle) {
            tracing::warn!(error = brief(&error), "a session object could not be destroyed; it goes with its session");
        }
    }

    fn aes_wrap_mechanism(&self, padding: WrapPadding) -> (Mechanism<'static>, MechanismType) {
        match padding {
            WrapPadding::None => (Mechanism::AesKeyWrap, MechanismType::AES_KEY_WRAP),
            WrapPadding::Padded => padded_wrap(self.token.profile().kwp_mechanism),
        }
    }
}

/// RFC 5649 goes by two numbers.
fn padded_wrap(number: u64) -> (Mechanism<'static>, MechanismType) {
    let pad = MechanismType::AES_KEY_WRAP_PAD;
    if number == *pad {
        return (Mechanism::AesKeyWrapPad, pad);
    }
    match MechanismType::try_from(number) {
        Ok(kind) => (Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(kind, None)), kind),
        Err(_) => (Mechanism::AesKeyWrapPad, pad),
    }
}

/// A key that lives as long as one call and can be read.
fn session_object() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn erase(template: &mut [Attribute]) {
    for attribute in template {
        if let Attribute::Value(value) = attribute {
            holdfast_crypto::secret::erase(value);
        }
    }
}

fn oaep(padding: EncryptionPadding) -> Result<PkcsOaepParams<'static>, HsmError> {
    let (hash, mgf) = match padding {
        EncryptionPadding::OaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        EncryptionPadding::OaepSha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        EncryptionPadding::Pkcs1 => return Err(HsmError::InvalidInput(words::NO_MECHANISM)),
    };
    Ok(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}
