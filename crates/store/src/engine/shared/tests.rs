use std::{
    io::ErrorKind,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{super::RowWrite, *};

/// Where commits fail, in this order.
#[derive(Default)]
pub(super) struct Faults(pub Vec<(Step, ErrorKind)>);

impl Faults {
    pub(super) fn at(&mut self, step: Step) -> io::Result<()> {
        match self.0.iter().position(|(at, _)| *at == step) {
            Some(found) => Err(self.0.remove(found).1.into()),
            None => Ok(()),
        }
    }
}

const NAME: RowName = [1; 33];
const OTHER: RowName = [2; 33];

fn rows() -> Rows {
    Rows::from([(NAME, (7, b"sealed".to_vec())), (OTHER, (1, Vec::new()))])
}

fn key(instance: u8, key: u8, place: &str) -> FileKey {
    FileKey::new(&SecretBytes::copy_of(&[key; 32]), PartitionId::from_bytes([instance; 16]), place).unwrap()
}

fn engine_of(directory: &Path, instance: u8, key: u8, place: &str) -> SharedEngine {
    let key = SecretBytes::copy_of(&[key; 32]);
    SharedEngine::new(directory, &key, PartitionId::from_bytes([instance; 16]), place, "test").unwrap()
}

fn engine(directory: &Path) -> SharedEngine {
    engine_of(directory, 1, 2, "state")
}

fn put(name: RowName, expected_version: u64, sealed: Option<&[u8]>) -> Batch {
    Batch::of(vec![RowWrite { name, expected_version, sealed: sealed.map(<[u8]>::to_vec) }])
}

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>, what: &str) {
    match result {
        Err(StoreError::Failed(why)) if why.contains(what) => {}
        other => assert_eq!(format!("{other:?}"), what),
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let key = key(1, 2, "state");
    let (bytes, id) = key.encode(3, &rows());
    let state = key.decode(&bytes).ok().unwrap();
    assert_eq!((state.id, state.rows), (id, rows()));
    for at in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[at / 8] ^= 1 << (at % 8);
        assert!(key.decode(&changed).is_err(), "bit {at}");
    }
    for len in 0..bytes.len() {
        assert!(key.decode(&bytes[..len]).is_err(), "length {len}");
    }
}

#[test]
fn files_of_other_instances_keys_and_places_are_refused() {
    let (bytes, _) = key(1, 2, "state").encode(3, &rows());
    for other in [key(9, 2, "state"), key(1, 9, "state"), key(1, 2, "process a")] {
        assert_eq!(other.decode(&bytes).err(), Some(Unreadable::Damaged));
    }
}

/// Files of both versions; they must be readable for ever.
#[test]
fn golden_files() {
    let v1 = include_bytes!("../../../tests/golden/rows-v1.shared");
    assert_eq!(decode_v1(v1), Some((3, rows())));
    assert_eq!(format::encode_v1(3, &rows()), v1);
    let key = key(1, 2, "state");
    assert_eq!(key.decode(v1).err(), Some(Unreadable::Version1));
    let v2 = include_bytes!("../../../tests/golden/rows-v2.shared");
    assert_eq!(key.decode(v2).ok().unwrap().rows, rows());
    assert_eq!(key.encode(3, &rows()).0, v2);
}

#[test]
fn version_1_is_read_by_the_upgrade_and_never_else() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let old = format::encode_v1(3, &rows());
    fs::write(engine.file(), &old).unwrap();
    refused(engine.state(), "version 1");
    refused(engine.store(put(OTHER, 1, None)), "version 1");
    assert!(engine.upgrade().unwrap());
    assert_eq!(engine.state().unwrap().generation, 4);
    assert_eq!(engine.load().ok().unwrap().rows, rows());
    assert!(!engine.upgrade().unwrap());
    fs::write(engine.file(), &old).unwrap();
    refused(engine.state(), "version 1");
}

#[test]
fn an_older_file_a_row_less_and_another_file_of_the_same_number_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    engine.store(put(NAME, 0, Some(b"one"))).unwrap();
    let first = fs::read(engine.file()).unwrap();
    engine.store(put(NAME, 1, Some(b"two"))).unwrap();
    let good = fs::read(engine.file()).unwrap();
    // The same number, by the same key: what a process wrote that crashed before it was in force.
    let (fork, _) = engine.0.key.encode(2, &rows());
    let fewer_rows = engine.0.key.encode(2, &Rows::new()).0;
    for bad in [&first, &fork, &fewer_rows] {
        fs::write(engine.file(), bad).unwrap();
        refused(engine.state(), "rows.shared is at generation");
        refused(engine.store(put(NAME, 2, Some(b"three"))), "rows.shared is at generation");
        fs::write(engine.file(), &good).unwrap();
        assert_eq!(engine.state().unwrap().generation, 2);
    }
    fs::remove_file(engine.file()).unwrap();
    refused(engine.state(), "rows.shared is at generation 0");
    // The control: an engine that knows of nothing newer takes what has a good tag, and one that was told does not.
    fs::write(engine.file(), &first).unwrap();
    let stranger = super::tests::engine(directory.path());
    assert_eq!(stranger.state().unwrap().generation, 1);
    stranger.expect(2, None, "the mark of process a");
    refused(stranger.state(), "the mark of process a has seen 2");
}

