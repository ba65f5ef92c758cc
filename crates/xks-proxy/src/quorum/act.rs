//! What can be asked for.

use holdfast_core::{KeyOperation, KeyOperations};
use serde::{Deserialize, Serialize};

use crate::state::{KillScope, OperatorsRecord};

/// A change that needs a quorum. Secrets are not in it: a commitment to one is, and the secret itself lies sealed beside it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "act")]
#[expect(missing_docs, reason = "fields are the words of the act itself")]
pub enum Act {
    /// Enrols a caller whose requests can be proved.
    CallerAdd { access_key_id: String, principal_arn: String, commitment: String },
    /// Forgets one.
    CallerRemove { access_key_id: String },
    /// Adds a credential to a store.
    CredentialAdd { store: String, access_key_id: String, commitment: String },
    /// Removes one.
    CredentialRemove { store: String, access_key_id: String },
    /// Enters the PIN of an HSM user.
    HsmPin { hsm: String, commitment: String },
    /// Makes an AES-256 key in an HSM.
    KeyCreate { key: String, hsm: String, label: String, usage: KeyUse },
    /// Takes an AES-256 key into an HSM.
    KeyImport { key: String, hsm: String, label: String, usage: KeyUse, commitment: String },
    /// Puts a pulled kill switch back.
    Lift { scope: KillScope },
    /// Replaces the operators and the threshold.
    Operators(OperatorsRecord),
    /// Replaces the policy.
    Policy { text: String },
}

/// What a new key is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyUse {
    /// Both.
    Both,
    /// Encrypt and decrypt data: AWS.
    Data,
    /// Decrypt data only: for a key that is being retired.
    Decrypt,
    /// Encrypt data only: for a place that writes and never reads.
    Encrypt,
    /// Wrap and unwrap keys: Azure.
    Keys,
}

impl KeyUse {
    /// The operations it stands for.
    #[must_use]
    pub fn operations(self) -> KeyOperations {
        use KeyOperation::{Decrypt, Encrypt, UnwrapKey, WrapKey};
        let operations: &[KeyOperation] = match self {
            Self::Both => &[Encrypt, Decrypt, WrapKey, UnwrapKey],
            Self::Data => &[Encrypt, Decrypt],
            Self::Decrypt => &[Decrypt],
            Self::Encrypt => &[Encrypt],
            Self::Keys => &[WrapKey, UnwrapKey],
        };
        operations.iter().copied().collect()
    }
}

impl Act {
    /// The commitment to a secret, if the act has one: hex SHA-256 of a random blind of 32 bytes and the secret.
    #[must_use]
    pub fn commitment(&self) -> Option<&str> {
        match self {
            Self::CallerAdd { commitment, .. }
            | Self::CredentialAdd { commitment, .. }
            | Self::HsmPin { commitment, .. }
            | Self::KeyImport { commitment, .. } => Some(commitment),
            Self::CallerRemove { .. }
            | Self::CredentialRemove { .. }
            | Self::KeyCreate { .. }
            | Self::Lift { .. }
            | Self::Operators(_)
            | Self::Policy { .. } => None,
        }
    }

    /// In a line, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::CallerAdd { access_key_id, principal_arn, .. } => {
                format!("enrol caller {principal_arn} ({access_key_id})")
            }
            Self::CallerRemove { access_key_id } => format!("forget caller {access_key_id}"),
            Self::CredentialAdd { store, access_key_id, .. } => {
                format!("add credential {access_key_id} to store {store:?}")
            }
            Self::CredentialRemove { store, access_key_id } => {
                format!("remove credential {access_key_id} from store {store:?}")
            }
            Self::HsmPin { hsm, .. } => format!("enter the PIN of HSM user {hsm:?}"),
            Self::KeyCreate { key, hsm, label, .. } => format!("make key {key:?} in HSM {hsm:?} as {label:?}"),
            Self::KeyImport { key, hsm, label, .. } => format!("import key {key:?} into HSM {hsm:?} as {label:?}"),
            Self::Lift { scope } => format!("lift the kill switch of {scope}"),
            Self::Operators(record) => {
                format!("replace the operators: {} of {} must approve", record.threshold, record.operators.len())
            }
            Self::Policy { text } => format!("replace the policy ({} bytes)", text.len()),
        }
    }
}
