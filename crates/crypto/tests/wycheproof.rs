//! Project Wycheproof's vectors through our own interface: valid ones are accepted, invalid ones refused.
//!
//! "Acceptable" vectors (legacy parameters) may go either way. Vectors of parameters that are not offered (other nonce
//! and tag lengths, OAEP labels) must be refused or have no way to be expressed; those are counted as not applicable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

use holdfast_crypto::{
    AesKey, CbcPadding, Curve, EcPublicKey, EncryptionPadding, HashAlgorithm, ImportedKey, KeyMaterial, KeySpec,
    LoadedKey, RsaKey, RsaPublicKey, RsaSize, SecretBytes, SignatureScheme, WrapPadding, kdf, kdf::MacKey,
};
use wycheproof::{HashFunction, TestResult};

/// Counts, so that "no failure" has a denominator.
struct Tally {
    set: &'static str,
    run: usize,
}

impl Tally {
    fn new(set: &'static str) -> Self {
        Self { set, run: 0 }
    }

    fn judge(&mut self, id: usize, result: TestResult, accepted: bool) {
        self.run += 1;
        let expected = match result {
            TestResult::Valid => true,
            TestResult::Invalid => false,
            TestResult::Acceptable => return,
        };
        assert_eq!(accepted, expected, "{} vector {id}", self.set);
    }

    fn done(self, expected: usize) {
        println!("{}: {} vectors", self.set, self.run);
        assert_eq!(self.run, expected, "{}: the number of vectors changed; mend it here and in the README", self.set);
    }
}

fn ecdsa(set: wycheproof::ecdsa::TestName, name: &'static str, curve: Curve, count: usize) {
    let mut tally = Tally::new(name);
    for group in wycheproof::ecdsa::TestSet::load(set).unwrap().test_groups {
        let public = EcPublicKey { curve, point: group.key.key.to_vec() };
        for test in group.tests {
            let digest = curve.hash().digest(&test.msg);
            tally.judge(test.tc_id, test.result, public.verify(&digest, &test.sig) == Ok(true));
        }
    }
    tally.done(count);
}

#[test]
fn ecdsa_p1363() {
    use wycheproof::ecdsa::TestName;
    ecdsa(TestName::EcdsaSecp256r1Sha256P1363, "ES256", Curve::P256, 262);
    ecdsa(TestName::EcdsaSecp256k1Sha256P1363, "ES256K", Curve::P256K, 252);
    ecdsa(TestName::EcdsaSecp384r1Sha384P1363, "ES384", Curve::P384, 280);
    ecdsa(TestName::EcdsaSecp521r1Sha512P1363, "ES512", Curve::P521, 318);
}

fn rsa_key(pkcs8: &[u8]) -> Box<RsaKey> {
    let spec = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
    let key = ImportedKey::Pkcs8(spec, SecretBytes::copy_of(pkcs8));
    let LoadedKey::Rsa(key) = KeyMaterial::import(key).unwrap().load().unwrap() else { panic!("not RSA") };
    key
}

#[test]
fn rsa_oaep() {
    use wycheproof::rsa_oaep::{TestName, TestSet};
    let sets = [
        (TestName::Rsa2048Sha1Mgf1Sha1, EncryptionPadding::OaepSha1),
        (TestName::Rsa2048Sha256Mgf1Sha256, EncryptionPadding::OaepSha256),
        (TestName::Rsa3072Sha256Mgf1Sha256, EncryptionPadding::OaepSha256),
        (TestName::Rsa4096Sha256Mgf1Sha256, EncryptionPadding::OaepSha256),
        (TestName::RsaMisc, EncryptionPadding::OaepSha1),
        (TestName::RsaMisc, EncryptionPadding::OaepSha256),
    ];
    let mut tally = Tally::new("RSA-OAEP");
    for (set, padding) in sets {
        for group in TestSet::load(set).unwrap().test_groups {
            let hash = if padding == EncryptionPadding::OaepSha1 { HashFunction::Sha1 } else { HashFunction::Sha2_256 };
            let offered = group.hash == hash && group.mgf_hash == hash && [2048, 3072, 4096].contains(&group.key_size);
            if !offered {
                continue;
            }
            let key = rsa_key(&group.pkcs8);
            for test in group.tests.iter().filter(|test| test.label.is_empty()) {
                let accepted = key.decrypt(padding, &test.ct).is_ok_and(|plaintext| plaintext.ct_eq(&test.pt));
                tally.judge(test.tc_id, test.result, accepted);
            }
        }
    }
    tally.done(RSA_OAEP);
}

