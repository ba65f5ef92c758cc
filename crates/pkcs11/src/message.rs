//! Messages between a proxy and its hosts, one in each packet. Both ends are the same program, of the same version.

mod fields;

use std::ffi::{CStr, CString};

use fields::{Fields, Reader};
use holdfast_core::{ExternalKey, ExternalWrap, HsmError, KeyOperations, TokenObject};
use holdfast_crypto::{EncryptionPadding, SecretBytes, WrapPadding};

use crate::{Pkcs11Config, Profile, TokenSelector};

/// Longest packet. The kernel's default send buffer takes it.
pub(crate) const PACKET_BYTES_MAX: usize = 160 * 1024;
/// Keys in one answer to [`Call::List`]: so few that a session is not kept from other calls for long.
pub(crate) const LIST_PAGE: usize = 64;

/// What a host is started with.
pub(crate) struct Setup {
    pub module: String,
    pub token: TokenSelector,
    /// The profile's text, if it is not to be found by the host.
    pub profile: Option<Profile>,
    pub sessions: u16,
    /// For the library, in C_Initialize. They may hold a password.
    pub library_parameters: Option<CString>,
    pub pin: SecretBytes,
}

/// How the start went.
pub(crate) enum Started {
    Ready {
        model: String,
        profile: String,
        sessions: u16,
        /// What keys of the token cannot do, which is no fault of it.
        lacks: String,
        warning: String,
    },
    /// `lasting`: trying again would not help, and might lock the token.
    Failed { lasting: bool, why: String },
}

/// One request to a host.
pub(crate) struct Request {
    pub id: u64,
    /// CLOCK_MONOTONIC, nanoseconds: after it nobody waits for the answer.
    pub deadline: u64,
    pub call: Call,
}

/// What a host is asked.
pub(crate) enum Call {
    Create {
        object: TokenObject,
        usage: KeyOperations,
        value: Option<SecretBytes>,
    },
    Decrypt {
        object: TokenObject,
        iv: Vec<u8>,
        aad: Vec<u8>,
        ciphertext: Vec<u8>,
        tag: Vec<u8>,
    },
    Describe {
        object: TokenObject,
    },
    Encrypt {
        object: TokenObject,
        plaintext: SecretBytes,
        aad: Vec<u8>,
        integrity: Option<Vec<u8>>,
    },
    /// One page of all keys. The first one looks at the token, the others go on from there.
    List {
        page: u32,
    },
    Probe,
    Unwrap {
        object: TokenObject,
        wrap: ExternalWrap,
        wrapped: Vec<u8>,
    },
    Wrap {
        object: TokenObject,
        wrap: ExternalWrap,
        key: SecretBytes,
    },
}

/// What a host answers.
pub(crate) enum Answer {
    Ciphertext { iv: Vec<u8>, ciphertext: Vec<u8>, tag: Vec<u8>, integrity: Option<[u8; 32]> },
    Done,
    Failed(HsmError),
    Key(ExternalKey),
    Keys { keys: Vec<(TokenObject, ExternalKey)>, more: bool },
    Plaintext(SecretBytes),
    Wrapped(Vec<u8>),
}

/// A packet that is not one of ours.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("a message between proxy and HSM host is malformed")]
pub(crate) struct Malformed;

fn wrap_code(wrap: ExternalWrap) -> u8 {
    match wrap {
        ExternalWrap::Aes(WrapPadding::None) => 0,
        ExternalWrap::Aes(WrapPadding::Padded) => 1,
        ExternalWrap::Rsa(EncryptionPadding::OaepSha1) => 2,
        ExternalWrap::Rsa(EncryptionPadding::OaepSha256) => 3,
        ExternalWrap::Rsa(EncryptionPadding::Pkcs1) => 4,
    }
}

