//! Kill switches: pulled by one person, on a road that needs neither the state's lock nor room on the disk, and taken into the
//! state afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use holdfast_core::{AuditOutcome, StoreError};

use crate::{
    Heard, PulledKill, XksProxy,
    admin::ATTEMPTS,
    authn::person,
    commit::{Itself, Look},
    error::AdminError,
    quorum::{heard_key, kill_key},
    state::{HeardRecord, KillScope, KillSwitch, decode, encode, put},
};

/// Longest reason, in bytes: a kill has its room beforehand.
const REASON_BYTES_MAX: usize = 512;

/// Kills that this process has told the log of.
#[derive(Default)]
pub(crate) struct ToldKills(BTreeMap<String, BTreeSet<u64>>);

impl ToldKills {
    fn has(&self, process: &str, number: u64) -> bool {
        self.0.get(process).is_some_and(|told| told.contains(&number))
    }

    /// Adds one. Those up to `up_to` are known to be told. Gives the last number that has no gap before it, if there is a new one: kills are told
    /// in whatever order they come, and what is remembered by its last number alone says the same of all before it.
    fn add(&mut self, process: &str, number: u64, up_to: u64) -> Option<u64> {
        let told = self.0.entry(process.to_owned()).or_default();
        told.insert(number);
        told.retain(|number| *number > up_to);
        (up_to + 1..).zip(told.iter()).take_while(|(wanted, number)| wanted == *number).last().map(|(number, _)| number)
    }
}

impl XksProxy {
    /// Pulls a kill switch: written down, in force in this process, and no request at work under the old state when it returns.
    /// One person is enough. `by` says who.
    ///
    /// # Errors
    /// [`AdminError`]. If it is of the store, the switch is in force in this process until it ends, and may not be written down.
    /// No error if only the audit log fails: the event is told later, before the kill is taken into the state.
    pub async fn kill(&self, scope: KillScope, by: &str, reason: &str) -> Result<(), AdminError> {
        let governed = self.governed();
        let known = match &scope {
            KillScope::All => true,
            KillScope::Store(name) => governed.policy.store(name).is_some(),
            KillScope::Key(id) => governed.policy.keys().any(|key| key.id.as_str() == id),
        };
        let heard = governed.heard.get(self.beside.process()).copied().unwrap_or(0);
        // Not held any longer: a reload waits for those who hold an old state.
        drop(governed);
        if !known {
            return Err(AdminError::Invalid(format!("the policy has no {scope}")));
        }
        let time = self.ambient.now().unix_millis();
        let reason = reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
        let kill = KillSwitch { scope, by: by.to_owned(), reason, time };
        let (beside, written) = (Arc::clone(&self.beside), kill.clone());
        let pulled = tokio::task::spawn_blocking(move || beside.pull(heard, &written)).await;
        let pulled = pulled.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())));
        if let Err(error) = &pulled {
            tracing::error!(%error, scope = %kill.scope, by, "a kill switch is in force in this process, and could not be written down");
            self.unwritten.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(kill.clone());
        }
        // If it fails, nothing is served at all.
        let reloaded = self.reload().await;
        let pulled = PulledKill { process: self.beside.process().to_owned(), number: pulled?, kill };
        reloaded?;
        if let Err(error) = self.tell_kill(&pulled).await {
            // The plug is out; that the log is broken must not look as if it were not.
            tracing::error!(%error, scope = %pulled.kill.scope, by, "a kill switch was pulled, and the audit log could not be written");
        }
        Ok(())
    }

    /// Writes a kill's event, unless it is written. After a crash it may be there twice, by two processes: process and number tell that it is
    /// one.
    async fn tell_kill(&self, pulled: &PulledKill) -> Result<(), AdminError> {
        let PulledKill { process, number, kill } = pulled;
        // Who pulled it and who takes it in may come at once: it is told by one.
        let mut told = self.told_kills.lock().await;
        // Those that are in the state have their events.
        let heard = self.governed().heard.get(process).copied().unwrap_or(0);
        let up_to = self.beside.told_up_to(process).max(heard);
        if told.has(process, *number) || up_to >= *number {
            return Ok(());
        }
        let context =
            vec![("scope", kill.scope.to_string()), ("process", process.clone()), ("number", number.to_string())];
        let who = Some(person("this machine", &kill.by));
        self.note("Kill", who, AuditOutcome::Allowed, Some(kill.reason.clone()), context).await?;
        let last = told.add(process, *number, up_to);
        drop(told);
        if let Some(number) = last.filter(|_| process == self.beside.process()) {
            let beside = Arc::clone(&self.beside);
            // Nobody waits for it: if it is lost, the event is told once more.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = beside.told(number) {
                    tracing::warn!(%error, number, "it could not be remembered that a kill's event is in the log");
                }
            });
        }
        Ok(())
    }

    /// Takes kills into the state: all, or those that are for this process to see to. Each has its event by then. True if there
    /// were any.
    pub(crate) async fn hear_kills(&self, all: bool) -> Result<bool, AdminError> {
        // A kill elsewhere may be a moment old.
        if all {
            self.reload().await?;
        }
        let mut pulled = self.governed().pulled.clone();
        pulled.retain(|pulled| all || self.beside.is_ours(&pulled.process));
        if pulled.is_empty() {
            return Ok(false);
        }
        for pulled in &pulled {
            self.tell_kill(pulled).await?;
        }
        for _ in 0..ATTEMPTS {
            match self.take_in(&pulled).await {
                Err(AdminError::Store(StoreError::Conflict)) => {}
                other => {
                    other?;
                    self.reload().await?;
                    return Ok(true);
                }
            }
        }
        Err(AdminError::Store(StoreError::Conflict))
    }

    async fn take_in(&self, pulled: &[PulledKill]) -> Result<(), AdminError> {
        let store = &self.store;
        let record = store.read(&heard_key()).await?;
        let mut heard = match &record {
            Some(record) => decode::<HeardRecord>(&record.value)?.heard,
            None => Heard::new(),
        };
        let mut switches = BTreeMap::new();
        for PulledKill { process, number, kill } in pulled {
            let last = heard.entry(process.clone()).or_default();
            // Another process was faster: it may even be lifted by now.
            if *number > *last {
                *last = *number;
                switches.insert(&kill.scope, kill);
            }
        }
        if switches.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::new();
        for (scope, kill) in switches {
            batch.push(put(store, kill_key(scope), Some(encode(kill)?)).await?);
        }
        let expected_version = record.map_or(0, |record| record.version);
        let value = Some(encode(&HeardRecord { heard })?);
        batch.push(holdfast_core::Write { key: heard_key(), expected_version, value });
        self.commit_by_itself(Itself::KillsTold, batch).await
    }
}

#[cfg(test)]
mod tests {
    use super::ToldKills;

    #[test]
    fn a_kill_that_is_told_late_is_not_passed_over() {
        let mut told = ToldKills::default();
        assert_eq!(told.add("a", 3, 2), Some(3));
        assert_eq!(told.add("a", 5, 3), None, "the fourth is not told yet");
        assert!(told.has("a", 5) && !told.has("a", 4) && !told.has("b", 5));
        assert_eq!(told.add("a", 4, 3), Some(5));
        assert_eq!(told.add("a", 9, 8), Some(9), "what the state has is told");
        assert!(!told.has("a", 4), "and need not be kept");
    }
}
