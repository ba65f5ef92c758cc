//! `holdfast config check|example`

use std::path::PathBuf;

use clap::Subcommand;

use crate::{config, fault::Fault};

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a file without starting anything
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print a commented example with every field and its default
    Example,
}

impl ConfigCommand {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) fn run(self) -> Result<(), Fault> {
        match self {
            Self::Check { config } => {
                config::Config::load(&config)?;
                println!("{}: ok", config.display());
            }
            Self::Example => print!("{}", config::EXAMPLE),
        }
        Ok(())
    }
}
