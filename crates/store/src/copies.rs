//! Copies of redb files, row by row: what a backup takes while a service writes to them, and what a restore makes anew.
//!
//! A copy is a read transaction: all of one moment, whatever is committed meanwhile. What it gives are rows as they lie there, which nobody has to
//! be able to read for that; [`CopyCheck`] sees with the instance's keys whether they are all, and ours.

mod check;

use std::{
    fs::{File, OpenOptions},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

pub use check::{CheckedCopy, CopyCheck, CopyKeys};
use holdfast_core::{RecordKey, Revision, StoreError};
use redb::{
    Database, Durability, Key, ReadTransaction, ReadableTable, TableDefinition, TableError, TableHandle, Value,
    WriteTransaction,
};

use crate::{
    database::{DatabaseFile, open_there},
    engine::Row,
    group::failed,
    index::seals::Seals,
};

/// Bytes of rows that one transaction of a restore writes: what it holds in memory.
const BYTES_A_COMMIT: usize = 16 * 1024 * 1024;
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// What a file holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CopyOf {
    /// Sealed records, `records.redb`.
    Records,
    /// The ordered index of storage, `index.redb`.
    Index,
}

/// How redb keeps a column.
#[derive(Clone, Copy)]
enum Column {
    Bytes,
    Text,
    /// 8 bytes, the least significant first.
    Number,
}

impl Column {
    fn takes(self, bytes: &[u8]) -> bool {
        match self {
            Self::Bytes => true,
            Self::Text => std::str::from_utf8(bytes).is_ok(),
            Self::Number => bytes.len() == 8,
        }
    }
}

struct TableOf {
    name: &'static str,
    key: Column,
    value: Column,
}

const fn table(name: &'static str, key: Column, value: Column) -> TableOf {
    TableOf { name, key, value }
}

/// Every table that such a file may have. One with another was made by a version that knows more, or is in the middle of an upgrade.
const RECORDS: &[TableOf] = &[
    table("rows v1", Column::Bytes, Column::Bytes),
    table("meta v1", Column::Text, Column::Number),
    table("head v1", Column::Text, Column::Bytes),
];
const INDEX: &[TableOf] = &[
    table("index v2", Column::Bytes, Column::Bytes),
    table("sets v2", Column::Bytes, Column::Bytes),
    table("meta v2", Column::Text, Column::Bytes),
    table("events v1", Column::Number, Column::Bytes),
    table("pins v1", Column::Bytes, Column::Bytes),
    table("index v1", Column::Text, Column::Text),
];

impl CopyOf {
    fn tables(self) -> &'static [TableOf] {
        match self {
            Self::Records => RECORDS,
            Self::Index => INDEX,
        }
    }

    fn table(self, name: &str) -> Result<&'static TableOf, StoreError> {
        let unknown = || failed(format!("it has a table {name:?}, which this version does not know"));
        self.tables().iter().find(|table| table.name == name).ok_or_else(unknown)
    }
}

/// Takes copies of a file, while it is written to or not.
#[derive(Clone)]
pub struct Copies {
    file: Arc<DatabaseFile>,
    of: CopyOf,
    /// Opens the head of an index.
    seals: Option<Arc<Seals>>,
}

impl Copies {
    pub(crate) fn of_records(file: &Arc<DatabaseFile>) -> Self {
        Self { file: Arc::clone(file), of: CopyOf::Records, seals: None }
    }

    pub(crate) fn of_index(file: &Arc<DatabaseFile>, seals: &Arc<Seals>) -> Self {
        Self { file: Arc::clone(file), of: CopyOf::Index, seals: Some(Arc::clone(seals)) }
    }

    /// Opens a file that no service has open, and no other process opens meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: not there, not to be read, damaged, or another process has it open.
    pub fn open(path: &Path, of: CopyOf, keys: &CopyKeys<'_>) -> Result<Self, StoreError> {
        let file = Arc::new(DatabaseFile::new(path, open_there(path, CACHE_BYTES)?, CACHE_BYTES));
        let seals = match of {
            CopyOf::Records => None,
            CopyOf::Index => Some(Arc::new(keys.seals()?)),
        };
        Ok(Self { file, of, seals })
    }

    /// What is there now, for as long as the copy lives.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn begin(&self) -> Result<Copy, StoreError> {
        guarded(|| {
            let transaction = self.file.begin_read()?;
            for known in transaction.list_tables().map_err(failed)? {
                self.of.table(known.name())?;
            }
            let revision = self.revision(&transaction)?;
            Ok(Copy { transaction, of: self.of, revision, _file: Arc::clone(&self.file) })
        })
    }

    fn revision(&self, transaction: &ReadTransaction) -> Result<Revision, StoreError> {
        match &self.seals {
            None => {
                let meta = TableDefinition::<&str, u64>::new("meta v1");
                let meta = transaction.open_table(meta).map_err(failed)?;
                Ok(Revision(meta.get("revision").map_err(failed)?.map_or(0, |revision| revision.value())))
            }
            Some(seals) => {
                let meta = TableDefinition::<&str, &[u8]>::new("meta v2");
                let meta = transaction.open_table(meta).map_err(failed)?;
                let head = meta.get("head").map_err(failed)?.ok_or(StoreError::Damaged)?;
                Ok(seals.open_head(head.value()).ok_or(StoreError::Damaged)?.revision)
            }
        }
    }
}

/// Reads. A damaged page may make redb panic, which is a failure here.
fn guarded<T>(read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // Nothing is changed by a read that is cut short.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(failed("it is damaged, and redb gave up on it")))
}

