//! Opening the shared state: whether version 2 of it is in force, what is known of newer states, and the upgrade from version 1.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::{Ambient, AuditEvent, AuditOutcome, AuditSink, Principal, Store};
use holdfast_store::{SealedStore, SharedEngine};

use super::{
    RECORDS, State,
    config::Config,
    process_dir, watch_state,
    witness::{Known, Places, lost_kills},
};
use crate::{
    fault::Fault,
    instance::{self, Opened},
};

/// Shared rows, among the formats that have a floor (`docs/formats/instance-state.md`).
const SHARED_ROWS: u8 = 1;
const SHARED_ROWS_VERSION: u8 = 2;
/// Founding and upgrading take a moment; whoever holds the lock longer is stopped.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(10);
const OPEN_WAIT_STEP: Duration = Duration::from_millis(10);
const ACCEPT: &str = "if it was restored on purpose, as many operators as a change takes say so, each with: \
                      holdfast xks accept-restore --config FILE --operator NAME --key FILE";

/// An upgrade that is done but not yet told. Nobody else opens the state until it is dropped.
pub(crate) struct Upgrade {
    _lock: File,
    had_rows: bool,
}

/// Opens the shared state, or founds it.
pub(crate) async fn open_state(config: &Config) -> Result<State, Fault> {
    let (state, known) = open_unjudged(config, false).await?;
    judge(&state, &known)?;
    Ok(state)
}

/// Opens it without a look at what is known of newer states, which is given beside it.
pub(super) async fn open_unjudged(config: &Config, accepting: bool) -> Result<(State, Known), Fault> {
    let state_dir = &config.state_dir;
    instance::create_private_dir(state_dir).map_err(|error| Fault::file(state_dir, error))?;
    let open = || instance::open(state_dir, &config.silicon_root, RECORDS);
    let in_force =
        |opened: &Opened| opened.secrets.floors.get(&SHARED_ROWS).is_some_and(|floor| *floor >= SHARED_ROWS_VERSION);
    let places = |opened: &Opened| {
        let (key, ambient) = (&opened.secrets.database_key, Arc::clone(&opened.ambient));
        Arc::new(Places::new(state_dir, opened.instance, key, ambient))
    };
    // The usual case waits for nobody: a kill must come through whatever hangs.
    let settled = if state_dir.join("instance.sealed").exists() { Some(open()?).filter(in_force) } else { None };
    let (opened, places, known, upgrade) = match settled {
        Some(opened) => {
            let places = places(&opened);
            let known = places.known().map_err(Fault::new)?;
            (opened, places, known, None)
        }
        None => {
            // Two processes that start at once must not found two instances.
            let lock = take_open_lock(&state_dir.join("open.lock"))?;
            let opened = open()?;
            let places = places(&opened);
            let known = places.known().map_err(Fault::new)?;
            let upgrade =
                if in_force(&opened) { None } else { Some(upgrade(state_dir, &places, &known, accepting, lock)?) };
            (opened, places, known, upgrade)
        }
    };
    let engine = places.rows(&config.process).map_err(Fault::new)?;
    let (key, ambient) = (&opened.secrets.database_key, Arc::clone(&opened.ambient));
    let store = SealedStore::open(engine.clone(), opened.instance, key, ambient, false).await;
    let store: Arc<dyn Store> = Arc::new(store.map_err(|error| Fault::new(error).hint(ACCEPT))?);
    Ok((State { opened, engine, store, places, upgrade }, known))
}

/// Refuses a state that is older than what is known, and says what is older than what.
fn judge(state: &State, known: &Known) -> Result<(), Fault> {
    expect(&state.engine, known);
    state.engine.state().map_err(|error| Fault::new(error).hint(ACCEPT))?;
    Ok(())
}

pub(super) fn expect(engine: &SharedEngine, known: &Known) {
    engine.expect(known.generation, known.tag, &known.witness);
}

