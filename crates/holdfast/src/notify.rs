//! What a service manager hears of a service's life (sd_notify(3)): a datagram to the socket that `NOTIFY_SOCKET` names. Without one nobody is told.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// It serves.
pub(crate) const READY: &str = "READY=1\nSTATUS=serving";
/// It was told to stop, and lets requests in flight end.
pub(crate) const STOPPING: &str = "STOPPING=1\nSTATUS=letting requests in flight end";

pub(crate) fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, socket = %socket.display(), "the service manager could not be told: {}", state.lines().next().unwrap_or_default());
    }
}

/// `socket`: a path, or `@` and a name without a file.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        // Kinds of virtual machines (vsock:), which nobody here is told by.
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither a path nor begins with @")),
    };
    let sender = UnixDatagram::unbound()?;
    // A manager that hangs holds up nobody.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_hear_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("holdfast-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (receiver, socket) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            send(&socket, READY).unwrap();
            let mut heard = [0; 100];
            let len = receiver.recv(&mut heard).unwrap();
            assert_eq!(&heard[..len], READY.as_bytes());
        }
        for wrong in ["", "relative", "vsock:2:1234", "/nowhere/at/all"] {
            assert!(send(OsStr::new(wrong), READY).is_err(), "{wrong}");
        }
    }
}
