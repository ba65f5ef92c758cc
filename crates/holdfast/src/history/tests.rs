//! What somebody who may write the files, and has no key, gets: each attack against the present build, and against one without the floor, where it
//! must succeed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_core::{Change, Decided, Itself};
use redb::TableDefinition;

use super::{flips::Tells, *};
use crate::{
    founding::MayFound,
    instance::{self, close_audit},
};

/// Tables of the store's file, as anybody can open them.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows v1");
const HEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("head v1");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta v1");

/// A data directory and its silicon.
struct Place(tempfile::TempDir);

/// An instance that runs.
struct Live {
    opened: Opened,
    history: History,
}

/// Keys with their values.
type Content = BTreeMap<Vec<u8>, Vec<u8>>;

impl Place {
    fn new() -> Self {
        Self(flips::place())
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.data().join(name)
    }

    fn open_instance(&self) -> Result<Opened, Fault> {
        instance::open(&self.data(), &self.0.path().join("silicon"), MayFound::WhereNew, &[])
    }

    /// An empty store in the place of the one that was there.
    async fn empty_store(&self) {
        self.closed().await;
        drop(EmbeddedEngine::open(&self.file("records.redb")).unwrap());
        self.closed().await;
    }

    async fn open_as(&self, accept_loss: bool, weaken: impl FnOnce(&mut Floors)) -> Result<Live, Fault> {
        self.closed().await;
        open_in(self.0.path(), accept_loss, weaken).await
    }

    async fn open(&self) -> Result<Live, Fault> {
        self.open_as(false, |_| ()).await
    }

    async fn refused(&self, why: &str) {
        let told = self.open().await.map(drop).expect_err(why).to_string();
        assert!(told.contains(why), "{told}");
    }

    /// Waits until whoever had the store open has closed it.
    async fn closed(&self) {
        let path = self.file("records.redb");
        // By the lock that whoever has it open holds: this is no place to look into a damaged file.
        while path.is_file() && fs::File::open(&path).unwrap().try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn bare(&self) -> redb::Database {
        self.closed().await;
        redb::Database::open(self.file("records.redb")).unwrap()
    }

    /// Makes the store look as one of an earlier version: without row set, number of changes and mark.
    async fn strip_store(&self, row_set: bool, revision: bool, mark: bool) {
        let transaction = self.bare().await.begin_write().unwrap();
        if row_set {
            transaction.open_table(HEAD).unwrap().remove("rows").unwrap();
        }
        if revision {
            transaction.open_table(META).unwrap().remove("revision").unwrap();
        }
        if mark {
            let mut rows = transaction.open_table(ROWS).unwrap();
            rows.retain(|name, _| name[0] != AUDIT_MARK && name[0] != FLOORS).unwrap();
        }
        transaction.commit().unwrap();
    }

    /// A log of the first format in the place of ours, which anybody can write.
    fn plant_log(&self) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/tests/golden/audit-1");
        let _ = fs::remove_dir_all(self.file("audit"));
        copy(&golden, &self.file("audit"));
    }

    fn log(&self) -> String {
        let segments = holdfast_store::audit::list_segments(&self.file("audit")).unwrap();
        segments.iter().map(|(_, path)| fs::read_to_string(path).unwrap()).collect()
    }

    fn told(&self, operation: &str) -> usize {
        self.log().matches(&format!(r#""operation":"{operation}""#)).count()
    }

    fn copy(&self) -> Self {
        let copied = Self::new();
        copy(self.0.path(), copied.0.path());
        copied
    }
}

/// Opens the instance of a place that nobody has open.
async fn open_in(place: &Path, accept_loss: bool, weaken: impl FnOnce(&mut Floors)) -> Result<Live, Fault> {
    let mut opened = instance::open(&place.join("data"), &place.join("silicon"), MayFound::WhereNew, &[])?;
    weaken(&mut opened.secrets.floors);
    let config = Audit { accept_loss, ..Audit::default() };
    let records = opened.open_records(&config).await?;
    let history = opened.open_history(&config, records, None).await?;
    Ok(Live { opened, history })
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &there);
        } else if path.is_file() {
            fs::copy(&path, &there).unwrap();
        }
    }
}