fn wrap_of(code: u8) -> Result<ExternalWrap, Malformed> {
    Ok(match code {
        0 => ExternalWrap::Aes(WrapPadding::None),
        1 => ExternalWrap::Aes(WrapPadding::Padded),
        2 => ExternalWrap::Rsa(EncryptionPadding::OaepSha1),
        3 => ExternalWrap::Rsa(EncryptionPadding::OaepSha256),
        4 => ExternalWrap::Rsa(EncryptionPadding::Pkcs1),
        _ => return Err(Malformed),
    })
}

impl Setup {
    pub(crate) fn new(config: &Pkcs11Config, pin: &SecretBytes) -> Self {
        Self {
            module: config.module.to_string_lossy().into_owned(),
            token: config.token.clone(),
            profile: config.profile.clone(),
            sessions: config.sessions,
            library_parameters: config.library_parameters.clone(),
            pin: SecretBytes::copy_of(pin.expose()),
        }
    }

    pub(crate) fn encode(&self) -> SecretBytes {
        let (kind, token) = match &self.token {
            TokenSelector::Label(label) => (0, label),
            TokenSelector::Serial(serial) => (1, serial),
        };
        let profile = self.profile.as_ref().map(profile_text);
        Fields::new(b'S')
            .bytes(self.module.as_bytes())
            .byte(kind)
            .bytes(token.as_bytes())
            .optional(profile.as_deref().map(str::as_bytes))
            .number(u64::from(self.sessions))
            .optional(self.library_parameters.as_deref().map(CStr::to_bytes))
            .bytes(self.pin.expose())
            .done()
    }

    pub(crate) fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader(packet.strip_prefix(b"S").ok_or(Malformed)?);
        let setup = Self {
            module: fields.text()?,
            token: match (fields.byte()?, fields.text()?) {
                (0, label) => TokenSelector::Label(label),
                (1, serial) => TokenSelector::Serial(serial),
                _ => return Err(Malformed),
            },
            profile: match fields.optional(Reader::text)? {
                None => None,
                Some(text) => Some(Profile::parse(&text).map_err(|_| Malformed)?),
            },
            sessions: u16::try_from(fields.number()?).map_err(|_| Malformed)?,
            library_parameters: match fields.optional(Reader::bytes)? {
                None => None,
                Some(bytes) => Some(CString::new(bytes).map_err(|_| Malformed)?),
            },
            pin: fields.secret()?,
        };
        fields.end()?;
        Ok(setup)
    }
}

/// The profile in the form that [`Profile::parse`] reads.
fn profile_text(profile: &Profile) -> String {
    let iv = match profile.gcm_iv {
        crate::profile::GcmIv::Appended => "appended",
        crate::profile::GcmIv::Inside => "inside",
        crate::profile::GcmIv::System => "system",
        crate::profile::GcmIv::Token => "token",
    };
    let wrap = match profile.aes_wrap {
        crate::profile::AesWrap::Encrypt => "encrypt",
        crate::profile::AesWrap::Object => "object",
    };
    format!(
        "name = {:?}\nmatches = {:?}\ngcm-iv = {iv:?}\ngcm-aad-bytes-max = {}\naes-wrap = {wrap:?}\nkwp-mechanism = {}\n\
         kwp-whole-blocks-only = {}\nrejected = {:?}\nrejected-if-well = {:?}\n",
        profile.name,
        profile.matches,
        profile.gcm_aad_bytes_max,
        profile.kwp_mechanism,
        profile.kwp_whole_blocks_only,
        profile.rejected,
        profile.rejected_if_well
    )
}

impl Started {
    pub(crate) fn encode(&self) -> SecretBytes {
        match self {
            Self::Ready { model, profile, sessions, lacks, warning } => Fields::new(b'R')
                .bytes(model.as_bytes())
                .bytes(profile.as_bytes())
                .number(u64::from(*sessions))
                .bytes(lacks.as_bytes())
                .bytes(warning.as_bytes())
                .done(),
            Self::Failed { lasting, why } => Fields::new(b'F').byte(u8::from(*lasting)).bytes(why.as_bytes()).done(),
        }
    }

