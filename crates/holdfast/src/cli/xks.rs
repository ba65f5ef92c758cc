//! `holdfast xks`: the proxy of an external key store.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use holdfast_core::AuditSink;
use holdfast_xks_proxy::{policy::Policy, state::KillScope};
use serde_json::Value;

use super::quorum::{ScopeArgs, StateArg, any_process};
use crate::{
    control,
    fault::Fault,
    instance,
    xks::{
        self, Sockets,
        config::Config,
        control::{ControlRequest, Explain, running},
    },
};

/// A process that does not answer in this time does not count as stopped.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Subcommand)]
pub(crate) enum XksCommand {
    /// Say whether a caller may use a key, and which rule decides
    Explain(ExplainArgs),
    /// Say how the HSMs hold the keys of the policy
    Keys {
        #[command(flatten)]
        state: StateArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Pull the plug on one key, one store, or everything, in every process at once. One person is enough; to put it
    /// back takes a quorum
    Kill(KillArgs),
    /// Print the policy in force
    Policy(StateArg),
    /// Run a proxy
    Serve {
        /// The configuration file; see `holdfast config example --role xks`
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say how the proxy, its HSMs and its stores are
    Status(StateArg),
}

#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// State directory of a running proxy: ask the policy in force
    #[arg(long, value_name = "DIR", required_unless_present = "policy")]
    state_dir: Option<PathBuf>,
    /// Ask this policy, without a proxy
    #[arg(long, value_name = "FILE", conflicts_with = "state_dir")]
    policy: Option<PathBuf>,
    /// Name of the store
    #[arg(long)]
    store: String,
    /// External id of the key
    #[arg(long = "key-id", value_name = "ID")]
    key: String,
    /// ARN of the caller, a service's name, or a client certificate's subject
    #[arg(long)]
    principal: String,
    /// The operation asked of the key service
    #[arg(long, default_value = "Decrypt")]
    operation: String,
    /// ARN of the key service's key
    #[arg(long, value_name = "ARN")]
    kms_key: Option<String>,
    /// The service that acts for the caller
    #[arg(long, value_name = "NAME")]
    via_service: Option<String>,
    /// The network it comes from
    #[arg(long, value_name = "ID")]
    source_vpc: Option<String>,
    /// The network's endpoint
    #[arg(long, value_name = "ID")]
    source_vpce: Option<String>,
}

#[derive(Args)]
pub(crate) struct KillArgs {
    /// State directory of a running proxy
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state_dir: Option<PathBuf>,
    /// The configuration file: works whether a proxy runs or not
    #[arg(long, value_name = "FILE", conflicts_with = "state_dir")]
    config: Option<PathBuf>,
    #[command(flatten)]
    scope: ScopeArgs,
    /// Why; for the audit log
    #[arg(long, default_value = "no reason was given")]
    reason: String,
}

impl XksCommand {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        match self {
            Self::Explain(args) => explain(args).await,
            Self::Keys { state, json } => keys(&state.state_dir, json).await,
            Self::Kill(args) => kill(args).await,
            Self::Policy(state) => {
                let process = any_process(&state.state_dir)?;
                let answer = control::ask(&process, &ControlRequest::Policy, |_| ()).await?;
                print!("{}", answer["text"].as_str().unwrap_or_default());
                Ok(())
            }
            Self::Serve { config } => serve(&config).await,
            Self::Status(state) => {
                let process = any_process(&state.state_dir)?;
                let answer = control::ask(&process, &ControlRequest::Status, |_| ()).await?;
                println!("{}", serde_json::to_string_pretty(&answer).map_err(Fault::new)?);
                Ok(())
            }
        }
    }
}