impl Live {
    async fn change(&self, id: &str) {
        let write = Write { key: RecordKey::new(1, id), expected_version: 0, value: Some(id.into()) };
        let event = event(self.opened.ambient.as_ref(), "KeyCreate", None, String::new(), Vec::new());
        let event = Decided::by_itself(event, Itself::Configured);
        let done = self.history.store.commit(Change { writes: vec![write], event }).await.unwrap();
        assert_eq!(done.revision(), self.history.store.revision());
    }

    async fn uses(&self) {
        let event = event(self.opened.ambient.as_ref(), "KeyWrap", None, String::new(), Vec::new());
        self.history.audit.append(event).await.unwrap();
    }

    async fn content(&self) -> Content {
        let mut content = Content::new();
        let mut take = |record: holdfast_core::Record| drop(content.insert(record.key.id, record.value));
        self.history.store.scan(1, &mut take).await.unwrap();
        content
    }

    async fn stop(self) {
        let History { store, audit, marks, .. } = self.history;
        close_audit(audit, tokio::spawn(async { marks })).await;
        drop(store);
    }

    /// As a crash leaves it: without the last mark.
    fn crash(self) {
        self.history.audit.close();
    }
}

/// An instance with two changes and a use.
async fn founded() -> Place {
    let place = Place::new();
    let live = place.open().await.unwrap();
    live.change("a").await;
    live.uses().await;
    live.change("b").await;
    live.stop().await;
    place
}

#[tokio::test]
async fn a_founded_instance_is_under_the_floors() {
    let place = founded().await;
    let live = place.open().await.unwrap();
    let floors = Floors::from([(AUDIT_LINES, AUDIT_LINES_VERSION), (KEPT_ROWS, WATERMARK_VERSION)]);
    assert_eq!(live.opened.secrets.floors, floors);
    assert_eq!(live.content().await.len(), 2);
    live.stop().await;
    assert_eq!((place.told("StateUpgrade"), place.told("AcceptLoss")), (0, 0), "nothing was upgraded");
}

#[tokio::test]
async fn a_store_that_is_gone_excuses_no_log_of_the_first_format() {
    let place = founded().await;
    place.closed().await;
    fs::remove_file(place.file("records.redb")).unwrap();
    place.plant_log();
    place.refused("records.redb is missing, but watermark.slots, audit are there").await;
    assert!(!place.file("records.redb").exists(), "none is begun");
    let bare = place.copy();
    fs::remove_file(bare.file("watermark.slots")).unwrap();
    fs::remove_dir_all(bare.file("audit")).unwrap();
    bare.refused("records.redb is missing, but instance.sealed knows of it").await;
    bare.open_as(false, Floors::clear).await.expect("control: without the floors it is begun anew").stop().await;
    let accepted = place.copy();
    accepted.open_as(true, |_| ()).await.unwrap().stop().await;
    assert_eq!(accepted.told("AcceptLoss"), 1);
    place.empty_store().await;
    let weak = place.copy();
    fs::remove_file(weak.file("watermark.slots")).unwrap();
    let live = weak.open_as(false, Floors::clear).await.expect("control: without the floors it is taken");
    live.stop().await;
    place.refused("all that the store held is gone").await;
    // Without that floor the other one holds.
    let refused = place.copy().open_as(false, |floors| floors.retain(|format, _| *format != KEPT_ROWS)).await;
    assert!(refused.err().unwrap().to_string().contains("written to by somebody else"));
    let live = place.open_as(true, |_| ()).await.unwrap();
    live.stop().await;
    assert_eq!(place.told("AcceptLoss"), 1);
    place.open().await.expect("accepted once").stop().await;
}

#[tokio::test]
async fn a_store_that_is_stripped_is_not_one_of_before() {
    let place = founded().await;
    for (row_set, revision, mark, why) in [
        (true, true, true, "the row set of the store is gone"),
        (true, false, false, "the row set of the store is gone"),
        (true, false, true, "the row set of the store is gone"),
        (true, true, false, "the row set of the store is gone"),
        (false, true, false, "not what its last commit (change 0) left"),
        (false, false, true, "not what its last commit (change 2) left"),
        (false, true, true, "not what its last commit (change 0) left"),
    ] {
        let robbed = place.copy();
        robbed.strip_store(row_set, revision, mark).await;
        fs::remove_dir_all(robbed.file("audit")).unwrap();
        if row_set && revision && mark {
            let weak = robbed.copy();
            fs::remove_file(weak.file("watermark.slots")).unwrap();
            weak.open_as(false, Floors::clear).await.expect("control: without the floors it is taken").stop().await;
        }
        robbed.refused(why).await;
        let live = robbed.open_as(true, |_| ()).await.unwrap();
        assert_eq!(live.content().await.len(), 2);
        live.stop().await;
        assert_eq!(robbed.told("AcceptLoss"), 1, "{row_set} {revision} {mark}");
        robbed.open().await.expect("accepted once").stop().await;
    }
}

