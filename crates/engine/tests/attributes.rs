//! Attributes decide before anything else: enabled, validity, operations; RSA1_5 is no oracle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

use holdfast_core::{
    CiphertextParts, EncryptionScheme, HsmError, KeyAttributes, KeyName, KeyOperation, KeyVersion, KeyVersionId,
    Operation, Outcome, PartitionId, Timestamp, WrapScheme,
};
use holdfast_crypto::{
    AesSize, EncryptionPadding, KeyMaterial, KeySpec, Rsa1_5Policy, RsaSize, SecretBytes, WrapPadding,
};
use holdfast_engine::{Keyed, Partition, PartitionPolicy};

const NOW: Timestamp = Timestamp::from_unix_millis(1_800_000_000_000);

fn keyed(spec: KeySpec, policy: PartitionPolicy, change: impl FnOnce(&mut KeyAttributes)) -> Keyed {
    let partition = Partition::new(PartitionId::from_bytes([1; 16]), &SecretBytes::zeroed(32), policy).unwrap();
    let mut attributes = KeyAttributes {
        spec,
        operations: KeyOperation::ALL.into_iter().collect(),
        enabled: true,
        exportable: false,
        not_before: None,
        expires: None,
        release_policy_sha256: None,
    };
    change(&mut attributes);
    let version = KeyVersion { name: KeyName::parse("k").unwrap(), id: KeyVersionId::from_bytes([2; 16]), attributes };
    let material = KeyMaterial::generate(spec, |bytes| bytes.fill(3)).unwrap();
    let masked = partition.mask(&version, material, [4; 28]).unwrap().masked;
    partition.open(&version, &masked).unwrap()
}

fn aes(change: impl FnOnce(&mut KeyAttributes)) -> Keyed {
    keyed(KeySpec::Aes(AesSize::Bits256), PartitionPolicy::default(), change)
}

fn wrap() -> Operation {
    Operation::Wrap { scheme: WrapScheme::AesKeyWrap(WrapPadding::Padded), key: SecretBytes::copy_of(b"key") }
}

fn unwrap(wrapped: &[u8]) -> Operation {
    Operation::Unwrap { scheme: WrapScheme::AesKeyWrap(WrapPadding::Padded), wrapped: wrapped.to_vec() }
}

fn wrapped() -> Vec<u8> {
    let Ok(Outcome::Wrapped(wrapped)) = aes(|_| ()).perform(NOW, [0; 28], wrap()) else { panic!("not wrapped") };
    wrapped
}

#[test]
fn outside_its_validity_a_key_protects_nothing_new_and_still_unwraps() {
    let early = aes(|a| a.not_before = Some(Timestamp::from_unix_millis(NOW.unix_millis() + 1)));
    let late = aes(|a| a.expires = Some(NOW));
    assert_eq!(early.perform(NOW, [0; 28], wrap()).err(), Some(HsmError::NotYetValid));
    assert_eq!(late.perform(NOW, [0; 28], wrap()).err(), Some(HsmError::Expired));
    for key in [early, late] {
        assert!(matches!(key.perform(NOW, [0; 28], unwrap(&wrapped())), Ok(Outcome::Plaintext(_))));
    }
}

#[test]
fn a_disabled_key_does_nothing() {
    let key = aes(|a| a.enabled = false);
    assert_eq!(key.perform(NOW, [0; 28], wrap()).err(), Some(HsmError::Disabled));
    assert_eq!(key.perform(NOW, [0; 28], unwrap(&wrapped())).err(), Some(HsmError::Disabled));
}

#[test]
fn only_listed_operations_are_done() {
    let key = aes(|a| a.operations = [KeyOperation::WrapKey].into_iter().collect());
    assert!(key.perform(NOW, [0; 28], wrap()).is_ok());
    assert_eq!(key.perform(NOW, [0; 28], unwrap(&wrapped())).err(), Some(HsmError::OperationNotAllowed));
}

#[test]
fn an_algorithm_of_another_kind_of_key_is_refused() {
    let rsa =
        Operation::Wrap { scheme: WrapScheme::Rsa(EncryptionPadding::OaepSha256), key: SecretBytes::copy_of(b"key") };
    assert!(matches!(aes(|_| ()).perform(NOW, [0; 28], rsa), Err(HsmError::InvalidInput(_))));
}

#[test]
fn the_nonce_of_gcm_is_the_hsms() {
    let encrypt = |iv: Option<Vec<u8>>| Operation::Encrypt {
        scheme: EncryptionScheme::AesGcm,
        plaintext: SecretBytes::copy_of(b"data"),
        parts: CiphertextParts { iv, ..CiphertextParts::default() },
    };
    let key = aes(|_| ());
    assert!(matches!(key.perform(NOW, [0; 28], encrypt(Some(vec![0; 12]))), Err(HsmError::InvalidInput(_))));
    let Ok(Outcome::Ciphertext(_, parts)) = key.perform(NOW, [7; 28], encrypt(None)) else { panic!("no ciphertext") };
    assert_eq!(parts.iv.as_deref(), Some([7; 12].as_slice()));
}

#[test]
fn rsa1_5_answers_alike_to_good_and_bad_padding() {
    let spec = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
    let key = keyed(spec, PartitionPolicy::default(), |_| ());
    let scheme = WrapScheme::Rsa(EncryptionPadding::Pkcs1);
    let mut bad = vec![0x42; 256];
    bad[0] = 0;
    let unwrap = |wrapped: &[u8]| {
        let Ok(Outcome::Plaintext(key)) =
            key.perform(NOW, [0; 28], Operation::Unwrap { scheme, wrapped: wrapped.to_vec() })
        else {
            panic!("an error tells good from bad padding")
        };
        key.expose().to_vec()
    };
    assert_eq!(unwrap(&bad), unwrap(&bad), "the same ciphertext gives the same synthetic key");
    let refusing = PartitionPolicy { rsa1_5: Rsa1_5Policy::Refuse };
    let key = keyed(spec, refusing, |_| ());
    let refused = key.perform(NOW, [0; 28], Operation::Unwrap { scheme, wrapped: bad });
    assert!(matches!(refused, Err(HsmError::InvalidInput(_))));
}
