//! Somebody who may write to the file, and has no key, while nobody runs: what he evens out, puts in the place of something, or hides.

use std::{fs, path::PathBuf, time::Duration};

use holdfast_core::{IndexChange, IndexWrite};
use own::{PINS, SET_OF_EVENTS};
use tempfile::TempDir;

use super::*;
use crate::{
    row_set::Sum,
    twins::{Fixed, event},
};

/// Rows of the first letter are a set.
const SETS_OF: IndexSets = IndexSets { of: |row| row.get(..1).unwrap_or(row), prefixes: |set| vec![set.to_vec()] };
const KEY: [u8; 32] = [3; 32];
const INSTANCE_ID: [u8; 16] = [7; 16];

struct Place {
    _directory: TempDir,
    path: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index.redb");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { _directory: directory, path, runtime }
    }

    fn open_as(&self, counted: bool, accept_loss: bool) -> Result<EmbeddedIndex, StoreError> {
        self.closed();
        let opening = IndexOpening {
            instance: PartitionId::from_bytes(INSTANCE_ID),
            database_key: &SecretBytes::copy_of(&KEY),
            ambient: Arc::new(Fixed),
            sets: SETS_OF,
            founding: None,
            upgraded: &|_| event("upgrade"),
            in_force: true,
            counted,
            accept_loss,
        };
        EmbeddedIndex::open(&self.path, opening)
    }

    fn open(&self) -> Result<EmbeddedIndex, StoreError> {
        self.open_as(true, false)
    }

    /// Waits until the thread of one that was dropped has let go of the file.
    fn closed(&self) {
        while self.path.exists() && fs::File::open(&self.path).unwrap().try_lock().is_err() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn write(&self, index: &EmbeddedIndex, name: &str, value: Option<&str>) {
        let write = IndexWrite { key: name.into(), value: value.map(|value| value.as_bytes().to_vec()) };
        let change = move |_: &dyn IndexReader| Ok(IndexChange { writes: vec![write], event: Some(event("change")) });
        self.runtime.block_on(index.commit(Box::new(change))).unwrap();
    }

    fn edit<T>(&self, edit: impl FnOnce(&redb::WriteTransaction) -> T) -> T {
        self.closed();
        let database = Database::open(&self.path).unwrap();
        let transaction = database.begin_write().unwrap();
        let made = edit(&transaction);
        transaction.commit().unwrap();
        made
    }

    /// Takes a row out.
    fn take(&self, name: &str) -> Vec<u8> {
        self.edit(|transaction| {
            let mut rows = transaction.open_table(ROWS).unwrap();
            rows.remove(name.as_bytes()).unwrap().unwrap().value().to_vec()
        })
    }

    fn put(&self, name: &str, row: &[u8]) {
        self.edit(|transaction| drop(transaction.open_table(ROWS).unwrap().insert(name.as_bytes(), row).unwrap()));
    }

    fn pins(&self) -> u64 {
        use redb::ReadableTableMetadata;
        self.edit(|transaction| transaction.open_table(PINS).unwrap().len().unwrap())
    }
}

fn whole(index: &EmbeddedIndex) -> bool {
    let names = index.sets().unwrap();
    index.check_order().unwrap() && names.whole && names.names.iter().all(|set| index.check(set).unwrap().whole)
}

/// An object that its owner has deleted, and somebody else had before.
fn evened_out(believes: bool) -> Place {
    let place = Place::new();
    let index = place.open().unwrap();
    place.write(&index, "o1", Some("a"));
    place.write(&index, "o2", Some("b"));
    drop(index);
    let first = place.take("o1");
    let index = place.open().expect("what is missing is found by a look at all rows only");
    if believes {
        index.seen.believe();
    }
    place.write(&index, "o1", Some("another"));
    place.write(&index, "o1", None);
    drop(index);
    place.put("o1", &first);
    place
}

