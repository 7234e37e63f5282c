//! A server on hyper, which answers each request with what it took it for, and notes that: the same that
//! `tests/faults/parsers/servers.py` has of others.
//!
//!     hyper PORT NOTES

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Wrong = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Wrong> {
    let mut arguments = std::env::args().skip(1);
    let (Some(port), Some(notes)) = (arguments.next(), arguments.next()) else {
        return Err("hyper PORT NOTES".into());
    };
    let notes = Arc::new(OpenOptions::new().append(true).open(notes)?);
    let address = format!("127.0.0.1:{port}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let notes = notes.clone();
            let service = service_fn(move |request| take(request, notes.clone()));
            // How a connection ends is seen at its other end.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

/// Notes a request, before it is answered with the same.
async fn take(request: Request<Incoming>, notes: Arc<File>) -> Result<Response<Full<Bytes>>, Wrong> {
    let (head, body) = request.into_parts();
    let length = body.collect().await?.to_bytes().len();
    let target = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    let seen = format!("{} {target} {length}", head.method);
    (&*notes).write_all(format!("{seen}\n").as_bytes())?;
    Ok(Response::new(seen.into()))
}
