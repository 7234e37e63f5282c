//! Upstreams that speak TLS. Whom to trust is the system's to say, through `SSL_CERT_FILE`, which a process reads once:
//! these rules hold in a process of their own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use std::{env, fs};

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::stage;
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};

const PATIENCE: Duration = Duration::from_secs(10);
const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Pingora];
/// Says to the process of its own where the certificates are.
const CERTIFICATES: &str = "OVERLANE_TESTS_CERTIFICATES";
pub(crate) const TRUSTED: &str = "trusted";
/// An address of this machine that the trusted certificate is for, besides `localhost`.
pub(crate) const TRUSTED_HOST: &str = "127.0.0.2";
const STRANGE: &str = "strange";

/// Runs `rule`, which is the body of the test `name`, in a process that trusts one certificate for `localhost`.
pub(crate) fn trusting(name: &str, rule: fn(&Path)) {
    if let Some(folder) = env::var_os(CERTIFICATES) {
        return rule(folder.as_ref());
    }
    let folder = tempfile::tempdir().unwrap();
    for certificate in [TRUSTED, STRANGE] {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost", TRUSTED_HOST].map(str::to_owned)).unwrap();
        fs::write(folder.path().join(certificate).with_extension("crt"), cert.pem()).unwrap();
        fs::write(
            folder.path().join(certificate).with_extension("key"),
            KeyPair::serialize_pem(&signing_key),
        )
        .unwrap();
    }
    let ran = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("SSL_CERT_FILE", folder.path().join(TRUSTED).with_extension("crt"))
        .env_remove("SSL_CERT_DIR")
        .env(CERTIFICATES, folder.path())
        .output()
        .unwrap();
    let told = [ran.stdout, ran.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat();
    // A name that is no test's would run nothing.
    assert!(ran.status.success() && told.contains("1 passed"), "{told}");
}

/// A request as it arrived, and how its connection began.
type Arrived = (HandshakeKind, String);

/// What an upstream with one of the certificates makes handshakes with.
pub(crate) fn server_config(folder: &Path, certificate: &str) -> ServerConfig {
    let chain = vec![CertificateDer::from_pem_file(folder.join(certificate).with_extension("crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join(certificate).with_extension("key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_no_client_auth().with_single_cert(chain, key).unwrap()
}

/// An upstream with one of the certificates, that tells what arrived and echoes bodies. It closes after a request to
/// `/close`.
fn upstream(folder: &Path, certificate: &str) -> (u16, Receiver<Arrived>) {
    let config = Arc::new(server_config(folder, certificate));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, arrived) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let tell = tell.clone();
            std::thread::spawn(move || serve(StreamOwned::new(connection, stream), &tell));
        }
    });
    (port, arrived)
}

/// Serves until the connection ends, or its handshake fails.
fn serve(stream: StreamOwned<ServerConnection, TcpStream>, tell: &Sender<Arrived>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            stream.read_line(&mut request).ok().filter(|read| *read > 0)?;
        }
        let length = request.to_lowercase().split("content-length: ").nth(1)?.lines().next()?.parse().ok()?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let stream = stream.get_mut();
        tell.send((stream.conn.handshake_kind()?, request.clone())).ok()?;
        let close = request.contains(" /close ");
        let field = if close { "Connection: close\r\n" } else { "" };
        write!(stream, "HTTP/1.1 200 OK\r\n{field}Content-Length: {length}\r\n\r\n").ok()?;
        stream.write_all(&body).and_then(|()| stream.flush()).ok()?;
        if close {
            stream.conn.send_close_notify();
            return stream.flush().ok();
        }
    }
}

/// Posts `body` on a connection of its own, and returns the answer.
fn post(gateway: SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A gateway before an upstream.
pub(crate) fn gateway(engine: EngineChoice, url: &str) -> (stage::Started, SocketAddr) {
    let listener = stage::listener(Role::Gateway, "", None, Trust::Any);
    let started = stage::start(engine, vec![listener], stage::files_at("", url));
    let address = started.addresses()[0];
    (started, address)
}

#[test]
fn https_upstreams_are_spoken_to_in_tls_whose_sessions_are_resumed() {
    trusting("tls::https_upstreams_are_spoken_to_in_tls_whose_sessions_are_resumed", |folder| {
        for engine in ENGINES {
            let (port, arrived) = upstream(folder, TRUSTED);
            let (_started, gateway) = gateway(engine, &format!("https://localhost:{port}"));
            let large = "x".repeat(1 << 20);
            for (path, body, kind) in [
                ("/1", &*large, HandshakeKind::Full),
                // The connection of the first.
                ("/close", "small", HandshakeKind::Full),
                ("/close", "small", HandshakeKind::Resumed),
                ("/4", &large, HandshakeKind::Resumed),
            ] {
                let answer = post(gateway, path, body);
                assert!(
                    answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n{body}")),
                    "{engine:?} {path}"
                );
                let (began, request) = arrived.recv_timeout(PATIENCE).unwrap();
                assert!(request.starts_with(&format!("POST {path} ")), "{engine:?} {request}");
                assert_eq!(began, kind, "{engine:?} {path}");
            }
        }
    });
}

#[test]
fn certificates_of_upstreams_are_verified_and_nothing_is_sent_where_they_are_wrong() {
    trusting(
        "tls::certificates_of_upstreams_are_verified_and_nothing_is_sent_where_they_are_wrong",
        |folder| {
            for engine in ENGINES {
                for (certificate, host, why) in [
                    (TRUSTED, "127.0.0.1", "its certificate is for another name"),
                    (STRANGE, "localhost", "its certificate is of an authority that is not trusted"),
                ] {
                    // Pingora does not say more.
                    let why =
                        if engine == EngineChoice::Pingora { "its certificate is not valid" } else { why };
                    let (port, arrived) = upstream(folder, certificate);
                    let (_started, gateway) = gateway(engine, &format!("https://{host}:{port}"));
                    let answer = post(gateway, "/", "secret");
                    assert!(answer.starts_with("HTTP/1.1 503"), "{engine:?} {host}: {answer}");
                    assert!(
                        answer.contains("unhealthy") && answer.contains(why),
                        "{engine:?} {host}: {answer}"
                    );
                    assert!(arrived.try_recv().is_err(), "{engine:?} {host}: it arrived");
                }
            }
        },
    );
}