#[test]
fn what_was_deleted_before_anybody_looked_is_not_put_back() {
    let weak = evened_out(true);
    let index = weak.open().expect("control: without pins it is even");
    assert!(whole(&index) && index.snapshot().unwrap().get(b"o1").unwrap().is_some(), "control: and is served");
    drop(index);
    let place = evened_out(false);
    assert!(matches!(place.open().err(), Some(StoreError::NotWhole { .. })));
    let index = place.open_as(true, true).unwrap();
    assert!(index.notes()[0].contains("as they were left"), "{:?}", index.notes());
    place.runtime.block_on(index.keep_accepted()).unwrap();
    drop(index);
    drop(place.open().expect("accepted once"));
    // Without the pins that tell of it, and without what is kept of them.
    let place = evened_out(false);
    place.edit(|transaction| transaction.open_table(PINS).unwrap().retain(|_, _| false).unwrap());
    assert!(matches!(place.open().err(), Some(StoreError::NotWhole { .. })));
    place.edit(|transaction| drop(transaction.open_table(SETS).unwrap().remove(own::SET_OF_PINS).unwrap()));
    assert!(matches!(place.open().err(), Some(StoreError::NotWhole { .. })));
}

/// A row of before a change, put back for as long as it takes that somebody changes it to what it was anyway; and then to what it was before.
fn changed_under_a_row_of_before(believes: bool) -> Place {
    let place = Place::new();
    let index = place.open().unwrap();
    place.write(&index, "b1", Some("deny"));
    drop(index);
    let deny = place.take("b1");
    place.put("b1", &deny);
    let index = place.open().unwrap();
    place.write(&index, "b1", Some("allow"));
    assert!(whole(&index));
    place.write(&index, "c1", Some("x"));
    drop(index);
    let allow = place.take("b1");
    place.put("b1", &deny);
    let index = place.open().unwrap();
    if believes {
        index.seen.believe();
    }
    place.write(&index, "b1", Some("allow"));
    place.write(&index, "b1", Some("deny"));
    drop(index);
    place.put("b1", &allow);
    place
}

#[test]
fn what_was_changed_before_anybody_looked_is_not_put_back() {
    let index = changed_under_a_row_of_before(true).open().expect("control: without pins it is even");
    assert!(whole(&index) && index.snapshot().unwrap().get(b"b1").unwrap().unwrap() == b"allow");
    assert!(matches!(changed_under_a_row_of_before(false).open().err(), Some(StoreError::NotWhole { .. })));
}

#[test]
fn pins_go_when_their_set_was_seen_whole() {
    let place = Place::new();
    let index = place.open().unwrap();
    place.write(&index, "o1", Some("a"));
    drop(index);
    assert_eq!(place.pins(), 0, "a set that begins needs none");
    let index = place.open().unwrap();
    place.write(&index, "o1", Some("b"));
    place.write(&index, "o2", Some("b"));
    place.write(&index, "p1", Some("new"));
    place.write(&index, "o2", None);
    drop(index);
    assert_eq!(place.pins(), 2, "what they are left as, and nothing of the new set");
    let index = place.open().expect("all is as it was left");
    assert!(index.check(b"o").unwrap().whole);
    place.write(&index, "o3", Some("c"));
    assert!(whole(&index));
    place.write(&index, "o4", Some("d"));
    place.write(&index, "o5", Some("d"));
    drop(index);
    assert_eq!(place.pins(), 0, "its order was looked at, then it was whole, then they went");
    drop(place.open().unwrap());
}

