//! Certificates are kept good while the process runs: our own are issued anew, those from the operator's files are read again when the files change,
//! and one that will end soon is told of in time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use holdfast_core::{Ambient, Timestamp, Trouble};
use holdfast_store::FileStamp;
use metrics::gauge;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::{Notify, watch};

use super::client_certificate::days_to_expire;
use crate::{fault::Fault, private::read_private};

/// Between two looks at files and clocks; SIGHUP brings the next one forward.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// A certificate that ends within so many days is told of, once for each of these.
const WARNED_AT_DAYS: [i64; 5] = [21, 14, 7, 3, 1];

static HANGUP: Notify = Notify::const_new();

/// All certificates of the process are looked at now.
pub(crate) fn look_now() {
    HANGUP.notify_waiters();
}

/// A certificate that is shown, and may have to be another one.
pub(crate) trait Certified: Send + Sync {
    /// Puts another certificate in its place if it is time; whether it did. What was shown stays if that fails.
    ///
    /// # Errors
    /// Why there is no other one.
    fn renew_if_due(&self, now: Timestamp) -> Result<bool, Fault>;

    /// What is shown now.
    fn shown(&self) -> Arc<CertifiedKey>;

    /// Days until what is shown now is no longer valid.
    fn days_to_expire(&self, now: Timestamp) -> Option<f64> {
        days_to_expire(self.shown().cert.first()?, now.unix_secs())
    }
}

/// Looks at a certificate from time to time. `door`: what it is shown at, for people.
pub(crate) async fn keep(
    certified: Arc<dyn Certified>,
    door: &'static str,
    ambient: Arc<dyn Ambient>,
    mut stopped: watch::Receiver<bool>,
) {
    let (trouble, mut warned) = (Trouble::default(), None);
    loop {
        // Before the look: a signal that comes meanwhile is not missed.
        let hangup = HANGUP.notified();
        let now = ambient.now();
        match certified.renew_if_due(now) {
            Ok(renewed) => {
                if renewed {
                    let days = certified.days_to_expire(now).unwrap_or_default().floor();
                    tracing::info!(door, days, "another certificate is shown from now on");
                    warned = None;
                }
                let _ = trouble.ends();
            }
            Err(error) if trouble.begins() => {
                tracing::error!(door, %error, "the certificate could not be renewed; the one from before is shown");
            }
            Err(_) => {}
        }
        if let Some(days) = certified.days_to_expire(now) {
            gauge!("holdfast_certificate_days_to_expire", "door" => door).set(days);
            warn(door, days, &mut warned);
        }
        tokio::select! {
            () = hangup => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// The nearest of the days to warn at that has come.
fn warning(days: f64) -> Option<i64> {
    WARNED_AT_DAYS.into_iter().rev().find(|at| days <= *at as f64)
}

fn warn(door: &'static str, days: f64, warned: &mut Option<i64>) {
    let due = if days <= 0.0 { Some(0) } else { warning(days) };
    if due.is_none() || due == *warned {
        return;
    }
    *warned = due;
    if due == Some(0) {
        tracing::error!(door, "the certificate IS NO LONGER VALID: clients refuse it; put another one in its file");
    } else {
        tracing::warn!(door, days = days.floor(), "the certificate will soon be no longer valid");
    }
}

/// Files that something is made of, and how they were when it was made.
pub(super) struct Watched {
    files: Vec<PathBuf>,
    stamps: Mutex<Vec<Option<FileStamp>>>,
}

impl Watched {
    /// Files that are about to be read for the first time.
    pub(super) fn new(files: Vec<PathBuf>) -> Result<Self, Fault> {
        let stamps = Mutex::new(stamps_of(&files)?);
        Ok(Self { files, stamps })
    }

    /// Makes the thing again if a file changed; what fails is tried again.
    pub(super) fn if_changed(&self, make: impl FnOnce() -> Result<(), Fault>) -> Result<bool, Fault> {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps_of(&self.files)?;
        if now == *stamps {
            return Ok(false);
        }
        make()?;
        *stamps = now;
        Ok(true)
    }
}

fn stamps_of(files: &[PathBuf]) -> Result<Vec<Option<FileStamp>>, Fault> {
    files.iter().map(|file| FileStamp::of(file).map_err(|error| Fault::file(file, error))).collect()
}

/// The certificates in a PEM file, the leaf first.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = fs::read(path).map_err(|error| Fault::file(path, error))?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| Fault::file(path, error))?;
    if chain.is_empty() {
        return Err(Fault::file(path, io::Error::other("no certificate in it")));
    }
    Ok(chain)
}

/// Certificate and key from the operator's files.
pub(crate) struct FromFiles {
    certificate: PathBuf,
    key: PathBuf,
    watched: Watched,
    current: ArcSwap<CertifiedKey>,
}

impl std::fmt::Debug for FromFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FromFiles")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl FromFiles {
    pub(crate) fn open(certificate: &Path, key: &Path) -> Result<Arc<Self>, Fault> {
        // Stamps first: what changes while it is read is read again.
        let watched = Watched::new(vec![certificate.into(), key.into()])?;
        let current = ArcSwap::from_pointee(certified(certificate, key)?);
        Ok(Arc::new(Self { certificate: certificate.into(), key: key.into(), watched, current }))
    }

    /// TLS with it.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Fault> {
        server_config(Arc::clone(self) as Arc<dyn ResolvesServerCert>)
    }
}

