//! `holdfast xks accept-restore`: operators take a state that is older than what is known.

use std::{fs, io, path::Path};

use holdfast_core::{AuditSink, Store};
use holdfast_crypto::PersonalKey;
use holdfast_store::{SealedStore, read_regular, write_regular};
use holdfast_wire::hex::hex;
use holdfast_xks_proxy::{Acceptance, Accepted, Heard, Restore, accept_restore, governors_of, state::OperatorsRecord};

use super::{
    State,
    config::Config,
    members, open_command_audit,
    opening::{expect, open_unjudged},
    take_command_name,
    witness::Known,
};
use crate::{fault::Fault, founding::MayFound, history::event};

/// Signatures that were given so far; it is gone once they are enough.
const FILE: &str = "restore.accepted";
/// A restore and the signatures of as many operators as there may be.
const ACCEPTANCE_BYTES_MAX: u64 = 1024 * 1024;

/// What came of an operator's word.
pub(crate) struct Heeded {
    pub restore: Restore,
    pub accepted_by: Vec<String>,
    pub threshold: usize,
    pub done: bool,
}

/// What lies there, as far as a restore is concerned.
struct Found {
    restore: Restore,
    operators: OperatorsRecord,
    heard: Heard,
    pulled: Vec<holdfast_xks_proxy::PulledKill>,
}

async fn find(state: &State, known: &Known, store: &dyn Store) -> Result<Found, Fault> {
    let found = state.engine.found().map_err(Fault::new)?;
    let (governors, heard) = governors_of(store).await.map_err(Fault::new)?;
    let (pulled, lost_kills) = state.places.pulled(&heard, &known.kills).map_err(Fault::new)?;
    let other = found.generation == known.generation && known.tag.is_some_and(|tag| tag != found.tag);
    let lost_processes = members::gone(store, &state.places).await.map_err(Fault::new)?;
    let whole = lost_kills.is_empty() && lost_processes.is_empty() && state.upgrade.is_none();
    if found.generation >= known.generation && !other && whole {
        return Err(Fault::usage("there is nothing to accept: the state is as new as all that is known of it"));
    }
    let restore = Restore {
        act: "accept-restore".into(),
        instance: state.opened.instance.to_string(),
        found: found.generation,
        found_tag: hex(&found.tag),
        newest: known.generation,
        witness: known.witness.clone(),
        lost_kills,
        lost_processes,
    };
    // Those who governed last, not those of the day that the file is from.
    let operators = known.operators.clone().unwrap_or(governors);
    Ok(Found { restore, operators, heard, pulled })
}

/// Takes one operator's word; with enough of them the restored state is in force.
pub(crate) async fn accept(config: &Config, operator: &str, key: &PersonalKey) -> Result<Heeded, Fault> {
    let (mut state, known) = open_unjudged(config, MayFound::Never, true).await?;
    // An engine of its own: the other one refuses, as it should.
    let engine = state.places.rows(super::COMMAND).map_err(Fault::new)?;
    let (instance, ambient) = (state.opened.instance, state.opened.ambient.clone());
    let store = SealedStore::open(engine.clone(), instance, &state.opened.secrets.database_key, ambient, false)
        .await
        .map_err(Fault::new)?;
    let Found { restore, operators, heard, pulled } = find(&state, &known, &store).await?;
    let operators = operators.check().map_err(Fault::new)?;
    let path = config.state_dir.join(FILE);
    let mut acceptance = Acceptance::of(&restore, earlier(&path)?).map_err(Fault::new)?;
    let signature = key.sign(acceptance.statement().as_bytes()).map_err(Fault::new)?;
    acceptance.hear(operator, &signature, &operators).map_err(Fault::denied)?;
    let threshold = operators.threshold;
    let accepted = match acceptance.tally(&operators).map_err(Fault::new)? {
        Ok(accepted) => accepted,
        Err(accepted_by) => {
            let text = serde_json::to_vec(&acceptance).map_err(Fault::new)?;
            write_regular(&path, &text).map_err(|error| Fault::file(&path, error))?;
            return Ok(Heeded { restore, accepted_by, threshold, done: false });
        }
    };
    let found = engine.found().map_err(Fault::new)?;
    if hex(&found.tag) != restore.found_tag {
        return Err(Fault::new("the state was changed meanwhile: look again"));
    }
    let (name, directory, _alive) = take_command_name(config)?;
    let (audit, mut marks) = open_command_audit(&state, config, name, &directory).await?;
    state.conclude_upgrade(audit.as_ref()).await?;
    // The event first: there is no acceptance without it. A crash before the commit leaves it to be done again.
    let context = vec![
        ("found", restore.found.to_string()),
        ("newest", restore.newest.to_string()),
        ("witness", restore.witness.clone()),
        ("lost_kills", serde_json::to_string(&restore.lost_kills).map_err(Fault::new)?),
        ("lost_processes", restore.lost_processes.join(", ")),
        ("operators", accepted.by().join(", ")),
    ];
    let reason = "operators accepted a shared state that is older than what is known".to_owned();
    let told = audit.append(event(state.opened.ambient.as_ref(), "AcceptRestore", None, reason, context)).await;
    let done = match told {
        Err(error) => Err(Fault::new(error)),
        Ok(()) => carry_out(&engine, &store, &known, &found, heard, &accepted, &pulled).await,
    };
    let _ = tokio::task::spawn_blocking(move || audit.close()).await;
    let _ = (marks.write().await, marks.write_watermark());
    done?;
    let _ = fs::remove_file(&path);
    Ok(Heeded { restore, accepted_by: accepted.by().to_vec(), threshold, done: true })
}

async fn carry_out(
    engine: &holdfast_store::SharedEngine,
    store: &dyn Store,
    known: &Known,
    found: &holdfast_store::StateId,
    heard: Heard,
    accepted: &Accepted,
    pulled: &[holdfast_xks_proxy::PulledKill],
) -> Result<(), Fault> {
    expect(engine, known);
    engine.accept(found).map_err(Fault::new)?;
    accept_restore(store, heard, accepted, pulled).await.map_err(Fault::new)?;
    members::dismiss(store, &accepted.restore().lost_processes).await.map_err(Fault::new)
}

fn earlier(path: &Path) -> Result<Option<Acceptance>, Fault> {
    match read_regular(path, ACCEPTANCE_BYTES_MAX) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::file(path, error)),
    }
}