#[test]
fn an_event_of_a_history_that_was_given_up_is_not_told() {
    let place = Place::new();
    drop(place.open().unwrap());
    let before = fs::read(&place.path).unwrap();
    let first = |place: &Place, name: &str| {
        let index = place.open().unwrap();
        place.write(&index, name, Some("x"));
        drop(index);
        place.edit(|transaction| {
            let events = transaction.open_table(EVENTS).unwrap();
            events.get(1).unwrap().unwrap().value().to_vec()
        })
    };
    let given_up = first(&place, "given-up");
    place.closed();
    fs::write(&place.path, before).unwrap();
    let ours = first(&place, "kept");
    // The same content here, since entropy is fixed: told apart by one that says something else.
    let seals = Seals::new(PartitionId::from_bytes(INSTANCE_ID), &SecretBytes::copy_of(&KEY), Arc::new(Fixed)).unwrap();
    assert_eq!(given_up, ours);
    let other = seals.seal_event(Revision(1), r#"{"type":"event","operation":"Other""#).unwrap();
    assert!(seals.open_event(Revision(1), &other).is_ok(), "control: it is authentic, and of that number");
    place.edit(|transaction| drop(transaction.open_table(EVENTS).unwrap().insert(1, other.as_slice()).unwrap()));
    assert!(matches!(place.open().err(), Some(StoreError::NotWhole { .. })));
    let index = place.open_as(true, true).unwrap();
    assert_eq!(index.outbox().waiting(), 0, "nobody knows which is true");
    place.runtime.block_on(index.keep_accepted()).unwrap();
    drop(index);
    drop(place.open().expect("accepted once"));
}

/// As an index was kept before its events were: without a sum of them in its head.
#[test]
fn events_of_before_they_were_counted_are_counted_once() {
    let place = Place::new();
    let index = place.open().unwrap();
    place.write(&index, "o1", Some("a"));
    let (seals, head) = (Arc::clone(&index.seals), opening::whole_head);
    drop(index);
    place.closed();
    let database = Database::open(&place.path).unwrap();
    let head = head(&database, &seals).unwrap();
    drop(database);
    place.edit(|transaction| {
        let mut kept = transaction.open_table(SETS).unwrap();
        let state = seals.open_set(SET_OF_EVENTS, kept.remove(SET_OF_EVENTS).unwrap().unwrap().value()).unwrap();
        let sum: Sum = head.sum.plus(seals.digest_of_set(SET_OF_EVENTS, state).negative());
        let head = seals.seal_head(super::super::seals::Head { sum, ..head }).unwrap();
        transaction.open_table(META).unwrap().insert(HEAD, head.as_slice()).unwrap();
    });
    assert!(matches!(place.open().err(), Some(StoreError::NotWhole { .. })), "not once the floor is there");
    let index = place.open_as(false, false).unwrap();
    assert_eq!(index.outbox().waiting(), 1);
    drop(index);
    drop(place.open().expect("from then on they are counted"));
}

/// Names of one length, and rows of one length: so that one may stand in the place of another in the pages of the file.
const NAMES: [&str; 5] = ["b0", "o1", "p2", "p4", "p5"];

/// A tree made by hand: who reads the rows in their order sees the new row of `o1`, and who asks for `o1` gets the old one.
fn crafted() -> Place {
    let place = Place::new();
    let index = place.open().unwrap();
    place.write(&index, "o1", Some("old"));
    drop(index);
    let old = place.take("o1");
    place.put("o1", &old);
    let index = place.open().unwrap();
    for name in NAMES {
        place.write(&index, name, Some("new"));
    }
    assert!(whole(&index));
    // The pins of it go.
    place.write(&index, "p5", Some("New"));
    drop(index);
    let all: Vec<Vec<u8>> = NAMES.into_iter().map(|name| place.take(name)).collect();
    // In the order in which they are to stand: the first that halving meets is the old one.
    let stand: [(&str, &[u8]); 7] = [
        ("b0", &all[0]),
        ("o1", &all[1]),
        ("p2", &all[2]),
        ("o1", &old),
        ("p2", &all[2]),
        ("p4", &all[3]),
        ("p5", &all[4]),
    ];
    let filler = |at: usize| format!("{}{}", char::from(b'0' + at as u8), "~");
    for (at, (_, row)) in stand.iter().enumerate() {
        place.put(&filler(at), row);
    }
    place.closed();
    let mut bytes = fs::read(&place.path).unwrap();
    let named = |at: usize| filler(at).into_bytes();
    let list: Vec<u8> = (0..stand.len()).flat_map(named).collect();
    let names: Vec<u8> = stand.iter().flat_map(|(name, _)| name.as_bytes().to_vec()).collect();
    let mut found = 0;
    while let Some(at) = bytes.windows(list.len()).position(|part| part == list) {
        bytes[at..at + list.len()].copy_from_slice(&names);
        found += 1;
    }
    assert!(found > 0, "the names of a leaf stand one behind the other");
    fs::write(&place.path, bytes).unwrap();
    place
}

#[test]
fn a_tree_that_shows_another_row_to_who_asks_for_it_is_found() {
    let place = crafted();
    let index = place.open().unwrap();
    let names = index.sets().unwrap();
    let sets: Vec<bool> = names.names.iter().map(|set| index.check(set).unwrap().whole).collect();
    assert_eq!(index.snapshot().unwrap().get(b"o1").unwrap().unwrap(), b"old", "control: the old row is served");
    assert_eq!(
        (names.whole, sets.as_slice()),
        (true, [true; 3].as_slice()),
        "control: and a look at all sets is content"
    );
    assert_eq!(index.check_order(), Ok(false));
    assert!(!index.seen.is_whole(b"o"), "what is found whole in such a tree says nothing");
}
