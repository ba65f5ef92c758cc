//! The command line: `holdfast NOUN [VERB]`. Data goes to standard output, words to standard error.

mod audit;
mod backup;
mod config;
mod dev;
mod dev_kms;
mod dev_page;
mod dev_xks;
pub(crate) mod env_file;
mod kms;
mod managed_hsm;
mod operator_key;
mod quorum;
mod status;
mod storage;
mod token;
mod xks;
mod xks_kill;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::fault::Fault;

/// An open, self-hosted key platform.
#[derive(Parser)]
#[command(name = "holdfast", version, about, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read, verify and export the audit log
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Take a backup of a service, while it runs or not
    Backup(backup::BackupArgs),
    /// Check a configuration file, or print a commented example
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Start everything on loopback with embedded defaults: for trying, developing and testing
    Dev(dev::DevArgs),
    /// Run a key management service, or ask a running one
    #[command(subcommand)]
    Kms(kms::KmsCommand),
    /// Run a Managed HSM
    ManagedHsm(managed_hsm::ManagedHsmArgs),
    /// One user's sessions with one PKCS #11 token: started by `xks serve`, not by people
    #[command(hide = true)]
    Pkcs11Host {
        /// What the files that the vendor's library makes are not open to
        #[arg(long, default_value_t = 0o077)]
        umask: u32,
    },
    /// Ask for changes of an external key store proxy, approve and reject them
    #[command(subcommand)]
    Quorum(quorum::QuorumCommand),
    /// Put a backup back
    Restore(backup::RestoreArgs),
    /// Ask a running service how it is
    Status(status::StatusArgs),
    /// Run a storage service, or ask a running one
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Print one bearer token from the issuer that an env file names
    Token(token::TokenArgs),
    /// Run an external key store proxy, ask a running one, pull its plug
    #[command(subcommand)]
    Xks(xks::XksCommand),
}

/// Where `holdfast dev` wrote its variables.
#[derive(clap::Args)]
pub(crate) struct EnvFileArg {
    /// File of KEY=VALUE lines written by `holdfast dev --env-file FILE`
    #[arg(long, value_name = "FILE")]
    pub env_file: PathBuf,
}

impl Cli {
    pub(crate) fn run(self) -> Result<(), Fault> {
        match self.command {
            Command::Audit(command) => block_on(command.run()),
            Command::Backup(args) => block_on(args.run()),
            Command::Config(command) => command.run(),
            Command::Dev(args) => block_on(args.run()),
            Command::Kms(command) => block_on(command.run()),
            Command::ManagedHsm(args) => block_on(args.run()),
            Command::Pkcs11Host { umask } => xks::pkcs11_host(umask),
            Command::Quorum(command) => block_on(command.run()),
            Command::Restore(args) => args.run(),
            Command::Status(args) => block_on(args.run()),
            Command::Storage(command) => block_on(command.run()),
            Command::Token(args) => block_on(args.run()),
            Command::Xks(command) => block_on(command.run()),
        }
    }
}

fn block_on(future: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Fault::new)?;
    runtime.block_on(future)
}