    pub(crate) fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let (kind, rest) = packet.split_first().ok_or(Malformed)?;
        let mut fields = Reader(rest);
        let started = match kind {
            b'R' => Self::Ready {
                model: fields.text()?,
                profile: fields.text()?,
                sessions: u16::try_from(fields.number()?).map_err(|_| Malformed)?,
                lacks: fields.text()?,
                warning: fields.text()?,
            },
            b'F' => Self::Failed { lasting: fields.flag()?, why: fields.text()? },
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(started)
    }
}

impl Request {
    pub(crate) fn encode(&self) -> SecretBytes {
        let begin = |kind| Fields::new(kind).number(self.id).number(self.deadline);
        match &self.call {
            Call::Create { object, usage, value } => begin(1)
                .object(object)
                .number(u64::from(usage.bits()))
                .optional(value.as_ref().map(SecretBytes::expose)),
            Call::Decrypt { object, iv, aad, ciphertext, tag } => {
                begin(2).object(object).bytes(iv).bytes(aad).bytes(ciphertext).bytes(tag)
            }
            Call::Describe { object } => begin(3).object(object),
            Call::Encrypt { object, plaintext, aad, integrity } => {
                begin(4).object(object).bytes(plaintext.expose()).bytes(aad).optional(integrity.as_deref())
            }
            Call::List { page } => begin(5).number(u64::from(*page)),
            Call::Probe => begin(6),
            Call::Unwrap { object, wrap, wrapped } => begin(7).object(object).byte(wrap_code(*wrap)).bytes(wrapped),
            Call::Wrap { object, wrap, key } => begin(8).object(object).byte(wrap_code(*wrap)).bytes(key.expose()),
        }
        .done()
    }

    pub(crate) fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let (kind, rest) = packet.split_first().ok_or(Malformed)?;
        let mut fields = Reader(rest);
        let (id, deadline) = (fields.number()?, fields.number()?);
        let call = match kind {
            1 => Call::Create {
                object: fields.object()?,
                usage: fields.usage()?,
                value: fields.optional(Reader::secret)?,
            },
            2 => Call::Decrypt {
                object: fields.object()?,
                iv: fields.bytes()?,
                aad: fields.bytes()?,
                ciphertext: fields.bytes()?,
                tag: fields.bytes()?,
            },
            3 => Call::Describe { object: fields.object()? },
            4 => Call::Encrypt {
                object: fields.object()?,
                plaintext: fields.secret()?,
                aad: fields.bytes()?,
                integrity: fields.optional(Reader::bytes)?,
            },
            5 => Call::List { page: u32::try_from(fields.number()?).map_err(|_| Malformed)? },
            6 => Call::Probe,
            7 => Call::Unwrap { object: fields.object()?, wrap: wrap_of(fields.byte()?)?, wrapped: fields.bytes()? },
            8 => Call::Wrap { object: fields.object()?, wrap: wrap_of(fields.byte()?)?, key: fields.secret()? },
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(Self { id, deadline, call })
    }
}

/// Errors that a host can answer with; what it cannot is a failure of the HSM.
fn error_fields(fields: Fields, error: &HsmError) -> Fields {
    match error {
        HsmError::Busy => fields.byte(0),
        HsmError::InvalidInput(why) => fields.byte(1).bytes(why.as_bytes()),
        HsmError::NotFound => fields.byte(2),
        HsmError::OperationNotAllowed => fields.byte(3),
        HsmError::Rejected => fields.byte(4),
        HsmError::TimedOut => fields.byte(5),
        HsmError::Unavailable(why) => fields.byte(6).bytes(why.as_bytes()),
        other => fields.byte(7).bytes(other.to_string().as_bytes()),
    }
}