/// The store as it was kept without a mark: its row set is whole.
#[tokio::test]
async fn a_mark_that_is_gone_from_a_whole_store_is_missed() {
    let place = founded().await;
    let live = place.open().await.unwrap();
    let mark = live.history.store.read(&mark_key()).await.unwrap().unwrap();
    let gone = Write { key: mark_key(), expected_version: mark.version, value: None };
    live.history.store.keep(vec![gone]).await.unwrap();
    live.crash();
    place.refused("the mark of the audit log is gone").await;
    place.open_as(true, |_| ()).await.unwrap().stop().await;
    assert_eq!(place.told("AcceptLoss"), 1);
    place.open().await.unwrap().stop().await;
}

/// Store and log of one moment, both authentic, without the uses since.
#[tokio::test]
async fn store_and_log_put_back_as_a_pair_are_behind_the_watermark() {
    let place = founded().await;
    place.closed().await;
    let yesterday = place.copy();
    let live = place.open().await.unwrap();
    live.uses().await;
    live.stop().await;
    place.closed().await;
    fs::copy(yesterday.file("records.redb"), place.file("records.redb")).unwrap();
    fs::remove_dir_all(place.file("audit")).unwrap();
    copy(&yesterday.file("audit"), &place.file("audit"));
    let (weak, gone) = (place.copy(), place.copy());
    place.refused("lines were removed or replaced").await;
    place.open_as(true, |_| ()).await.unwrap().stop().await;
    assert_eq!(place.told("AcceptLoss"), 1);
    place.open().await.expect("accepted once").stop().await;
    fs::remove_file(gone.file("watermark.slots")).unwrap();
    gone.refused("the watermark of the audit log (watermark.slots) is gone").await;
    fs::copy(yesterday.file("watermark.slots"), weak.file("watermark.slots")).unwrap();
    weak.open().await.expect("control: with the watermark put back, too, it is not seen").stop().await;
}

/// What each write of a first start leaves, if nothing comes after it.
#[tokio::test]
async fn a_first_start_that_is_cut_short_goes_on() {
    let place = Place::new();
    // Nothing but the secrets.
    drop(place.open_instance().unwrap());
    let secrets_alone = fs::read(place.file("instance.sealed")).unwrap();
    place.open().await.unwrap().stop().await;
    // Everything but the floors that are raised last.
    let cut = place.copy();
    fs::write(cut.file("instance.sealed"), &secrets_alone).unwrap();
    forget_floors(&cut).await;
    let live = cut.open().await.expect("row set and mark are there, and the floors are not");
    assert!(in_force(&live.opened.secrets.floors, KEPT_ROWS, KEPT_ROWS_VERSION));
    live.stop().await;
    assert_eq!(cut.told("StateUpgrade"), 0);
    // Without its store, before anything was told to anybody.
    let cut = place.copy();
    fs::write(cut.file("instance.sealed"), &secrets_alone).unwrap();
    for name in ["records.redb", "watermark.slots"] {
        fs::remove_file(cut.file(name)).unwrap();
    }
    fs::remove_dir_all(cut.file("audit")).unwrap();
    cut.open().await.unwrap().stop().await;
    // The same file later: the store knows of the floors.
    fs::write(place.file("instance.sealed"), secrets_alone).unwrap();
    place.refused("instance.sealed is older than the store").await;
    place.open_as(true, |_| ()).await.unwrap().stop().await;
    assert_eq!(place.told("AcceptLoss"), 1);
    place.open().await.unwrap().stop().await;
}

/// Takes away what the store says of the floors, as if it had not come to write it.
async fn forget_floors(place: &Place) {
    let opened = place.open_instance().unwrap();
    place.closed().await;
    let engine = EmbeddedEngine::open(&place.file("records.redb")).unwrap();
    let ambient = Arc::clone(&opened.ambient);
    let store = SealedStore::open(engine, opened.instance, &opened.secrets.database_key, ambient, false).await.unwrap();
    let record = store.read(&floors_key()).await.unwrap().unwrap();
    let gone = Write { key: floors_key(), expected_version: record.version, value: None };
    store.keep(vec![gone]).await.unwrap();
}

