//! The errors that the API knows, and all that follows from which one it is.

use holdfast_core::AuditOutcome;
use http::StatusCode;

/// Each row is one error: its status, and how the audit log classes it. Its name is the code on the wire.
macro_rules! codes {
    ($($code:ident, $status:ident, $outcome:ident;)*) => {
        /// `error.code`
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[allow(missing_docs, reason = "the names are the API's")]
        pub enum Code {
            $($code,)*
        }

        impl Code {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$code,)*];

            /// On the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => stringify!($code),)*
                }
            }

            /// HTTP status.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status,)*
                }
            }

            pub(crate) fn outcome(self) -> AuditOutcome {
                match self {
                    $(Self::$code => AuditOutcome::$outcome,)*
                }
            }
        }
    };
}

codes! {
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
    use super::*;

    #[test]
    fn who_is_not_known_or_not_allowed_is_denied() {
        for code in Code::ALL {
            let refused = matches!(code.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            assert_eq!(code.outcome() == AuditOutcome::Denied, refused, "{}", code.name());
        }
    }
}
