//! The masked key blob and the key backup: golden files that every later version must read, and what must be refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

use holdfast_core::{
    KeyAttributes, KeyName, KeyOperation, KeyVersion, KeyVersionId, MaskedKey, Operation, Outcome, PartitionId,
    Timestamp, WrapScheme,
};
use holdfast_crypto::{
    AesSize, Curve, ImportedKey, KeyMaterial, KeySpec, MacHash, MlDsaSize, MlKemSize, SecretBytes, SignatureScheme,
    WrapPadding,
};
use holdfast_engine::{BlobError, Partition, PartitionPolicy, blob::decode_header};
use proptest::prelude::*;

const RANDOM: [u8; 28] = [0x5a; 28];

fn partition_of(id: u8, masking_key: u8) -> Partition {
    let masking_key = SecretBytes::copy_of(&[masking_key; 32]);
    Partition::new(PartitionId::from_bytes([id; 16]), &masking_key, PartitionPolicy::default()).unwrap()
}

fn partition() -> Partition {
    partition_of(0x11, 0x22)
}

fn version(name: &str, spec: KeySpec, operations: &[KeyOperation]) -> KeyVersion {
    KeyVersion {
        name: KeyName::parse(name).unwrap(),
        id: KeyVersionId::from_bytes([0x33; 16]),
        attributes: KeyAttributes {
            spec,
            operations: operations.iter().copied().collect(),
            enabled: true,
            exportable: false,
            not_before: Some(Timestamp::from_unix_secs(1_700_000_000)),
            expires: None,
            release_policy_sha256: None,
        },
    }
}

fn aes_version() -> KeyVersion {
    version("Kek-1", KeySpec::Aes(AesSize::Bits256), &[KeyOperation::WrapKey, KeyOperation::UnwrapKey])
}

fn aes_blob() -> MaskedKey {
    let material = KeyMaterial::import(ImportedKey::Aes(SecretBytes::copy_of(&[0x44; 32]))).unwrap();
    partition().mask(&aes_version(), material, RANDOM).unwrap().masked
}

/// A P-256 key from RFC 6979, A.2.5.
fn ec_blob() -> (KeyVersion, MaskedKey) {
    let hex = |text: &str| -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    let x = hex("60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6");
    let y = hex("7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299");
    let d = hex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
    let public = holdfast_crypto::EcPublicKey::from_coordinates(Curve::P256, &x, &y).unwrap();
    let version = version("sign", KeySpec::Ec(Curve::P256), &[KeyOperation::Sign, KeyOperation::Verify]);
    let material = KeyMaterial::import(ImportedKey::Ec(public, SecretBytes::take(d))).unwrap();
    let masked = partition().mask(&version, material, RANDOM).unwrap().masked;
    (version, masked)
}