/// What a copy gives each row to: name of the table, key, value.
pub type CopyVisitor<'a> = dyn FnMut(&'static str, &[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// All rows of one moment.
pub struct Copy {
    transaction: ReadTransaction,
    of: CopyOf,
    revision: Revision,
    /// A file that is closed gives nothing more.
    _file: Arc<DatabaseFile>,
}

impl Copy {
    /// The newest change in it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Gives every row to `visit`, table by table, in order.
    ///
    /// # Errors
    /// [`StoreError::Failed`], or what `visit` returns.
    pub fn visit(&self, visit: &mut CopyVisitor<'_>) -> Result<(), StoreError> {
        guarded(|| self.visit_all(visit))
    }

    /// The content of a record, if this is a copy of records that has it.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; [`StoreError::Damaged`]: it is not ours.
    pub fn record(&self, key: &RecordKey, keys: &CopyKeys<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = keys.rows()?;
        let name = rows.name(key);
        guarded(|| {
            let table = TableDefinition::<&[u8], &[u8]>::new("rows v1");
            let table = self.transaction.open_table(table).map_err(failed)?;
            let Some(value) = table.get(name.as_slice()).map_err(failed)? else { return Ok(None) };
            let (version, sealed) = value.value().split_first_chunk::<8>().ok_or(StoreError::Damaged)?;
            let row = Row { name, version: u64::from_be_bytes(*version), sealed: sealed.to_vec() };
            rows.open(&row).map(|record| Some(record.value))
        })
    }

    fn visit_all(&self, visit: &mut CopyVisitor<'_>) -> Result<(), StoreError> {
        for table in self.of.tables() {
            let all = (&self.transaction, table.name);
            match (table.key, table.value) {
                (Column::Bytes, Column::Bytes) => rows::<&[u8], &[u8]>(all, visit),
                (Column::Text, Column::Number) => rows::<&str, u64>(all, visit),
                (Column::Text, Column::Bytes) => rows::<&str, &[u8]>(all, visit),
                (Column::Text, Column::Text) => rows::<&str, &str>(all, visit),
                (Column::Number, Column::Bytes) => rows::<u64, &[u8]>(all, visit),
                _ => Err(failed("no table is of these types")),
            }?;
        }
        Ok(())
    }
}

fn rows<K: Key + 'static, V: Value + 'static>(
    (transaction, name): (&ReadTransaction, &'static str),
    visit: &mut CopyVisitor<'_>,
) -> Result<(), StoreError> {
    let table = match transaction.open_table(TableDefinition::<K, V>::new(name)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in table.iter().map_err(failed)? {
        let (key, value) = entry.map_err(failed)?;
        visit(name, K::as_bytes(&key.value()).as_ref(), V::as_bytes(&value.value()).as_ref())?;
    }
    Ok(())
}

/// Makes a file anew from the rows of a copy.
pub struct CopyWriter {
    database: Database,
    path: std::path::PathBuf,
    of: CopyOf,
    transaction: Option<WriteTransaction>,
    bytes: usize,
}

impl CopyWriter {
    /// Begins a file at `path`, where there is none.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn create(path: &Path, of: CopyOf) -> Result<Self, StoreError> {
        let options = &mut OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let database = crate::database::open(path, CACHE_BYTES, false, options).map_err(failed)?;
        Ok(Self { database, path: path.into(), of, transaction: None, bytes: 0 })
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// [`StoreError::Failed`]: no such file has such a row, or it cannot be written.
    pub fn add(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let table = self.of.table(table)?;
        if !table.key.takes(key) || !table.value.takes(value) {
            return Err(failed(format!("the table {:?} has no such rows", table.name)));
        }
        let transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => {
                let mut transaction = self.database.begin_write().map_err(failed)?;
                // The last one makes all of them durable.
                transaction.set_durability(Durability::None).map_err(failed)?;
                transaction
            }
        };
        match (table.key, table.value) {
            (Column::Bytes, Column::Bytes) => insert::<&[u8], &[u8]>(&transaction, table.name, key, value),
            (Column::Text, Column::Number) => insert::<&str, u64>(&transaction, table.name, key, value),
            (Column::Text, Column::Bytes) => insert::<&str, &[u8]>(&transaction, table.name, key, value),
            (Column::Text, Column::Text) => insert::<&str, &str>(&transaction, table.name, key, value),
            (Column::Number, Column::Bytes) => insert::<u64, &[u8]>(&transaction, table.name, key, value),
            _ => Err(failed("no table is of these types")),
        }?;
        self.bytes += key.len() + value.len();
        if self.bytes < BYTES_A_COMMIT {
            self.transaction = Some(transaction);
            return Ok(());
        }
        self.bytes = 0;
        transaction.commit().map_err(failed)
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn finish(mut self) -> Result<(), StoreError> {
        if let Some(transaction) = self.transaction.take() {
            transaction.commit().map_err(failed)?;
        }
        let last = self.database.begin_write().map_err(failed)?;
        last.commit().map_err(failed)?;
        drop(self.database);
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(failed)
    }
}

/// The columns take what they are given: see [`Column::takes`].
fn insert<K: Key + 'static, V: Value + 'static>(
    transaction: &WriteTransaction,
    name: &str,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(TableDefinition::<K, V>::new(name)).map_err(failed)?;
    table.insert(K::from_bytes(key), V::from_bytes(value)).map_err(failed)?;
    Ok(())
}
