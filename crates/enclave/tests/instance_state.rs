//! The sealed state of an instance: a golden file with its silicon, and everything that must not open.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and count aloud"
)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use holdfast_core::{Ambient, SealError, Sealer, Timestamp};
use holdfast_crypto::SecretBytes;
use holdfast_enclave::{InstanceError, InstanceSecrets, SiliconError, SoftwareSilicon};

struct Counting(std::sync::atomic::AtomicU8);
impl Ambient for Counting {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    }
}

fn ambient() -> Arc<dyn Ambient> {
    Arc::new(Counting(1.into()))
}

fn secrets() -> InstanceSecrets {
    let bytes = |byte: u8| SecretBytes::copy_of(&[byte; 40]);
    InstanceSecrets::generate(ambient().as_ref(), bytes(0xa1), bytes(0xa2), vec![3; 50]).unwrap()
}

/// A founded instance: directory, its silicon's root outside the state file.
fn founded() -> (tempfile::TempDir, SoftwareSilicon) {
    let directory = tempfile::tempdir().unwrap();
    let silicon = SoftwareSilicon::create(&directory.path().join("silicon"), ambient()).unwrap();
    secrets().seal(&directory.path().join("instance.sealed"), &silicon, ambient().as_ref()).unwrap();
    (directory, silicon)
}

#[test]
fn what_was_sealed_opens_with_its_silicon() {
    let (directory, silicon) = founded();
    let path = directory.path().join("instance.sealed");
    let opened = InstanceSecrets::open(&path, &silicon).unwrap().unwrap();
    let again = SoftwareSilicon::open(&directory.path().join("silicon"), ambient()).unwrap();
    let reopened = InstanceSecrets::open(&path, &again).unwrap().unwrap();
    assert!(opened.masking_key.ct_eq(reopened.masking_key.expose()));
    assert!(opened.audit_key.ct_eq(reopened.audit_key.expose()));
    assert_eq!((opened.instance, opened.authority_certificate), (reopened.instance, vec![3; 50]));
    for file in ["silicon", "instance.sealed"] {
        assert_eq!(fs::metadata(directory.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
}

#[test]
fn the_golden_state_opens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    // git does not keep the mode that the reader demands.
    let directory = tempfile::tempdir().unwrap();
    for file in ["silicon-root-v1.bin", "instance-state-v1.bin"] {
        fs::copy(golden.join(file), directory.path().join(file)).unwrap();
        fs::set_permissions(directory.path().join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let silicon = SoftwareSilicon::open(&directory.path().join("silicon-root-v1.bin"), ambient()).unwrap();
    let opened = InstanceSecrets::open(&directory.path().join("instance-state-v1.bin"), &silicon).unwrap().unwrap();
    assert!(opened.tls_key.ct_eq(&[0xa1; 40]) && opened.authority_key.ct_eq(&[0xa2; 40]));
    assert_eq!((opened.database_key.len(), opened.masking_key.len()), (32, 32));
}

#[test]
fn other_silicon_does_not_open_it_and_says_so() {
    let (directory, _) = founded();
    let other = tempfile::tempdir().unwrap();
    let ambient: Arc<dyn Ambient> = Arc::new(Counting(100.into()));
    let silicon = SoftwareSilicon::create(&other.path().join("silicon"), ambient).unwrap();
    let opened = InstanceSecrets::open(&directory.path().join("instance.sealed"), &silicon);
    let Err(InstanceError::Sealed { source: SealError::OtherSilicon { .. }, .. }) = opened else {
        panic!("other silicon must be told from damage: {:?}", opened.err())
    };
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let (directory, silicon) = founded();
    let path = directory.path().join("instance.sealed");
    let good = fs::read(&path).unwrap();
    let refused = |content: &[u8], what: &str| {
        fs::write(&path, content).unwrap();
        assert!(InstanceSecrets::open(&path, &silicon).is_err(), "{what}");
    };
    for bit in 0..good.len() * 8 {
        let mut changed = good.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        refused(&changed, &format!("bit {bit}"));
    }
    for len in 0..good.len() {
        refused(&good[..len], &format!("{len} bytes"));
    }
}

#[test]
fn files_open_to_others_are_refused() {
    let (directory, _) = founded();
    let root = directory.path().join("silicon");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o640)).unwrap();
    let Err(SiliconError::File { source, .. }) = SoftwareSilicon::open(&root, ambient()) else { panic!("it opened") };
    assert!(source.to_string().contains("chmod 600"), "{source}");
}

#[test]
fn a_missing_root_is_never_made_by_opening() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("silicon");
    assert!(matches!(SoftwareSilicon::open(&root, ambient()), Err(SiliconError::Missing(_))));
    assert!(!root.exists());
}

#[test]
fn what_was_sealed_for_one_purpose_does_not_unseal_for_another() {
    let (_directory, silicon) = founded();
    let sealed = silicon.seal(b"one", &SecretBytes::copy_of(b"secret")).unwrap();
    assert!(silicon.unseal(b"one", &sealed).unwrap().ct_eq(b"secret"));
    assert_eq!(silicon.unseal(b"two", &sealed).err(), Some(SealError::Damaged));
}

#[test]
fn no_secret_stands_in_the_file() {
    let (directory, _) = founded();
    let file = fs::read(directory.path().join("instance.sealed")).unwrap();
    for byte in [0xa1_u8, 0xa2] {
        assert!(!file.windows(16).any(|window| window == [byte; 16]), "a key is readable");
    }
}
