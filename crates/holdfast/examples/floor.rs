//! A server that does no work: the source of the real one, of TLS, and of its limits; every request is read whole and answered with so
//! many bytes. What an operation costs beyond this is the operation's. Used by `bench/alternate.py`.

#![allow(dead_code, reason = "the server is included whole, and little of it is asked for")]

#[path = "../src/ambient.rs"]
mod ambient;
#[path = "../src/fault.rs"]
mod fault;
#[path = "../src/private.rs"]
mod private;
#[path = "../src/server/mod.rs"]
mod server;

use std::net::SocketAddr;

use bytes::Bytes;
use clap::Parser;
use holdfast_core::Ambient;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::{net::TcpListener, sync::watch};

use crate::{ambient::OsAmbient, fault::Fault, server::tls::TlsIdentity};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// Where to listen
    #[arg(long)]
    address: SocketAddr,
    /// Bytes of each answer's body
    #[arg(long)]
    answer_bytes: usize,
    /// HTTP without TLS
    #[arg(long)]
    plain: bool,
}

/// As much of a head as the roles' answers have.
async fn answer(request: Request<Incoming>, body: Bytes) -> Response<Full<Bytes>> {
    // A body that ends early ends the connection, too.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert("x-request-id", HeaderValue::from_static("00000000-0000-4000-8000-000000000000"));
    response
}

async fn serve(args: Args) -> Result<(), Fault> {
    let config = if args.plain {
        None
    } else {
        let made = server::tls::found(&OsAmbient)?;
        let names = vec!["localhost".into(), "127.0.0.1".into()];
        let identity = TlsIdentity::new(
            made.tls_key,
            made.authority_key,
            made.authority_certificate,
            names,
            None,
            OsAmbient.now(),
        )?;
        Some(identity.server_config()?)
    };
    let listener = TcpListener::bind(args.address).await.map_err(Fault::new)?;
    let body = Bytes::from(vec![b'x'; args.answer_bytes]);
    let handler = server::handler(move |request, _| answer(request, body.clone()));
    let (_running, shutdown) = watch::channel(false);
    let limits = server::ConnectionLimits::default();
    server::serve("floor", listener, config, limits, handler, shutdown).await;
    Ok(())
}

fn main() -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Fault::new)?;
    runtime.block_on(serve(Args::parse()))
}
