//! Development tasks. `cargo xtask` alone tells them.

#![expect(clippy::print_stderr, reason = "a tool for the terminal")]

mod check;
mod forgeries;
mod fuzz;
mod licences;
mod run;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask TASK

  check                 formatting, lints, crate edges, purity, forged stages, licences
  test [--kills N]      everything: check, unit, vector, property, doc and end-to-end tests, crash loop (N kills,
                        50 by default), fuzz targets; installs what the tests need
  fuzz [--seconds N]    builds every fuzz target and runs each for N seconds (10 by default)
";

fn main() -> ExitCode {
    if forgeries::stands_in() {
        return forgeries::compile();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str, default: u64| -> Result<u64, String> {
        match args.iter().position(|arg| arg == name) {
            None => Ok(default),
            Some(at) => {
                let value = args.get(at + 1).and_then(|value| value.parse().ok());
                value.ok_or_else(|| format!("{name} needs a number"))
            }
        }
    };
    let result = match args.first().map(String::as_str) {
        Some("check") => check::run(),
        Some("test") => option("--kills", 50).and_then(test::run),
        Some("fuzz") => option("--seconds", 10).and_then(fuzz::run),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
