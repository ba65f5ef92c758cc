//! From method and path to an operation.
//!
//! Clients send empty segments for "latest version" (`/keys/N/?api-version=`, `/keys/N//release`) and for the scope `/`
//! (`//providers/...`, `/%2F/providers/...`): the path is percent-decoded, split, and empty segments are dropped.

use holdfast_core::{Action, Intent, KeyName, KeyVersionId, Resource};
use http::Method;

use crate::code::Code;
use crate::error::ApiError;

/// Where a role assignment or definition is addressed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// `/`: the whole HSM.
    Instance,
    /// `/keys/NAME`.
    Key(KeyName),
    /// `/keys`.
    Keys,
}

impl Scope {
    /// The scope as Key Vault writes it.
    pub(crate) fn to_wire(&self) -> String {
        self.resource().to_string()
    }

    /// Reads what [`Self::to_wire`] writes.
    pub(crate) fn from_wire(text: &str) -> Option<Self> {
        match text.trim_matches('/') {
            "" => Some(Self::Instance),
            "keys" => Some(Self::Keys),
            path => KeyName::parse(path.strip_prefix("keys/")?).ok().map(Self::Key),
        }
    }

    pub(crate) fn resource(&self) -> Resource {
        match self {
            Self::Instance => Resource::Instance,
            Self::Key(name) => Resource::Key(name.clone()),
            Self::Keys => Resource::Keys,
        }
    }
}

/// A cryptographic operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CryptoOperation {
    /// decrypt
    Decrypt,
    /// encrypt
    Encrypt,
    /// sign
    Sign,
    /// unwrapkey
    Unwrap,
    /// verify
    Verify,
    /// wrapkey
    Wrap,
}

/// An operation of the data plane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route {
    /// POST /keys/N/backup
    Backup(KeyName),
    /// A door that exists and is closed: its name, and the action that opens it.
    Closed(&'static str, &'static str, Action, Resource),
    /// POST /keys/N/create
    Create(KeyName),
    /// POST /keys/N\[/V\]/encrypt and its like
    Crypto(CryptoOperation, KeyName, Option<KeyVersionId>),
    /// DELETE /keys/N
    Delete(KeyName),
    /// GET /keys/N\[/V\]
    Get(KeyName, Option<KeyVersionId>),
    /// GET /deletedkeys/N
    GetDeleted(KeyName),
    /// GET /keys/N/rotationpolicy
    GetRotationPolicy(KeyName),
    /// PUT /keys/N
    Import(KeyName),
    /// GET /keys
    List,
    /// GET /deletedkeys
    ListDeleted,
    /// GET /keys/N/versions
    ListVersions(KeyName),
    /// DELETE /deletedkeys/N
    Purge(KeyName),
    /// PUT /keys/N/rotationpolicy
    PutRotationPolicy(KeyName),
    /// POST /rng
    Random,
    /// POST /deletedkeys/N/recover
    Recover(KeyName),
    /// POST /keys/restore
    Restore,
    /// DELETE .../roleAssignments/G
    RoleAssignmentDelete(Scope, String),
    /// GET .../roleAssignments/G
    RoleAssignmentGet(Scope, String),
    /// GET .../roleAssignments
    RoleAssignmentList(Scope),
    /// PUT .../roleAssignments/G
    RoleAssignmentPut(Scope, String),
    /// DELETE .../roleDefinitions/G
    RoleDefinitionDelete(Scope, String),
    /// GET .../roleDefinitions/G
    RoleDefinitionGet(Scope, String),
    /// GET .../roleDefinitions
    RoleDefinitionList(Scope),
    /// PUT .../roleDefinitions/G
    RoleDefinitionPut(Scope, String),
    /// POST /keys/N/rotate
    Rotate(KeyName),
    /// GET /settings/S
    SettingGet(String),
    /// GET /settings
    SettingList,
    /// PATCH /settings/S
    SettingPatch(String),
    /// PATCH /keys/N\[/V\]
    Update(KeyName, Option<KeyVersionId>),
}

