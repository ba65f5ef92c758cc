//! The list of founded directories: a golden file, and what somebody without the silicon makes of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
};

use holdfast_core::{Ambient, PartitionId, Timestamp};
use holdfast_enclave::{Founded, FoundedError, FoundedList, SoftwareSilicon};

struct Same(u8);
impl Ambient for Same {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill(self.0);
    }
}

fn entry(directory: &str, byte: u8) -> Founded {
    Founded {
        directory: directory.into(),
        instance: PartitionId::from_bytes([byte; 16]),
        since: Timestamp::from_unix_millis(1_800_000_000_000),
    }
}

struct Place {
    directory: tempfile::TempDir,
    silicon: SoftwareSilicon,
    list: FoundedList,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("silicon");
        let silicon = SoftwareSilicon::create(&root, Arc::new(Same(7))).unwrap();
        Self { silicon, list: FoundedList::beside(&root), directory }
    }

    fn remember(&self, entry: Founded) -> Option<PathBuf> {
        self.list.remember(entry, &self.silicon, &Same(9)).unwrap()
    }

    fn read(&self) -> Vec<Founded> {
        self.list.read(&self.silicon).unwrap()
    }
}

#[test]
fn what_is_remembered_is_read_again() {
    let place = Place::new();
    assert_eq!(place.read(), []);
    for (directory, byte) in [("/a", 1), ("/b", 2), ("/a", 3)] {
        assert_eq!(place.remember(entry(directory, byte)), None);
    }
    assert_eq!(place.read(), [entry("/b", 2), entry("/a", 3)]);
    let path = place.list.path();
    assert_eq!(path, place.directory.path().join("silicon.founded"));
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(path).unwrap();
    assert!(!bytes.windows(2).any(|two| two == b"/a"), "nor is it readable without the silicon");
}

#[test]
fn the_golden_list_opens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let directory = tempfile::tempdir().unwrap();
    for (file, name) in [("silicon-root-v1.bin", "silicon"), ("founded-v1.bin", "silicon.founded")] {
        fs::copy(golden.join(file), directory.path().join(name)).unwrap();
        fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let root = directory.path().join("silicon");
    let silicon = SoftwareSilicon::open(&root, Arc::new(Same(9))).unwrap();
    let list = FoundedList::beside(&root);
    assert_eq!(list.read(&silicon).unwrap(), [entry("/var/lib/holdfast/hsm", 1), entry("/srv/s3", 2)]);
    // What is written today is the same.
    for entry in list.read(&silicon).unwrap() {
        list.remember(entry, &silicon, &Same(9)).unwrap();
    }
    assert_eq!(fs::read(list.path()).unwrap(), fs::read(golden.join("founded-v1.bin")).unwrap());
}

#[test]
fn nobody_without_the_silicon_adds_or_changes_an_entry() {
    let place = Place::new();
    place.remember(entry("/a", 1));
    let (path, good) = (place.list.path(), fs::read(place.list.path()).unwrap());
    let mut put: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    put.extend((0..good.len() * 8).map(|bit| {
        let mut changed = good.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    }));
    for content in put {
        fs::write(path, &content).unwrap();
        match place.list.read(&place.silicon) {
            Err(FoundedError::Damaged(_)) => {}
            // Of other silicon, by its id, which anybody can write: as if there was none.
            Ok(entries) => assert_eq!(entries, []),
            Err(error) => panic!("{error}"),
        }
    }
    let other = Place::new_with(8);
    fs::copy(other.list.path(), path).unwrap();
    assert_eq!(place.read(), [], "the list of other silicon says nothing here");
}

impl Place {
    fn new_with(byte: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("silicon");
        let silicon = SoftwareSilicon::create(&root, Arc::new(Same(byte))).unwrap();
        let place = Self { silicon, list: FoundedList::beside(&root), directory };
        place.remember(entry("/planted", byte));
        place
    }
}

#[test]
fn a_damaged_list_is_set_aside_by_the_next_entry() {
    let place = Place::new();
    place.remember(entry("/a", 1));
    fs::write(place.list.path(), b"HFFD\x01 damaged").unwrap();
    let aside = place.remember(entry("/b", 2)).unwrap();
    assert_eq!(fs::read(aside).unwrap(), b"HFFD\x01 damaged");
    assert_eq!(place.read(), [entry("/b", 2)]);
}

#[test]
fn the_oldest_are_forgotten_when_there_are_too_many() {
    let place = Place::new();
    for number in 0..1030 {
        place.remember(entry(&format!("/{number}"), 1));
    }
    let entries = place.read();
    assert_eq!((entries.len(), entries[0].directory.as_path()), (1024, Path::new("/6")));
    let long = entry(&"x".repeat(4097), 1);
    assert!(matches!(place.list.remember(long, &place.silicon, &Same(9)), Err(FoundedError::File { .. })));
    assert_eq!(place.read(), entries);
}

/// Services that share a silicon start together after a boot.
#[test]
fn two_at_once_lose_no_entry_and_no_silicon() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("silicon");
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for byte in 0..8_u8 {
            let (root, start) = (&root, &start);
            scope.spawn(move || {
                start.wait();
                // Each would have made another one.
                let silicon = SoftwareSilicon::create(root, Arc::new(Same(byte + 1))).unwrap();
                FoundedList::beside(root).remember(entry(&format!("/{byte}"), byte), &silicon, &Same(byte)).unwrap();
            });
        }
    });
    let silicon = SoftwareSilicon::open(&root, Arc::new(Same(1))).unwrap();
    let mut known = FoundedList::beside(&root).read(&silicon).unwrap();
    known.sort_by_key(|entry| entry.directory.clone());
    assert_eq!(known, (0..8).map(|byte| entry(&format!("/{byte}"), byte)).collect::<Vec<_>>());
}
