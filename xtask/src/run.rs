//! Running programs.

use std::{path::PathBuf, process::Command, time::Instant};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// A program, to be run in the root.
pub(crate) fn program(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(root());
    command
}

/// Runs a step and tells how long it took.
pub(crate) fn step(title: &str, mut command: Command) -> Result<(), String> {
    eprintln!("==> {title}");
    let start = Instant::now();
    let status = command.status().map_err(|error| format!("{title}: {:?}: {error}", command.get_program()))?;
    if !status.success() {
        return Err(format!("{title}: {status}"));
    }
    eprintln!("    {title}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// What a program prints.
pub(crate) fn output(mut command: Command) -> Result<String, String> {
    let out = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if !out.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)));
    }
    String::from_utf8(out.stdout).map_err(|error| error.to_string())
}

/// Whether a program can be run at all.
pub(crate) fn works(name: &str, args: &[&str]) -> bool {
    program(name, args).output().is_ok_and(|out| out.status.success())
}