impl Route {
    /// Finds the operation for a method and path.
    ///
    /// # Errors
    /// 404 for an unknown path, 405 for a known path with another method, 400 for a malformed key name or version.
    pub fn parse(method: &Method, path: &str) -> Result<Self, ApiError> {
        let path = percent_decode(path).ok_or_else(|| ApiError::bad_parameter("The path is not valid UTF-8"))?;
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let found = match segments.as_slice() {
            ["providers", "Microsoft.Authorization", rest @ ..] => role(Scope::Instance, method, rest),
            ["keys", "providers", "Microsoft.Authorization", rest @ ..] => role(Scope::Keys, method, rest),
            ["keys", key, "providers", "Microsoft.Authorization", rest @ ..] => {
                role(Scope::Key(name(key)?), method, rest)
            }
            ["keys", rest @ ..] => keys(method, rest)?,
            ["deletedkeys", rest @ ..] => deleted_keys(method, rest)?,
            ["rng"] if method == Method::POST => Found::Route(Self::Random),
            ["settings"] if method == Method::GET => Found::Route(Self::SettingList),
            ["rng"] | ["settings"] => Found::OtherMethod,
            ["settings", setting] => match *method {
                Method::GET => Found::Route(Self::SettingGet((*setting).to_owned())),
                Method::PATCH => Found::Route(Self::SettingPatch((*setting).to_owned())),
                _ => Found::OtherMethod,
            },
            rest => closed(method, rest),
        };
        match found {
            Found::Route(route) => Ok(route),
            Found::OtherMethod => Err(ApiError::method_not_allowed(method)),
            Found::Nothing => Err(ApiError::not_found(Code::NotFound, format!("There is no resource at {path}"))),
        }
    }

    /// The operation's name in the audit log and metrics.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Backup(_) => "KeyBackup",
            Self::Closed(operation, ..) => operation,
            Self::Create(_) => "KeyCreate",
            Self::Crypto(CryptoOperation::Decrypt, ..) => "KeyDecrypt",
            Self::Crypto(CryptoOperation::Encrypt, ..) => "KeyEncrypt",
            Self::Crypto(CryptoOperation::Sign, ..) => "KeySign",
            Self::Crypto(CryptoOperation::Unwrap, ..) => "KeyUnwrap",
            Self::Crypto(CryptoOperation::Verify, ..) => "KeyVerify",
            Self::Crypto(CryptoOperation::Wrap, ..) => "KeyWrap",
            Self::Delete(_) => "KeyDelete",
            Self::Get(..) => "KeyGet",
            Self::GetDeleted(_) => "KeyGetDeleted",
            Self::GetRotationPolicy(_) => "KeyRotationPolicyGet",
            Self::Import(_) => "KeyImport",
            Self::List => "KeyList",
            Self::ListDeleted => "KeyListDeleted",
            Self::ListVersions(_) => "KeyListVersions",
            Self::Purge(_) => "KeyPurge",
            Self::PutRotationPolicy(_) => "KeyRotationPolicySet",
            Self::Random => "RandomBytesGet",
            Self::Recover(_) => "KeyRecover",
            Self::Restore => "KeyRestore",
            Self::RoleAssignmentDelete(..) => "RoleAssignmentDelete",
            Self::RoleAssignmentGet(..) => "RoleAssignmentGet",
            Self::RoleAssignmentList(_) => "RoleAssignmentList",
            Self::RoleAssignmentPut(..) => "RoleAssignmentCreate",
            Self::RoleDefinitionDelete(..) => "RoleDefinitionDelete",
            Self::RoleDefinitionGet(..) => "RoleDefinitionGet",
            Self::RoleDefinitionList(_) => "RoleDefinitionList",
            Self::RoleDefinitionPut(..) => "RoleDefinitionSet",
            Self::Rotate(_) => "KeyRotate",
            Self::SettingGet(_) => "SettingGet",
            Self::SettingList => "SettingList",
            Self::SettingPatch(_) => "SettingUpdate",
            Self::Update(..) => "KeyUpdate",
        }
    }

    /// What must be allowed for it.
    #[must_use]
    pub fn intent(&self) -> Intent {
        let key = |name: &KeyName| Resource::Key(name.clone());
        let (action, resource) = match self {
            Self::Backup(name) => (Action::KeyBackup, key(name)),
            Self::Closed(_, _, action, resource) => (*action, resource.clone()),
            Self::Create(name) => (Action::KeyCreate, key(name)),
            Self::Crypto(operation, name, _) => (operation.action(), key(name)),
            Self::Delete(name) => (Action::KeyDelete, key(name)),
            Self::Get(name, _) | Self::GetRotationPolicy(name) | Self::ListVersions(name) => {
                (Action::KeyRead, key(name))
            }
            Self::GetDeleted(name) => (Action::DeletedKeyRead, key(name)),
            Self::Import(name) => (Action::KeyImport, key(name)),
            Self::List => (Action::KeyRead, Resource::Keys),
            Self::ListDeleted => (Action::DeletedKeyRead, Resource::Keys),
            Self::Purge(name) => (Action::DeletedKeyPurge, key(name)),
            Self::PutRotationPolicy(name) | Self::Update(name, _) => (Action::KeyUpdate, key(name)),
            Self::Random => (Action::RandomRead, Resource::Instance),
            Self::Recover(name) => (Action::DeletedKeyRecover, key(name)),
            Self::Restore => (Action::KeyRestore, Resource::Keys),
            Self::RoleAssignmentDelete(scope, _) => (Action::RoleAssignmentDelete, scope.resource()),
            Self::RoleAssignmentGet(scope, _) | Self::RoleAssignmentList(scope) => {
                (Action::RoleAssignmentRead, scope.resource())
            }
            Self::RoleAssignmentPut(scope, _) => (Action::RoleAssignmentWrite, scope.resource()),
            Self::RoleDefinitionDelete(scope, _) => (Action::RoleDefinitionDelete, scope.resource()),
            Self::RoleDefinitionGet(scope, _) | Self::RoleDefinitionList(scope) => {
                (Action::RoleDefinitionRead, scope.resource())
            }
            Self::RoleDefinitionPut(scope, _) => (Action::RoleDefinitionWrite, scope.resource()),
            Self::Rotate(name) => (Action::KeyRotate, key(name)),
            Self::SettingGet(_) | Self::SettingList => (Action::SettingRead, Resource::Instance),
            Self::SettingPatch(_) => (Action::SettingWrite, Resource::Instance),
        };
        Intent { action, resource }
    }

    /// The key and version it is about, for the audit log.
    #[must_use]
    pub fn key(&self) -> (Option<&KeyName>, Option<KeyVersionId>) {
        match self {
            Self::Crypto(_, name, version) | Self::Get(name, version) | Self::Update(name, version) => {
                (Some(name), *version)
            }
            Self::Backup(name)
            | Self::Closed(_, _, _, Resource::Key(name))
            | Self::Create(name)
            | Self::Delete(name)
            | Self::GetDeleted(name)
            | Self::GetRotationPolicy(name)
            | Self::Import(name)
            | Self::ListVersions(name)
            | Self::Purge(name)
            | Self::PutRotationPolicy(name)
            | Self::Recover(name)
            | Self::Rotate(name) => (Some(name), None),
            _ => (None, None),
        }
    }
}

