//! `holdfast xks`: the proxy of an external key store.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use holdfast_xks_proxy::policy::Policy;
use serde_json::Value;

use super::{
    operator_key,
    quorum::{OperatorArgs, ScopeArgs, StateArg, any_process},
    xks_kill,
};
use crate::{
    control, descriptors,
    fault::Fault,
    founding::{FoundArg, MayFound},
    instance,
    xks::{
        self, Sockets,
        config::Config,
        control::{ControlRequest, Explain},
        restore,
    },
};

#[derive(Subcommand)]
pub(crate) enum XksCommand {
    /// Accept a shared state that is older than what is known of it: one that was restored on purpose. As many operators
    /// as a change takes type it, one after the other
    AcceptRestore {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        operator: OperatorArgs,
    },
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
        #[command(flatten)]
        found: FoundArg,
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
    pub state_dir: Option<PathBuf>,
    /// The configuration file: works whether a proxy runs or not
    #[arg(long, value_name = "FILE", conflicts_with = "state_dir")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Why; for the audit log
    #[arg(long, default_value = "no reason was given")]
    pub reason: String,
}

impl XksCommand {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        match self {
            Self::AcceptRestore { config, operator } => accept_restore(&config, &operator).await,
            Self::Explain(args) => explain(args).await,
            Self::Keys { state, json } => keys(&state.state_dir, json).await,
            Self::Kill(args) => xks_kill::kill(args).await,
            Self::Policy(state) => {
                let process = any_process(&state.state_dir).await?;
                let answer = control::ask(&process, &ControlRequest::Policy, |_| ()).await?;
                print!("{}", answer["text"].as_str().unwrap_or_default());
                Ok(())
            }
            Self::Serve { config, found } => serve(&config, found.into()).await,
            Self::Status(state) => {
                let process = any_process(&state.state_dir).await?;
                let answer = control::ask(&process, &ControlRequest::Status, |_| ()).await?;
                println!("{}", serde_json::to_string_pretty(&answer).map_err(Fault::new)?);
                Ok(())
            }
        }
    }
}

async fn serve(path: &Path, founding: MayFound) -> Result<(), Fault> {
    let mut config = Config::load(path)?;
    let metrics = instance::start_process(config.log_json)?;
    let more = [config.ekm_address, config.metrics_address];
    descriptors::fit(&mut config.connections, 1 + more.iter().flatten().count())?;
    let state = xks::open_state(&config, founding).await?;
    let sockets = Sockets::bind(&config).await?;
    let running = state.run(&config, sockets, metrics, None).await?;
    tracing::info!(address = %config.address, process = config.process, "ready");
    instance::signalled(instance::Hangup::Looks).await?;
    tracing::info!("stopping");
    running.stop().await;
    tracing::info!("stopped");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn accept_restore(config: &Path, operator: &OperatorArgs) -> Result<(), Fault> {
    let config = Config::load(config)?;
    let key = operator_key::load(&operator.key)?;
    let heeded = restore::accept(&config, &operator.operator, &key).await?;
    let restore = &heeded.restore;
    println!("generation {} in the place of {}, of which {} knows", restore.found, restore.newest, restore.witness);
    for (process, number) in &restore.lost_kills {
        println!("kills of process {process} up to number {number} are gone, and are given up");
    }
    println!("accepted by {} ({} of {})", heeded.accepted_by.join(", "), heeded.accepted_by.len(), heeded.threshold);
    if heeded.done {
        println!("the restored state is in force; look at its credentials, operators and kill switches");
    }
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
            let process = any_process(&state_dir.unwrap_or_default()).await?;
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
    let answer = control::ask(&any_process(state_dir).await?, &ControlRequest::Keys, |_| ()).await?;
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

/// The process of one HSM user; its standard input is a socket to the proxy.
pub(crate) fn pkcs11_host(umask: u32) -> Result<(), Fault> {
    // Such libraries share files between users.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
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