async fn serve(path: &Path) -> Result<(), Fault> {
    let config = Config::load(path)?;
    let metrics = instance::start_process(config.log_json)?;
    let state = xks::open_state(&config)?;
    let sockets = Sockets::bind(&config).await?;
    let running = state.run(&config, sockets, metrics, None).await?;
    tracing::info!(address = %config.address, process = config.process, "ready");
    instance::signalled().await?;
    tracing::info!("stopping");
    running.stop().await;
    tracing::info!("stopped");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn explain(args: ExplainArgs) -> Result<(), Fault> {
    let ExplainArgs { state_dir, policy, store, key, principal, operation, kms_key, via_service, .. } = args;
    let (source_vpc, source_vpce) = (args.source_vpc, args.source_vpce);
    let explain = Explain { store, key, principal, operation, kms_key, via_service, source_vpc, source_vpce };
    let answer = match (policy, state_dir) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(&file).map_err(|error| Fault::file(&file, error))?;
            let policy = Policy::parse(&text).map_err(|error| Fault::file(&file, error))?;
            explain.ask(&policy)
        }
        (None, state_dir) => {
            let process = any_process(&state_dir.unwrap_or_default())?;
            control::ask(&process, &ControlRequest::Explain(explain), |_| ()).await?
        }
    };
    if let Some(error) = answer["error"].as_str() {
        return Err(Fault::usage(error));
    }
    let allowed = answer["allowed"] == true;
    let reason = answer["reason"].as_str().unwrap_or_default();
    println!("{}: {reason}", if allowed { "allowed" } else { "denied" });
    if allowed { Ok(()) } else { Err(Fault::denied("the caller may not")) }
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn keys(state_dir: &Path, json: bool) -> Result<(), Fault> {
    let answer = control::ask(&any_process(state_dir)?, &ControlRequest::Keys, |_| ()).await?;
    if json {
        println!("{answer}");
        return Ok(());
    }
    for key in answer["keys"].as_array().into_iter().flatten() {
        let text = |name: &str| key[name].as_str().unwrap_or_default();
        let accepted: Vec<&str> = key["accepted"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let verdict = match (key["problem"].as_str(), accepted.as_slice()) {
            (Some(problem), _) => format!("refused: {problem}"),
            (None, []) => "ok".into(),
            (None, accepted) => format!("ok, though {}, which the policy accepts", accepted.join(", ")),
        };
        println!("{} version {} in {} ({}): {verdict}", text("key"), key["version"], text("hsm"), text("object"));
    }
    for (hsm, count) in answer["foreign_keys"].as_object().into_iter().flatten() {
        println!("HSM user {hsm} can use {count} keys that the policy does not name for it");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn kill(args: KillArgs) -> Result<(), Fault> {
    let scope = args.scope.scope();
    let config = args.config.as_deref().map(Config::load).transpose()?;
    let state_dir = match (&config, args.state_dir) {
        (Some(config), _) => config.state_dir.clone(),
        (None, state_dir) => state_dir.unwrap_or_default(),
    };
    let started = Instant::now();
    let processes = running(&state_dir);
    let mut killed = false;
    let mut silent = Vec::new();
    // The first that answers stores it; then each says when it has stopped.
    let request = || ControlRequest::Kill { scope: scope.clone(), reason: args.reason.clone() };
    let mut others = processes.iter();
    for process in others.by_ref() {
        match tokio::time::timeout(KILL_TIMEOUT, control::ask(process, &request(), |_| ())).await {
            Ok(Ok(_)) => {
                killed = true;
                break;
            }
            // Said by a process that runs: the request itself is wrong.
            Ok(Err(fault)) if fault.code != 4 => return Err(fault),
            Ok(Err(_)) | Err(_) => silent.push(process),
        }
    }
    if !killed {
        let Some(config) = &config else {
            return Err(Fault::unavailable(format!("{}: no proxy answers", state_dir.display()))
                .hint("give --config FILE to store the switch without one"));
        };
        kill_without_process(config, &scope, &args.reason).await?;
    }
    let mut asked = tokio::task::JoinSet::new();
    for process in others {
        let process = process.clone();
        asked.spawn(async move {
            let asked = control::ask(&process, &ControlRequest::Reload, |_| ());
            (tokio::time::timeout(KILL_TIMEOUT, asked).await.is_ok_and(|answer| answer.is_ok()), process)
        });
    }
    let mut stopped = usize::from(killed);
    let mut unsure: Vec<String> = silent.iter().map(|process| process.display().to_string()).collect();
    while let Some(Ok((done, process))) = asked.join_next().await {
        if done {
            stopped += 1;
        } else {
            unsure.push(process.display().to_string());
        }
    }
    let millis = started.elapsed().as_secs_f64() * 1000.0;
    println!("stopped: {scope}; {millis:.1} ms until the last of {stopped} processes refused");
    if unsure.is_empty() {
        return Ok(());
    }
    Err(Fault::unavailable(format!("these processes did not answer: {}", unsure.join(", ")))
        .hint("the switch is stored, and they follow within a moment if they live: look, or kill them"))
}

/// Stores the switch where no process runs: none that starts later serves what it stops.
async fn kill_without_process(config: &Config, scope: &KillScope, reason: &str) -> Result<(), Fault> {
    let state = xks::open_state(config)?;
    let (audit, _alive) = xks::open_command_audit(&state, config).await?;
    let proxy = state.open_proxy(config, Arc::clone(&audit) as Arc<dyn AuditSink>, &mut HashMap::new()).await?;
    let by = format!("local user {}", rustix::process::geteuid().as_raw());
    let result = proxy.kill(scope.clone(), &by, reason).await.map_err(Fault::new);
    let _ = tokio::task::spawn_blocking(move || audit.close()).await;
    result
}

/// The process of one HSM user; its standard input is a socket to the proxy.
pub(crate) fn pkcs11_host() -> Result<(), Fault> {
    crate::telemetry::start_logging(false);
    crate::hardening::apply();
    // A thread may hang in the vendor's library and never see that the proxy has ended.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(Fault::new)?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(Fault::new)?;
    if rustix::net::sockopt::socket_type(&socket).is_err() {
        return Err(Fault::usage("this is started by `holdfast xks serve`, not by people"));
    }
    holdfast_pkcs11::run_host(socket)
}
