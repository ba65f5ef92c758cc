//! `holdfast status`

use std::path::PathBuf;

use clap::Args;

use super::env_file::EnvFile;
use crate::{fault::Fault, server::client::HttpsClient};

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Base URL of the service
    #[arg(long, value_name = "URL", required_unless_present = "env_file")]
    url: Option<String>,
    /// Certificates to trust in place of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Take URL and CA file from what `holdfast dev --env-file FILE` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "ca_file"])]
    env_file: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl StatusArgs {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let (url, ca_file) = match &self.env_file {
            Some(path) => {
                let env = EnvFile::read(path)?;
                (env.require("HOLDFAST_HSM_URL")?.to_owned(), Some(PathBuf::from(env.require("HOLDFAST_CA_FILE")?)))
            }
            None => (self.url.clone().unwrap_or_default(), self.ca_file.clone()),
        };
        let ready = format!("{}/readyz", url.trim_end_matches('/'));
        let response = HttpsClient::new(ca_file.as_deref())?
            .get(&ready)
            .await
            .map_err(|error| Fault::unavailable(format!("{url}: {error}")))?;
        if !response.status().is_success() {
            return Err(Fault::unavailable(format!("{url}: not ready ({})", response.status())));
        }
        if self.json {
            print!("{}", String::from_utf8_lossy(response.body()));
            return Ok(());
        }
        let answer: serde_json::Value = serde_json::from_slice(response.body())
            .map_err(|_| Fault::unavailable(format!("{url}: the answer is not Holdfast's")))?;
        println!("{url}");
        for (name, value) in answer.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            println!("  {:<16} {value}", name.replace('_', " "));
        }
        Ok(())
    }
}