impl CryptoOperation {
    fn parse(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "decrypt" => Self::Decrypt,
            "encrypt" => Self::Encrypt,
            "sign" => Self::Sign,
            "unwrapkey" => Self::Unwrap,
            "verify" => Self::Verify,
            "wrapkey" => Self::Wrap,
            _ => return None,
        })
    }

    fn action(self) -> Action {
        match self {
            Self::Decrypt => Action::KeyDecrypt,
            Self::Encrypt => Action::KeyEncrypt,
            Self::Sign => Action::KeySign,
            Self::Unwrap => Action::KeyUnwrap,
            Self::Verify => Action::KeyVerify,
            Self::Wrap => Action::KeyWrap,
        }
    }
}

enum Found {
    Nothing,
    OtherMethod,
    Route(Route),
}

fn name(segment: &str) -> Result<KeyName, ApiError> {
    KeyName::parse(segment).map_err(|error| ApiError::bad_parameter(format!("The key name is not valid: {error}")))
}

fn keys(method: &Method, segments: &[&str]) -> Result<Found, ApiError> {
    let found = match (method.as_str(), segments) {
        ("GET", []) => Route::List,
        ("POST", ["restore"]) => Route::Restore,
        ("GET", [key]) => Route::Get(name(key)?, None),
        ("PATCH", [key]) => Route::Update(name(key)?, None),
        ("PUT", [key]) => Route::Import(name(key)?),
        ("DELETE", [key]) => Route::Delete(name(key)?),
        ("POST", [key, "create"]) => Route::Create(name(key)?),
        ("POST", [key, "backup"]) => Route::Backup(name(key)?),
        ("POST", [key, "rotate"]) => Route::Rotate(name(key)?),
        ("GET", [key, "versions"]) => Route::ListVersions(name(key)?),
        ("GET", [key, "rotationpolicy"]) => Route::GetRotationPolicy(name(key)?),
        ("PUT", [key, "rotationpolicy"]) => Route::PutRotationPolicy(name(key)?),
        ("PUT", [key, "restore"]) => {
            name(key)?;
            Route::Closed("RestoreKeySelective", "Selective restore", Action::RestoreStart, Resource::Instance)
        }
        ("POST", [key, "release"] | [key, _, "release"]) => {
            Route::Closed("KeyRelease", "Secure key release", Action::KeyRelease, Resource::Key(name(key)?))
        }
        ("GET", [key, "attestation"] | [key, _, "attestation"]) => {
            Route::Closed("KeyAttestationGet", "Key attestation", Action::KeyRead, Resource::Key(name(key)?))
        }
        (_, [key, word]) if CryptoOperation::parse(word).is_some() => {
            return Ok(crypto(method, word, name(key)?, None));
        }
        (_, [key, version, word]) if CryptoOperation::parse(word).is_some() => {
            return Ok(crypto(method, word, name(key)?, Some(parse_version(version)?)));
        }
        ("GET", [key, version]) => Route::Get(name(key)?, Some(parse_version(version)?)),
        ("PATCH", [key, version]) => Route::Update(name(key)?, Some(parse_version(version)?)),
        (_, [] | [_] | [_, _]) => return Ok(Found::OtherMethod),
        _ => return Ok(Found::Nothing),
    };
    Ok(Found::Route(found))
}

