//! What cryptoki cannot do for us, in the only `unsafe` code of this project (cryptoki 0.12 and its newest source were looked at).
//!
//! - `get_token_info` fails as a whole if a token tells a time that is not of digits, as openCryptoki does ("17:12:49" under
//!   CKF_CLOCK_ON_TOKEN). The call is made here once more, and the time is not looked at.
//! - A string for the library in C_Initialize's `pReserved` (NSS, kryoptic) has an `unsafe` constructor only.

#![expect(
    unsafe_code,
    reason = "two calls over the C interface that cryptoki does not make; each says why it is sound"
)]

use std::{
    ffi::{CStr, c_void},
    ptr::{self, NonNull},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::Error,
    slot::Slot,
};
use cryptoki_sys::{CK_FUNCTION_LIST, CK_TOKEN_INFO, CKR_OK};

/// What a token says of itself, its time left out.
pub(super) struct TokenWords {
    pub label: String,
    pub manufacturer: String,
    pub model: String,
    pub serial: String,
    pub firmware: String,
}

/// What the token in `slot` says of itself. `module` has been loaded from `path`, and is initialized.
pub(super) fn token_words(module: &Pkcs11, path: &str, slot: Slot) -> Result<TokenWords, Error> {
    match module.get_token_info(slot) {
        Ok(info) => Ok(TokenWords {
            label: info.label().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            serial: info.serial_number().to_owned(),
            firmware: info.firmware_version().to_string(),
        }),
        // The library refused, which it would do again.
        Err(error @ Error::Pkcs11(..)) => Err(error),
        // The library answered, and the answer could not be read.
        Err(error) => {
            let info = token_info(path, slot).ok_or(error)?;
            let version = info.firmwareVersion;
            Ok(TokenWords {
                label: padded(&info.label),
                manufacturer: padded(&info.manufacturerID),
                model: padded(&info.model),
                serial: padded(&info.serialNumber),
                firmware: format!("{}.{}", version.major, version.minor),
            })
        }
    }
}

/// Text that is filled up with blanks.
fn padded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_owned()
}

/// C_GetTokenInfo, by the library's own table of functions.
fn token_info(path: &str, slot: Slot) -> Option<CK_TOKEN_INFO> {
    // SAFETY: loading a library runs its initializers, whatever they do; this one is loaded already (cryptoki keeps it so), so
    // the loader only counts one more user of it and gives the same one back.
    let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.ok()?;
    let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
    library.C_GetFunctionList.as_ref().ok()?;
    // SAFETY: the symbol is there, and by the standard the function writes one pointer, for which there is room.
    let code = unsafe { library.C_GetFunctionList(&mut list) };
    if code != CKR_OK {
        return None;
    }
    // SAFETY: by the standard the table lives as long as the library, which `library` and cryptoki hold; null is looked for.
    let function = unsafe { list.as_ref() }?.C_GetTokenInfo?;
    let mut info = CK_TOKEN_INFO::default();
    // SAFETY: the library is initialized (the caller's `module` is), and by the standard the function writes one CK_TOKEN_INFO.
    let code = unsafe { function(slot.into(), &mut info) };
    (code == CKR_OK).then_some(info)
}

/// C_Initialize, with `parameters` for the library if it wants some.
pub(super) fn initialize(module: &Pkcs11, parameters: Option<&CStr>) -> Result<(), Error> {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    let arguments = match parameters.and_then(|text| NonNull::new(text.as_ptr().cast_mut().cast::<c_void>())) {
        None => CInitializeArgs::new(flags),
        // SAFETY: a string that ends with a zero byte and outlives the call below, which is what libraries that want parameters
        // expect here (NSS: "LibraryParameters"; p11-kit's `x-init-reserved` passes the same). They read it, no more. A library
        // that knows no parameters looks for null alone, and refuses.
        Some(pointer) => unsafe { CInitializeArgs::new_with_reserved(flags, pointer) },
    };
    module.initialize(arguments)
}
