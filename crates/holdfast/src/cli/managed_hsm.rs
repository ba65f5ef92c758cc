//! `holdfast managed-hsm`

use std::{collections::HashMap, path::PathBuf};

use clap::Args;
use holdfast_managed_hsm::{ADMINISTRATOR, Founding};

use crate::{
    compose::{self, Sockets},
    config::Config,
    descriptors,
    fault::Fault,
    founding::FoundArg,
    instance,
};

#[derive(Args)]
pub(crate) struct ManagedHsmArgs {
    /// The configuration file; see `holdfast config example`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    found: FoundArg,
}

impl ManagedHsmArgs {
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let mut config = Config::load(&self.config)?;
        let metrics = instance::start_process(config.log_json)?;
        let more = [config.embedded_issuer.is_some(), config.listen.metrics_address.is_some()];
        descriptors::fit(&mut config.connections, 1 + more.into_iter().filter(|has| *has).count())?;
        let clients = config.embedded_issuer.as_ref().map_or(Ok(HashMap::new()), compose::embedded_clients)?;
        let opened = instance::open(&config.hsm.data_dir, &config.silicon_root, self.found.into(), &[])?;
        let sockets = Sockets::bind(&config).await?;
        let administrators = &config.hsm.initial_administrators;
        let founding = Founding {
            soft_delete_retention_days: config.hsm.soft_delete_retention_days,
            purge_protection: config.hsm.purge_protection,
            first_assignments: administrators.iter().map(|id| (id.clone(), ADMINISTRATOR)).collect(),
        };
        let instance = opened.instance;
        let running = opened.run(&config, sockets, founding, clients, metrics).await?;
        tracing::info!(%instance, address = %config.listen.address, url = config.listen.host_names[0].base_url(), "ready");
        running.until_stopped(instance::Hangup::Looks).await
    }
}
