//! The errors that the API knows, and all that follows from which one it is.

holdfast_service::error_codes! {
    /// `error.code`
    AccessDenied, FORBIDDEN, Denied;
    AuditUnavailable, SERVICE_UNAVAILABLE, Failed;
    BadParameter, BAD_REQUEST, Failed;
    Conflict, CONFLICT, Failed;
    Forbidden, FORBIDDEN, Denied;
    IdentityProviderUnavailable, SERVICE_UNAVAILABLE, Failed;
    InternalError, INTERNAL_SERVER_ERROR, Failed;
    KeyNotFound, NOT_FOUND, Failed;
    MethodNotAllowed, METHOD_NOT_ALLOWED, Failed;
    NotFound, NOT_FOUND, Failed;
    NotSupported, NOT_IMPLEMENTED, Failed;
    RequestTimeout, REQUEST_TIMEOUT, Failed;
    RequestTooLarge, PAYLOAD_TOO_LARGE, Failed;
    RoleAssignmentExists, CONFLICT, Failed;
    RoleAssignmentNotFound, NOT_FOUND, Failed;
    RoleDefinitionNotFound, NOT_FOUND, Failed;
    RoleDefinitionWithSameNameExists, CONFLICT, Failed;
    SettingNotFound, NOT_FOUND, Failed;
    StoreUnavailable, SERVICE_UNAVAILABLE, Failed;
    Throttled, TOO_MANY_REQUESTS, Failed;
    Unauthorized, UNAUTHORIZED, Denied;
}

/// `error.innererror.code`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the names are the API's")]
pub enum InnerCode {
    KeyDisabled,
    KeyExpired,
    KeyNotYetValid,
    KeyOperationForbidden,
    ObjectIsDeletedButRecoverable,
}

impl InnerCode {
    /// On the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyDisabled => "KeyDisabled",
            Self::KeyExpired => "KeyExpired",
            Self::KeyNotYetValid => "KeyNotYetValid",
            Self::KeyOperationForbidden => "KeyOperationForbidden",
            Self::ObjectIsDeletedButRecoverable => "ObjectIsDeletedButRecoverable",
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_core::AuditOutcome;
    use http::StatusCode;

    use super::*;

    #[test]
    fn who_is_not_known_or_not_allowed_is_denied() {
        for code in Code::ALL {
            let refused = matches!(code.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            assert_eq!(code.outcome() == AuditOutcome::Denied, refused, "{}", code.name());
        }
    }
}
