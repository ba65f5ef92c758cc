//! The errors that the API knows, and all that follows from which one it is.

holdfast_service::error_codes! {
    /// Which error it is: `__type` of an answer, without the namespace. All errors of callers are 400; only what may pass by itself is 500.
    AccessDenied = "AccessDeniedException", BAD_REQUEST, Denied;
    AlreadyExists = "AlreadyExistsException", BAD_REQUEST, Failed;
    CloudHsmClusterInUse = "CloudHsmClusterInUseException", BAD_REQUEST, Failed;
    CloudHsmClusterNotFound = "CloudHsmClusterNotFoundException", BAD_REQUEST, Failed;
    CustomKeyStoreHasKeys = "CustomKeyStoreHasCMKsException", BAD_REQUEST, Failed;
    CustomKeyStoreInvalidState = "CustomKeyStoreInvalidStateException", BAD_REQUEST, Failed;
    CustomKeyStoreNameInUse = "CustomKeyStoreNameInUseException", BAD_REQUEST, Failed;
    CustomKeyStoreNotFound = "CustomKeyStoreNotFoundException", BAD_REQUEST, Failed;
    Disabled = "DisabledException", BAD_REQUEST, Failed;
    // Everything was allowed; it was only not done.
    DryRunOperation = "DryRunOperationException", BAD_REQUEST, Allowed;
    ExpiredImportToken = "ExpiredImportTokenException", BAD_REQUEST, Failed;
    IncompleteSignature = "IncompleteSignatureException", BAD_REQUEST, Denied;
    IncorrectKey = "IncorrectKeyException", BAD_REQUEST, Failed;
    IncorrectKeyMaterial = "IncorrectKeyMaterialException", BAD_REQUEST, Failed;
    InvalidAliasName = "InvalidAliasNameException", BAD_REQUEST, Failed;
    InvalidArn = "InvalidArnException", BAD_REQUEST, Failed;
    InvalidCiphertext = "InvalidCiphertextException", BAD_REQUEST, Failed;
    InvalidGrantId = "InvalidGrantIdException", BAD_REQUEST, Failed;
    InvalidGrantToken = "InvalidGrantTokenException", BAD_REQUEST, Failed;
    InvalidImportToken = "InvalidImportTokenException", BAD_REQUEST, Failed;
    InvalidKeyUsage = "InvalidKeyUsageException", BAD_REQUEST, Failed;
    InvalidMac = "KMSInvalidMacException", BAD_REQUEST, Failed;
    InvalidMarker = "InvalidMarkerException", BAD_REQUEST, Failed;
    // That of a request; that of a message is `KmsInvalidSignature`.
    InvalidSignature = "InvalidSignatureException", BAD_REQUEST, Denied;
    InvalidState = "KMSInvalidStateException", BAD_REQUEST, Failed;
    KmsInternal = "KMSInternalException", INTERNAL_SERVER_ERROR, Failed;
    KmsInvalidSignature = "KMSInvalidSignatureException", BAD_REQUEST, Failed;
    LimitExceeded = "LimitExceededException", BAD_REQUEST, Failed;
    MalformedPolicyDocument = "MalformedPolicyDocumentException", BAD_REQUEST, Failed;
    MissingAuthenticationToken = "MissingAuthenticationTokenException", BAD_REQUEST, Denied;
    NotAuthorized = "NotAuthorizedException", BAD_REQUEST, Failed;
    NotFound = "NotFoundException", BAD_REQUEST, Failed;
    RequestEntityTooLarge = "RequestEntityTooLargeException", PAYLOAD_TOO_LARGE, Failed;
    Serialization = "SerializationException", BAD_REQUEST, Failed;
    Tag = "TagException", BAD_REQUEST, Failed;
    Throttling = "ThrottlingException", BAD_REQUEST, Failed;
    UnknownOperation = "UnknownOperationException", BAD_REQUEST, Failed;
    UnrecognizedClient = "UnrecognizedClientException", BAD_REQUEST, Denied;
    UnsupportedOperation = "UnsupportedOperationException", BAD_REQUEST, Failed;
    Validation = "ValidationException", BAD_REQUEST, Failed;
    XksKeyAlreadyInUse = "XksKeyAlreadyInUseException", BAD_REQUEST, Failed;
    XksKeyInvalidConfiguration = "XksKeyInvalidConfigurationException", BAD_REQUEST, Failed;
    XksKeyNotFound = "XksKeyNotFoundException", BAD_REQUEST, Failed;
    XksProxyIncorrectAuthenticationCredential = "XksProxyIncorrectAuthenticationCredentialException", BAD_REQUEST, Failed;
    XksProxyInvalidConfiguration = "XksProxyInvalidConfigurationException", BAD_REQUEST, Failed;
    XksProxyInvalidResponse = "XksProxyInvalidResponseException", BAD_REQUEST, Failed;
    XksProxyUriInUse = "XksProxyUriInUseException", BAD_REQUEST, Failed;
    XksProxyUriUnreachable = "XksProxyUriUnreachableException", BAD_REQUEST, Failed;
}

