//! Everything that must pass, in the order in which it is cheapest to fail.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    check, fuzz,
    run::{self, Step, program, root, step, works},
};

/// Seconds that each fuzz target runs here; longer runs are `cargo xtask fuzz --seconds N`.
const FUZZ_SECS: u64 = 8;
const NEXTEST_VERSION: &str = "0.9.143";

pub(crate) fn run(kills: u64) -> Result<(), String> {
    install_tools()?;
    check::run()?;
    step("unit, vector and property tests", program("cargo", &["nextest", "run", "--workspace", "--locked"]))?;
    step("doc tests", program("cargo", &["test", "--doc", "--workspace", "--locked", "--quiet"]))?;
    // What the programs of the tests start: with its checks of overflow and its assertions.
    step("build", program("cargo", &["build", "--locked", "--workspace", "--bins", "--examples"]))?;
    let sdk = python_environment("sdk")?;
    let az = python_environment("az")?;
    let clients = python_environment("clients")?;
    python_environment("clients-old")?;
    node_packages()?;
    let suite = |environment: &Path, tests: &str| {
        let pytest = environment.join("bin/pytest").to_string_lossy().into_owned();
        program(&pytest, &[tests, "-q", "-rfEs", "--durations=5"])
    };
    // It has 250 ms for an answer: what runs beside it takes only what it leaves.
    run::two_at_a_time(vec![
        Step::new("external key stores over SoftHSM2, openCryptoki and NSS", suite(&sdk, "tests/xks")),
        Step::new("fuzz targets", run::idly(&fuzz::build())),
    ])?;
    let mut azure = suite(&sdk, "tests/azure");
    azure.env("HOLDFAST_AZ", az.join("bin/az"));
    let python = sdk.join("bin/python").to_string_lossy().into_owned();
    let kills = kills.to_string();
    let crash = |script: &str, more: &[&str]| program(&python, &[&[script, "--kills", &kills], more].concat());
    // The longest first.
    run::two_at_a_time(vec![
        Step::new("hang-ups, broken logs, half-sent bodies, races, files put back", suite(&sdk, "tests/road")),
        Step::new("S3 with boto3, aws and rclone", suite(&sdk, "tests/s3")),
        Step::new("Azure SDKs and az", azure),
        Step::new("key management with boto3, aws and the Encryption SDK", suite(&sdk, "tests/kms")),
        Step::new("an installation of an earlier version", suite(&sdk, "tests/upgrade")),
        Step::new("whole clients", suite(&clients, "tests/clients")),
        Step::new("crash loop, HSM", crash("tests/crash/crash_loop.py", &["--in-flight"])),
        Step::new("crash loop, storage", crash("tests/crash/s3_crash_loop.py", &[])),
        Step::new("crash loop, key management", crash("tests/crash/kms_crash_loop.py", &["--in-flight"])),
    ])?;
    fuzz::run_all(FUZZ_SECS)
}

/// Installs what is missing; a tool that cannot be installed fails the run.
fn install_tools() -> Result<(), String> {
    if !works("cargo", &["nextest", "--version"]) {
        let version = format!("cargo-nextest@{NEXTEST_VERSION}");
        step("install cargo-nextest", program("cargo", &["install", "--locked", &version]))?;
    }
    let mut packages = Vec::new();
    if !works("c++", &["--version"]) {
        packages.push("g++");
    }
    if !works("rclone", &["version"]) {
        packages.push("rclone");
    }
    if !works("restic", &["version"]) {
        packages.push("restic");
    }
    if !works("s3cmd", &["--version"]) {
        packages.push("s3cmd");
    }
    if !works("npm", &["--version"]) {
        packages.extend(["nodejs", "npm"]);
    }
    if !works("softhsm2-util", &["--version"]) {
        packages.push("softhsm2");
    }
    if !works("sh", &["-c", "ls /usr/sbin/pkcsslotd"]) {
        packages.push("opencryptoki");
    }
    if !works("sh", &["-c", "command -v certutil"]) {
        packages.extend(["libnss3", "libnss3-tools"]);
    }
    // Time passes faster: for deletion windows, rotation, expiry.
    if !works("faketime", &["--version"]) {
        packages.extend(["faketime", "libfaketime"]);
    }
    if !works("openssl", &["version"]) {
        packages.push("openssl");
    }
    if !works("python3", &["-c", "import venv, ensurepip"]) {
        packages.extend(["python3", "python3-venv"]);
    }
    if !packages.is_empty() {
        step("apt-get update", program("apt-get", &["update", "-qq"]))?;
        let mut install = program("apt-get", &["install", "-y", "-qq", "--no-install-recommends"]);
        install.args(&packages).env("DEBIAN_FRONTEND", "noninteractive");
        step("apt-get install", install)?;
    }
    Ok(())
}

/// A virtual environment with the pinned packages of `tests/requirements-NAME.txt`, made again when they change.
fn python_environment(name: &str) -> Result<PathBuf, String> {
    let requirements = root().join(format!("tests/requirements-{name}.txt"));
    let wanted = fs::read_to_string(&requirements).map_err(|error| format!("{}: {error}", requirements.display()))?;
    let directory = root().join(format!("target/python-{name}"));
    let stamp = directory.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(directory);
    }
    let path = directory.to_string_lossy().into_owned();
    step(&format!("python environment {name}"), program("python3", &["-m", "venv", "--clear", &path]))?;
    let pip = directory.join("bin/pip").to_string_lossy().into_owned();
    let file = requirements.to_string_lossy().into_owned();
    step(&format!("packages of {name}"), program(&pip, &["install", "--quiet", "-r", &file]))?;
    fs::write(&stamp, wanted).map_err(|error| error.to_string())?;
    Ok(directory)
}

/// The npm packages of `tests/clients/package-lock.json`, outside of the sources, installed again when that file changes.
fn node_packages() -> Result<(), String> {
    let source = root().join("tests/clients");
    let directory = root().join("target/node-clients");
    let read = |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    let wanted = read(source.join("package-lock.json"))?;
    let stamp = directory.join("installed.json");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), directory.join(file)).map_err(|error| error.to_string())?;
    }
    let path = directory.to_string_lossy().into_owned();
    step(
        "packages of node",
        program("npm", &["ci", "--prefix", &path, "--no-audit", "--no-fund", "--ignore-scripts"]),
    )?;
    fs::write(&stamp, wanted).map_err(|error| error.to_string())
}
