//! A gateway with services that answer with their name and keep what arrived; clients that send bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::spawn;
use std::time::Duration;

use overlane::plane::EngineChoice;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};

/// How many connections a client has.
mod clients;
/// Ids of requests.
mod ids;
/// Paths that are used against routing.
mod paths;
/// The listener that sends clients to the one that speaks TLS.
mod redirect;

const PATIENCE: Duration = Duration::from_secs(10);
const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Pingora];

/// A service that answers each request, one on a connection, with a 200 and its name, and the heads that arrive there.
fn service(name: &'static str) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heads) = channel();
    spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let tell = tell.clone();
            spawn(move || {
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}",
                    name.len()
                );
                if head.ends_with("\r\n\r\n") && tell.send(head).is_ok() {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    (address, heads)
}

/// The baseline `base` with these services, each with what else is said of it.
fn baseline(services: &[(&str, SocketAddr, &str)]) -> FileChange {
    let service = |(name, address, more): &(&str, SocketAddr, &str)| {
        format!("{{name: {name}, url: 'http://{address}', expose: true{more}}}")
    };
    let services = services.iter().map(service).collect::<Vec<_>>().join(", ");
    let text = format!("name: base\nrouting: {{mode: baseline, holdFor: 100ms}}\nservices: [{services}]\n");
    let path: Arc<str> = "base.yaml".into();
    FileChange { path: path.clone(), content: Content::Text(Arc::new(Source::new(path, text, None))) }
}

/// What comes back until the end of the connection.
fn ask(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes.as_ref()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}
