//! 1,000 reloads while 32 keep-alive connections send without pause: failed requests, closed connections.
//!
//! Run with `cargo bench -p overlane-benches --bench reload`; exits 1 if anything was lost.
#![allow(missing_docs, clippy::print_stdout)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use overlane::plane::ListenerSettings;
use overlane::plane::trust::Trust;
use overlane::process::Prepared;
use overlane::settings::Settings;
use overlane::store::StoreAddress;
use overlane::upstream::Address;
use overlane_config::route::{Listener, Role};

const CONNECTIONS: usize = 32;
const RELOADS: u64 = 1_000;
/// How many requests each table serves at least.
const REQUESTS_PER_RELOAD: u64 = 100;

/// An upstream that answers every request with its name; keep-alive.
fn upstream(name: &'static str) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, name));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        if buffer[..read].ends_with(b"\r\n\r\n") {
            stream.write_all(answer.as_bytes())?;
        }
    }
}

/// Sends until told to stop; counts answers by name. An error is a lost request.
fn load(gateway: SocketAddr, stop: &AtomicBool, counts: &[AtomicU64; 3]) -> io::Result<()> {
    let mut stream = TcpStream::connect(gateway)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nx-overlay-id: alice\r\n\r\n";
    let mut buffer = [0; 4096];
    while !stop.load(Relaxed) {
        stream.write_all(request)?;
        let mut read = 0;
        let body = loop {
            let more = stream.read(&mut buffer[read..])?;
            if more == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            read += more;
            let text = std::str::from_utf8(&buffer[..read]).map_err(io::Error::other)?;
            if let Some((_, body)) = text.split_once("\r\n\r\n").filter(|(_, body)| body.len() == 3) {
                break body.to_owned();
            }
        };
        let ok = buffer.starts_with(b"HTTP/1.1 200");
        let slot = match body.as_str() {
            "one" if ok => 0,
            "two" if ok => 1,
            _ => 2,
        };
        counts[slot].fetch_add(1, Relaxed);
    }
    Ok(())
}

fn main() -> io::Result<ExitCode> {
    let (one, two) = (upstream("one")?, upstream("two")?);
    let folder = tempfile::tempdir()?;
    let baseline = format!(
        "name: staging\nrouting: {{mode: baseline}}\nservices:\n  - {{name: web, expose: true, url: 'http://{one}'}}\n"
    );
    std::fs::write(folder.path().join("staging.yaml"), baseline)?;
    let write = |to: SocketAddr| {
        let text = format!(
            "name: alice\nrouting: {{mode: overlay, baselineId: staging}}\nservices:\n  - {{name: web, url: 'http://{to}'}}\n"
        );
        let beside = folder.path().join(".next");
        std::fs::write(&beside, text)?;
        std::fs::rename(beside, folder.path().join("alice.yaml"))
    };
    write(one)?;
    let gateway = ListenerSettings {
        address: Address::Tcp(([127, 0, 0, 1], 0).into()),
        listener: Listener { role: Role::Gateway, baseline: None },
        app: None,
        trust: Trust::Any,
    };
    let prepared = Prepared::bind(Settings { workers: 2, ..Settings::in_process(vec![gateway]) })?;
    let running = prepared.with_store(StoreAddress::directory(folder.path())).start(Vec::new())?;
    let address = running.addresses()[0];
    let published = running.control().published().clone();
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 3]));
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (stop, counts) = (stop.clone(), counts.clone());
            std::thread::spawn(move || load(address, &stop, &counts))
        })
        .collect();
    let start = Instant::now();
    let served = || counts.iter().map(|count| count.load(Relaxed)).sum::<u64>();
    for reload in 0..RELOADS {
        let before = published.load().generation;
        let enough = served() + REQUESTS_PER_RELOAD;
        write(if reload % 2 == 0 { two } else { one })?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while published.load().generation == before || served() < enough {
            if Instant::now() > deadline {
                println!("reload {reload} was not seen, or its table served nobody");
                return Ok(ExitCode::FAILURE);
            }
            std::thread::yield_now();
        }
    }
    let took = start.elapsed();
    stop.store(true, Relaxed);
    let closed = clients.into_iter().filter_map(|client| client.join().ok()).filter(Result::is_err).count();
    let [ones, twos, failed] = [0, 1, 2].map(|slot| counts[slot].load(Relaxed));
    println!(
        "{RELOADS} reloads in {:.1} s under {CONNECTIONS} keep-alive connections: {} requests ({ones} by one, {twos} by two), {failed} failed, {closed} connections closed",
        took.as_secs_f64(),
        ones + twos + failed
    );
    running.stop();
    Ok(if failed == 0 && closed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
