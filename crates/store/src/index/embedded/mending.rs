//! What the thread that commits does after a failure: the file is opened anew, and taken if its head is that of the last commit, or of the one
//! that failed, and what is kept of the sets of rows is what that commit left. Rows are looked at as at a start: each by its MAC when it is read, and
//! all of them in the background, which the role begins when it hears of it ([`crate::Condition::reopened`]).

use std::sync::Arc;

use holdfast_core::StoreError;
use redb::Database;

use super::{
    HEAD, META,
    opening::whole_head,
    own::Own,
    sets,
    writer::{Done, Job, Writer, stored_head},
};
use crate::group::{Fared, Mended, Target, failed};

impl Target for Writer {
    type Job = Job;
    type Done = Done;

    fn name(&self) -> &'static str {
        "index-writer"
    }

    fn write(&mut self, jobs: Vec<Job>) -> Fared<Done> {
        self.write_group(jobs)
    }

    fn has_room(&self) -> bool {
        self.file.has_room()
    }

    fn look(&self) -> Result<(), StoreError> {
        self.file.look()
    }

    fn mend(&mut self) -> Result<Mended<Done>, StoreError> {
        let file = Arc::clone(&self.file);
        // Whatever lies there from now on is looked at anew.
        self.seen.forget();
        let happened = file.reopen(|database| {
            // What was looked at until the old one was closed was the old one.
            self.seen.forget();
            let happened = self.judge(database)?;
            // Writes something, and syncs it: or else it is not mended.
            let transaction = database.begin_write().map_err(failed)?;
            {
                let mut meta = transaction.open_table(META).map_err(failed)?;
                let head = stored_head(&meta, &self.seals)?.ok_or(StoreError::Damaged)?;
                meta.insert(HEAD, self.seals.seal_head(head)?.as_slice()).map_err(failed)?;
            }
            transaction.commit().map_err(failed)?;
            Ok(happened)
        })?;
        Ok(match (self.unknown.take(), happened) {
            (Some(outcome), true) => {
                self.head = outcome.head;
                Mended::Happened(outcome.done())
            }
            (_, _) => Mended::Nothing,
        })
    }
}

impl Writer {
    /// Whether the group that failed is there. It is the index from before it, or the one behind it: no other is taken.
    fn judge(&self, database: &Database) -> Result<bool, StoreError> {
        let head = whole_head(database, &self.seals)?;
        let whole = sets::whole(database, &self.seals, head)?
            && Own::in_database(database, &self.seals, head.revision)?.is_whole();
        // One that changes nothing of the rows, and has no event, has happened in any case.
        if whole && self.unknown.as_ref().is_some_and(|outcome| outcome.head == head) {
            return Ok(true);
        }
        if whole && head == self.head {
            return Ok(false);
        }
        Err(failed(
            "THE ROWS OF THE INDEX ARE NOT THOSE OF ITS LAST COMMIT: while it could not be written, the file was changed, removed or put back. \
             Nothing is changed under them: stop, put the file back in its place, and start; or see what the start says without",
        ))
    }
}