#[test]
fn a_restore_that_was_accepted_is_newer_than_all_that_was_seen() {
    let directory = tempfile::tempdir().unwrap();
    let running = engine(directory.path());
    running.store(put(NAME, 0, Some(b"one"))).unwrap();
    let old = fs::read(running.file()).unwrap();
    for version in 1..5 {
        running.store(put(NAME, version, Some(b"newer"))).unwrap();
    }
    fs::write(running.file(), old).unwrap();
    let command = engine(directory.path());
    command.expect(5, None, "process a");
    refused(command.state(), "process a has seen 5");
    let found = command.found().unwrap();
    assert_eq!(command.accept(&StateId { generation: 2, ..found }), Err(StoreError::Conflict));
    command.accept(&found).unwrap();
    command.store(put(OTHER, 0, Some(b"accepted"))).unwrap();
    assert_eq!(running.state().unwrap().generation, 6, "who runs takes it without a restart");
}

/// Disk full, and any other failure, at each step: the old state stays whole, and the next commit works.
#[test]
fn failures_leave_the_old_state_or_the_new_one() {
    for step in [Step::Locked, Step::Created, Step::Written, Step::Synced, Step::Renamed] {
        let directory = tempfile::tempdir().unwrap();
        let engine = engine(directory.path());
        engine.store(put(NAME, 0, Some(b"one"))).unwrap();
        engine.0.faults.lock().unwrap().0.push((step, ErrorKind::StorageFull));
        let failed = engine.noted(engine.store(put(NAME, 1, Some(b"two"))));
        // Nothing was written, if the new file had no name yet; whether the lock could be taken says nothing of it.
        let certain = matches!(step, Step::Created | Step::Written | Step::Synced);
        assert_eq!(matches!(failed, Err(StoreError::Unavailable(_))), certain, "{step:?}: {failed:?}");
        assert_eq!(matches!(failed, Err(StoreError::Failed(_))), !certain, "{step:?}: {failed:?}");
        assert!(engine.fault().is_some(), "{step:?}");
        assert!(!directory.path().join("rows.new").exists(), "{step:?}");
        // After the renaming the new state is there, though it is not known to be durable: that is what the error says.
        let version = if step == Step::Renamed { 2 } else { 1 };
        assert_eq!(engine.load().ok().unwrap().rows[&NAME].0, version, "{step:?}");
        // The disk is full still, and then it is not.
        engine.0.faults.lock().unwrap().0.push((Step::Written, ErrorKind::StorageFull));
        assert!(engine.look().is_err() && engine.fault().is_some() && !directory.path().join("rows.new").exists());
        engine.look().unwrap();
        assert_eq!(engine.fault(), None, "it says so though nobody changes anything");
        engine.store(put(NAME, version, Some(b"three"))).unwrap();
    }
}

#[test]
fn what_a_crash_leaves_behind_is_in_nobodys_way() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    engine.store(put(NAME, 0, Some(b"one"))).unwrap();
    fs::write(directory.path().join("rows.new"), b"half").unwrap();
    engine.store(put(NAME, 1, Some(b"two"))).unwrap();
    assert_eq!(engine.load().ok().unwrap().rows[&NAME], (2, b"two".to_vec()));
}

#[test]
fn who_holds_the_lock_too_long_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let stopped = engine.lock().unwrap();
    refused(engine.store(put(NAME, 0, Some(b"one"))), "process \"test\", pid");
    assert_eq!(engine.state().unwrap().generation, 0, "reading needs no lock");
    drop(stopped);
    engine.store(put(NAME, 0, Some(b"one"))).unwrap();
}

/// Readers beside a writer: nobody is ever told that the state went back.
#[test]
fn readers_beside_a_writer_raise_no_alarm() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, reader) = (engine(directory.path()), engine(directory.path()));
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for engine in [&reader, &reader, &writer] {
            scope.spawn(|| {
                while done.load(Ordering::Relaxed) == 0 {
                    engine.state().unwrap();
                }
            });
        }
        for version in 0..50 {
            writer.store(put(NAME, version, Some(b"x"))).unwrap();
        }
        done.store(1, Ordering::Relaxed);
    });
    assert_eq!(reader.generation().unwrap(), 50);
}
