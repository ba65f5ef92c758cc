//! Running programs.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
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

/// The same program, which runs only while a core has nothing else to do.
pub(crate) fn idly(command: &Command) -> Command {
    let mut idle = Command::new("chrt");
    idle.args(["--idle", "0"]).arg(command.get_program()).args(command.get_args());
    idle.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        idle.current_dir(directory);
    }
    idle
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

/// A step that waits for its turn.
pub(crate) struct Step {
    title: String,
    command: Command,
}

impl Step {
    pub(crate) fn new(title: impl Into<String>, command: Command) -> Self {
        Self { title: title.into(), command }
    }

    fn run_beside_others(self) -> Result<(), String> {
        let Self { title, mut command } = self;
        eprintln!("==> {title}, beside others");
        let start = Instant::now();
        let out = command.output().map_err(|error| format!("{title}: {:?}: {error}", command.get_program()))?;
        let told = [out.stdout, out.stderr].concat();
        let end = format!("    {title}: {:.0} s\n", start.elapsed().as_secs_f64());
        // In one piece: a lock is held meanwhile.
        let mut screen = io::stderr().lock();
        let _ = screen.write_all(&told).and_then(|()| screen.write_all(end.as_bytes()));
        if out.status.success() { Ok(()) } else { Err(format!("{title}: {}", out.status)) }
    }
}

/// Runs steps in their order, two at a time. What a step prints comes in one piece, when it has ended; after a failure no step begins any more.
pub(crate) fn two_at_a_time(steps: Vec<Step>) -> Result<(), String> {
    let queue = Mutex::new(VecDeque::from(steps));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(step) = next() {
            step.run_beside_others().inspect_err(|_| while next().is_some() {})?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        let results = workers.map(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".into())));
        results.into_iter().collect()
    })
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
