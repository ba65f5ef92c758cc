//! The host: a process that holds one user's sessions with one token, and serves one proxy over one socket.

mod fault;
mod objects;
mod raw;
mod token;
mod worker;

use std::{os::fd::OwnedFd, sync::Arc, thread};

use objects::ObjectCache;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use token::{OpenError, Token};
use worker::Worker;

use crate::message::{Answer, PACKET_BYTES_MAX, Request, Setup, Started};

/// Serves until the proxy goes away, which ends the process: a thread may hang in the vendor's library.
pub fn run(socket: OwnedFd) -> ! {
    let code = match serve(&socket) {
        Ok(()) => 0,
        Err(why) => {
            tracing::error!(%why, "the HSM host ends");
            1
        }
    };
    std::process::exit(code)
}

fn serve(socket: &OwnedFd) -> Result<(), String> {
    let setup = {
        let mut packet = PacketBuffer::new();
        let setup = packet.receive(socket).map_err(|error| error.to_string())?;
        let Some(setup) = setup else { return Ok(()) };
        Setup::decode(setup).map_err(|error| error.to_string())?
    };
    let token = match Token::open(&setup) {
        Ok(token) => Arc::new(token),
        Err(OpenError { lasting, why }) => {
            reply(socket, Started::Failed { lasting, why }.encode().expose());
            return Ok(());
        }
    };
    drop(setup.pin);
    let mut sessions = Vec::new();
    let mut warning = String::new();
    for _ in 0..setup.sessions {
        match token.session() {
            Ok(session) => sessions.push(session),
            Err(error) => {
                warning = format!("{} of {} sessions: {error}", sessions.len(), setup.sessions);
                break;
            }
        }
    }
    if sessions.is_empty() {
        reply(socket, Started::Failed { lasting: false, why: warning }.encode().expose());
        return Ok(());
    }
    let started = Started::Ready {
        model: token.model().to_owned(),
        profile: token.profile().name.clone(),
        sessions: sessions.len() as u16,
        lacks: token.lacks(),
        warning,
    };
    reply(socket, started.encode().expose());
    let objects = Arc::new(ObjectCache::default());
    thread::scope(|scope| {
        for session in sessions {
            let worker = Worker::new(Arc::clone(&token), session, Arc::clone(&objects));
            scope.spawn(move || work(socket, worker));
        }
    });
    Ok(())
}

/// Serves one session until the proxy goes away.
fn work(socket: &OwnedFd, mut worker: Worker) {
    let mut packet = PacketBuffer::new();
    loop {
        let request = match packet.receive(socket) {
            Ok(Some(request)) => Request::decode(request),
            Ok(None) => std::process::exit(0),
            Err(error) => {
                tracing::error!(%error, "the proxy cannot be heard");
                std::process::exit(1);
            }
        };
        // A packet of another program or version: nothing it says can be trusted.
        let Ok(request) = request else { std::process::exit(1) };
        let id = request.id;
        let answer = if monotonic_nanos() > request.deadline {
            Answer::Failed(holdfast_core::HsmError::TimedOut)
        } else {
            worker.perform(request.call)
        };
        let encoded = answer.encode(id);
        drop(answer);
        reply(socket, encoded.expose());
        if worker.token_lost() {
            // A fresh process finds out whether the token is back; the library's own state is not to be trusted.
            std::process::exit(3);
        }
    }
}

fn reply(socket: &OwnedFd, packet: &[u8]) {
    if let Err(error) = send(socket, packet, SendFlags::NOSIGNAL) {
        tracing::debug!(%error, "an answer could not be sent");
    }
}

/// CLOCK_MONOTONIC, which all processes of a machine share.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// A buffer for packets, erased after each since it may hold secrets.
struct PacketBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl PacketBuffer {
    fn new() -> Self {
        Self { bytes: vec![0; PACKET_BYTES_MAX], filled: 0 }
    }

    /// The next packet; `None` when the other side is gone.
    fn receive(&mut self, socket: &OwnedFd) -> rustix::io::Result<Option<&[u8]>> {
        self.erase();
        loop {
            match recv(socket, self.bytes.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => return Ok(None),
                Ok((len, _)) => {
                    self.filled = len;
                    return Ok(Some(&self.bytes[..len]));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn erase(&mut self) {
        holdfast_crypto::secret::erase(&mut self.bytes[..self.filled]);
        self.filled = 0;
    }
}

impl Drop for PacketBuffer {
    fn drop(&mut self) {
        self.erase();
    }
}
