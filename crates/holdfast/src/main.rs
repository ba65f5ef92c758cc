//! Holdfast: an open, self-hosted key platform. The binary.

mod ambient;
mod backup;
mod cli;
mod compose;
mod config;
mod control;
mod descriptors;
mod fault;
mod founding;
mod hand_over;
mod hardening;
mod health;
mod history;
mod hsm;
mod instance;
mod issuer;
mod kms;
mod notify;
mod private;
mod server;
mod storage;
mod telemetry;
mod xks;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(clippy::print_stderr, reason = "words for the person at the terminal")]
fn main() -> ExitCode {
    hardening::keep_files_private();
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("holdfast: {fault}");
            if let Some(hint) = &fault.hint {
                eprintln!("  hint: {hint}");
            }
            ExitCode::from(fault.code)
        }
    }
}
