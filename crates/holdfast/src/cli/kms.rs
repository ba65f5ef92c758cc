//! `holdfast kms`: the service, and what an operator asks of a running one.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    control, descriptors,
    fault::Fault,
    founding::{FoundArg, MayFound},
    instance,
    kms::{self, KmsSetup, admin::AdminRequest, config::Config},
};

#[derive(Subcommand)]
pub(crate) enum KmsCommand {
    /// Say which statement of which policy, or which grant, decides a request
    Explain(ExplainArgs),
    /// Run a key management service
    Serve {
        /// The configuration file; see `holdfast config example --role kms`
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        found: FoundArg,
    },
}

#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// Data directory of the running service (of `holdfast dev`: DIR/kms)
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// ARN of the user, role or root that asks
    #[arg(long, value_name = "ARN")]
    principal: String,
    /// What is asked, as in policies: kms:Decrypt
    #[arg(long, value_name = "NAME")]
    action: String,
    /// Key id, key ARN, alias or alias ARN
    #[arg(long, value_name = "NAME")]
    key_id: Option<String>,
    /// The region; the service's usual one by default
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// One pair of the encryption context; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// Address that the request comes from
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    /// ARN of the resource on whose behalf a service asks
    #[arg(long, value_name = "ARN")]
    source_arn: Option<String>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is written NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl KmsCommand {
    pub(crate) async fn run(self) -> Result<(), Fault> {
        match self {
            Self::Explain(args) => args.run().await,
            Self::Serve { config, found } => serve(&config, found.into()).await,
        }
    }
}

impl ExplainArgs {
    /// Exits with 3 if the answer is no.
    #[expect(clippy::print_stdout, reason = "the command's data")]
    async fn run(self) -> Result<(), Fault> {
        let request = AdminRequest::Explain {
            principal: self.principal,
            action: self.action,
            key: self.key_id,
            region: self.region,
            context: self.context.into_iter().collect::<BTreeMap<_, _>>(),
            source: self.source_ip,
            source_arn: self.source_arn,
        };
        let answer = control::ask(&self.data_dir, &request, |_| ()).await?;
        let lines = answer["lines"].as_array().map(Vec::as_slice).unwrap_or_default();
        let allowed = answer["allowed"] == true;
        if self.json {
            println!("{}", serde_json::json!({"allowed": allowed, "lines": lines}));
        } else {
            lines.iter().filter_map(Value::as_str).for_each(|line| println!("{line}"));
        }
        if allowed { Ok(()) } else { Err(Fault::denied("the request would be denied")) }
    }
}

async fn serve(path: &Path, founding: MayFound) -> Result<(), Fault> {
    let mut config = Config::load(path)?;
    let metrics = instance::start_process(config.log_json)?;
    descriptors::fit(&mut config.connections, 1 + usize::from(config.metrics_address.is_some()))?;
    let role = config.role()?;
    let opened = kms::open(&config.data_dir, &config.silicon_root, founding)?;
    let setup = KmsSetup {
        audit_readers: config.audit_readers.clone(),
        role,
        audit: config.audit,
        connections: config.connections,
        threads: config.threads,
        socket: instance::listen(config.address).await?,
        metrics_socket: instance::listen_some(config.metrics_address).await?,
        host_names: config.host_names,
        certificate_file: config.certificate_file,
        identity: None,
        metrics,
    };
    let running = kms::run(opened, setup).await?;
    tracing::info!(address = %config.address, "ready");
    instance::signalled(instance::Hangup::Looks).await?;
    tracing::info!("stopping");
    running.stop().await;
    tracing::info!("stopped");
    Ok(())
}