/// Implicit rejection: what is invalid decrypts to something, which is never the message of the vector.
#[test]
fn rsa_pkcs1_decrypt() {
    use wycheproof::rsa_pkcs1_decrypt::{TestName, TestSet};
    let mut tally = Tally::new("RSA1_5");
    for set in [TestName::Rsa2048, TestName::Rsa3072, TestName::Rsa4096] {
        for group in TestSet::load(set).unwrap().test_groups {
            let key = rsa_key(&group.pkcs8);
            for test in group.tests {
                let decrypted = key.decrypt(EncryptionPadding::Pkcs1, &test.ct);
                if test.ct.len() == key.size().bytes() {
                    assert!(decrypted.is_ok(), "vector {}: an error would be an oracle", test.tc_id);
                }
                let accepted = decrypted.is_ok_and(|plaintext| plaintext.ct_eq(&test.pt));
                let rejected_as_empty = test.result == TestResult::Invalid && test.pt.is_empty();
                tally.judge(test.tc_id, test.result, accepted && !rejected_as_empty);
            }
        }
    }
    tally.done(201);
}

#[test]
fn rsa_pkcs1_signatures() {
    use HashAlgorithm::{Sha256, Sha384, Sha512};
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
    let sets = [
        (TestName::Rsa2048Sha256, Sha256),
        (TestName::Rsa2048Sha384, Sha384),
        (TestName::Rsa2048Sha512, Sha512),
        (TestName::Rsa3072Sha256, Sha256),
        (TestName::Rsa3072Sha384, Sha384),
        (TestName::Rsa3072Sha512, Sha512),
        (TestName::Rsa4096Sha256, Sha256),
        (TestName::Rsa4096Sha384, Sha384),
        (TestName::Rsa4096Sha512, Sha512),
    ];
    let mut tally = Tally::new("RS256, RS384, RS512");
    for (set, hash) in sets {
        for group in TestSet::load(set).unwrap().test_groups {
            let public = RsaPublicKey::from_der(&group.asn_key).unwrap();
            for test in group.tests {
                let digest = hash.digest(&test.msg);
                let accepted = public.verify(SignatureScheme::RsaPkcs1(hash), &digest, &test.sig) == Ok(true);
                tally.judge(test.tc_id, test.result, accepted);
            }
        }
    }
    tally.done(2330);
}

#[test]
fn rsa_pss_signatures() {
    use HashAlgorithm::{Sha256, Sha384, Sha512};
    use wycheproof::rsa_pss_verify::{TestName, TestSet};
    let sets = [
        (TestName::RsaPss2048Sha256Mgf1SaltLen32, Sha256),
        (TestName::RsaPss2048Sha384Mgf1SaltLen48, Sha384),
        (TestName::RsaPss3072Sha256Mgf1SaltLen32, Sha256),
        (TestName::RsaPss4096Sha256Mgf1SaltLen32, Sha256),
        (TestName::RsaPss4096Sha384Mgf1SaltLen48, Sha384),
        (TestName::RsaPss4096Sha512Mgf1SaltLen64, Sha512),
        (TestName::RsaPss2048Sha256Mgf1SaltLen32WithParams, Sha256),
        (TestName::RsaPss3072Sha256Mgf1SaltLen32WithParams, Sha256),
        (TestName::RsaPss4096Sha512Mgf1SaltLen64WithParams, Sha512),
    ];
    let mut tally = Tally::new("PS256, PS384, PS512");
    for (set, hash) in sets {
        for group in TestSet::load(set).unwrap().test_groups {
            assert_eq!(group.salt_size, hash.len(), "the salt is as long as the hash (RFC 7518, section 3.5)");
            let public = RsaPublicKey::from_der(&group.asn_key).unwrap();
            for test in group.tests {
                let digest = hash.digest(&test.msg);
                let accepted = public.verify(SignatureScheme::RsaPss(hash), &digest, &test.sig) == Ok(true);
                tally.judge(test.tc_id, test.result, accepted);
            }
        }
    }
    tally.done(RSA_PSS);
}

