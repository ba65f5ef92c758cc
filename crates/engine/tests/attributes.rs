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

/// As a role does that says of the key what its blob says.
fn use_it(key: &Keyed, operation: Operation) -> Result<Outcome, HsmError> {
    key.perform(NOW, key.version(), [0; 28], operation)
}

fn wrap() -> Operation {
    Operation::Wrap { scheme: WrapScheme::AesKeyWrap(WrapPadding::Padded), key: SecretBytes::copy_of(b"key") }
}

fn unwrap(wrapped: &[u8]) -> Operation {
    Operation::Unwrap { scheme: WrapScheme::AesKeyWrap(WrapPadding::Padded), wrapped: wrapped.to_vec() }
}

fn wrapped() -> Vec<u8> {
    let Ok(Outcome::Wrapped(wrapped)) = use_it(&aes(|_| ()), wrap()) else { panic!("not wrapped") };
    wrapped
}

#[test]
fn outside_its_validity_a_key_protects_nothing_new_and_still_unwraps() {
    let early = aes(|a| a.not_before = Some(Timestamp::from_unix_millis(NOW.unix_millis() + 1)));
    let late = aes(|a| a.expires = Some(NOW));
    assert_eq!(use_it(&early, wrap()).err(), Some(HsmError::NotYetValid));
    assert_eq!(use_it(&late, wrap()).err(), Some(HsmError::Expired));
    for key in [early, late] {
        assert!(matches!(use_it(&key, unwrap(&wrapped())), Ok(Outcome::Plaintext(_))));
    }
}

#[test]
fn a_disabled_key_does_nothing() {
    let key = aes(|a| a.enabled = false);
    assert_eq!(use_it(&key, wrap()).err(), Some(HsmError::Disabled));
    assert_eq!(use_it(&key, unwrap(&wrapped())).err(), Some(HsmError::Disabled));
}

#[test]
fn only_listed_operations_are_done() {
    let key = aes(|a| a.operations = [KeyOperation::WrapKey].into_iter().collect());
    assert!(use_it(&key, wrap()).is_ok());
    assert_eq!(use_it(&key, unwrap(&wrapped())).err(), Some(HsmError::OperationNotAllowed));
}

#[test]
fn an_algorithm_of_another_kind_of_key_is_refused() {
    let rsa =
        Operation::Wrap { scheme: WrapScheme::Rsa(EncryptionPadding::OaepSha256), key: SecretBytes::copy_of(b"key") };
    assert!(matches!(use_it(&aes(|_| ()), rsa), Err(HsmError::InvalidInput(_))));
}

#[test]
fn the_nonce_of_gcm_is_the_hsms() {
    let encrypt = |iv: Option<Vec<u8>>| Operation::Encrypt {
        scheme: EncryptionScheme::AesGcm,
        plaintext: SecretBytes::copy_of(b"data"),
        parts: CiphertextParts { iv, ..CiphertextParts::default() },
    };
    let key = aes(|_| ());
    assert!(matches!(use_it(&key, encrypt(Some(vec![0; 12]))), Err(HsmError::InvalidInput(_))));
    let Ok(Outcome::Ciphertext(_, parts)) = key.perform(NOW, key.version(), [7; 28], encrypt(None)) else {
        panic!("no ciphertext")
    };
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
        let Ok(Outcome::Plaintext(key)) = use_it(&key, Operation::Unwrap { scheme, wrapped: wrapped.to_vec() }) else {
            panic!("an error tells good from bad padding")
        };
        key.expose().to_vec()
    };
    assert_eq!(unwrap(&bad), unwrap(&bad), "the same ciphertext gives the same synthetic key");
    let refusing = PartitionPolicy { rsa1_5: Rsa1_5Policy::Refuse };
    let key = keyed(spec, refusing, |_| ());
    let refused = use_it(&key, Operation::Unwrap { scheme, wrapped: bad });
    assert!(matches!(refused, Err(HsmError::InvalidInput(_))));
}

/// What the role tells of a key that it keeps state for beside the blob.
#[test]
fn what_the_role_tells_counts_too_and_makes_up_for_nothing() {
    let key = aes(|_| ());
    let told = |change: &dyn Fn(&mut KeyAttributes)| {
        let mut version = key.version().clone();
        change(&mut version.attributes);
        version
    };
    let refused = |key: &Keyed, told: &KeyVersion, operation| key.perform(NOW, told, [0; 28], operation).err();
    let disabled = told(&|a| a.enabled = false);
    assert_eq!(refused(&key, &disabled, wrap()), Some(HsmError::Disabled));
    assert_eq!(refused(&key, &disabled, unwrap(&wrapped())), Some(HsmError::Disabled));
    assert_eq!(refused(&key, &told(&|a| a.expires = Some(NOW)), wrap()), Some(HsmError::Expired));
    let later = Some(Timestamp::from_unix_millis(NOW.unix_millis() + 1));
    assert_eq!(refused(&key, &told(&|a| a.not_before = later), wrap()), Some(HsmError::NotYetValid));
    let unwraps = told(&|a| a.operations = [KeyOperation::UnwrapKey].into_iter().collect());
    assert_eq!(refused(&key, &unwraps, wrap()), Some(HsmError::OperationNotAllowed));
    assert_eq!(refused(&key, &unwraps, unwrap(&wrapped())), None);
    // A role that says all is well does not undo what the blob is bound to.
    for (own, why) in [
        (aes(|a| a.enabled = false), HsmError::Disabled),
        (aes(|a| a.expires = Some(NOW)), HsmError::Expired),
        (aes(|a| a.operations = [KeyOperation::UnwrapKey].into_iter().collect()), HsmError::OperationNotAllowed),
    ] {
        assert_eq!(refused(&own, &told(&|_| ()), wrap()), Some(why));
    }
    // Another key's word is none.
    let mut other = told(&|_| ());
    other.id = KeyVersionId::from_bytes([3; 16]);
    assert_eq!(refused(&key, &other, wrap()), Some(HsmError::Damaged));
    let mut other = told(&|_| ());
    other.name = KeyName::parse("other").unwrap();
    assert_eq!(refused(&key, &other, wrap()), Some(HsmError::Damaged));
    let other = told(&|a| a.spec = KeySpec::Aes(AesSize::Bits128));
    assert_eq!(refused(&key, &other, wrap()), Some(HsmError::Damaged));
}
