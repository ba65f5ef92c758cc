//! `holdfast storage`: the service, and what an operator asks of a running one.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use holdfast_storage::{envelope_in, inspect_stream};
use holdfast_store::IndexCopy;
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    ambient::OsAmbient,
    control, descriptors,
    fault::{Fault, shown},
    founding::{FoundArg, MayFound},
    instance,
    server::certificates::{self, FromFiles},
    storage::{self, StorageSetup, admin::AdminRequest, config::Config},
};

/// How much of a file `inspect` reads.
const SAMPLE_BYTES: u64 = 1024 * 1024;

#[derive(Subcommand)]
pub(crate) enum StorageCommand {
    /// Drop all unwrapped DEKs of a running service at once
    Forget(DataDir),
    /// Say of a raw blob file what is ciphertext, and which KEK wraps its DEK
    Inspect {
        /// A file under DATA_DIR/blobs
        file: PathBuf,
        /// Data directory, to find which KEK wraps the DEK, whether a service runs on it or not; found from FILE by default
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Move DEKs to the newest version of their KEK; data stays where and as it is
    Rewrap {
        #[command(flatten)]
        service: DataDir,
        /// Also the objects of this bucket that have a DEK of their own
        #[arg(long, value_name = "NAME")]
        bucket: Option<String>,
        /// Only objects whose keys begin so
        #[arg(long, value_name = "PREFIX", requires = "bucket", default_value = "")]
        prefix: String,
    },
    /// Run a storage service
    Serve {
        /// The configuration file; see `holdfast config example --role storage`
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        found: FoundArg,
    },
    /// Count what depends on each version of each KEK
    Uses(DataDir),
    /// Compare the rows of the index of a running service, bucket by bucket, with what was committed: no one dropped, put back or planted
    Verify {
        #[command(flatten)]
        service: DataDir,
        /// Only this bucket
        #[arg(long, value_name = "NAME")]
        bucket: Option<String>,
        /// Look at the beginning of each blob, too
        #[arg(long)]
        blobs: bool,
        /// Take the rows of this bucket (or set, as a verification names it) for what they are from now on, remove those that are
        /// not ours, and record that
        #[arg(long, value_name = "SET", conflicts_with_all = ["bucket", "blobs"])]
        accept: Option<String>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which running service.
#[derive(Args)]
pub(crate) struct DataDir {
    /// Data directory of the running service (of `holdfast dev`: DIR/storage)
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

impl StorageCommand {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        match self {
            Self::Forget(service) => {
                let answer = control::ask(&service.data_dir, &AdminRequest::Forget, |_| ()).await?;
                println!("{} DEKs forgotten", answer["forgotten"]);
                Ok(())
            }
            Self::Inspect { file, data_dir, json } => inspect(&file, data_dir, json).await,
            Self::Rewrap { service, bucket, prefix } => rewrap(&service.data_dir, bucket, prefix).await,
            Self::Serve { config, found } => serve(&config, found.into()).await,
            Self::Uses(service) => {
                let answer = control::ask(&service.data_dir, &AdminRequest::Uses, |_| ()).await?;
                println!("{:>10} {:>10}  KEK", "containers", "objects");
                for (url, count) in answer["uses"].as_object().into_iter().flatten() {
                    println!("{:>10} {:>10}  {url}", count["containers"].to_string(), count["objects"].to_string());
                }
                Ok(())
            }
            Self::Verify { service, accept: Some(set), json, .. } => accept(&service.data_dir, set, json).await,
            Self::Verify { service, bucket, blobs, accept: None, json } => {
                verify(&service.data_dir, bucket, blobs, json).await
            }
        }
    }
}

/// A line of a verification, for people.
fn line_of(set: &Value) -> String {
    let text = |name: &str| set[name].as_str().unwrap_or_default().to_owned();
    let mut line = format!("{:<8} {:<40} {} rows", text("verdict"), text("set"), set["rows"]);
    if set["expected"] != set["rows"] {
        let expected = set["expected"].as_u64().map_or_else(|| "an unknown number".into(), |rows| rows.to_string());
        line += &format!(" of {expected}");
    }
    for (count, names, what) in [("forged", "names", "not ours"), ("bad_blobs", "bad_blob_names", "bad blobs")] {
        if set[count].as_u64().unwrap_or_default() > 0 {
            let names = set[names].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
            line += &format!("; {} {what}: {}", set[count], names.join(", "));
        }
    }
    shown(&line)
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn verify(data_dir: &Path, bucket: Option<String>, blobs: bool, json: bool) -> Result<(), Fault> {
    let mut sets = Vec::new();
    let hear = |set: &Value| {
        if json {
            sets.push(set.clone());
        } else {
            println!("{}", line_of(set));
        }
    };
    let mut answer = control::ask(data_dir, &AdminRequest::Verify { bucket, blobs }, hear).await?;
    let bad: Vec<String> =
        answer["bad"].as_array().into_iter().flatten().filter_map(|set| set.as_str().map(str::to_owned)).collect();
    if json {
        answer["found"] = sets.into();
        println!("{answer}");
    } else {
        println!("{} rows in {} sets looked at, {} not whole", answer["rows"], answer["sets"], bad.len());
    }
    if bad.is_empty() {
        return Ok(());
    }
    Err(Fault::new(format!("rows of the index are not what was committed: {}", bad.join(", "))).hint(
        "restore the data directory of one moment; or, to go on with the rows that are there: holdfast storage verify --data-dir DIR --accept SET",
    ))
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn accept(data_dir: &Path, set: String, json: bool) -> Result<(), Fault> {
    let answer = control::ask(data_dir, &AdminRequest::AcceptRows { set }, |_| ()).await?;
    match json {
        true => println!("{}", answer["accepted"]),
        false => println!("accepted as it is: {}", line_of(&answer["accepted"])),
    }
    Ok(())
}

async fn serve(path: &Path, founding: MayFound) -> Result<(), Fault> {
    let mut config = Config::load(path)?;
    let metrics = instance::start_process(config.log_json)?;
    descriptors::fit(&mut config.connections, 1 + usize::from(config.metrics_address.is_some()))?;
    // First what may be wrong in the configuration: nothing is founded for it.
    let (keks, keys) = (Arc::new(config.keks()?), config.access_keys()?);
    let (cloud_blobs, certificate) = (config.cloud_blobs()?, config.certificate()?);
    let tls = certificate.as_ref().map(FromFiles::server_config).transpose()?;
    let opened = storage::open(&config.data_dir, &config.silicon_root, founding, config.role.adopt_blobs)?;
    let socket = instance::listen(config.address).await?;
    let metrics_socket = match config.metrics_address {
        Some(address) => Some(instance::listen(address).await?),
        None => None,
    };
    let (stop, stopped) = watch::channel(false);
    let setup = StorageSetup {
        audit_readers: config.audit_readers.clone(),
        audit: config.audit.clone(),
        role: config.role.clone(),
        keys,
        keks,
        cloud_blobs,
        kek_poll: config.kek_poll,
        disk_reserve: config.disk_reserve,
        socket,
        metrics_socket,
        tls,
        connections: config.connections,
        metrics,
    };
    let until = stopped.clone();
    let running = storage::start(opened, setup, stopped).await?;
    let kept = certificate.map(|shown| tokio::spawn(certificates::keep(shown, "storage", Arc::new(OsAmbient), until)));
    tracing::info!(address = %config.address, "ready");
    instance::signalled(instance::Hangup::Looks).await?;
    let _ = stop.send(true);
    running.ended().await;
    if let Some(kept) = kept {
        let _ = kept.await;
    }
    tracing::info!("stopped");
    Ok(())
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "progress, and the command's data")]
async fn rewrap(data_dir: &Path, bucket: Option<String>, prefix: String) -> Result<(), Fault> {
    let mut requests = vec![AdminRequest::RewrapContainers];
    if let Some(bucket) = bucket {
        requests.push(AdminRequest::RewrapObjects { bucket, prefix });
    }
    let mut failed = Vec::new();
    for request in requests {
        let what = match request {
            AdminRequest::RewrapObjects { .. } => "objects",
            _ => "containers",
        };
        let progress = |line: &Value| eprintln!("{}: {} of {} moved", line["bucket"], line["moved"], line["seen"]);
        let answer = control::ask(data_dir, &request, progress).await?;
        println!("{what}: {} DEKs seen, {} moved", answer["seen"], answer["moved"]);
        failed.extend(
            answer["failed"].as_array().into_iter().flatten().filter_map(|why| why.as_str().map(str::to_owned)),
        );
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Fault::new(format!("{} DEKs could not be moved:\n  {}", failed.len(), failed.join("\n  ")))
        .hint("mend the cause and run it again: what was moved stays moved"))
}

/// From the index itself, where no service holds it.
fn envelope_at_rest(data_dir: &Path, dek: &str, object: &str) -> Value {
    let path = data_dir.join("index.redb");
    let envelope = IndexCopy::open(&path).ok().and_then(|index| envelope_in(&index, dek, object));
    envelope.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or(Value::Null)
}

#[expect(clippy::print_stdout, reason = "the command's data")]
async fn inspect(file: &Path, data_dir: Option<PathBuf>, json: bool) -> Result<(), Fault> {
    let failed = |error| Fault::file(file, error);
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(failed)?;
    let size = opened.metadata().map_err(failed)?.len();
    opened.take(SAMPLE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let report = inspect_stream(&bytes)
        .ok_or_else(|| Fault::new(format!("{}: not a stream of the storage service", file.display())))?;
    // DATA_DIR/blobs/ab/cd/FILE
    let data_dir = data_dir.or_else(|| file.ancestors().nth(4).map(PathBuf::from)).unwrap_or_default();
    let request = AdminRequest::Envelope { dek: report.dek.clone(), object: report.object.clone() };
    let envelope = match control::ask(&data_dir, &request, |_| ()).await {
        Ok(answer) => answer["envelope"].clone(),
        Err(_) => envelope_at_rest(&data_dir, &report.dek, &report.object),
    };
    let mut whole = serde_json::to_value(&report).map_err(Fault::new)?;
    whole["file_bytes"] = size.into();
    whole["envelope"] = envelope;
    if json {
        println!("{whole}");
        return Ok(());
    }
    for (name, value) in whole.as_object().into_iter().flatten().filter(|(name, _)| *name != "envelope") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        println!("{:<22} {value}", name.replace('_', " "));
    }
    match whole["envelope"].as_object() {
        Some(envelope) => {
            for (name, value) in envelope {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                println!("envelope {:<13} {value}", name.replace('_', " "));
            }
        }
        None => println!(
            "envelope               not known: the DEK is the client's, or {} has no index that names it",
            data_dir.display()
        ),
    }
    Ok(())
}