#[test]
fn aes_gcm() {
    let mut tally = Tally::new("AES-GCM");
    for group in wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap().test_groups {
        for test in &group.tests {
            let key = AesKey::new(SecretBytes::copy_of(&test.key)).unwrap();
            let opened = key.gcm_decrypt(&test.nonce, &test.aad, &test.ct, &test.tag);
            if group.nonce_size != 96 || group.tag_size != 128 {
                assert!(opened.is_err(), "only 96-bit nonces and 128-bit tags are offered");
                continue;
            }
            let mut accepted = opened.is_ok_and(|plaintext| plaintext.ct_eq(&test.pt));
            if test.result == TestResult::Valid {
                let made = key.gcm_encrypt(test.nonce[..].try_into().unwrap(), &test.aad, &test.pt).unwrap();
                accepted &= made.ciphertext == *test.ct && made.tag[..] == *test.tag;
            }
            tally.judge(test.tc_id, test.result, accepted);
        }
    }
    tally.done(197);
}

#[test]
fn aes_cbc_pkcs7() {
    let mut tally = Tally::new("AES-CBC-PKCS7");
    for group in wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesCbcPkcs5).unwrap().test_groups {
        for test in group.tests {
            let key = AesKey::new(SecretBytes::copy_of(&test.key)).unwrap();
            let iv: [u8; 16] = test.nonce[..].try_into().unwrap();
            let opened = key.cbc_decrypt(CbcPadding::Pkcs7, iv, &test.ct);
            let mut accepted = opened.is_ok_and(|plaintext| plaintext.ct_eq(&test.pt));
            if test.result == TestResult::Valid {
                accepted &= key.cbc_encrypt(CbcPadding::Pkcs7, iv, &test.pt).unwrap() == *test.ct;
            }
            tally.judge(test.tc_id, test.result, accepted);
        }
    }
    tally.done(216);
}

#[test]
fn aes_key_wrap() {
    use wycheproof::keywrap::{TestName, TestSet};
    let sets = [
        (TestName::AesKeyWrap, WrapPadding::None, "AES-KW", 165),
        (TestName::AesKeyWrapWithPadding, WrapPadding::Padded, "AES-KWP", 254),
    ];
    for (set, padding, name, count) in sets {
        let mut tally = Tally::new(name);
        for group in TestSet::load(set).unwrap().test_groups {
            for test in group.tests {
                let key = AesKey::new(SecretBytes::copy_of(&test.key)).unwrap();
                let mut accepted = key.unwrap(padding, &test.ct).is_ok_and(|unwrapped| unwrapped.ct_eq(&test.pt));
                if test.result == TestResult::Valid {
                    accepted &= key.wrap(padding, &test.pt).unwrap() == *test.ct;
                }
                tally.judge(test.tc_id, test.result, accepted);
            }
        }
        tally.done(count);
    }
}

#[test]
fn hmac() {
    use wycheproof::mac::{TestName, TestSet};
    let sets = [
        (TestName::HmacSha256, HashAlgorithm::Sha256),
        (TestName::HmacSha384, HashAlgorithm::Sha384),
        (TestName::HmacSha512, HashAlgorithm::Sha512),
    ];
    let mut tally = Tally::new("HMAC");
    for (set, hash) in sets {
        for group in TestSet::load(set).unwrap().test_groups {
            // Truncated tags are not offered.
            let full = group.tag_size == hash.len() * 8;
            for test in group.tests {
                let accepted = MacKey::new(hash, &test.key).verify(&test.msg, &test.tag);
                if full {
                    tally.judge(test.tc_id, test.result, accepted);
                } else {
                    assert!(!accepted, "a truncated tag must not pass");
                }
            }
        }
    }
    tally.done(261);
}

#[test]
fn hkdf() {
    use wycheproof::hkdf::{TestName, TestSet};
    let sets = [
        (TestName::HkdfSha256, HashAlgorithm::Sha256),
        (TestName::HkdfSha384, HashAlgorithm::Sha384),
        (TestName::HkdfSha512, HashAlgorithm::Sha512),
    ];
    let mut tally = Tally::new("HKDF");
    for (set, hash) in sets {
        for group in TestSet::load(set).unwrap().test_groups {
            for test in group.tests {
                let okm = kdf::hkdf(hash, &test.salt, &test.ikm, &test.info, test.size);
                tally.judge(test.tc_id, test.result, okm.is_ok_and(|okm| okm.ct_eq(&test.okm)));
            }
        }
    }
    tally.done(252);
}

const RSA_OAEP: usize = 134;
const RSA_PSS: usize = 1180;