/// Refuses a state whose kills were taken away.
pub(super) fn judge_kills(lost: &holdfast_xks_proxy::Heard) -> Result<(), Fault> {
    if lost.is_empty() { Ok(()) } else { Err(Fault::new(lost_kills(lost)).hint(ACCEPT)) }
}

fn take_open_lock(path: &Path) -> Result<File, Fault> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| Fault::file(path, error))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(Fault::file(path, error)),
            Err(TryLockError::WouldBlock) if started.elapsed() < OPEN_WAIT_MAX => std::thread::sleep(OPEN_WAIT_STEP),
            Err(TryLockError::WouldBlock) => {
                let why = "another process has been founding or upgrading this state for a long time: is it stopped?";
                return Err(Fault::unavailable(format!("{}: {why}", path.display())));
            }
        }
    }
}

/// Writes all files of version 1 anew. None of them is taken any more once this is told and `Opened::raise_floor` is done.
fn upgrade(state_dir: &Path, places: &Places, known: &Known, accepting: bool, lock: File) -> Result<Upgrade, Fault> {
    if known.generation > 0 && !accepting {
        let why = format!(
            "{} is from before version 2 of the shared state, and {} has seen generation {} of it: it was put back",
            state_dir.join("instance.sealed").display(),
            known.witness,
            known.generation
        );
        return Err(Fault::new(why).hint(ACCEPT));
    }
    if !watch_state::alive(&state_dir.join("processes")).is_empty() {
        return Err(Fault::unavailable(format!(
            "{}: processes of an earlier version run on this state",
            state_dir.display()
        ))
        .hint("stop them all once for the upgrade: they cannot read what it writes"));
    }
    let mut upgraded = false;
    for process in places.processes() {
        let rows = places.process_rows(&process).map_err(Fault::new)?;
        upgraded |= rows.upgrade().map_err(|error| Fault::file(&process_dir(state_dir, &process), error))?;
    }
    upgraded |=
        places.rows("upgrade").and_then(|rows| rows.upgrade()).map_err(|error| Fault::file(state_dir, error))?;
    let had_rows = upgraded || state_dir.join(RECORDS).exists();
    Ok(Upgrade { _lock: lock, had_rows })
}

impl State {
    /// Tells of an upgrade, and puts version 2 in force: in this order, so that there is none without its event. After a crash in
    /// between it is told again.
    pub(crate) async fn conclude_upgrade(&mut self, state_dir: &Path, audit: &dyn AuditSink) -> Result<(), Fault> {
        let Some(upgrade) = self.upgrade.take() else { return Ok(()) };
        if upgrade.had_rows {
            let what = "the shared state was upgraded to version 2, which is authenticated as a whole: nothing of version 1 is taken any more";
            tracing::warn!("{what}");
            let event = event(self.opened.ambient.as_ref(), "StateUpgrade", None, what.to_owned(), Vec::new());
            audit.append(event).await.map_err(Fault::new)?;
        }
        let Opened { secrets, silicon, ambient, .. } = &mut self.opened;
        secrets.floors.insert(SHARED_ROWS, SHARED_ROWS_VERSION);
        secrets.seal(&state_dir.join("instance.sealed"), silicon, ambient.as_ref()).map_err(Fault::new)
    }
}

/// An event that no request caused.
pub(super) fn event(
    ambient: &dyn Ambient,
    operation: &'static str,
    principal: Option<Principal>,
    reason: String,
    context: Vec<(&'static str, String)>,
) -> AuditEvent {
    let id: [u8; 16] = ambient.random();
    AuditEvent {
        time: ambient.now(),
        operation,
        principal: Some(principal.unwrap_or_else(Principal::system)),
        key: None,
        key_version: None,
        algorithm: None,
        outcome: AuditOutcome::Allowed,
        status: 200,
        error_code: None,
        reason: Some(reason),
        request_id: holdfast_wire::hex::hex(&id),
        client_request_id: None,
        source: None,
        user_agent: None,
        context,
        path: String::new(),
        duration_us: 0,
    }
}
