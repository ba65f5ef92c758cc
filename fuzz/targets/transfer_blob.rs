#![no_main]
//! A wrapped key sent for import (CKM_RSA_AES_KEY_WRAP), raw and behind a true beginning.

use std::sync::OnceLock;

use holdfast_crypto::{
    EncryptionPadding, KeyMaterial, KeySpec, LoadedKey, RsaKey, RsaSize, SecretBytes,
    transfer::{self, Transfer},
};
use libfuzzer_sys::fuzz_target;

const CKM: Transfer = Transfer::AesKeyWrap(EncryptionPadding::OaepSha1);

fn exchange_key() -> &'static RsaKey {
    static KEY: OnceLock<Box<RsaKey>> = OnceLock::new();
    KEY.get_or_init(|| {
        let spec = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
        match KeyMaterial::generate(spec, |_| ()).and_then(KeyMaterial::load) {
            Ok(LoadedKey::Rsa(key)) => key,
            _ => panic!("no exchange key"),
        }
    })
}

fuzz_target!(|data: &[u8]| {
    assert!(transfer::unwrap(exchange_key(), CKM, data).is_err());
    if let Ok(blob) = transfer::wrap(exchange_key(), SecretBytes::copy_of(&[7; 32]), data) {
        assert!(transfer::unwrap(exchange_key(), CKM, &blob).is_ok_and(|target| target.ct_eq(data)));
        let beginning = &blob[..256];
        assert!(transfer::unwrap(exchange_key(), CKM, &[beginning, data].concat()).is_err());
    }
});
