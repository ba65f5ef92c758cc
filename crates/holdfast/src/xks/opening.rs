//! Opening the shared state: whether version 2 of it is in force, what is known of newer states, and the upgrade from version 1.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_core::{AuditSink, Store};
use holdfast_store::{SealedStore, SharedEngine, open_in_place};

use super::{
    RECORDS, State,
    config::Config,
    members, process_dir, watch_state,
    witness::{Known, Places, lost_kills},
};
use crate::{
    fault::Fault,
    founding::{self, LOG, MayFound, SEALED},
    history::{self, AUDIT_LINES, AUDIT_LINES_OF_PROCESSES, SHARED_ROWS, SHARED_ROWS_VERSION, event},
    instance::{self, Opened},
};

/// MayFound and upgrading take a moment; whoever holds the lock longer is stopped.
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
pub(crate) async fn open_state(config: &Config, founding: MayFound) -> Result<State, Fault> {
    let (state, known) = open_unjudged(config, founding, false).await?;
    judge_missing(&state, &known)?;
    judge(&state, &known)?;
    let gone = members::gone(state.store.as_ref(), &state.places).await.map_err(Fault::new)?;
    if !gone.is_empty() {
        return Err(Fault::new(members::lost_members(&gone)).hint(ACCEPT));
    }
    let known = members::formats_known(state.store.as_ref()).await.map_err(Fault::new)?;
    if known.iter().any(|[format, version]| !history::in_force(&state.opened.secrets.floors, *format, *version)) {
        let path = config.state_dir.join(SEALED);
        let why =
            "it is older than the shared state, which knows of formats that it does not ask for yet: it was put back";
        return Err(Fault::new(format!("{}: {why}", path.display())).hint(ACCEPT));
    }
    Ok(state)
}

/// Opens it without a look at what is known of newer states, which is given beside it.
pub(super) async fn open_unjudged(
    config: &Config,
    founding: MayFound,
    accepting: bool,
) -> Result<(State, Known), Fault> {
    let state_dir = &config.state_dir;
    let sealed = state_dir.join(SEALED);
    let open = || instance::open(state_dir, &config.silicon_root, founding, &[]);
    if founding != MayFound::Never {
        instance::create_private_dir(state_dir).map_err(|error| Fault::file(state_dir, error))?;
    }
    let in_force = |opened: &Opened| {
        let floors = &opened.secrets.floors;
        let lines = history::in_force(floors, AUDIT_LINES, AUDIT_LINES_OF_PROCESSES);
        lines && history::in_force(floors, SHARED_ROWS, SHARED_ROWS_VERSION)
    };
    let places = |opened: &Opened| {
        let ambient = Arc::clone(&opened.ambient);
        Places::new(state_dir, opened.instance, &opened.secrets, ambient).map(Arc::new).map_err(Fault::new)
    };
    // The usual case waits for nobody: a kill must come through whatever hangs.
    let settled = if sealed.exists() || founding == MayFound::Never { Some(open()?).filter(in_force) } else { None };
    let (opened, places, known, upgrade) = match settled {
        Some(opened) => {
            let places = places(&opened)?;
            let known = places.known().map_err(Fault::new)?;
            (opened, places, known, None)
        }
        None => {
            // Two processes that start at once must not found two instances.
            let lock = take_open_lock(&state_dir.join("open.lock"))?;
            let opened = open()?;
            let places = places(&opened)?;
            let known = places.known().map_err(Fault::new)?;
            let upgrade =
                if in_force(&opened) { None } else { Some(upgrade(&opened, &places, &known, accepting, lock).await?) };
            (opened, places, known, upgrade)
        }
    };
    let engine = places.rows(&config.process).map_err(Fault::new)?;
    let (key, ambient) = (&opened.secrets.database_key, Arc::clone(&opened.ambient));
    let store = SealedStore::open(engine.clone(), opened.instance, key, ambient, false).await;
    let store: Arc<dyn Store> = Arc::new(store.map_err(|error| Fault::new(error).hint(ACCEPT))?);
    Ok((State { opened, engine, store, places, upgrade }, known))
}

/// Refuses a state whose rows are gone: some process has seen them, or the instance knows that there were some and all that processes write is gone,
/// too. (A first start that was cut short has a log before it has rows.)
fn judge_missing(state: &State, known: &Known) -> Result<(), Fault> {
    let rows = state.opened.data_dir.join(RECORDS);
    if rows.exists() {
        return Ok(());
    }
    if known.generation > 0 {
        let evidence = format!("{} has seen generation {} of it", known.witness, known.generation);
        return Err(founding::missing(&rows, &evidence).hint(ACCEPT));
    }
    let mut logs = false;
    for process in state.places.processes().map_err(Fault::new)? {
        let log = process_dir(&state.opened.data_dir, &process).join(LOG);
        logs |= founding::has_log(&log).map_err(|error| Fault::file(&log, error))?;
    }
    let served = history::in_force(&state.opened.secrets.floors, SHARED_ROWS, SHARED_ROWS_VERSION);
    if served && !logs { Err(founding::missing(&rows, "instance.sealed knows of it")) } else { Ok(()) }
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
    let file = open_in_place(OpenOptions::new().write(true).create(true).truncate(false).mode(0o600), path);
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

/// Writes all files of version 1 anew, and marks where logs end whose lines have no MAC. None of these is taken any more once this is told and the
/// floors are in force.
async fn upgrade(
    opened: &Opened,
    places: &Places,
    known: &Known,
    accepting: bool,
    lock: File,
) -> Result<Upgrade, Fault> {
    let state_dir = &opened.data_dir;
    let authenticated = history::in_force(&opened.secrets.floors, SHARED_ROWS, SHARED_ROWS_VERSION);
    if known.generation > 0 && !authenticated && !accepting {
        let why = format!(
            "{} is from before version 2 of the shared state, and {} has seen generation {} of it: it was put back",
            state_dir.join(SEALED).display(),
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
    let processes = places.processes().map_err(Fault::new)?;
    if !authenticated {
        for process in &processes {
            let rows = places.process_rows(process).map_err(Fault::new)?;
            upgraded |= rows.upgrade().map_err(|error| Fault::file(&process_dir(state_dir, process), error))?;
        }
        upgraded |=
            places.rows("upgrade").and_then(|rows| rows.upgrade()).map_err(|error| Fault::file(state_dir, error))?;
    }
    for process in &processes {
        places.mark_log_of_before(process).await?;
    }
    let had_rows = upgraded || state_dir.join(RECORDS).exists();
    Ok(Upgrade { _lock: lock, had_rows })
}

impl State {
    /// Tells of an upgrade, and puts the floors in force: in this order, so that there is none without its event. After a crash in
    /// between it is told again.
    pub(crate) async fn conclude_upgrade(&mut self, audit: &dyn AuditSink) -> Result<(), Fault> {
        let Some(upgrade) = self.upgrade.take() else { return Ok(()) };
        if upgrade.had_rows {
            let what = "the shared state was upgraded to version 2, which is authenticated as a whole, and lines of the audit log have MACs of \
                        their process: nothing of earlier versions is taken any more";
            tracing::warn!("{what}");
            let event = event(self.opened.ambient.as_ref(), "StateUpgrade", None, what.to_owned(), Vec::new());
            audit.append(event).await.map_err(Fault::new)?;
        }
        let mut floors = self.opened.secrets.floors.clone();
        floors.insert(SHARED_ROWS, SHARED_ROWS_VERSION);
        floors.insert(AUDIT_LINES, AUDIT_LINES_OF_PROCESSES);
        self.opened.seal_floors(floors)
    }
}
