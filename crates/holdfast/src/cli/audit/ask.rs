//! One question to a log, and what comes back, before anything of it is believed.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use holdfast_core::{Ambient, AuditPlace};
use holdfast_crypto::SecretBytes;
use holdfast_wire::{
    audit_pull::{
        FORMAT, HEAD_BYTES_MAX, HeadJson, LINES_BYTES_MAX, PATH, PullAnswer, PullRefusal, PullRequest, SCOPE,
        read_answer,
    },
    hex::hex,
    printable,
    sigv4::{self, SigningSecret},
};
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;

use crate::{
    ambient::OsAmbient,
    cli::{env_file::EnvFile, token::token_of},
    fault::Fault,
    server::client::HttpsClient,
};

/// Time for one answer, of a megabyte at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a token is used. The shortest that issuers give are good for five minutes.
const TOKEN_KEPT: Duration = Duration::from_secs(120);
/// How often a log that is busy with other pulls is asked again, a second apart.
const BUSY_TRIES: usize = 30;
/// Longest text of an answer that is repeated here.
const TOLD_CHARS_MAX: usize = 200;

/// Whose log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Role {
    /// A Managed HSM: asked with a bearer token
    ManagedHsm,
    /// A key management service: requests are signed
    Kms,
    /// An external key store proxy: requests are signed
    Xks,
    /// A storage service: requests are signed
    Storage,
}

/// Where the log is, and as whom it is asked.
#[derive(Args)]
pub(super) struct Source {
    /// The role's own address, as https://hsm.example.com:8443
    #[arg(long, value_name = "URL")]
    url: String,
    /// Whose log it is; it says how the caller proves who he is
    #[arg(long, value_enum)]
    role: Role,
    /// Certificates that are trusted in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The same for the issuer of tokens; those of --ca without it
    #[arg(long, value_name = "FILE")]
    authority_ca: Option<PathBuf>,
    /// File of KEY=VALUE lines with the credential; without it the environment has it: HOLDFAST_TOKEN, or HOLDFAST_AUTHORITY_URL,
    /// HOLDFAST_TENANT_ID, HOLDFAST_CLIENT_ID and HOLDFAST_CLIENT_SECRET; or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Another client in the env file: HOLDFAST_NAME_CLIENT_ID, HOLDFAST_NAME_CLIENT_SECRET
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// Certificate to show, with its chain (PEM): a proxy may want one of whoever connects
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// Ask an http address: anybody between may then read the log, though not change what is kept
    #[arg(long)]
    insecure_http: bool,
}

/// What a log says.
pub(super) enum Told {
    /// Lines, from a place in a segment on.
    Lines { segment: u64, offset: u64, lines: Bytes, head: HeadJson },
    /// It is of another history.
    Parted { head: HeadJson },
}

enum Credential {
    Token { client: Option<String>, authority: HttpsClient, kept: Mutex<Option<(Instant, String)>> },
    Signature { access_key_id: String, secret: SigningSecret },
}

/// Asks one log.
pub(super) struct Asker {
    client: HttpsClient,
    url: String,
    env: EnvFile,
    credential: Credential,
}

impl Source {
    pub(super) fn asker(self) -> Result<Asker, Fault> {
        let env = match &self.env_file {
            Some(path) => EnvFile::read(path)?,
            None => EnvFile::of_process(),
        };
        let url = self.url.trim_end_matches('/').to_owned();
        let mut client = match (&self.client_cert, &self.client_key) {
            (Some(chain), Some(key)) => HttpsClient::showing(self.ca.as_deref(), chain, key)?,
            _ => HttpsClient::new(self.ca.as_deref())?,
        };
        match (url.starts_with("https://"), url.starts_with("http://"), self.insecure_http) {
            (true, ..) => {}
            (_, true, true) => client = client.insecure_http(),
            (_, true, false) => {
                return Err(Fault::usage("--url is an http address").hint("type: --insecure-http, if it must be"));
            }
            _ => return Err(Fault::usage("--url must be an https URL")),
        }
        let credential = if self.role == Role::ManagedHsm {
            let authority = HttpsClient::new(self.authority_ca.as_deref().or(self.ca.as_deref()))?;
            Credential::Token { client: self.client, authority, kept: Mutex::default() }
        } else {
            let secret = SecretBytes::copy_of(env.require("AWS_SECRET_ACCESS_KEY")?.as_bytes());
            let access_key_id = env.require("AWS_ACCESS_KEY_ID")?.to_owned();
            Credential::Signature { access_key_id, secret: SigningSecret::new(secret) }
        };
        Ok(Asker { client, url, env, credential })
    }
}

