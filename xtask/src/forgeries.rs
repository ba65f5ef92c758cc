//! What only the stage before can make, nobody else makes: the `forgeries.rs` of a crate tries to, from inside, and each attempt must be the
//! error that stands beside it. What else stands there must compile, so that an error is one for its own reason: of a crate with errors of types
//! the compiler does not look at what is private, so that only that is tried here; the rest are doc tests.

use std::{
    collections::BTreeSet,
    env, fs,
    process::{Command, ExitCode},
};

use serde_json::Value;

use crate::run::{program, root};

/// Crates that have forgeries, and their directories.
const CRATES: [(&str, &str); 4] = [
    ("holdfast_kms", "crates/kms"),
    ("holdfast_managed_hsm", "crates/managed-hsm"),
    ("holdfast_storage", "crates/storage"),
    ("holdfast_xks_proxy", "crates/xks-proxy"),
];
/// Set for this program when it stands in for the compiler.
const STAND_IN: &str = "HOLDFAST_FORGERIES";
/// Stands beside an attempt, before the error's code.
const MARK: &str = "//~ ";

/// A line of a file, and the code of the error there.
type Refused = (String, u64, String);

/// Whether this program was called in the compiler's place.
pub(crate) fn stands_in() -> bool {
    env::var_os(STAND_IN).is_some()
}

/// Compiles what is asked, with the forgeries where there are some.
pub(crate) fn compile() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let Some(compiler) = args.next() else { return ExitCode::FAILURE };
    let args: Vec<_> = args.collect();
    let is_ours = |name: &std::ffi::OsStr| CRATES.iter().any(|(known, _)| name == *known);
    let forges = args.windows(2).any(|pair| pair[0] == "--crate-name" && is_ours(&pair[1]));
    let mut command = Command::new(compiler);
    command.args(&args).env_remove(STAND_IN);
    if forges {
        command.args(["--cfg", "forgery"]);
    }
    let done = command.status().is_ok_and(|status| status.success());
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(crate) fn check() -> Result<(), String> {
    let mut expected = BTreeSet::new();
    for (_, directory) in CRATES {
        expected.extend(attempts(&format!("{directory}/src/forgeries.rs"))?);
    }
    let this = env::current_exe().map_err(|error| error.to_string())?;
    // The same selection as for the lints: nothing else is compiled anew.
    let arguments = ["check", "--workspace", "--all-targets", "--keep-going", "--quiet", "--message-format=json"];
    let mut command = program("cargo", &arguments);
    command.env("RUSTC_WORKSPACE_WRAPPER", this).env(STAND_IN, "1");
    let out = command.output().map_err(|error| format!("forgeries: {error}"))?;
    let found: BTreeSet<Refused> = String::from_utf8_lossy(&out.stdout).lines().filter_map(refused).collect();
    let mut wrong = Vec::new();
    for (file, line, code) in expected.difference(&found) {
        wrong.push(format!("{file}:{line} compiles, or not for {code}"));
    }
    for (file, line, code) in found.difference(&expected) {
        wrong.push(format!("{file}:{line} should compile: {code}"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("forgeries:\n{}", wrong.join("\n"))) }
}

/// The attempts of a file.
fn attempts(file: &str) -> Result<Vec<Refused>, String> {
    let text = fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))?;
    let marked = text.lines().zip(1..).filter_map(|(line, number)| {
        let (_, code) = line.split_once(MARK)?;
        Some((file.to_owned(), number, code.trim().to_owned()))
    });
    Ok(marked.collect())
}

/// The error that a line of the compiler's output tells of. One that comes of others has no place.
fn refused(line: &str) -> Option<Refused> {
    let told: Value = serde_json::from_str(line).ok()?;
    let message = told.get("message").filter(|message| message["level"] == "error")?;
    let span = message["spans"].as_array()?.iter().find(|span| span["is_primary"] == true)?;
    let code = message["code"]["code"].as_str().unwrap_or_else(|| message["message"].as_str().unwrap_or_default());
    Some((span["file_name"].as_str()?.to_owned(), span["line_start"].as_u64()?, code.to_owned()))
}
