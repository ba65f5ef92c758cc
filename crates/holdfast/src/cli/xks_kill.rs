//! `holdfast xks kill`: whatever hangs, the plug comes out.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use holdfast_core::{AuditError, AuditEvent, AuditSink};
use holdfast_xks_proxy::state::KillScope;
use tokio::{task::JoinSet, time::timeout};

use super::xks::KillArgs;
use crate::{
    control,
    fault::Fault,
    founding::MayFound,
    xks::{
        self,
        config::Config,
        control::{ControlRequest, running},
    },
};

/// A process that does not answer in this time does not count as stopped.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// A process that has not answered by then may be stopped itself: the next one is asked, too.
const PATIENCE: Duration = Duration::from_millis(300);

/// What a process said.
struct Answer {
    process: PathBuf,
    said: Result<(), Fault>,
}

async fn ask(process: PathBuf, request: ControlRequest) -> Answer {
    let said = timeout(ANSWER_MAX, control::ask(&process, &request, |_| ())).await;
    let said = said.unwrap_or_else(|_| Err(Fault::unavailable("it did not answer"))).map(|_| ());
    Answer { process, said }
}

/// Asks one after the other, and does not wait for one that is slow, until one has written the switch down. Gives that one.
async fn pull(processes: &[PathBuf], scope: &KillScope, reason: &str) -> Result<Option<PathBuf>, Fault> {
    let mut asked = JoinSet::new();
    let mut waiting = processes.iter();
    loop {
        let next = waiting.next();
        let more = next.is_some();
        if let Some(process) = next {
            asked.spawn(ask(process.clone(), ControlRequest::Kill { scope: scope.clone(), reason: reason.to_owned() }));
        }
        let patience = if more { PATIENCE } else { ANSWER_MAX };
        match timeout(patience, asked.join_next()).await {
            Ok(Some(Ok(Answer { process, said: Ok(()) }))) => {
                // Others that were asked may still do it: it is the same switch.
                asked.detach_all();
                return Ok(Some(process));
            }
            // Said by a process that runs and can: the request itself is wrong.
            Ok(Some(Ok(Answer { said: Err(fault), .. }))) if !fault.is_unavailable() => return Err(fault),
            Ok(None) if !more => return Ok(None),
            Ok(_) | Err(_) => {}
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's data")]
pub(super) async fn kill(args: KillArgs) -> Result<(), Fault> {
    let scope = args.scope.scope();
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let state_dir = match (&config, args.state_dir) {
        (Some(config), _) => config.state_dir.clone(),
        (None, state_dir) => state_dir.unwrap_or_default(),
    };
    let started = Instant::now();
    let processes = running(&state_dir);
    let killed = pull(&processes, &scope, &args.reason).await?;
    if killed.is_none() {
        let Some(config) = &config else {
            return Err(Fault::unavailable(format!("{}: no proxy answers", state_dir.display()))
                .hint("give --config FILE to store the switch without one"));
        };
        without_process(config, &scope, &args.reason).await?;
    }
    // The first that could wrote it down; now each says when it has stopped.
    let mut asked = JoinSet::new();
    for process in processes.into_iter().filter(|process| Some(process) != killed.as_ref()) {
        asked.spawn(ask(process, ControlRequest::Reload));
    }
    let mut stopped = usize::from(killed.is_some());
    let mut unsure = Vec::new();
    while let Some(Ok(Answer { process, said })) = asked.join_next().await {
        match said {
            Ok(()) => stopped += 1,
            Err(_) => unsure.push(process.display().to_string()),
        }
    }
    let millis = started.elapsed().as_secs_f64() * 1000.0;
    println!("stopped: {scope}; {millis:.1} ms until the last of {stopped} processes refused");
    if unsure.is_empty() {
        return Ok(());
    }
    Err(Fault::unavailable(format!("these processes did not answer: {}", unsure.join(", ")))
        .hint("the switch is written down, and they follow within a moment if they live: look, or kill them"))
}

/// In the place of a log that cannot be opened: the event is told before the kill is taken into the state.
struct NoLog(String);

#[async_trait]
impl AuditSink for NoLog {
    async fn append(&self, _: AuditEvent) -> Result<(), AuditError> {
        Err(AuditError(self.0.clone()))
    }
}

/// Writes the switch down where no process runs: none that starts later serves what it stops.
async fn without_process(config: &Config, scope: &KillScope, reason: &str) -> Result<(), Fault> {
    let mut state = xks::open_state(config, MayFound::Never).await?;
    let (name, directory, _alive) = xks::take_command_name(config)?;
    let log = xks::open_command_audit(&state, config, name, &directory).await;
    let audit: Arc<dyn AuditSink> = match &log {
        Ok((log, _)) => Arc::clone(log) as Arc<dyn AuditSink>,
        Err(error) => {
            tracing::error!(%error, "the command's audit log does not open");
            Arc::new(NoLog(error.to_string()))
        }
    };
    state.conclude_upgrade(audit.as_ref()).await?;
    let proxy = state.open_proxy(config, name, audit, &mut HashMap::new()).await?;
    let by = format!("local user {}", rustix::process::geteuid().as_raw());
    let result = proxy.kill(scope.clone(), &by, reason).await.map_err(Fault::new);
    if let Ok((log, mut marks)) = log {
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
        let _ = (marks.write().await, marks.write_watermark());
    }
    result
}
