//! What can be asked for, by its command line.

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand, ValueEnum};
use holdfast_core::Ambient;
use holdfast_crypto::SecretBytes;
use holdfast_xks_proxy::{
    quorum::{Act, BlindedSecret, KeyUse},
    state::OperatorsRecord,
};

use super::{super::operator_key, ScopeArgs};
use crate::{ambient::OsAmbient, fault::Fault};

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Usage {
    /// Encrypt and decrypt data (AWS)
    Data,
    /// Wrap and unwrap keys (Azure)
    Keys,
    /// Both
    Both,
    /// Encrypt data only
    Encrypt,
    /// Decrypt data only
    Decrypt,
}

impl From<Usage> for KeyUse {
    fn from(usage: Usage) -> Self {
        match usage {
            Usage::Data => Self::Data,
            Usage::Keys => Self::Keys,
            Usage::Both => Self::Both,
            Usage::Encrypt => Self::Encrypt,
            Usage::Decrypt => Self::Decrypt,
        }
    }
}

#[derive(Args)]
pub(crate) struct KeyArgs {
    /// External id of the key
    #[arg(long = "key-id", value_name = "ID")]
    id: String,
    /// HSM user to make it in
    #[arg(long, value_name = "NAME")]
    hsm: String,
    /// Label of the object there
    #[arg(long)]
    label: String,
    /// What it may be used for
    #[arg(long, value_enum, default_value = "data")]
    usage: Usage,
}

#[derive(Subcommand)]
pub(crate) enum Change {
    /// Enrol a caller, whose signed requests are then proof; its secret access key is asked for
    CallerAdd {
        #[arg(long)]
        access_key_id: String,
        /// ARN of the principal, as AWS KMS names it
        #[arg(long)]
        principal: String,
        /// Read the secret from this file descriptor
        #[arg(long, value_name = "N")]
        secret_fd: Option<u32>,
    },
    /// Forget a caller
    CallerRemove {
        #[arg(long)]
        access_key_id: String,
    },
    /// Add a credential to a store. A new one is made, and written with the path to a file for the AWS console
    CredentialAdd {
        /// Name of the store
        #[arg(long)]
        store: String,
        /// Where the file for the AWS console goes; it holds the secret
        #[arg(long, value_name = "FILE")]
        handover: PathBuf,
    },
    /// Remove a credential from a store
    CredentialRemove {
        /// Name of the store
        #[arg(long)]
        store: String,
        #[arg(long)]
        access_key_id: String,
    },
    /// Enter the PIN of an HSM user; it is asked for
    HsmPin {
        /// HSM user
        #[arg(long)]
        hsm: String,
        /// Read the PIN from this file descriptor
        #[arg(long, value_name = "N")]
        secret_fd: Option<u32>,
    },
    /// Make an AES-256 key in an HSM
    KeyCreate {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Take an AES-256 key into an HSM: 64 hex digits, which are asked for
    KeyImport {
        #[command(flatten)]
        key: KeyArgs,
        /// Read the key from this file descriptor
        #[arg(long, value_name = "N")]
        secret_fd: Option<u32>,
    },
    /// Put a pulled kill switch back
    Lift {
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Replace the operators and the threshold
    Operators {
        /// TOML: threshold, and [[operators]] with name and public_key
        file: PathBuf,
    },
    /// Replace the policy
    Policy {
        /// The new policy; see docs/policy.md
        file: PathBuf,
    },
}

/// An act with what belongs to it.
pub(super) struct Asked {
    pub act: Act,
    pub secret: Option<BlindedSecret>,
    /// Where the file for the AWS console goes, and the access key id in it.
    pub handover: Option<(PathBuf, String)>,
}

fn blinded(secret: SecretBytes) -> BlindedSecret {
    BlindedSecret::new(secret, &OsAmbient)
}

/// Reads what the command line names, and asks for secrets.
pub(super) fn read(change: Change) -> Result<Asked, Fault> {
    let plain = |act| Ok(Asked { act, secret: None, handover: None });
    let with = |act, secret| Ok(Asked { act, secret: Some(secret), handover: None });
    match change {
        Change::CallerAdd { access_key_id, principal, secret_fd } => {
            let secret = blinded(operator_key::read_secret("the caller's secret access key", secret_fd)?);
            let commitment = secret.commitment();
            with(Act::CallerAdd { access_key_id, principal_arn: principal, commitment }, secret)
        }
        Change::CallerRemove { access_key_id } => plain(Act::CallerRemove { access_key_id }),
        Change::CredentialAdd { store, handover } => {
            let (access_key_id, secret) = new_credential();
            let secret = blinded(secret);
            let act =
                Act::CredentialAdd { store, access_key_id: access_key_id.clone(), commitment: secret.commitment() };
            Ok(Asked { act, secret: Some(secret), handover: Some((handover, access_key_id)) })
        }
        Change::CredentialRemove { store, access_key_id } => plain(Act::CredentialRemove { store, access_key_id }),
        Change::HsmPin { hsm, secret_fd } => {
            let secret = blinded(operator_key::read_secret("the PIN", secret_fd)?);
            with(Act::HsmPin { hsm, commitment: secret.commitment() }, secret)
        }
        Change::KeyCreate { key: KeyArgs { id, hsm, label, usage } } => {
            plain(Act::KeyCreate { key: id, hsm, label, usage: usage.into() })
        }
        Change::KeyImport { key: KeyArgs { id, hsm, label, usage }, secret_fd } => {
            let text = operator_key::read_secret("the key, 64 hex digits", secret_fd)?;
            let secret = blinded(unhex(&text)?);
            let commitment = secret.commitment();
            with(Act::KeyImport { key: id, hsm, label, usage: usage.into(), commitment }, secret)
        }
        Change::Lift { scope } => plain(Act::Lift { scope: scope.scope() }),
        Change::Operators { file } => {
            let text = fs::read_to_string(&file).map_err(|error| Fault::file(&file, error))?;
            let record: OperatorsRecord = toml::from_str(&text).map_err(|error| Fault::file(&file, error))?;
            plain(Act::Operators(record))
        }
        Change::Policy { file } => {
            let text = fs::read_to_string(&file).map_err(|error| Fault::file(&file, error))?;
            plain(Act::Policy { text })
        }
    }
}

/// 32 random bytes; the id has 26 characters of `A-Z 2-7`.
pub(crate) fn new_credential() -> (String, SecretBytes) {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut random = [0; 26];
    OsAmbient.fill(&mut random);
    let id = random.iter().map(|byte| LETTERS[usize::from(byte & 31)] as char).collect();
    let mut key = [0; 36];
    OsAmbient.fill(&mut key);
    let secret = SecretBytes::take(STANDARD.encode(key).into_bytes());
    holdfast_crypto::secret::erase(&mut key);
    (id, secret)
}

fn unhex(text: &SecretBytes) -> Result<SecretBytes, Fault> {
    let digits = text.expose();
    if digits.len() != 64 {
        return Err(Fault::usage("an AES-256 key has 64 hex digits"));
    }
    SecretBytes::try_fill(32, |out| {
        for (byte, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
            let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(Fault::usage("an AES-256 key has 64 hex digits"));
            };
            *byte = (high << 4 | low) as u8;
        }
        Ok(())
    })
}