/// Texts that a host answers with, so that they stay `&'static str` on this side.
pub(crate) mod words {
    pub(crate) const AMBIGUOUS: &str = "several keys of the token answer to this name";
    pub(crate) const EXISTS: &str = "the token has an object of this name already";
    pub(crate) const NO_MECHANISM: &str = "the HSM does not offer this algorithm";
    pub(crate) const UNFIT: &str = "the input does not fit the key or the algorithm";
    pub(crate) const AAD_TOO_LONG: &str = "the HSM does not take additional authenticated data of this length";
    pub(crate) const CHECK_FAILED: &str = "what the HSM encrypted did not decrypt to the same";
    pub(crate) const SHORT: &str = "the HSM's ciphertext has the wrong length";
    pub(super) const ALL: [&str; 7] = [AMBIGUOUS, EXISTS, NO_MECHANISM, UNFIT, AAD_TOO_LONG, CHECK_FAILED, SHORT];
}

fn known(text: &str) -> &'static str {
    words::ALL.into_iter().find(|known| *known == text).unwrap_or(words::UNFIT)
}

fn error_of(fields: &mut Reader<'_>) -> Result<HsmError, Malformed> {
    Ok(match fields.byte()? {
        0 => HsmError::Busy,
        1 => HsmError::InvalidInput(known(&fields.text()?)),
        2 => HsmError::NotFound,
        3 => HsmError::OperationNotAllowed,
        4 => HsmError::Rejected,
        5 => HsmError::TimedOut,
        6 => HsmError::Unavailable(fields.text()?),
        7 => HsmError::Unavailable(fields.text()?),
        _ => return Err(Malformed),
    })
}

impl Answer {
    pub(crate) fn encode(&self, id: u64) -> SecretBytes {
        let begin = |kind| Fields::new(kind).number(id);
        match self {
            Self::Ciphertext { iv, ciphertext, tag, integrity } => {
                begin(1).bytes(iv).bytes(ciphertext).bytes(tag).optional(integrity.as_ref().map(<[u8; 32]>::as_slice))
            }
            Self::Done => begin(2),
            Self::Failed(error) => error_fields(begin(3), error),
            Self::Key(key) => begin(4).key(key),
            Self::Keys { keys, more } => {
                let fields = begin(5).byte(u8::from(*more)).number(keys.len() as u64);
                keys.iter().fold(fields, |fields, (object, key)| fields.object(object).key(key))
            }
            Self::Plaintext(plaintext) => begin(6).bytes(plaintext.expose()),
            Self::Wrapped(wrapped) => begin(7).bytes(wrapped),
        }
        .done()
    }

    pub(crate) fn decode(packet: &[u8]) -> Result<(u64, Self), Malformed> {
        let (kind, rest) = packet.split_first().ok_or(Malformed)?;
        let mut fields = Reader(rest);
        let id = fields.number()?;
        let answer = match kind {
            1 => Self::Ciphertext {
                iv: fields.bytes()?,
                ciphertext: fields.bytes()?,
                tag: fields.bytes()?,
                integrity: match fields.optional(Reader::slice)? {
                    None => None,
                    Some(value) => Some(value.try_into().map_err(|_| Malformed)?),
                },
            },
            2 => Self::Done,
            3 => Self::Failed(error_of(&mut fields)?),
            4 => Self::Key(fields.key()?),
            5 => {
                let more = fields.flag()?;
                let count = usize::try_from(fields.number()?).map_err(|_| Malformed)?;
                if count > LIST_PAGE {
                    return Err(Malformed);
                }
                let keys = (0..count).map(|_| Ok((fields.object()?, fields.key()?))).collect::<Result<_, Malformed>>();
                Self::Keys { keys: keys?, more }
            }
            6 => Self::Plaintext(fields.secret()?),
            7 => Self::Wrapped(fields.bytes()?),
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok((id, answer))
    }
}

#[cfg(test)]
mod tests;
