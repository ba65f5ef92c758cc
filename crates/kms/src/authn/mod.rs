//! Who asks: accounts, users, roles and services with their credentials, and the signature that proves one of them.

mod source;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use holdfast_core::{Principal, PrincipalKind, Timestamp};
use holdfast_crypto::SecretBytes;
use holdfast_wire::sigv4::{self, Authorization, Rejection, Scope, SigningSecret};
use http::{header, request::Parts};
pub(crate) use source::{check_source_arn, source_arn};

use crate::{
    grants::Party,
    names::is_account,
    policy::{Asker, MalformedPolicy, PolicyDocument, PolicyKind},
};

/// A user, a role, an account's root, or a service, as the configuration has it.
pub struct IdentityConfig {
    /// `arn:aws:iam::ACCOUNT:user/NAME`, `...:role/NAME`, `...:root`.
    pub arn: String,
    /// For `kms:ViaService`: the short name (`s3`) of the service that it is, if it is one.
    pub service: Option<String>,
    /// For `aws:PrincipalTag`.
    pub tags: BTreeMap<String, String>,
    /// Its policies: name and document.
    pub policies: Vec<(String, String)>,
}

/// What signs for an identity.
pub struct CredentialConfig {
    /// Not secret.
    pub access_key_id: String,
    /// Secret.
    pub secret: SecretBytes,
    /// ARN of the identity.
    pub principal: String,
}

/// Why a directory cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The ARN is not one of a user, role or root.
    #[error("{0:?} is not the ARN of a user, a role or a root")]
    Arn(String),
    /// It is there twice.
    #[error("{0} is there twice")]
    Double(String),
    /// A credential of nobody.
    #[error("credential {0}: there is no principal {1:?}")]
    Nobody(String, String),
    /// A policy cannot be read.
    #[error("policy {1:?} of {0}: {2}")]
    Policy(String, String, MalformedPolicy),
}

/// Somebody who may ask.
pub(crate) struct Identity {
    pub arn: String,
    pub account: Arc<str>,
    pub is_root: bool,
    pub tags: BTreeMap<String, String>,
    pub policies: Vec<(String, PolicyDocument)>,
    pub service: Option<String>,
    /// `SERVICE.amazonaws.com`
    service_principal: Option<String>,
    /// As whom grants may name it.
    parties: Vec<Party>,
    principal: Principal,
}

impl Identity {
    fn new(config: IdentityConfig) -> Result<Self, DirectoryError> {
        let IdentityConfig { arn, service, tags, policies } = config;
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let (account, is_root) = match parts.as_slice() {
            ["arn", "aws", "iam", "", account, name] if is_account(account) => {
                let named = |prefix: &str| name.strip_prefix(prefix).is_some_and(|name| !name.is_empty());
                if *name != "root" && !named("user/") && !named("role/") {
                    return Err(DirectoryError::Arn(arn));
                }
                (Arc::from(*account), *name == "root")
            }
            _ => return Err(DirectoryError::Arn(arn)),
        };
        let mut parsed = Vec::new();
        for (name, text) in policies {
            let document = PolicyDocument::parse(PolicyKind::Identity, &text);
            let document = document.map_err(|error| DirectoryError::Policy(arn.clone(), name.clone(), error))?;
            parsed.push((name, document));
        }
        let kind = if service.is_some() { PrincipalKind::Service } else { PrincipalKind::User };
        let principal = Principal::verified_exactly(kind, &account, &arn);
        let service_principal = service.as_ref().map(|service| format!("{service}.amazonaws.com"));
        let mut parties = vec![Party::Principal(arn.clone())];
        parties.extend(service_principal.clone().map(Party::Service));
        Ok(Self { arn, account, is_root, tags, policies: parsed, service, service_principal, parties, principal })
    }

    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    pub(crate) fn parties(&self) -> &[Party] {
        &self.parties
    }

    pub(crate) fn asker(&self) -> Asker<'_> {
        Asker { arn: &self.arn, account: &self.account, service: self.service_principal.as_deref() }
    }

    /// The last part of its name.
    pub(crate) fn user_name(&self) -> &str {
        self.arn.rsplit(['/', ':']).next().unwrap_or_default()
    }
}

/// Everybody who may ask.
pub struct Directory {
    accounts: BTreeSet<Arc<str>>,
    identities: HashMap<String, Arc<Identity>>,
    credentials: HashMap<String, (Arc<SigningSecret>, Arc<Identity>)>,
}

impl Directory {
    /// Checks who there is.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn new(identities: Vec<IdentityConfig>, credentials: Vec<CredentialConfig>) -> Result<Self, DirectoryError> {
        let mut directory = Self { accounts: BTreeSet::new(), identities: HashMap::new(), credentials: HashMap::new() };
        for config in identities {
            let identity = Identity::new(config)?;
            directory.accounts.insert(Arc::clone(&identity.account));
            if let Some(old) = directory.identities.insert(identity.arn.clone(), Arc::new(identity)) {
                return Err(DirectoryError::Double(old.arn.clone()));
            }
        }
        for CredentialConfig { access_key_id, secret, principal } in credentials {
            let Some(identity) = directory.identities.get(&principal) else {
                return Err(DirectoryError::Nobody(access_key_id, principal));
            };
            let value = (Arc::new(SigningSecret::new(secret)), Arc::clone(identity));
            if directory.credentials.insert(access_key_id.clone(), value).is_some() {
                return Err(DirectoryError::Double(access_key_id));
            }
        }
        Ok(directory)
    }

    #[cfg(fuzzing)]
    pub(crate) fn anybody(&self) -> Option<Arc<Identity>> {
        self.identities.values().next().cloned()
    }

    /// Every credential, and whose it is.
    pub(crate) fn signers(&self) -> impl Iterator<Item = (String, Arc<SigningSecret>, Principal)> {
        let signer = |(id, (secret, identity)): (&String, &(Arc<SigningSecret>, Arc<Identity>))| {
            (id.clone(), Arc::clone(secret), identity.principal.clone())
        };
        self.credentials.iter().map(signer)
    }

    pub(crate) fn has_account(&self, account: &str) -> bool {
        self.accounts.contains(account)
    }

    pub(crate) fn identity(&self, arn: &str) -> Option<Arc<Identity>> {
        self.identities.get(arn).cloned()
    }

    /// Verifies a request in one of `regions`. Gives who signed it, and in which region.
    pub(crate) fn authenticate(
        &self,
        parts: &Parts,
        body: &[u8],
        regions: &[Arc<str>],
        now: Timestamp,
    ) -> Result<(Arc<Identity>, Arc<str>), Rejection> {
        let claimed = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let claimed =
            claimed.and_then(|value| Authorization::parse(value).ok()).map(|authorization| authorization.region);
        let region = regions.iter().find(|region| claimed == Some(region));
        let region = region.or(regions.first()).ok_or(Rejection::Missing)?;
        // Nobody here has session credentials: a token with it would be passed over in silence.
        if parts.headers.contains_key("x-amz-security-token") {
            return Err(Rejection::UnknownKey);
        }
        let mut found = None;
        let find = |id: &str| {
            found = self.credentials.get(id);
            found.map(|(secret, _)| Arc::clone(secret))
        };
        sigv4::verify(parts, body, Scope { region, service: "kms" }, find, now)?;
        let (_, identity) = found.ok_or(Rejection::UnknownKey)?;
        Ok((Arc::clone(identity), Arc::clone(region)))
    }
}
