#![no_main]
//! PKCS #8 and raw keys for import: what is taken in can be loaded, and comes back the same.

use holdfast_crypto::{Curve, ImportedKey, KeyMaterial, KeySpec, RsaSize, SecretBytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let secret = || SecretBytes::copy_of(data);
    let rsa = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
    let mut imports = vec![ImportedKey::Aes(secret()), ImportedKey::Pkcs8(rsa, secret())];
    imports.extend(Curve::ALL.map(|curve| ImportedKey::Pkcs8(KeySpec::Ec(curve), secret())));
    for import in imports {
        if let Ok(material) = KeyMaterial::import(import) {
            let spec = material.spec();
            let again = KeyMaterial::from_canonical(spec, SecretBytes::copy_of(material.expose_canonical()));
            assert!(material.load().is_ok() && again.load().is_ok());
        }
    }
    let _ = holdfast_crypto::RsaPublicKey::from_der(data);
});
