//! The house rules: formatting, lints, crate edges, purity, licences.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    forgeries, licences,
    run::{output, program, root, step},
};

/// Which of our crates each crate may use. Second: in tests besides.
const EDGES: &[(&str, &[&str], &[&str])] = &[
    ("holdfast-crypto", &[], &[]),
    ("holdfast-core", &["holdfast-crypto"], &[]),
    ("holdfast-engine", &["holdfast-core", "holdfast-crypto"], &[]),
    ("holdfast-enclave", &["holdfast-core", "holdfast-crypto"], &[]),
    ("holdfast-store", &["holdfast-core", "holdfast-crypto"], &[]),
    (
        "holdfast-kms",
        &["holdfast-core", "holdfast-crypto", "holdfast-service", "holdfast-wire"],
        &["holdfast-engine", "holdfast-store"],
    ),
    ("holdfast-wire", &["holdfast-core", "holdfast-crypto"], &[]),
    ("holdfast-service", &["holdfast-core", "holdfast-crypto", "holdfast-wire"], &[]),
    (
        "holdfast-managed-hsm",
        &["holdfast-core", "holdfast-crypto", "holdfast-service", "holdfast-wire"],
        &["holdfast-engine", "holdfast-store"],
    ),
    ("holdfast-pkcs11", &["holdfast-core", "holdfast-crypto"], &[]),
    ("holdfast-storage", &["holdfast-core", "holdfast-crypto", "holdfast-service"], &["holdfast-store"]),
    (
        "holdfast-xks-proxy",
        &["holdfast-core", "holdfast-crypto", "holdfast-service", "holdfast-wire"],
        &["holdfast-store"],
    ),
    (
        "holdfast",
        &[
            "holdfast-core",
            "holdfast-crypto",
            "holdfast-enclave",
            "holdfast-engine",
            "holdfast-kms",
            "holdfast-managed-hsm",
            "holdfast-pkcs11",
            "holdfast-service",
            "holdfast-storage",
            "holdfast-store",
            "holdfast-wire",
            "holdfast-xks-proxy",
        ],
        &[],
    ),
    ("xtask", &[], &[]),
];

/// Crates without clock, files, environment, async runtime or entropy of their own.
const PURE: &[&str] = &["crypto", "core", "engine"];
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::env",
    "std::net",
    "std::thread",
    "std::time",
    "std::process",
    "SystemTime",
    "Instant::",
    "tokio",
    "getrandom",
    "SystemRandom",
    "rand::",
];
/// The only crates that may name a cryptographic library.
const CRYPTO_LIBRARIES: &[&str] = &["aws-lc-rs", "aes-kw", "md-5", "pkcs1", "pkcs8"];

pub(crate) fn run() -> Result<(), String> {
    step("formatting", program("cargo", &["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", program("cargo", &clippy))?;
    forgeries::check()?;
    eprintln!("==> forged stages: refused");
    let metadata = output(program("cargo", &["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(|error| error.to_string())?;
    let mut faults = edges(&metadata);
    faults.extend(purity()?);
    faults.extend(verified_principals()?);
    faults.extend(unsafe_code()?);
    faults.extend(licences::check(&metadata, &root().join("deny.toml"))?);
    if faults.is_empty() {
        eprintln!("==> crate edges, purity, principals, unsafe code, licences: ok");
        Ok(())
    } else {
        Err(faults.join("\n"))
    }
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten().filter(|package| package["source"].is_null())
}

fn edges(metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, normal, in_tests)) = EDGES.iter().find(|(known, ..)| *known == name) else {
            faults.push(format!("crate {name} is not in the table of allowed edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev";
            let ours = target == "holdfast" || target.starts_with("holdfast-");
            let allowed = normal.contains(&target) || (for_tests && in_tests.contains(&target));
            if ours && !allowed {
                faults.push(format!("{name} must not depend on {target}"));
            }
            if CRYPTO_LIBRARIES.contains(&target) && name != "holdfast-crypto" {
                faults.push(format!("{name} names the cryptographic library {target}"));
            }
        }
    }
    faults
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for entry in entries {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The lines of a file that are compiled into the crate: no comments, no tests.
fn code_lines(path: &Path) -> Result<Vec<(usize, String)>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let code = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    Ok(code
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number + 1, line.to_owned()))
        .collect())
}

fn purity() -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for name in PURE {
        for path in sources(&root().join("crates").join(name).join("src"))? {
            for (number, line) in code_lines(&path)? {
                if let Some(word) = IMPURE_WORDS.iter().find(|word| line.contains(*word)) {
                    faults.push(format!("{}:{number}: a pure crate names {word}", path.display()));
                }
            }
        }
    }
    Ok(faults)
}

/// The only file that may hold `unsafe` code. Lints deny it everywhere; here it is seen that nobody allows it elsewhere.
fn unsafe_code() -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for path in sources(&root().join("crates"))? {
        if path.ends_with("pkcs11/src/host/raw.rs") {
            continue;
        }
        for (number, line) in code_lines(&path)? {
            if line.contains("unsafe_code") || line.contains("unsafe {") {
                faults.push(format!("{}:{number}: unsafe code lies in pkcs11/src/host/raw.rs only", path.display()));
            }
        }
    }
    Ok(faults)
}

/// Only a verifier may make a principal.
fn verified_principals() -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for path in sources(&root().join("crates"))? {
        let text = path.to_string_lossy();
        if text.contains("/authn")
            || text.ends_with("core/src/principal.rs")
            || text.contains("/tests/")
            || text.ends_with("/tests.rs")
        {
            continue;
        }
        for (number, line) in code_lines(&path)? {
            if line.contains("Principal::verified") {
                faults.push(format!("{}:{number}: principals are made in `authn` modules only", path.display()));
            }
        }
    }
    Ok(faults)
}
