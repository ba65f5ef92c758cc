//! Which processes the shared state knows: what one of them has seen cannot be taken away unnoticed with its directory.
//!
//! A process is enrolled once its mark, the mark of its log and the watermark lie on disk, by itself or by another that starts. Whoever opens the state looks for
//! the marks of all that are enrolled.

use holdfast_core::{Record, RecordKey, Store, StoreError, Write};

use super::witness::Places;
use crate::history::{AUDIT_LINES, AUDIT_LINES_OF_PROCESSES, AUDIT_LINES_VERSION, SHARED_ROWS, SHARED_ROWS_VERSION};

/// Kind of their records (`docs/formats/xks-records.md`). Id: the process's name.
const KIND: u8 = 11;
const MEMBER_V1: &[u8] = br#"{"v":1}"#;
const MEMBER: &[u8] = br#"{"v":2}"#;

/// Names of all that are enrolled.
pub(super) async fn enrolled(store: &dyn Store) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    store.scan(KIND, &mut |record| names.extend(String::from_utf8(record.key.id))).await?;
    names.sort();
    Ok(names)
}

/// The floors that were in force when somebody was enrolled: an older `instance.sealed` shows by them.
pub(super) async fn formats_known(store: &dyn Store) -> Result<Vec<[u8; 2]>, StoreError> {
    let mut known = Vec::new();
    let mut look = |record: Record| {
        let lines = if record.value == MEMBER_V1 { AUDIT_LINES_VERSION } else { AUDIT_LINES_OF_PROCESSES };
        known.extend([[SHARED_ROWS, SHARED_ROWS_VERSION], [AUDIT_LINES, lines]]);
    };
    store.scan(KIND, &mut look).await?;
    known.sort_unstable();
    known.dedup();
    Ok(known)
}

/// Those that were enrolled before each log had MACs of its own are so as of today.
async fn of_before(store: &dyn Store) -> Result<Vec<Write>, StoreError> {
    let mut writes = Vec::new();
    let mut look = |Record { key, version, value }: Record| {
        if value == MEMBER_V1 {
            writes.push(Write { key, expected_version: version, value: Some(MEMBER.to_vec()) });
        }
    };
    store.scan(KIND, &mut look).await?;
    Ok(writes)
}

/// Those that are enrolled and have no mark any more.
pub(super) async fn gone(store: &dyn Store, places: &Places) -> Result<Vec<String>, StoreError> {
    let mut gone = Vec::new();
    for process in enrolled(store).await? {
        if !places.has_mark(&process)? {
            gone.push(process);
        }
    }
    Ok(gone)
}

/// Enrols every process whose marks lie there.
pub(super) async fn enrol(store: &dyn Store, places: &Places) -> Result<(), StoreError> {
    let enrolled = enrolled(store).await?;
    let mut writes = of_before(store).await?;
    for process in places.processes()?.into_iter().filter(|process| !enrolled.contains(process)) {
        let watermarked = places.watermark(&process)?.reached.is_some();
        if watermarked && places.has_mark(&process)? && places.log_is_marked(&process).await? {
            let value = Some(MEMBER.to_vec());
            writes.push(Write { key: RecordKey::new(KIND, process), expected_version: 0, value });
        }
    }
    if writes.is_empty() { Ok(()) } else { store.keep(writes).await }
}

/// Operators have accepted that these are gone.
pub(super) async fn dismiss(store: &dyn Store, processes: &[String]) -> Result<(), StoreError> {
    let mut writes = Vec::new();
    for process in processes {
        let key = RecordKey::new(KIND, process.as_bytes());
        if let Some(record) = store.read(&key).await? {
            writes.push(Write { key, expected_version: record.version, value: None });
        }
    }
    if writes.is_empty() { Ok(()) } else { store.keep(writes).await }
}

/// What is said of them.
pub(super) fn lost_members(gone: &[String]) -> String {
    format!(
        "WHAT PROCESSES HAVE SEEN WAS TAKEN AWAY: of {} the mark (processes/NAME/mark.slots) is not there any more, and the shared state knows of it",
        gone.join(", ")
    )
}