impl Code {
    /// Whether it tells what only those may know who may use the key: what is valid under it, or that a use would have succeeded.
    pub(crate) fn tells_of_a_use(self) -> bool {
        match self {
            Self::DryRunOperation
            | Self::IncorrectKey
            | Self::InvalidCiphertext
            | Self::InvalidMac
            | Self::KmsInvalidSignature => true,
            Self::AccessDenied
            | Self::AlreadyExists
            | Self::CloudHsmClusterInUse
            | Self::CloudHsmClusterNotFound
            | Self::CustomKeyStoreHasKeys
            | Self::CustomKeyStoreInvalidState
            | Self::CustomKeyStoreNameInUse
            | Self::CustomKeyStoreNotFound
            | Self::Disabled
            | Self::ExpiredImportToken
            | Self::IncompleteSignature
            | Self::IncorrectKeyMaterial
            | Self::InvalidAliasName
            | Self::InvalidArn
            | Self::InvalidGrantId
            | Self::InvalidGrantToken
            | Self::InvalidImportToken
            | Self::InvalidKeyUsage
            | Self::InvalidMarker
            | Self::InvalidSignature
            | Self::InvalidState
            | Self::KmsInternal
            | Self::LimitExceeded
            | Self::MalformedPolicyDocument
            | Self::MissingAuthenticationToken
            | Self::NotAuthorized
            | Self::NotFound
            | Self::RequestEntityTooLarge
            | Self::Serialization
            | Self::Tag
            | Self::Throttling
            | Self::UnknownOperation
            | Self::UnrecognizedClient
            | Self::UnsupportedOperation
            | Self::Validation
            | Self::XksKeyAlreadyInUse
            | Self::XksKeyInvalidConfiguration
            | Self::XksKeyNotFound
            | Self::XksProxyIncorrectAuthenticationCredential
            | Self::XksProxyInvalidConfiguration
            | Self::XksProxyInvalidResponse
            | Self::XksProxyUriInUse
            | Self::XksProxyUriUnreachable => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use holdfast_core::AuditOutcome;
    use http::StatusCode;

    use super::*;

    #[test]
    fn each_error_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(names.iter().all(|name| name.ends_with("Exception")));
    }

    #[test]
    fn who_is_not_known_or_not_allowed_is_denied() {
        let denied = |code: &&Code| code.outcome() == AuditOutcome::Denied;
        let denied: Vec<_> = Code::ALL.iter().filter(denied).map(|code| code.name()).collect();
        let known = [
            "AccessDeniedException",
            "IncompleteSignatureException",
            "InvalidSignatureException",
            "MissingAuthenticationTokenException",
            "UnrecognizedClientException",
        ];
        assert_eq!(denied, known);
        assert_eq!(Code::DryRunOperation.outcome(), AuditOutcome::Allowed);
    }

    #[test]
    fn only_what_may_pass_by_itself_is_no_error_of_the_caller() {
        let other = |code: &&Code| code.status() != StatusCode::BAD_REQUEST;
        let other: Vec<_> = Code::ALL.iter().filter(other).map(|code| (code.name(), code.status().as_u16())).collect();
        assert_eq!(other, [("KMSInternalException", 500), ("RequestEntityTooLargeException", 413)]);
    }
}
