//! What a return code means.

use cryptoki::error::{Error, RvError};

/// Who is at fault, and what would help.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The caller's input.
    Input,
    /// The key does not allow it.
    NotAllowed,
    /// The HSM has no such algorithm.
    NoMechanism,
    /// The handle is stale: find the object anew.
    StaleObject,
    /// The session is gone: open it anew.
    StaleSession,
    /// The token or the library is gone.
    TokenLost,
    /// None of these.
    Other,
}

pub(super) fn classify(error: &Error) -> Fault {
    let Error::Pkcs11(code, _) = error else { return Fault::Other };
    match code {
        RvError::ArgumentsBad
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent
        | RvError::MechanismParamInvalid
        | RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange
        | RvError::KeyNotWrappable
        | RvError::TemplateInconsistent
        | RvError::TemplateIncomplete => Fault::Input,
        RvError::KeyFunctionNotPermitted | RvError::ActionProhibited | RvError::KeyUnextractable => Fault::NotAllowed,
        RvError::MechanismInvalid | RvError::FunctionNotSupported => Fault::NoMechanism,
        RvError::KeyHandleInvalid
        | RvError::ObjectHandleInvalid
        | RvError::WrappingKeyHandleInvalid
        | RvError::UnwrappingKeyHandleInvalid => Fault::StaleObject,
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::UserNotLoggedIn
        | RvError::OperationActive
        | RvError::OperationNotInitialized => Fault::StaleSession,
        RvError::DeviceError
        | RvError::DeviceMemory
        | RvError::DeviceRemoved
        | RvError::HostMemory
        | RvError::CryptokiNotInitialized
        | RvError::SlotIdInvalid
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized => Fault::TokenLost,
        _ => Fault::Other,
    }
}

/// The standard's name of a return code: `GeneralError` is `CKR_GENERAL_ERROR`.
pub(super) fn code_name(error: &Error) -> Option<String> {
    let Error::Pkcs11(code, _) = error else { return None };
    let mut name = String::from("CKR");
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    Some(name)
}

/// An error in few words: function and code, not the library's paragraph.
pub(super) fn brief(error: &Error) -> String {
    match (error, code_name(error)) {
        (Error::Pkcs11(_, function), Some(name)) => format!("C_{function:?}: {name}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    #[test]
    fn names_are_the_standards() {
        for (code, name) in [
            (RvError::GeneralError, "CKR_GENERAL_ERROR"),
            (RvError::FunctionFailed, "CKR_FUNCTION_FAILED"),
            (RvError::EncryptedDataInvalid, "CKR_ENCRYPTED_DATA_INVALID"),
            (RvError::EncryptedDataLenRange, "CKR_ENCRYPTED_DATA_LEN_RANGE"),
        ] {
            assert_eq!(code_name(&Error::Pkcs11(code, Function::Decrypt)).as_deref(), Some(name));
        }
    }
}
