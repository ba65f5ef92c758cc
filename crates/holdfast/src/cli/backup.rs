//! `holdfast backup`, `holdfast restore`

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    ambient::OsAmbient,
    backup::{
        self, Examined, Kind, Nowhere, Place, Source, believe, examine,
        live::Asked,
        moment, proxy,
        restore::{self, Wish},
    },
    config, control,
    fault::Fault,
    kms, storage, xks,
};

/// Whose backup.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// `holdfast kms serve`
    Kms,
    /// `holdfast managed-hsm`
    ManagedHsm,
    /// `holdfast storage serve`
    Storage,
    /// `holdfast xks serve`: the shared state with all its processes
    Xks,
}

#[derive(Args)]
struct OfService {
    /// Which role
    #[arg(long, value_enum)]
    role: Role,
    /// The configuration file of the service: it says where data directory and silicon are
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl OfService {
    fn place(&self) -> Result<Place, Fault> {
        Ok(match self.role {
            Role::Xks => {
                let config = xks::config::Config::load(&self.config)?;
                let (data_dir, silicon_root) = (config.state_dir, config.silicon_root);
                Place { role: "xks-proxy", data_dir, silicon_root, kind: Kind::Shared }
            }
            Role::Kms => {
                let config = kms::config::Config::load(&self.config)?;
                Place { role: "kms", data_dir: config.data_dir, silicon_root: config.silicon_root, kind: Kind::Records }
            }
            Role::ManagedHsm => {
                let config = config::Config::load(&self.config)?;
                let (data_dir, silicon_root) = (config.hsm.data_dir, config.silicon_root);
                Place { role: "managed-hsm", data_dir, silicon_root, kind: Kind::Records }
            }
            Role::Storage => {
                let config = storage::config::Config::load(&self.config)?;
                Place {
                    role: "storage",
                    data_dir: config.data_dir,
                    silicon_root: config.silicon_root,
                    kind: Kind::Index,
                }
            }
        })
    }
}

#[derive(Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    service: OfService,
    /// The file to make; or a directory, in which it gets a name by itself
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// Print what was taken as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    service: OfService,
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Put it in the place of the state that is there, which is set aside
    #[arg(long)]
    over: bool,
    /// Do not ask before a state is replaced
    #[arg(long, requires = "over")]
    yes: bool,
    /// Read the backup to its end, and change nothing
    #[arg(long, conflicts_with_all = ["over", "yes"])]
    check: bool,
}

impl BackupArgs {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let place = self.service.place()?;
        backup::refuse_unfinished(&place.data_dir)?;
        let (path, taken) = if self.to.is_dir() {
            let new = self.to.join(format!(".{}-{}.new", place.role, std::process::id()));
            let taken = take(&place, &new).await?;
            let time = moment(taken.head.time).replace([':', '-'], "");
            let name = format!("{}-{}-{}-{}.backup", place.role, taken.head.instance, time, taken.head.revision);
            (finish(&new, &self.to.join(name))?, taken)
        } else {
            let mut new = self.to.clone().into_os_string();
            new.push(format!(".{}.new", std::process::id()));
            let taken = take(&place, Path::new(&new)).await?;
            (finish(Path::new(&new), &self.to)?, taken)
        };
        if self.json {
            println!("{}", told(&path, &taken));
            return Ok(());
        }
        println!("{}: {}", path.display(), line_of(&taken));
        if place.has_index() {
            println!("blobs are not in it: keep those of the same moment, or a later one");
        }
        Ok(())
    }
}

fn told(path: &Path, taken: &Examined) -> Value {
    json!({
        "file": path, "id": taken.head.id, "role": taken.head.role, "instance": taken.head.instance,
        "time": moment(taken.head.time), "revision": taken.head.revision, "line": taken.end.line,
        "rows": taken.end.rows, "files": taken.end.files, "bytes": taken.bytes,
    })
}

fn line_of(taken: &Examined) -> String {
    let Examined { head, end, bytes, .. } = taken;
    format!(
        "backup {} of {} instance {}, {}: change {}, {} rows, the log up to line {}, {bytes} bytes; it was read to its end and holds",
        head.id,
        head.role,
        head.instance,
        moment(head.time),
        head.revision,
        end.rows,
        end.line
    )
}

/// Takes a backup into a new file, and reads it to its end. Nothing is left of one that fails.
async fn take(place: &Place, new: &Path) -> Result<Examined, Fault> {
    let taken = match write(place, new).await {
        Ok(()) => verify(place, new),
        Err(fault) => Err(fault),
    };
    if taken.is_err() {
        let _ = fs::remove_file(new);
    }
    taken
}

