//! `holdfast token`

use std::path::Path;

use bytes::Bytes;
use clap::Args;
use http::{Request, header};
use http_body_util::Full;

use super::{EnvFileArg, env_file::EnvFile};
use crate::{fault::Fault, server::client::HttpsClient};

#[derive(Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    env: EnvFileArg,
    /// What the token is for, like https://managedhsm.azure.net/.default; the HSM of the env file by default
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// Another client of the same issuer, one that `holdfast dev --client NAME` made
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
}

impl TokenArgs {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let env = EnvFile::read(&self.env.env_file)?;
        let authority = HttpsClient::new(Some(Path::new(env.require("HOLDFAST_CA_FILE")?)))?;
        let token = token_of(&env, self.client.as_deref(), self.scope, &authority).await?;
        println!("{token}");
        Ok(())
    }
}

/// A token of the issuer that `env` names, for its client or another one of its.
pub(super) async fn token_of(
    env: &EnvFile,
    client: Option<&str>,
    scope: Option<String>,
    authority: &HttpsClient,
) -> Result<String, Fault> {
    let prefix = client.map_or_else(|| "HOLDFAST".to_owned(), super::dev::client_prefix);
    let id = env.require(&format!("{prefix}_CLIENT_ID"))?;
    let secret = env.require(&format!("{prefix}_CLIENT_SECRET"))?;
    let scope = match scope {
        Some(scope) if scope.ends_with("/.default") => scope,
        Some(scope) => format!("{}/.default", scope.trim_end_matches('/')),
        None => format!("{}/.default", crate::config::DEFAULT_AUDIENCE),
    };
    let url =
        format!("{}/{}/oauth2/v2.0/token", env.require("HOLDFAST_AUTHORITY_URL")?, env.require("HOLDFAST_TENANT_ID")?);
    let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret), ("scope", &scope)];
    let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))).collect();
    let request = Request::post(&url)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form.join("&"))))
        .map_err(Fault::usage)?;
    let response = authority.send(request).await.map_err(|error| {
        Fault::unavailable(format!("{url}: {error}")).hint("is `holdfast dev` running? the env file may be stale")
    })?;
    let answer: serde_json::Value = serde_json::from_slice(response.body()).unwrap_or_default();
    if let Some(token) = answer.get("access_token").and_then(serde_json::Value::as_str) {
        return Ok(token.to_owned());
    }
    let why = answer.get("error_description").and_then(serde_json::Value::as_str).unwrap_or("no reason given");
    Err(Fault::denied(format!("the issuer refused ({}): {why}", response.status())))
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