fn crypto(method: &Method, word: &str, key: KeyName, version: Option<KeyVersionId>) -> Found {
    match CryptoOperation::parse(word) {
        Some(operation) if method == Method::POST => Found::Route(Route::Crypto(operation, key, version)),
        Some(_) => Found::OtherMethod,
        None => Found::Nothing,
    }
}

fn parse_version(segment: &str) -> Result<KeyVersionId, ApiError> {
    KeyVersionId::parse(segment)
        .ok_or_else(|| ApiError::bad_parameter(format!("Invalid key version: {}", printable(segment))))
}

/// A client's words, fit to be repeated in a message.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

fn deleted_keys(method: &Method, segments: &[&str]) -> Result<Found, ApiError> {
    let found = match (method.as_str(), segments) {
        ("GET", []) => Route::ListDeleted,
        ("GET", [key]) => Route::GetDeleted(name(key)?),
        ("DELETE", [key]) => Route::Purge(name(key)?),
        ("POST", [key, "recover"]) => Route::Recover(name(key)?),
        (_, [] | [_] | [_, "recover"]) => return Ok(Found::OtherMethod),
        _ => return Ok(Found::Nothing),
    };
    Ok(Found::Route(found))
}

fn role(scope: Scope, method: &Method, segments: &[&str]) -> Found {
    let guid = |segment: &str| segment.to_ascii_lowercase();
    let route = match (method.as_str(), segments) {
        ("GET", ["roleDefinitions"]) => Route::RoleDefinitionList(scope),
        ("GET", ["roleDefinitions", id]) => Route::RoleDefinitionGet(scope, guid(id)),
        ("PUT", ["roleDefinitions", id]) => Route::RoleDefinitionPut(scope, guid(id)),
        ("DELETE", ["roleDefinitions", id]) => Route::RoleDefinitionDelete(scope, guid(id)),
        ("GET", ["roleAssignments"]) => Route::RoleAssignmentList(scope),
        ("GET", ["roleAssignments", id]) => Route::RoleAssignmentGet(scope, guid(id)),
        ("PUT", ["roleAssignments", id]) => Route::RoleAssignmentPut(scope, guid(id)),
        ("DELETE", ["roleAssignments", id]) => Route::RoleAssignmentDelete(scope, guid(id)),
        (_, ["roleDefinitions" | "roleAssignments"] | ["roleDefinitions" | "roleAssignments", _]) => {
            return Found::OtherMethod;
        }
        _ => return Found::Nothing,
    };
    Found::Route(route)
}

