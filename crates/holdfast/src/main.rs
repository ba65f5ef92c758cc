//! Holdfast: an open, self-hosted key platform. The binary.

mod ambient;
mod cli;
mod compose;
mod config;
mod fault;
mod hardening;
mod hsm;
mod issuer;
mod server;
mod storage;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(clippy::print_stderr, reason = "words for the person at the terminal")]
fn main() -> ExitCode {
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
