//! Operators' keys, and secrets that people type or pipe in. None of them is ever an argument.

use std::{
    fs::{self, OpenOptions},
    io::{IsTerminal, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_crypto::{PersonalKey, SecretBytes};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

use crate::fault::Fault;

const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Makes an operator's key; gives the public half, Base64.
pub(super) fn generate(path: &Path) -> Result<String, Fault> {
    let pkcs8 = PersonalKey::generate_ed25519().map_err(Fault::new)?;
    let public = PersonalKey::from_pkcs8(&pkcs8).and_then(|key| key.spki()).map_err(Fault::new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        Fault::file(path, error)
            .hint("an existing key is never overwritten: choose another name, or move the old one away")
    })?;
    let mut body = STANDARD.encode(pkcs8.expose()).into_bytes();
    let written = file
        .write_all(b"-----BEGIN PRIVATE KEY-----\n")
        .and_then(|()| body.chunks(64).try_for_each(|line| file.write_all(line).and_then(|()| file.write_all(b"\n"))))
        .and_then(|()| file.write_all(b"-----END PRIVATE KEY-----\n"))
        .and_then(|()| file.sync_all());
    holdfast_crypto::secret::erase(&mut body);
    written.map_err(|error| Fault::file(path, error))?;
    Ok(STANDARD.encode(public))
}

/// Reads an operator's key: Ed25519 or P-256, PKCS #8, PEM, readable by its owner only.
pub(super) fn load(path: &Path) -> Result<PersonalKey, Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::file(path, error);
    let metadata =
        fs::metadata(path).map_err(|error| failed(&error).hint("make one with: holdfast quorum keygen FILE"))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(failed(&"the key is open to group or others").hint(format!("type: chmod 600 {}", path.display())));
    }
    let pem = SecretBytes::take(fs::read(path).map_err(|error| failed(&error))?);
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.expose()).map_err(|error| failed(&error))?;
    let der = SecretBytes::copy_of(der.secret_pkcs8_der());
    PersonalKey::from_pkcs8(&der).map_err(|error| failed(&error))
}

/// Reads a secret from a file descriptor, or asks for it at the terminal, twice. A newline at its end is not part of it.
pub(super) fn read_secret(what: &str, fd: Option<u32>) -> Result<SecretBytes, Fault> {
    if let Some(fd) = fd {
        let path = format!("/dev/fd/{fd}");
        let failed = |error: std::io::Error| Fault::new(format!("file descriptor {fd}: {error}"));
        let mut bytes = Vec::with_capacity(256);
        fs::File::open(&path).map_err(failed)?.take(SECRET_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let secret = SecretBytes::take(bytes);
        let trimmed = secret.expose().strip_suffix(b"\n").unwrap_or(secret.expose());
        return nonempty(what, SecretBytes::copy_of(trimmed));
    }
    if !std::io::stdin().is_terminal() {
        return Err(Fault::usage(format!("{what} is asked for at a terminal"))
            .hint("without one, give a file descriptor: --secret-fd 3 3<FILE"));
    }
    let ask = |prompt: String| -> Result<SecretBytes, Fault> {
        rpassword::prompt_password(prompt).map(|text| SecretBytes::take(text.into_bytes())).map_err(Fault::new)
    };
    let first = ask(format!("{what}: "))?;
    let again = ask(format!("{what}, again: "))?;
    if !first.ct_eq(again.expose()) {
        return Err(Fault::usage("the two differ"));
    }
    nonempty(what, first)
}

fn nonempty(what: &str, secret: SecretBytes) -> Result<SecretBytes, Fault> {
    if secret.is_empty() { Err(Fault::usage(format!("{what} is empty"))) } else { Ok(secret) }
}