/// Doors of later days: known, guarded by their own actions, and closed.
fn closed(method: &Method, segments: &[&str]) -> Found {
    use Action as A;
    const DOMAIN: &str = "The security domain";
    const BACKUP: &str = "Full backup and restore";
    const EKM: &str = "External key management";
    let (operation, what, action) = match (method.as_str(), segments) {
        ("POST", ["securitydomain", "download"]) => ("SecurityDomainDownload", DOMAIN, A::SecurityDomainDownload),
        ("GET", ["securitydomain", "download", "pending"]) => {
            ("SecurityDomainDownloadStatus", DOMAIN, A::SecurityDomainDownloadRead)
        }
        ("GET", ["securitydomain", "upload"]) => {
            ("SecurityDomainTransferKeyGet", DOMAIN, A::SecurityDomainTransferKeyRead)
        }
        ("POST", ["securitydomain", "upload"]) => ("SecurityDomainUpload", DOMAIN, A::SecurityDomainUpload),
        ("GET", ["securitydomain", "upload", "pending"]) => {
            ("SecurityDomainUploadStatus", DOMAIN, A::SecurityDomainUploadRead)
        }
        ("POST", ["backup" | "prebackup"]) => ("BackupCreate", BACKUP, A::BackupStart),
        ("GET", ["backup", _, "pending"]) => ("BackupStatus", BACKUP, A::BackupRead),
        ("PUT", ["restore" | "prerestore"]) => ("RestoreCreate", BACKUP, A::RestoreStart),
        ("GET", ["restore", _, "pending"]) => ("RestoreStatus", BACKUP, A::RestoreRead),
        ("GET", ["ekm"] | ["ekm", "certificate"]) => ("EkmGet", EKM, A::ExternalKeyManagerRead),
        ("PATCH" | "DELETE", ["ekm"]) | ("POST", ["ekm", "create" | "check"]) => {
            ("EkmChange", EKM, A::ExternalKeyManagerWrite)
        }
        (_, ["securitydomain" | "ekm", ..] | ["backup" | "restore" | "prebackup" | "prerestore"]) => {
            return Found::OtherMethod;
        }
        _ => return Found::Nothing,
    };
    Found::Route(Route::Closed(operation, what, action, Resource::Instance))
}

/// RFC 3986, section 2.1. `None` if the result is not UTF-8; a stray `%` stays.
pub(crate) fn percent_decode(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match hex_ahead(&bytes) {
            Some(decoded) if byte == b'%' => {
                out.push(decoded);
                bytes.nth(1);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// The byte that the next two hex digits spell.
fn hex_ahead(bytes: &std::str::Bytes<'_>) -> Option<u8> {
    let mut ahead = bytes.clone();
    let mut digit = || ahead.next().and_then(|byte| (byte as char).to_digit(16));
    Some((digit()? << 4 | digit()?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, path: &str) -> Result<Route, u16> {
        Route::parse(&method.parse().unwrap(), path).map_err(|error| error.status().as_u16())
    }

    fn key(text: &str) -> KeyName {
        KeyName::parse(text).unwrap()
    }

    #[test]
    fn empty_segments_mean_latest_or_root() {
        assert_eq!(parse("GET", "/keys/k/"), Ok(Route::Get(key("k"), None)));
        assert_eq!(parse("PATCH", "/keys/k/"), Ok(Route::Update(key("k"), None)));
        for path in ["/providers/", "//providers/", "/%2F/providers/", "/%2f/providers/"] {
            let path = format!("{path}Microsoft.Authorization/roleDefinitions");
            assert_eq!(parse("GET", &path), Ok(Route::RoleDefinitionList(Scope::Instance)), "{path}");
        }
        let release = parse("POST", "/keys/k//release").unwrap();
        assert_eq!(release.intent(), Intent { action: Action::KeyRelease, resource: Resource::Key(key("k")) });
    }

    #[test]
    fn scopes() {
        let list = |scope| Ok(Route::RoleAssignmentList(scope));
        assert_eq!(parse("GET", "/keys/providers/Microsoft.Authorization/roleAssignments"), list(Scope::Keys));
        assert_eq!(
            parse("GET", "/keys/k/providers/Microsoft.Authorization/roleAssignments"),
            list(Scope::Key(key("k")))
        );
        assert_eq!(parse("GET", "/keys/providers"), Ok(Route::Get(key("providers"), None)));
    }

    #[test]
    fn crypto_with_and_without_version() {
        let version = "0123456789abcdef0123456789abcdef";
        let wrap = |version| Ok(Route::Crypto(CryptoOperation::Wrap, key("k"), version));
        assert_eq!(parse("POST", &format!("/keys/k/{version}/wrapkey")), wrap(KeyVersionId::parse(version)));
        assert_eq!(parse("POST", "/keys/k/wrapkey"), wrap(None));
        assert_eq!(parse("POST", "/keys/k//wrapkey"), wrap(None));
        assert_eq!(parse("GET", "/keys/k/wrapkey"), Err(405));
        assert_eq!(parse("POST", "/keys/k/zz/wrapkey"), Err(400));
    }

    #[test]
    fn unknown_and_malformed() {
        assert_eq!(parse("GET", "/secrets"), Err(404));
        assert_eq!(parse("DELETE", "/keys"), Err(405));
        assert_eq!(parse("GET", "/keys/a_b"), Err(400));
        assert_eq!(parse("GET", "/keys/k/1/2/3"), Err(404));
        assert_eq!(parse("GET", "/keys/%ff"), Err(400));
        assert_eq!(parse("POST", "/securitydomain/download").unwrap().operation(), "SecurityDomainDownload");
    }
}
