//! Known-answer tests, run before a key is touched (in the manner of FIPS 140-3, section 7.10).
//!
//! Sources: SP 800-38D test case 16 shortened to its tag (GCM), RFC 3394 section 4.6, RFC 5649 section 6, RFC 4231 case 2 (HMAC),
//! RFC 5869 A.1 (HKDF), FIPS 180-4 (SHA-256), RFC 6979 A.2.5 (ECDSA P-256). RSA is tested by a pair-wise
//! consistency test, since its signatures of interest are randomized.

use crate::{
    AesKey, CbcPadding, CryptoError, Curve, EcPublicKey, EncryptionPadding, HashAlgorithm, KeyMaterial, KeySpec,
    LoadedKey, RsaSize, SealingKey, SecretBytes, SignatureScheme, WrapPadding, kdf, kdf::MacKey,
};

/// A self test that failed. The service must not start.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the cryptographic self test `{0}` failed: this build or machine must not hold keys")]
pub struct SelfTestFailure(pub &'static str);

/// Every test: its name and what it does.
type Test = (&'static str, fn() -> Result<bool, CryptoError>);

const TESTS: &[Test] = &[
    ("sha-256", || Ok(kdf::sha256(&[b"a", b"bc"])[..4] == [0xba, 0x78, 0x16, 0xbf])),
    ("hmac-sha-256", hmac),
    ("hkdf-sha-256", hkdf),
    ("aes-gcm", gcm),
    ("aes-cbc", cbc),
    ("aes-kw", key_wrap),
    ("aes-kwp", key_wrap_padded),
    ("record sealing", sealing),
    ("ecdsa p-256 verify", ecdsa_known),
    ("ecdsa pair-wise", ecdsa_pairwise),
    ("rsa pair-wise", rsa_pairwise),
];

/// Runs every self test.
///
/// # Errors
/// The first one that fails.
pub fn run() -> Result<(), SelfTestFailure> {
    TESTS.iter().try_for_each(|(name, test)| match test() {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(SelfTestFailure(name)),
    })
}

fn hex(digits: &str) -> Vec<u8> {
    let nibble = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
    digits.as_bytes().as_chunks::<2>().0.iter().map(|[high, low]| nibble(*high) << 4 | nibble(*low)).collect()
}

fn hmac() -> Result<bool, CryptoError> {
    let tag = hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    let key = MacKey::new(HashAlgorithm::Sha256, b"Jefe");
    let message = b"what do ya want for nothing?";
    Ok(key.sign(&[message]) == tag && key.verify(message, &tag) && !key.verify(b"nothing", &tag))
}

fn hkdf() -> Result<bool, CryptoError> {
    let okm = kdf::hkdf(
        HashAlgorithm::Sha256,
        &hex("000102030405060708090a0b0c"),
        &[0x0b; 22],
        &hex("f0f1f2f3f4f5f6f7f8f9"),
        42,
    )?;
    Ok(okm.ct_eq(&hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")))
}

fn gcm() -> Result<bool, CryptoError> {
    // SP 800-38D / McGrew-Viega test case 14: zero key, zero nonce, one zero block.
    let key = AesKey::new(SecretBytes::zeroed(32))?;
    let out = key.gcm_encrypt([0; 12], b"", &[0; 16])?;
    let known = out.ciphertext == hex("cea7403d4d606b6e074ec5d3baf39d18")
        && out.tag[..] == hex("d0d1c8a799996bf0265b98b5d48ab919")[..];
    let opened = key.gcm_decrypt(&out.nonce, b"", &out.ciphertext, &out.tag)?;
    let forged = key.gcm_decrypt(&out.nonce, b"x", &out.ciphertext, &out.tag);
    Ok(known && opened.ct_eq(&[0; 16]) && forged.is_err())
}

fn cbc() -> Result<bool, CryptoError> {
    // SP 800-38A, F.2.1 (CBC-AES128), first block.
    let key = AesKey::new(SecretBytes::copy_of(&hex("2b7e151628aed2a6abf7158809cf4f3c")))?;
    let mut iv = [0; 16];
    iv.copy_from_slice(&hex("000102030405060708090a0b0c0d0e0f"));
    let plaintext = hex("6bc1bee22e409f96e93d7e117393172a");
    let ciphertext = key.cbc_encrypt(CbcPadding::Zero, iv, &plaintext)?;
    Ok(ciphertext == hex("7649abac8119b246cee98e9b12e9197d")
        && key.cbc_decrypt(CbcPadding::Zero, iv, &ciphertext)?.ct_eq(&plaintext))
}

fn key_wrap() -> Result<bool, CryptoError> {
    let kek =
        AesKey::new(SecretBytes::copy_of(&hex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")))?;
    let key = hex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f");
    let wrapped = kek.wrap(WrapPadding::None, &key)?;
    let known = hex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21");
    Ok(wrapped == known && kek.unwrap(WrapPadding::None, &wrapped)?.ct_eq(&key))
}

fn key_wrap_padded() -> Result<bool, CryptoError> {
    let kek = AesKey::new(SecretBytes::copy_of(&hex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")))?;
    let key = hex("c37b7e6492584340bed12207808941155068f738");
    let wrapped = kek.wrap(WrapPadding::Padded, &key)?;
    let known = hex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a");
    Ok(wrapped == known && kek.unwrap(WrapPadding::Padded, &wrapped)?.ct_eq(&key))
}

fn sealing() -> Result<bool, CryptoError> {
    let key = SealingKey::new(&SecretBytes::zeroed(32))?;
    let sealed = key.seal([7; 28], b"aad", b"record")?;
    Ok(key.open(b"aad", &sealed)?.ct_eq(b"record") && key.open(b"other", &sealed).is_err())
}

fn ecdsa_known() -> Result<bool, CryptoError> {
    // RFC 6979, A.2.5: message "sample", SHA-256.
    let public = EcPublicKey::from_coordinates(
        Curve::P256,
        &hex("60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"),
        &hex("7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"),
    )?;
    let digest = HashAlgorithm::Sha256.digest(b"sample");
    let mut signature = hex("efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716");
    signature.extend(hex("f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"));
    let accepted = public.verify(&digest, &signature)?;
    signature[0] ^= 1;
    Ok(accepted && !public.verify(&digest, &signature)?)
}

fn ecdsa_pairwise() -> Result<bool, CryptoError> {
    for curve in Curve::ALL {
        let LoadedKey::Ec(key) = KeyMaterial::generate(KeySpec::Ec(curve), |_| ())?.load()? else { return Ok(false) };
        let digest = curve.hash().digest(b"holdfast");
        let signature = key.sign(&digest)?;
        if signature.len() != 2 * curve.field_bytes() || !key.public().verify(&digest, &signature)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn rsa_pairwise() -> Result<bool, CryptoError> {
    let spec = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
    let LoadedKey::Rsa(key) = KeyMaterial::generate(spec, |_| ())?.load()? else { return Ok(false) };
    let digest = HashAlgorithm::Sha256.digest(b"holdfast");
    for scheme in [SignatureScheme::RsaPss(HashAlgorithm::Sha256), SignatureScheme::RsaPkcs1(HashAlgorithm::Sha256)] {
        let signature = key.sign(scheme, &digest)?;
        if !key.verify(scheme, &digest, &signature)? {
            return Ok(false);
        }
    }
    for padding in [EncryptionPadding::OaepSha1, EncryptionPadding::OaepSha256, EncryptionPadding::Pkcs1] {
        let ciphertext = key.encrypt(padding, b"holdfast")?;
        if !key.decrypt(padding, &ciphertext)?.ct_eq(b"holdfast") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_pass() {
        assert_eq!(super::run(), Ok(()));
    }
}