impl Asker {
    /// Asks for what follows a line.
    pub(super) async fn ask(&self, log: Option<&str>, after: AuditPlace, nonce: [u8; 32]) -> Result<Told, Fault> {
        let request = PullRequest {
            format: FORMAT.to_owned(),
            log: log.map(str::to_owned),
            nonce: hex(&nonce),
            after: (after.line.seq > 0).then(|| after.into()),
            max_bytes: Some(LINES_BYTES_MAX),
        };
        let body = Bytes::from(serde_json::to_vec(&request).map_err(Fault::new)?);
        for _ in 0..BUSY_TRIES {
            let answer = self.send(&body).await?;
            match answer.status() {
                StatusCode::OK => return lines_of(&answer.into_body()),
                StatusCode::TOO_MANY_REQUESTS => tokio::time::sleep(Duration::from_secs(1)).await,
                _ => return refusal_of(&answer),
            }
        }
        Err(Fault::unavailable(format!("{}: other pulls take all its places", self.url)))
    }

    /// One token serves many requests, but none for long: the issuer may say no the next time.
    async fn token(
        &self,
        client: Option<&str>,
        authority: &HttpsClient,
        kept: &Mutex<Option<(Instant, String)>>,
    ) -> Result<String, Fault> {
        if let Some(token) = self.env.get("HOLDFAST_TOKEN") {
            return Ok(token.to_owned());
        }
        let known = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, token)) = known.filter(|(since, _)| since.elapsed() < TOKEN_KEPT) {
            return Ok(token);
        }
        let token = token_of(&self.env, client, None, authority).await?;
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), token.clone()));
        Ok(token)
    }

    async fn send(&self, body: &Bytes) -> Result<Response<Bytes>, Fault> {
        let url = format!("{}{PATH}", self.url);
        let mut request = Request::post(&url).header(header::CONTENT_TYPE, "application/json");
        match &self.credential {
            Credential::Token { client, authority, kept } => {
                let token = self.token(client.as_deref(), authority, kept).await?;
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            Credential::Signature { .. } => {}
        }
        let request = request.body(()).map_err(Fault::usage)?;
        let (mut parts, ()) = request.into_parts();
        if let Credential::Signature { access_key_id, secret } = &self.credential {
            let authority = parts.uri.authority().ok_or_else(|| Fault::usage("--url has no host"))?;
            let host = http::HeaderValue::try_from(authority.as_str()).map_err(Fault::usage)?;
            parts.headers.insert(header::HOST, host);
            sigv4::sign(&mut parts, body, SCOPE, access_key_id, secret, OsAmbient.now()).map_err(Fault::new)?;
        }
        let request = Request::from_parts(parts, Full::new(body.clone()));
        let sent = self.client.send_for(request, LINES_BYTES_MAX + HEAD_BYTES_MAX, ANSWER_TIMEOUT).await;
        sent.map_err(|error| Fault::unavailable(format!("{url}: {error}")))
    }
}

fn lines_of(body: &Bytes) -> Result<Told, Fault> {
    let (answer, lines) =
        read_answer(body).map_err(|why| Fault::new(format!("what was answered is no answer: {why}")))?;
    let PullAnswer { segment, offset, head, .. } = answer;
    Ok(Told::Lines { segment, offset, lines: body.slice(lines..), head })
}

fn refusal_of(answer: &Response<Bytes>) -> Result<Told, Fault> {
    let status = answer.status();
    let body = &answer.body()[..answer.body().len().min(HEAD_BYTES_MAX)];
    let refusal: Option<PullRefusal> = serde_json::from_slice(body).ok();
    let why = match &refusal {
        Some(PullRefusal { error, .. }) => {
            format!("{}: {}", printable(&error.code, TOLD_CHARS_MAX), printable(&error.message, TOLD_CHARS_MAX))
        }
        None => "no reason given".to_owned(),
    };
    let why = format!("the log is not given ({status}): {why}");
    match (status, refusal) {
        (StatusCode::CONFLICT, Some(PullRefusal { head: Some(head), .. })) => Ok(Told::Parted { head }),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Err(Fault::denied(why)),
        (status, _) if status.is_server_error() => Err(Fault::unavailable(why)),
        _ => Err(Fault::new(why)),
    }
}

/// 32 bytes that were never sent before.
pub(super) fn fresh_nonce() -> [u8; 32] {
    let ambient: Arc<dyn Ambient> = Arc::new(OsAmbient);
    ambient.random()
}
