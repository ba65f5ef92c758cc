//! Fuzz targets: built with coverage on the stable compiler, run for a short time.

use std::{fs, process::Command};

use crate::run::{self, Step, program, root, step};

/// What libFuzzer needs of the compiler; LLVM's own passes, which stable rustc passes on.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the targets, and runs each for so long.
pub(crate) fn run(seconds: u64) -> Result<(), String> {
    step("fuzz targets", build())?;
    run_all(seconds)
}

/// What builds the targets.
pub(crate) fn build() -> Command {
    let directory = root().join("fuzz");
    let mut build = program("cargo", &["build", "--release", "--target", TARGET]);
    build.current_dir(&directory).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", directory.join("target"));
    build
}

/// Runs each target, as it was built, for so long.
pub(crate) fn run_all(seconds: u64) -> Result<(), String> {
    let mut names: Vec<String> = fs::read_dir(root().join("fuzz/targets"))
        .map_err(|error| error.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    if names.is_empty() {
        return Err("there is no fuzz target".into());
    }
    let steps = names.into_iter().map(|name| Ok(Step::new(format!("fuzz {name}"), target(&name, seconds)?)));
    run::two_at_a_time(steps.collect::<Result<_, String>>()?)
}

fn target(name: &str, seconds: u64) -> Result<Command, String> {
    let directory = root().join("fuzz");
    let corpus = directory.join("corpus").join(name);
    fs::create_dir_all(&corpus).map_err(|error| error.to_string())?;
    let binary = directory.join("target").join(TARGET).join("release").join(name);
    let mut command = program(&binary.to_string_lossy(), &[]);
    command.arg(corpus).arg(format!("-max_total_time={seconds}")).args([
        "-max_len=65536",
        "-timeout=5",
        "-rss_limit_mb=512",
        "-print_final_stats=1",
        "-verbosity=0",
    ]);
    let seeds = directory.join("seeds").join(name);
    if seeds.exists() {
        command.arg(seeds);
    }
    command.current_dir(&directory);
    Ok(command)
}