async fn write(place: &Place, new: &Path) -> Result<(), Fault> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new);
    let mut out = BufWriter::new(file.map_err(|error| Fault::file(new, error))?);
    if place.kind == Kind::Shared {
        proxy::Taken::take(place)?.write(&mut out)?;
        let synced = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
        return synced.map_err(|error| Fault::file(new, error));
    }
    let (mut heard, mut failed) = (false, None);
    let hear = |line: &Value| {
        heard = true;
        let bytes = line["bytes"].as_str().and_then(|text| STANDARD.decode(text).ok());
        let written = bytes.ok_or_else(|| io::Error::other("no bytes")).and_then(|bytes| out.write_all(&bytes));
        failed = failed.take().or(written.err());
    };
    let asked = control::ask(&place.data_dir, &Asked::Backup, hear).await;
    match asked {
        Ok(_) => {}
        // Nobody serves it: the directory is read.
        Err(fault) if fault.is_unavailable() && !heard => {
            let source = Source::at_rest(place)
                .map_err(|closed| closed.hint(format!("and its service does not answer: {fault}")))?;
            source.begin()?.write(&mut out)?;
        }
        Err(fault) => return Err(fault),
    }
    let synced = match failed {
        Some(error) => Err(error),
        None => out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()),
    };
    synced.map_err(|error| Fault::file(new, error))
}

/// By the silicon that a restore needs.
fn verify(place: &Place, path: &Path) -> Result<Examined, Fault> {
    let backup::Believed { reader, secrets, ambient, .. } = believe(place, path)?;
    if place.kind == Kind::Shared {
        return proxy::examine(reader, &secrets, &mut Nowhere);
    }
    let keys = backup::keys(&secrets, &ambient);
    examine(reader, &keys, place, &mut Nowhere)
}

/// Gives it its name, if nobody else has that.
fn finish(new: &Path, path: &Path) -> Result<PathBuf, Fault> {
    let linked = fs::hard_link(new, path).map_err(|error| Fault::file(path, error));
    let _ = fs::remove_file(new);
    linked?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| Fault::file(parent, error))?;
    Ok(path.into())
}

impl RestoreArgs {
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command's data, and words before a question")]
    pub(crate) fn run(self) -> Result<(), Fault> {
        let place = self.service.place()?;
        if self.check {
            println!("{}: {}", self.from.display(), line_of(&verify(&place, &self.from)?));
            return Ok(());
        }
        if let Some(ended) = restore::go_on(&place, &self.from)? {
            let restore::Ended { backup, is_there } = ended;
            eprintln!("holdfast: an earlier restore, of the backup {backup}, had unpacked all and is ended now");
            if is_there && backup::id_of(&self.from)? == backup {
                println!("{}: restored from the backup {backup}", place.data_dir.display());
                return Ok(());
            }
        }
        if place.kind == Kind::Shared {
            return self.run_shared(&place);
        }
        let unpacked = restore::unpack(&place, &Wish { from: &self.from, over: self.over })?;
        for line in unpacked.told() {
            eprintln!("holdfast: {line}");
        }
        if unpacked.there.is_some() && !self.yes && !is_meant(&place)? {
            unpacked.abandon();
            return Err(Fault::denied("nothing was restored: it was not said that it is meant").hint("--yes says it"));
        }
        let id = unpacked.examined.head.id.clone();
        let aside = unpacked.commit(&OsAmbient)?;
        println!("{}: restored from the backup {id}; the next start tells the log of it", place.data_dir.display());
        if place.has_index() {
            println!(
                "blobs are not in a backup: once the service runs, `holdfast storage verify --data-dir DIR --blobs` names those that are missing"
            );
        }
        if let Some(aside) = aside {
            println!("what was there is in {}: delete it when it is not needed any more", aside.display());
        }
        Ok(())
    }
}

impl RestoreArgs {
    /// Over a state that is there the operators decide, as ever.
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command's data, and words before a question")]
    fn run_shared(&self, place: &Place) -> Result<(), Fault> {
        let unpacked = proxy::unpack(place, &Wish { from: &self.from, over: self.over })?;
        for line in &unpacked.told {
            eprintln!("holdfast: {line}");
        }
        if unpacked.over && !self.yes && !is_meant(place)? {
            unpacked.abandon();
            return Err(Fault::denied("nothing was restored: it was not said that it is meant").hint("--yes says it"));
        }
        let (id, over) = (unpacked.examined.head.id.clone(), unpacked.over);
        let aside = unpacked.commit(&OsAmbient)?;
        println!("{}: restored from the backup {id}", place.data_dir.display());
        if over {
            println!(
                "what its processes know is newer: each of as many operators as a change takes says `holdfast xks accept-restore`"
            );
        }
        if let Some(aside) = aside {
            println!("what was there is in {}: delete it when it is not needed any more", aside.display());
        }
        Ok(())
    }
}

/// Asks whoever sits there.
#[expect(clippy::print_stderr, reason = "a question")]
fn is_meant(place: &Place) -> Result<bool, Fault> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Replace the state in {}? Type yes: ", place.data_dir.display());
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Fault::new)?;
    Ok(answer.trim() == "yes")
}
