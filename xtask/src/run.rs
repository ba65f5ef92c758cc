//! Running programs.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

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

/// Steps that belong together, in their order.
pub(crate) type Lane = Vec<(&'static str, Command)>;

/// Runs lanes side by side. What a step prints comes in one piece, when it has ended; after a failure no step begins any more.
pub(crate) fn side_by_side(lanes: Vec<Lane>) -> Result<(), String> {
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let running: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(|| run_lane(lane, &failed))).collect();
        let results = running.into_iter().map(|lane| lane.join().unwrap_or_else(|_| Err("a lane panicked".into())));
        results.collect::<Vec<_>>().into_iter().collect()
    })
}

fn run_lane(lane: Lane, failed: &AtomicBool) -> Result<(), String> {
    for (title, mut command) in lane {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        eprintln!("==> {title}, beside others");
        let start = Instant::now();
        let out = command.output().map_err(|error| format!("{title}: {:?}: {error}", command.get_program()))?;
        let told = [out.stdout, out.stderr].concat();
        let end = format!("    {title}: {:.0} s\n", start.elapsed().as_secs_f64());
        // In one piece: a lock is held meanwhile.
        let mut screen = io::stderr().lock();
        let _ = screen.write_all(&told).and_then(|()| screen.write_all(end.as_bytes()));
        if !out.status.success() {
            failed.store(true, Ordering::Relaxed);
            return Err(format!("{title}: {}", out.status));
        }
    }
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
