//! `holdfast quorum`: changes that need m of n operators.

mod change;

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use holdfast_crypto::{PersonalKey, SecretBytes};
use holdfast_xks_proxy::{
    quorum::{Act, BlindedSecret, Request, statement},
    state::KillScope,
};
use serde_json::Value;
use tokio::time::timeout;

use change::{Asked, Change};

use super::operator_key;
use crate::{
    ambient::OsAmbient,
    control,
    fault::Fault,
    xks::control::{ControlRequest, ControlSecret, running},
};

#[derive(Subcommand)]
pub(crate) enum QuorumCommand {
    /// Approve a proposal, after showing what it says; it is carried out when enough have
    Approve(DecideArgs),
    /// Make an operator's key, and print its public half
    Keygen {
        /// Where the private half goes; never overwritten
        file: PathBuf,
    },
    /// Ask for a change
    Propose {
        #[command(flatten)]
        state: StateArg,
        #[command(flatten)]
        operator: OperatorArgs,
        /// How long it can be approved, in hours
        #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=168))]
        hours: u16,
        #[command(subcommand)]
        change: Change,
    },
    /// Reject a proposal
    Reject(DecideArgs),
    /// List proposals, or show one whole
    Show {
        #[command(flatten)]
        state: StateArg,
        /// Which one
        id: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which proxy.
#[derive(Args)]
pub(crate) struct StateArg {
    /// State directory of a running proxy ([state] directory; of `holdfast dev`: DIR/xks)
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct OperatorArgs {
    /// Your name as an operator
    #[arg(long, value_name = "NAME")]
    pub operator: String,
    /// Your private key: Ed25519 or P-256, PKCS #8, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

#[derive(Args)]
pub(crate) struct DecideArgs {
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    operator: OperatorArgs,
    /// Id of the proposal
    id: String,
    /// Do not ask again
    #[arg(long)]
    yes: bool,
}

pub(crate) use change::new_credential;

/// What a kill switch stops.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ScopeArgs {
    /// Everything
    #[arg(long)]
    all: bool,
    /// One store
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// One key, in all stores
    #[arg(long = "key-id", value_name = "ID")]
    key: Option<String>,
}

impl ScopeArgs {
    pub(crate) fn scope(&self) -> KillScope {
        match (&self.store, &self.key) {
            (Some(store), _) => KillScope::Store(store.clone()),
            (None, Some(key)) => KillScope::Key(key.clone()),
            (None, None) => KillScope::All,
        }
    }
}

/// A process that does not say who it is in this time may be stopped: another one is asked.
const HELLO_MAX: Duration = Duration::from_secs(1);

/// The control directory of a running process; any that answers will do.
pub(crate) async fn any_process(state_dir: &Path) -> Result<PathBuf, Fault> {
    let mut silent = Vec::new();
    for process in running(state_dir) {
        let hello = timeout(HELLO_MAX, control::ask(&process, &ControlRequest::Hello, |_| ())).await;
        if hello.is_ok_and(|hello| hello.is_ok()) {
            return Ok(process);
        }
        silent.push(process.display().to_string());
    }
    if !silent.is_empty() {
        let why = format!("these processes have taken the state, and do not answer: {}", silent.join(", "));
        return Err(Fault::unavailable(why).hint("are they stopped? let them go on, or end them"));
    }
    Err(Fault::unavailable(format!("{}: no proxy runs on this state", state_dir.display()))
        .hint("give the directory of [state] in its configuration; of `holdfast dev`: DATA_DIR/xks"))
}

impl QuorumCommand {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        match self {
            Self::Approve(args) => decide(args, true).await,
            Self::Reject(args) => decide(args, false).await,
            Self::Keygen { file } => {
                println!("public_key = {:?}", operator_key::generate(&file)?);
                Ok(())
            }
            Self::Propose { state, operator, hours, change } => propose(&state, &operator, hours, change).await,
            Self::Show { state, id, json } => show(&state, id.as_deref(), json).await,
        }
    }
}

/// Signs and sends a request for `act`.
async fn send(
    process: &Path,
    operator: (&str, &PersonalKey),
    hours: u16,
    act: Act,
    secret: Option<&BlindedSecret>,
) -> Result<Value, Fault> {
    let hello = control::ask(process, &ControlRequest::Hello, |_| ()).await?;
    let instance = hello["instance"].as_str().unwrap_or_default();
    let request = Request::new(instance, operator.0, act, i64::from(hours) * 3600, &OsAmbient);
    let (text, signature) = request.sign(operator.1).map_err(Fault::new)?;
    let secret = secret.map(|BlindedSecret { blind, secret }| ControlSecret {
        blind: STANDARD.encode(blind),
        secret: STANDARD.encode(secret.expose()),
    });
    let request = ControlRequest::Propose { text, signature: STANDARD.encode(signature), secret };
    control::ask(process, &request, |_| ()).await
}

async fn propose(state: &StateArg, operator: &OperatorArgs, hours: u16, change: Change) -> Result<(), Fault> {
    let process = any_process(&state.state_dir).await?;
    let key = operator_key::load(&operator.key)?;
    let Asked { act, secret, handover } = change::read(change)?;
    if let (Some((path, access_key_id)), Some(secret), Act::CredentialAdd { store, .. }) = (&handover, &secret, &act) {
        // Before the request: a credential that nobody holds would be of no use.
        write_handover(&process, path, store, access_key_id, &secret.secret).await?;
    }
    let sent = send(&process, (&operator.operator, &key), hours, act, secret.as_ref()).await;
    if let (Err(_), Some((path, _))) = (&sent, &handover) {
        let _ = fs::remove_file(path);
    }
    tell(&sent?["proposal"]);
    Ok(())
}

/// What the AWS console takes (XKS proxy API 1.0.3).
async fn write_handover(
    process: &Path,
    path: &Path,
    store: &str,
    access_key_id: &str,
    secret: &SecretBytes,
) -> Result<(), Fault> {
    let status = control::ask(process, &ControlRequest::Status, |_| ()).await?;
    let stores = status["stores"].as_array().cloned().unwrap_or_default();
    let known = stores.iter().find(|known| known["name"] == store);
    let prefix = known.and_then(|known| known["path_prefix"].as_str());
    let prefix = prefix.ok_or_else(|| Fault::usage(format!("the policy has no store {store:?}")))?;
    let secret = std::str::from_utf8(secret.expose()).map_err(Fault::new)?;
    let content = format!(
        "{{\n  \"XksProxyUriPath\": \"{prefix}/kms/xks/v1\",\n  \"XksProxyAuthenticationCredential\": {{\n    \
         \"AccessKeyId\": \"{access_key_id}\",\n    \"RawSecretAccessKey\": \"{secret}\"\n  }}\n}}\n"
    );
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut content = content.into_bytes();
    let written = file.and_then(|mut file| file.write_all(&content).and_then(|()| file.sync_all()));
    holdfast_crypto::secret::erase(&mut content);
    written.map_err(|error| Fault::file(path, error))
}

#[expect(clippy::print_stdout, reason = "the command's data")]
fn tell(proposal: &Value) {
    let text = |name: &str| proposal[name].as_str().unwrap_or_default().to_owned();
    let (approvals, threshold) = (&proposal["approvals"], &proposal["threshold"]);
    println!("{}  {}  {approvals} of {threshold}  {}", text("id"), text("status"), text("summary"));
    if let Some(outcome) = proposal["outcome"].as_str() {
        println!("                  {outcome}");
    }
}

async fn proposals(process: &Path) -> Result<Vec<Value>, Fault> {
    let answer = control::ask(process, &ControlRequest::Proposals, |_| ()).await?;
    Ok(answer["proposals"].as_array().cloned().unwrap_or_default())
}

async fn find(process: &Path, id: &str) -> Result<Value, Fault> {
    let all = proposals(process).await?;
    let found = all.into_iter().find(|proposal| proposal["id"] == id);
    found.ok_or_else(|| Fault::usage(format!("there is no proposal {id:?}")).hint("type: holdfast quorum show"))
}

#[expect(clippy::print_stderr, reason = "a question to the person at the terminal")]
async fn decide(args: DecideArgs, approve: bool) -> Result<(), Fault> {
    let process = any_process(&args.state.state_dir).await?;
    let key = operator_key::load(&args.operator.key)?;
    let proposal = find(&process, &args.id).await?;
    let text = proposal["text"].as_str().unwrap_or_default();
    let request: Request = serde_json::from_str(text).map_err(Fault::new)?;
    // What is signed is what is shown: made here, out of the text that is signed.
    eprintln!("{} asks: {}", request.proposer, request.change.summary());
    eprintln!("{}", readable(&request.change)?);
    if !args.yes {
        let word = if approve { "approve" } else { "reject" };
        eprint!("type {word} to {word} it: ");
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(Fault::new)?;
        if line.trim() != word {
            return Err(Fault::usage("nothing was signed"));
        }
    }
    let signature = key.sign(statement(text, approve).as_bytes()).map_err(Fault::new)?;
    let request = ControlRequest::Decide {
        id: args.id.clone(),
        operator: args.operator.operator.clone(),
        approve,
        signature: STANDARD.encode(signature),
    };
    let answer = control::ask(&process, &request, |_| ()).await?;
    tell(&answer["proposal"]);
    Ok(())
}

fn readable(act: &Act) -> Result<String, Fault> {
    match act {
        Act::Policy { text } => Ok(text.clone()),
        other => serde_json::to_string_pretty(other).map_err(Fault::new),
    }
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn show(state: &StateArg, id: Option<&str>, json: bool) -> Result<(), Fault> {
    let process = any_process(&state.state_dir).await?;
    match id {
        None => {
            let all = proposals(&process).await?;
            if json {
                println!("{}", Value::Array(all));
            } else {
                all.iter().for_each(tell);
            }
        }
        Some(id) => {
            let proposal = find(&process, id).await?;
            if json {
                println!("{proposal}");
                return Ok(());
            }
            tell(&proposal);
            let request: Request =
                serde_json::from_str(proposal["text"].as_str().unwrap_or_default()).map_err(Fault::new)?;
            println!("asked by {}, open until {}", request.proposer, moment(request.expires));
            for verdict in proposal["verdicts"].as_array().into_iter().flatten() {
                let word = if verdict["approve"] == true { "approves" } else { "rejects" };
                println!("{} {word}", verdict["operator"].as_str().unwrap_or_default());
            }
            println!("{}", readable(&request.change)?);
        }
    }
    Ok(())
}

fn moment(secs: i64) -> String {
    jiff::Timestamp::from_second(secs).map_or_else(|_| secs.to_string(), |moment| moment.to_string())
}
