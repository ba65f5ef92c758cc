//! The module, the token in it, and the login.

use std::collections::BTreeMap;

use cryptoki::{
    context::Pkcs11,
    error::{Error, RvError},
    mechanism::{MechanismInfo, MechanismType},
    session::{Session, UserType},
    slot::Slot,
    types::RawAuthPin,
};
use holdfast_crypto::SecretBytes;

use super::{
    fault::brief,
    raw::{self, token_words},
};
use crate::{Profile, TokenSelector, message::Setup, profile::AesWrap};

/// Why the token does not open.
pub(super) struct OpenError {
    /// Trying again would not help.
    pub lasting: bool,
    pub why: String,
}

/// A token with a user logged in.
pub(super) struct Token {
    module: Pkcs11,
    /// Where the module was loaded from.
    path: String,
    slot: Slot,
    serial: String,
    model: String,
    profile: Profile,
    mechanisms: BTreeMap<u64, MechanismInfo>,
    pin: SecretBytes,
    /// Kept open so that the login lasts when the others are closed.
    _login: LoginSession,
}

/// A session that one thread after the other may hold, and nobody uses.
struct LoginSession(#[expect(dead_code, reason = "it is only held")] std::sync::Mutex<Session>);

impl Token {
    pub(super) fn open(setup: &Setup) -> Result<Self, OpenError> {
        let failed = |what: &str, error: &Error| OpenError { lasting: false, why: format!("{what}: {}", brief(error)) };
        let module = Pkcs11::new(&setup.module).map_err(|error| failed(&setup.module, &error))?;
        raw::initialize(&module, setup.library_parameters.as_deref()).map_err(|error| failed(&setup.module, &error))?;
        let slot = find_slot(&module, setup)?;
        let info = token_words(&module, &setup.module, slot).map_err(|error| failed("the token", &error))?;
        let library = module.get_library_info().map_err(|error| failed(&setup.module, &error))?;
        let model = format!("{} {} {}", info.manufacturer, info.model, info.firmware);
        let profile = match &setup.profile {
            Some(profile) => profile.clone(),
            None => Profile::matching(&[
                &info.manufacturer,
                &info.model,
                library.manufacturer_id(),
                library.library_description(),
            ])
            .map_err(|error| OpenError { lasting: true, why: error.to_string() })?,
        };
        let mechanisms = probe_mechanisms(&module, slot).map_err(|error| failed("the token's mechanisms", &error))?;
        let session = module.open_ro_session(slot).map_err(|error| failed("a session", &error))?;
        log_in(&session, &setup.pin)?;
        Ok(Self {
            slot,
            path: setup.module.clone(),
            serial: info.serial,
            model,
            profile,
            mechanisms,
            pin: SecretBytes::copy_of(setup.pin.expose()),
            _login: LoginSession(std::sync::Mutex::new(session)),
            module,
        })
    }

    /// A session for reading and using keys.
    pub(super) fn session(&self) -> Result<Session, String> {
        let session = self.module.open_ro_session(self.slot).map_err(|error| brief(&error))?;
        log_in(&session, &self.pin).map_err(|error| error.why)?;
        Ok(session)
    }

    /// A session that may make token objects.
    pub(super) fn writing_session(&self) -> Result<Session, Error> {
        self.module.open_rw_session(self.slot)
    }

    /// Whether the slot still holds the token that was opened.
    pub(super) fn is_present(&self) -> bool {
        token_words(&self.module, &self.path, self.slot).is_ok_and(|info| info.serial == self.serial)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What keys in this token cannot be used for, in words; empty if it has everything.
    pub(super) fn lacks(&self) -> String {
        let has = |kind, does: fn(&MechanismInfo) -> bool| self.mechanism(kind).is_some_and(does);
        let mut lacks = Vec::new();
        if !has(MechanismType::AES_GCM, MechanismInfo::encrypt) {
            lacks.push("no AES-GCM: its AES keys cannot serve an external key store of AWS KMS");
        }
        let wraps = match self.profile.aes_wrap {
            AesWrap::Encrypt => has(MechanismType::AES_KEY_WRAP, MechanismInfo::encrypt),
            AesWrap::Object => has(MechanismType::AES_KEY_WRAP, MechanismInfo::wrap),
        };
        if !wraps {
            lacks.push("no AES key wrap: its AES keys cannot serve a Managed HSM");
        }
        if !has(MechanismType::RSA_PKCS_OAEP, MechanismInfo::decrypt) {
            lacks.push("no RSA-OAEP: its RSA keys cannot serve a Managed HSM");
        }
        lacks.join("; ")
    }

    /// What the token says of a mechanism; nothing if it has none.
    pub(super) fn mechanism(&self, mechanism: MechanismType) -> Option<&MechanismInfo> {
        self.mechanisms.get(&number(mechanism))
    }
}

fn number(mechanism: MechanismType) -> u64 {
    *mechanism
}

fn probe_mechanisms(module: &Pkcs11, slot: Slot) -> Result<BTreeMap<u64, MechanismInfo>, Error> {
    let mut found = BTreeMap::new();
    for mechanism in module.get_mechanism_list(slot)? {
        if let Ok(info) = module.get_mechanism_info(slot, mechanism) {
            found.insert(number(mechanism), info);
        }
    }
    Ok(found)
}

fn find_slot(module: &Pkcs11, setup: &Setup) -> Result<Slot, OpenError> {
    let wanted = &setup.token;
    let slots = module
        .get_slots_with_token()
        .map_err(|error| OpenError { lasting: false, why: format!("the slots: {}", brief(&error)) })?;
    let mut found = Vec::new();
    for slot in slots {
        let info = match token_words(module, &setup.module, slot) {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(%slot, error = brief(&error), "a slot's token does not say what it is");
                continue;
            }
        };
        let fits = match wanted {
            TokenSelector::Label(label) => info.label == *label,
            TokenSelector::Serial(serial) => info.serial == *serial,
        };
        if fits {
            found.push(slot);
        }
    }
    match (found.as_slice(), wanted) {
        ([slot], _) => Ok(*slot),
        ([], TokenSelector::Label(name) | TokenSelector::Serial(name)) => {
            Err(OpenError { lasting: false, why: format!("no slot holds a token {name:?}") })
        }
        (_, TokenSelector::Label(name) | TokenSelector::Serial(name)) => Err(OpenError {
            lasting: true,
            why: format!("several slots hold a token {name:?}: name its serial number"),
        }),
    }
}

fn log_in(session: &Session, pin: &SecretBytes) -> Result<(), OpenError> {
    let pin = RawAuthPin::new(Box::new(pin.expose().to_vec()));
    match session.login_with_raw(UserType::User, &pin) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(error) => {
            // A wrong PIN tried again and again locks the token.
            let lasting = matches!(
                error,
                Error::Pkcs11(
                    RvError::PinIncorrect
                        | RvError::PinInvalid
                        | RvError::PinLenRange
                        | RvError::PinExpired
                        | RvError::PinLocked
                        | RvError::UserPinNotInitialized,
                    _
                )
            );
            Err(OpenError { lasting, why: format!("the login: {}", brief(&error)) })
        }
    }
}
