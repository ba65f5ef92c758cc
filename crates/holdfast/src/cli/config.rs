//! `holdfast config check|example`

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::{config, fault::Fault, kms, storage, xks};

/// Which role a file configures.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Role {
    /// `holdfast kms serve`
    Kms,
    /// `holdfast managed-hsm`
    #[default]
    ManagedHsm,
    /// `holdfast storage serve`
    Storage,
    /// `holdfast xks serve`
    Xks,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a file without starting anything
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Which role it configures
        #[arg(long, value_enum, default_value_t)]
        role: Role,
    },
    /// Print a commented example with every field and its default
    Example {
        /// Which role
        #[arg(long, value_enum, default_value_t)]
        role: Role,
    },
}

impl ConfigCommand {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) fn run(self) -> Result<(), Fault> {
        match self {
            Self::Check { config, role } => {
                match role {
                    Role::Kms => kms::config::Config::load(&config).map(|_| ())?,
                    Role::ManagedHsm => config::Config::load(&config).map(|_| ())?,
                    Role::Storage => storage::config::Config::load(&config).map(|_| ())?,
                    Role::Xks => xks::config::Config::load(&config).map(|_| ())?,
                }
                println!("{}: ok", config.display());
            }
            Self::Example { role: Role::Kms } => print!("{}", kms::config::EXAMPLE),
            Self::Example { role: Role::ManagedHsm } => print!("{}", config::EXAMPLE),
            Self::Example { role: Role::Storage } => print!("{}", storage::config::EXAMPLE),
            Self::Example { role: Role::Xks } => print!("{}", xks::config::EXAMPLE),
        }
        Ok(())
    }
}