/// TLS 1.2 and 1.3 with the certificate that is shown at the moment.
pub(super) fn server_config(shown: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, Fault> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Fault::tls)?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, Fault> {
    let pem = read_private(key)?;
    let private = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|error| Fault::file(key, error))?;
    CertifiedKey::from_der(read_chain(certificate)?, private, &aws_lc_rs::default_provider()).map_err(|error| {
        Fault::tls(format!("{} and {} do not belong together: {error}", certificate.display(), key.display()))
    })
}

impl Certified for FromFiles {
    fn renew_if_due(&self, _: Timestamp) -> Result<bool, Fault> {
        self.watched.if_changed(|| {
            self.current.store(Arc::new(certified(&self.certificate, &self.key)?));
            Ok(())
        })
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        self.current.load_full()
    }
}

impl ResolvesServerCert for FromFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_ends_soon_is_told_of_once_for_each_of_some_days() {
        let told = |days: f64, warned: &mut Option<i64>| {
            let before = *warned;
            warn("test", days, warned);
            *warned != before
        };
        let mut warned = None;
        assert!(!told(90.0, &mut warned) && !told(21.1, &mut warned));
        assert!(told(20.9, &mut warned) && !told(20.0, &mut warned));
        assert!(told(14.0, &mut warned) && told(6.5, &mut warned) && told(2.0, &mut warned) && told(0.5, &mut warned));
        assert!(!told(0.4, &mut warned));
        assert!(told(-0.1, &mut warned) && !told(-7.0, &mut warned));
    }

    #[test]
    fn files_are_read_again_when_they_change_and_what_was_good_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let put = || {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            fs::write(&certificate, made.cert.pem()).unwrap();
            fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        };
        put();
        let shown = FromFiles::open(&certificate, &key).unwrap();
        let first = shown.shown();
        let now = Timestamp::from_unix_secs(0);
        assert!(!shown.renew_if_due(now).unwrap());
        let old_key = fs::read(&key).unwrap();
        put();
        assert!(shown.renew_if_due(now).unwrap() && shown.shown().cert != first.cert);
        let second = shown.shown();
        fs::write(&key, old_key).unwrap();
        assert!(shown.renew_if_due(now).is_err() && shown.renew_if_due(now).is_err());
        assert_eq!(shown.shown().cert, second.cert, "a key of another certificate is not taken");
        put();
        assert!(shown.renew_if_due(now).unwrap() && !shown.renew_if_due(now).unwrap());
    }
}