/// An installation of before: a store that keeps nothing of its rows, a log of the first format, no floors.
async fn of_before() -> (Place, Vec<u8>) {
    let place = founded().await;
    place.strip_store(true, true, true).await;
    place.plant_log();
    fs::remove_file(place.file("watermark.slots")).unwrap();
    let mut opened = place.open_instance().unwrap();
    opened.seal_floors(Floors::new()).unwrap();
    let sealed = fs::read(place.file("instance.sealed")).unwrap();
    (place, sealed)
}

#[tokio::test]
async fn an_installation_of_before_is_upgraded_once_and_told() {
    let (place, before) = of_before().await;
    let store_before = fs::read(place.file("records.redb")).unwrap();
    let live = place.open().await.unwrap();
    assert_eq!(live.content().await.len(), 2);
    live.change("c").await;
    live.stop().await;
    place.open().await.unwrap().stop().await;
    assert_eq!((place.told("StateUpgrade"), place.told("AcceptLoss")), (1, 0));
    place.closed().await;
    // Parts of it put back.
    let today = place.copy();
    fs::write(place.file("records.redb"), &store_before).unwrap();
    place.refused("the row set of the store is gone").await;
    let place = today.copy();
    fs::write(place.file("instance.sealed"), &before).unwrap();
    place.refused("instance.sealed is older than the store").await;
    let place = today.copy();
    place.plant_log();
    place.refused("written to by somebody else").await;
    // Cut short between its writes: the floors are not in force, and the store does not know of them.
    let place = today.copy();
    forget_floors(&place).await;
    fs::write(place.file("instance.sealed"), &before).unwrap();
    place.open().await.unwrap().stop().await;
    assert_eq!(place.told("StateUpgrade"), 2, "it is told again");
    place.open().await.unwrap().stop().await;
    assert_eq!(place.told("StateUpgrade"), 2);
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_by_name() {
    let place = founded().await;
    place.closed().await;
    let segment = holdfast_store::audit::list_segments(&place.file("audit")).unwrap().pop().unwrap().1;
    for path in [
        place.file("watermark.slots"),
        place.file("instance.sealed"),
        place.0.path().join("silicon"),
        place.file("records.redb"),
        segment,
    ] {
        let kept = fs::read(&path).unwrap();
        for kind in [rustix::fs::FileType::Fifo, rustix::fs::FileType::Socket, rustix::fs::FileType::Directory] {
            fs::remove_file(&path).unwrap();
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            match kind {
                rustix::fs::FileType::Directory => fs::create_dir(&path).unwrap(),
                kind => rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap(),
            }
            let opened = tokio::time::timeout(Duration::from_secs(60), place.open()).await.expect("nobody waits");
            let told = opened.map(drop).expect_err("it is refused").to_string();
            assert!(told.contains(path.to_str().unwrap()), "{kind:?}: {told}");
            if kind == rustix::fs::FileType::Directory { fs::remove_dir(&path) } else { fs::remove_file(&path) }
                .unwrap();
            rustix::fs::open(&path, rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, mode).map(drop).unwrap();
            fs::write(&path, &kept).unwrap();
        }
    }
    place.open().await.expect("control: as it was").stop().await;
}

/// Opens, tells, changes, closes.
async fn opened(directory: &Path) -> Result<Tells, String> {
    let live = open_in(directory, false, |_| ()).await.map_err(|fault| fault.to_string())?;
    let content = live.content().await.into_iter();
    let content = content.map(|(id, value)| (String::from_utf8_lossy(&id).into_owned(), Some(value))).collect();
    live.change("z").await;
    live.stop().await;
    Ok(Tells { content, complains: false })
}

async fn flip_bits(part: u64) {
    let place = founded().await;
    place.closed().await;
    flips::flips("managed-hsm and kms", part, 150, place.0.path(), opened).await;
}

#[tokio::test]
async fn a_flipped_bit_of_records_is_refused_by_name_or_makes_no_difference() {
    flip_bits(0).await;
}

#[tokio::test]
async fn a_flipped_bit_of_records_is_refused_by_name_or_makes_no_difference_2() {
    flip_bits(1).await;
}
