//! Certificates: an authority born in the instance, and the leaf it issues.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use holdfast_core::{Ambient, Timestamp};
use holdfast_crypto::SecretBytes;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificates::{self, Certified, Watched, read_chain};
use crate::fault::Fault;

/// Validity of the leaf. It is issued anew at each start...
const LEAF_DAYS: i64 = 90;
/// ...and when it is valid for no longer than that.
const LEAF_RENEWED_AT_DAYS: f64 = 60.0;
const AUTHORITY_YEARS: i64 = 20;
const SECS_PER_DAY: i64 = 86_400;

/// Fresh TLS and authority keys with the authority's certificate: private keys as PKCS #8, certificate as DER.
pub(crate) struct NewIdentity {
    pub tls_key: SecretBytes,
    pub authority_key: SecretBytes,
    pub authority_certificate: Vec<u8>,
}

/// Makes the keys and the authority of a new instance.
pub(crate) fn found(ambient: &dyn Ambient) -> Result<NewIdentity, Fault> {
    let authority_key = KeyPair::generate().map_err(Fault::tls)?;
    let params = authority_params(ambient.now())?;
    let certificate = params.self_signed(&authority_key).map_err(Fault::tls)?;
    let tls_key = KeyPair::generate().map_err(Fault::tls)?;
    Ok(NewIdentity {
        tls_key: SecretBytes::take(tls_key.serialize_der()),
        authority_key: SecretBytes::take(authority_key.serialize_der()),
        authority_certificate: certificate.der().to_vec(),
    })
}

fn date(moment: Timestamp) -> Result<(i32, u8, u8), Fault> {
    let date = jiff::Timestamp::from_second(moment.unix_secs())
        .map_err(Fault::tls)?
        .to_zoned_datetime(jiff::tz::TimeZone::UTC)
        .date();
    Ok((i32::from(date.year()), date.month() as u8, date.day() as u8))
}

fn later(moment: Timestamp, days: i64) -> Timestamp {
    Timestamp::from_unix_secs(moment.unix_secs() + days * SECS_PER_DAY)
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i64) -> Result<(), Fault> {
    let (year, month, day) = date(later(now, -1))?;
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date(later(now, days))?;
    params.not_after = date_time_ymd(year, month, day);
    Ok(())
}

fn authority_params(now: Timestamp) -> Result<CertificateParams, Fault> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Holdfast instance authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, now, AUTHORITY_YEARS * 365)?;
    Ok(params)
}

fn key_pair(pkcs8: &SecretBytes) -> Result<KeyPair, Fault> {
    let der = PrivatePkcs8KeyDer::from(pkcs8.expose());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map_err(Fault::tls)
}

/// What the server shows: its key, and the chain in force.
pub(crate) struct TlsIdentity {
    tls_key: SecretBytes,
    authority_key: SecretBytes,
    authority_certificate: Vec<u8>,
    names: Vec<String>,
    /// Where a chain from a CA of the operator's lies, for the key born here.
    given: Option<(PathBuf, Watched)>,
    current: ArcSwap<CertifiedKey>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").field("names", &self.names).finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// The identity for `names`; with `chain_file` the operator's chain is shown instead of our own.
    pub(crate) fn new(
        tls_key: SecretBytes,
        authority_key: SecretBytes,
        authority_certificate: Vec<u8>,
        names: Vec<String>,
        chain_file: Option<&Path>,
        now: Timestamp,
    ) -> Result<Arc<Self>, Fault> {
        // Before it is read: what changes meanwhile is read again.
        let watch = |path: &Path| Ok::<_, Fault>((path.to_owned(), Watched::new(vec![path.to_owned()])?));
        let given = chain_file.map(watch).transpose()?;
        let chain = chain_file.map(read_chain).transpose()?;
        let first = certify(&tls_key, &authority_key, &authority_certificate, &names, chain, now)?;
        let current = ArcSwap::from_pointee(first);
        Ok(Arc::new(Self { tls_key, authority_key, authority_certificate, names, given, current }))
    }

    fn renew(&self, chain: Option<Vec<CertificateDer<'static>>>, now: Timestamp) -> Result<(), Fault> {
        let Self { tls_key, authority_key, authority_certificate, names, current, .. } = self;
        current.store(Arc::new(certify(tls_key, authority_key, authority_certificate, names, chain, now)?));
        Ok(())
    }

    /// The authority's certificate, for clients to trust.
    pub(crate) fn authority_pem(&self) -> String {
        pem("CERTIFICATE", &self.authority_certificate)
    }

    /// A request that the operator's CA can sign, for the key born here (PKCS #10).
    pub(crate) fn signing_request(&self) -> Result<String, Fault> {
        let params = leaf_params(&self.names)?;
        let request = params.serialize_request(&key_pair(&self.tls_key)?).map_err(Fault::tls)?;
        Ok(pem("CERTIFICATE REQUEST", request.der()))
    }

    /// TLS with this identity.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Fault> {
        certificates::server_config(Arc::clone(self) as Arc<dyn ResolvesServerCert>)
    }
}

impl Certified for TlsIdentity {
    /// The operator's when its file changes; our own after a third of its time, or when the clock has left it.
    fn renew_if_due(&self, now: Timestamp) -> Result<bool, Fault> {
        if let Some((path, watched)) = &self.given {
            return watched.if_changed(|| self.renew(Some(read_chain(path)?), now));
        }
        let days = self.days_to_expire(now).unwrap_or_default();
        let is_due = days < LEAF_RENEWED_AT_DAYS || days > LEAF_DAYS as f64 + 1.0;
        if is_due {
            self.renew(None, now)?;
        }
        Ok(is_due)
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        self.current.load_full()
    }
}

impl ResolvesServerCert for TlsIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn leaf_params(names: &[String]) -> Result<CertificateParams, Fault> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("holdfast", String::as_str));
    for name in names {
        params.subject_alt_names.push(match name.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(Fault::tls)?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn certify(
    tls_key: &SecretBytes,
    authority_key: &SecretBytes,
    authority_certificate: &[u8],
    names: &[String],
    given_chain: Option<Vec<CertificateDer<'static>>>,
    now: Timestamp,
) -> Result<CertifiedKey, Fault> {
    let chain = match given_chain {
        Some(chain) => chain,
        None => {
            let mut params = leaf_params(names)?;
            set_validity(&mut params, now, LEAF_DAYS)?;
            params.use_authority_key_identifier_extension = true;
            // Name and key identifier are all that signing takes from the authority, and they do not change.
            let issuer = Issuer::new(authority_params(now)?, key_pair(authority_key)?);
            let leaf = params.signed_by(&key_pair(tls_key)?, &issuer).map_err(Fault::tls)?;
            vec![leaf.der().clone(), CertificateDer::from(authority_certificate.to_vec())]
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(tls_key.expose().to_vec()));
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| Fault::tls(format!("the certificate does not fit the instance's TLS key: {error}")))
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