#[test]
fn golden_aes_blob_is_written_and_read_alike() {
    let golden = include_bytes!("golden/masked-key-v1-aes256.bin");
    assert_eq!(aes_blob().0.as_ref(), golden);
    let keyed = partition().open(&aes_version(), &MaskedKey(golden.as_slice().into())).unwrap();
    let wrap =
        Operation::Wrap { scheme: WrapScheme::AesKeyWrap(WrapPadding::None), key: SecretBytes::copy_of(&[0x55; 16]) };
    let Outcome::Wrapped(wrapped) =
        keyed.perform(Timestamp::from_unix_secs(1_800_000_000), keyed.version(), [0; 28], wrap).unwrap()
    else {
        panic!("not a wrapped key")
    };
    // RFC 3394 under the key 44..44, by an independent implementation (Python's `cryptography`, aes_key_wrap).
    let expected = include_str!("golden/wrapped-under-aes256.hex").trim();
    assert_eq!(wrapped.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
}

/// Kinds whose material is made of given bytes, so that a blob of theirs is always the same.
#[test]
fn golden_blobs_of_the_other_kinds_are_written_and_read_alike() {
    let golden: [(&[u8], KeySpec, SignatureScheme); 3] = [
        (
            include_bytes!("golden/masked-key-v1-hmac224.bin"),
            KeySpec::Hmac(MacHash::Sha224),
            SignatureScheme::Mac(MacHash::Sha224),
        ),
        (include_bytes!("golden/masked-key-v1-ed25519.bin"), KeySpec::Ed25519, SignatureScheme::Ed25519),
        (
            include_bytes!("golden/masked-key-v1-mldsa65.bin"),
            KeySpec::MlDsa(MlDsaSize::Dsa65),
            SignatureScheme::MlDsa(MlDsaSize::Dsa65),
        ),
    ];
    for (golden, spec, scheme) in golden {
        let version = version("sign", spec, &[KeyOperation::Sign, KeyOperation::Verify]);
        let material = KeyMaterial::generate(spec, |bytes| bytes.fill(0x66)).unwrap();
        let made = partition().mask(&version, material, RANDOM).unwrap();
        assert!(made.masked.0.as_ref() == golden, "{spec:?}");
        let now = Timestamp::from_unix_secs(1_800_000_000);
        let keyed = partition().open(&version, &MaskedKey(golden.into())).unwrap();
        assert_eq!(*keyed.public(), made.public);
        let sign = Operation::Sign { scheme, digest: b"message".to_vec() };
        let Outcome::Signature(signature) = keyed.perform(now, keyed.version(), [0; 28], sign).unwrap() else {
            panic!("no signature")
        };
        let verify =
            |digest: &[u8]| Operation::Verify { scheme, digest: digest.to_vec(), signature: signature.clone() };
        assert!(matches!(
            keyed.perform(now, keyed.version(), [0; 28], verify(b"message")),
            Ok(Outcome::Verified(true))
        ));
        assert!(matches!(
            keyed.perform(now, keyed.version(), [0; 28], verify(b"massage")),
            Ok(Outcome::Verified(false))
        ));
    }
}

#[test]
fn ml_kem_blobs_open_and_work() {
    for size in MlKemSize::ALL {
        let spec = KeySpec::MlKem(size);
        let version = version("kem", spec, &[KeyOperation::WrapKey, KeyOperation::UnwrapKey]);
        let material = KeyMaterial::generate(spec, |_| ()).unwrap();
        let made = partition().mask(&version, material, RANDOM).unwrap();
        let keyed = partition().open(&version, &made.masked).unwrap();
        let now = Timestamp::from_unix_secs(1_800_000_000);
        let Ok(Outcome::Encapsulated(ciphertext, secret)) =
            keyed.perform(now, keyed.version(), [0; 28], Operation::Encapsulate)
        else {
            panic!("nothing was encapsulated")
        };
        let Ok(Outcome::Plaintext(same)) =
            keyed.perform(now, keyed.version(), [0; 28], Operation::Decapsulate { ciphertext })
        else {
            panic!("nothing was decapsulated")
        };
        assert!(same.ct_eq(secret.expose()));
    }
}

#[test]
fn the_check_value_tells_material_and_name_apart() {
    let check = |name: &str, byte: u8| {
        let material = KeyMaterial::import(ImportedKey::Aes(SecretBytes::copy_of(&[byte; 32]))).unwrap();
        let version = version(name, KeySpec::Aes(AesSize::Bits256), &[KeyOperation::Encrypt]);
        partition().mask(&version, material, RANDOM).unwrap().check
    };
    assert_eq!(check("a", 1), check("A", 1));
    assert_ne!(check("a", 1), check("a", 2));
    assert_ne!(check("a", 1), check("b", 1));
}

#[test]
fn golden_ec_blob_is_written_and_read_alike() {
    let (version, masked) = ec_blob();
    let golden = include_bytes!("golden/masked-key-v1-p256.bin");
    assert_eq!(masked.0.as_ref(), golden);
    let keyed = partition().open(&version, &MaskedKey(golden.as_slice().into())).unwrap();
    let now = Timestamp::from_unix_secs(1_800_000_000);
    let scheme = SignatureScheme::Ecdsa(Curve::P256);
    let sign = Operation::Sign { scheme, digest: vec![7; 32] };
    let Outcome::Signature(signature) = keyed.perform(now, keyed.version(), [0; 28], sign).unwrap() else {
        panic!("no signature")
    };
    let verify = Operation::Verify { scheme, digest: vec![7; 32], signature };
    assert!(matches!(keyed.perform(now, keyed.version(), [0; 28], verify), Ok(Outcome::Verified(true))));
}

#[test]
fn golden_backup_is_read() {
    let name = KeyName::parse("Kek-1").unwrap();
    let golden = include_bytes!("golden/key-backup-v1.bin");
    assert_eq!(partition().seal_backup(&name, b"the content", RANDOM).unwrap(), golden);
    assert_eq!(partition().open_backup(golden).unwrap().expose(), b"the content");
}

#[test]
fn every_flipped_bit_of_a_blob_is_refused() {
    let blob = aes_blob().0.to_vec();
    for bit in 0..blob.len() * 8 {
        let mut changed = blob.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(partition().open(&aes_version(), &MaskedKey(changed.into())).is_err(), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_of_a_backup_is_refused() {
    let backup = partition().seal_backup(&KeyName::parse("k").unwrap(), b"content", RANDOM).unwrap();
    for bit in 0..backup.len() * 8 {
        let mut changed = backup.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(partition().open_backup(&changed).is_err(), "bit {bit}");
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let blob = aes_blob().0.to_vec();
    for len in 0..blob.len() {
        assert!(partition().open(&aes_version(), &MaskedKey(blob[..len].into())).is_err(), "{len} bytes");
    }
    let longer = [blob.as_slice(), &[0]].concat();
    assert!(partition().open(&aes_version(), &MaskedKey(longer.into())).is_err());
}

#[test]
fn a_blob_opens_for_its_own_identity_and_attributes_only() {
    let (blob, right) = (aes_blob(), aes_version());
    let changed = |change: &dyn Fn(&mut KeyVersion)| {
        let mut version = right.clone();
        change(&mut version);
        partition().open(&version, &blob).err()
    };
    assert_eq!(changed(&|_| ()), None);
    let other = Some(BlobError::OtherIdentity);
    assert_eq!(changed(&|v| v.name = KeyName::parse("other").unwrap()), other);
    assert_eq!(changed(&|v| v.id = KeyVersionId::from_bytes([9; 16])), other);
    assert_eq!(changed(&|v| v.attributes.enabled = false), other);
    assert_eq!(changed(&|v| v.attributes.exportable = true), other);
    assert_eq!(changed(&|v| v.attributes.not_before = None), other);
    assert_eq!(changed(&|v| v.attributes.expires = Some(Timestamp::from_unix_secs(1))), other);
    assert_eq!(changed(&|v| v.attributes.operations = KeyOperation::ALL.into_iter().collect()), other);
    assert_eq!(changed(&|v| v.attributes.release_policy_sha256 = Some([1; 32])), other);
    assert_eq!(partition_of(0x12, 0x22).open(&right, &blob).err(), other, "another partition");
    assert_eq!(partition_of(0x11, 0x23).open(&right, &blob).err(), Some(BlobError::Damaged), "another masking key");
}

#[test]
fn remasking_keeps_the_key_and_refuses_another_identity() {
    let (from, blob) = (aes_version(), aes_blob());
    let mut to = from.clone();
    to.attributes.enabled = false;
    let remasked = partition().remask(&from, &blob, &to, [1; 28]).unwrap();
    assert!(partition().open(&to, &remasked).is_ok());
    assert!(partition().open(&from, &remasked).is_err());
    to.id = KeyVersionId::from_bytes([0; 16]);
    assert!(partition().remask(&from, &blob, &to, [1; 28]).is_err());
}

proptest! {
    #[test]
    fn any_attributes_survive_the_header(
        name in "[0-9A-Za-z-]{1,127}", id: [u8; 16], bits in 0_u16..512, enabled: bool, exportable: bool,
        from in proptest::option::of(-1_000_000_000_000_i64..4_000_000_000_000), until in proptest::option::of(0_i64..4_000_000_000_000),
        policy in proptest::option::of(proptest::array::uniform32(1_u8..)),
    ) {
        let version = KeyVersion {
            name: KeyName::parse(&name).unwrap(),
            id: KeyVersionId::from_bytes(id),
            attributes: KeyAttributes {
                spec: KeySpec::Aes(AesSize::Bits192),
                operations: holdfast_core::KeyOperations::from_bits(bits).unwrap(),
                enabled,
                exportable,
                not_before: from.map(Timestamp::from_unix_millis),
                expires: until.map(Timestamp::from_unix_millis),
                release_policy_sha256: policy,
            },
        };
        let material = KeyMaterial::import(ImportedKey::Aes(SecretBytes::copy_of(&[1; 24]))).unwrap();
        let masked = partition().mask(&version, material, RANDOM).unwrap().masked;
        let (header, _) = decode_header(&masked.0).unwrap();
        prop_assert_eq!(header.version, version.clone());
        prop_assert!(partition().open(&version, &masked).is_ok());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_header(&bytes);
        let _ = partition().open_backup(&bytes);
    }

    #[test]
    fn no_bytes_after_a_true_beginning_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_header(&[b"HFMK\x01".as_slice(), &bytes].concat());
        let _ = partition().open_backup(&[b"HFKB\x01".as_slice(), &[0x11; 16], &bytes].concat());
    }
}
