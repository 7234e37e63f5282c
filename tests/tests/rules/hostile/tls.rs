//! Upstreams in TLS, on both engines. There the end of a connection is said in its last record (`close_notify`): without it
//! anybody on the way may have cut what came, and where only the end delimits a body it is not whole.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use overlane::control::Trigger;
use overlane::plane::EngineChoice;
use overlane_config::lineage::FileChange;
use overlane_tests::stage;
use rustls::ServerConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::http1::{REPLIES, heads_of, of_all};
use super::{Caller, End, Peer};
use crate::tls::{self, TRUSTED, trusting};

pub(super) use crate::tls::TRUSTED_HOST;

/// What a record of TLS 1.3 has besides what it carries: a header, a type and a tag (RFC 8446, section 5.2).
const RECORD: usize = 5 + 1 + 16;
/// What `close_notify` is: a level and a description.
const ALERT: usize = 2;
/// The replies that are cut at every byte of their records: one for each way in which a body is delimited. The others differ
/// in what is encrypted only.
const RECORDED: [usize; 4] = [0, 3, 9, 10];

/// What an upstream makes handshakes with that speaks this protocol.
pub(super) fn acceptor(folder: &Path, protocol: &str) -> TlsAcceptor {
    let mut config = tls::server_config(folder, TRUSTED);
    config.alpn_protocols = vec![protocol.into()];
    Arc::new(config).into()
}

/// The records that carry this, and what was to be sent before it.
fn record(session: &mut ServerConnection, plain: &[u8]) -> Vec<u8> {
    session.writer().write_all(plain).unwrap();
    pending(session)
}

fn pending(session: &mut ServerConnection) -> Vec<u8> {
    let mut records = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut records).unwrap();
    }
    records
}

/// The path of the next request.
async fn asked(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned())
}

/// Does as the path says: cuts a reply after so much of what it says, or of its records, or answers.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor) -> Option<()> {
    stream.set_nodelay(true).unwrap();
    let mut stream = acceptor.accept(stream).await.ok()?;
    loop {
        let path = asked(&mut stream).await?;
        let words: Vec<_> = path.split('/').skip(1).collect();
        let ["cut", unit, reply, sent, end] = *words else {
            let length = path.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}");
            stream.write_all(answer.as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
            continue;
        };
        let (text, _) = REPLIES[reply.parse::<usize>().unwrap()];
        let sent = sent.parse().unwrap();
        let end = End::TLS.into_iter().find(|own| format!("{own:?}") == end).unwrap();
        if unit == "said" {
            stream.write_all(&text.as_bytes()[..sent]).await.ok()?;
            stream.end(end).await;
        } else {
            let (mut tcp, mut session) = stream.into_inner();
            let (head, body) = text.split_at(heads_of(text));
            let mut records = record(&mut session, head.as_bytes());
            records.extend(record(&mut session, body.as_bytes()));
            session.send_close_notify();
            records.extend(pending(&mut session));
            tcp.write_all(&records[..sent]).await.ok()?;
            tcp.end(end).await;
        }
        return None;
    }
}

/// A cut: what the upstream is asked to do, and what comes of it.
struct Cut {
    path: String,
    /// How much of the reply can be read.
    sent: usize,
    end: End,
}

/// Every cut of a reply.
fn cuts(number: usize, text: &str) -> Vec<Cut> {
    let said = End::TLS.into_iter().flat_map(|end| {
        (0..=text.len()).map(move |sent| Cut {
            path: format!("/cut/said/{number}/{sent}/{end:?}"),
            sent,
            end,
        })
    });
    let (head, body) = text.split_at(heads_of(text));
    let parts: Vec<_> = [head, body].map(str::len).into_iter().filter(|length| *length > 0).collect();
    let all = parts.iter().map(|length| length + RECORD).sum::<usize>() + ALERT + RECORD;
    let records = [End::Stops, End::Resets]
        .into_iter()
        .flat_map(|end| (0..=all).map(move |bytes| (end, bytes)).filter(|_| RECORDED.contains(&number)));
    let records = records.map(|(acts, bytes)| {
        let (mut sent, mut left) = (0, bytes);
        for length in &parts {
            let Some(rest) = left.checked_sub(length + RECORD) else { break };
            (sent, left) = (sent + length, rest);
        }
        // With its last record it is said that this was all, whatever becomes of the connection.
        let end = if bytes == all { End::Closes } else { acts };
        Cut { path: format!("/cut/records/{number}/{bytes}/{acts:?}"), sent, end }
    });
    said.chain(records).collect()
}

async fn cut_everywhere(gateway: SocketAddr) -> Vec<String> {
    let replies = REPLIES.iter().enumerate().map(|(number, (text, reply))| async move {
        let (mut caller, mut wrong) = (Caller::of(gateway), Vec::new());
        for Cut { path, sent, end } in cuts(number, text) {
            let got = caller.ask(reply.method, &path).await;
            let judged = got.judged(reply, sent, heads_of(text), text.len(), end);
            wrong.extend(judged.err().map(|why| format!("{text:?}, {path}: {why}")));
            let next = caller.gets_its_own(&number.to_string()).await;
            wrong.extend(next.err().map(|why| format!("{text:?}, after {path}: {why}")));
        }
        wrong
    });
    of_all(replies).await
}

/// Runs a test of what is wrong, before an upstream that serves each connection so.
fn at<S: Future<Output = Option<()>> + Send + 'static>(
    host: &str,
    serve: impl Fn(TcpStream) -> S + Send + 'static,
    test: impl AsyncFnOnce(u16) -> Vec<String>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(async {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        test(port).await
    });
    assert!(wrong.is_empty(), "{} problems\n{}", wrong.len(), wrong.join("\n"));
}

fn responses(folder: &Path, engine: EngineChoice) {
    let acceptor = acceptor(folder, "http/1.1");
    at(
        TRUSTED_HOST,
        move |stream| serve(stream, acceptor.clone()),
        async |port| {
            let (_started, gateway) = tls::gateway(engine, &format!("https://{TRUSTED_HOST}:{port}"));
            cut_everywhere(gateway).await
        },
    );
}

#[test]
fn a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right() {
    trusting(
        "hostile::tls::a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right",
        |folder| responses(folder, EngineChoice::Auto),
    );
}

#[test]
fn a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right_also_on_pingora() {
    trusting(
        "hostile::tls::a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right_also_on_pingora",
        |folder| responses(folder, EngineChoice::Pingora),
    );
}

/// Ends a handshake after so many bytes of what a server says in it, and so, as the address says that was connected to:
/// each has an address of its own, so that none is passed over for what another one did. Notes whether that was all.
async fn shake(mut stream: TcpStream, acceptor: TlsAcceptor, whole: Arc<AtomicBool>) -> Option<()> {
    let IpAddr::V4(address) = stream.local_addr().unwrap().ip() else { return None };
    let [_, end, high, low] = address.octets();
    let end = match end {
        0 => return serve(stream, acceptor).await,
        1 => End::Stops,
        _ => End::Resets,
    };
    let mut session = ServerConnection::new(acceptor.config().clone()).unwrap();
    while !session.wants_write() {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        session.read_tls(&mut &bytes[..read]).unwrap();
        session.process_new_packets().unwrap();
    }
    let said = pending(&mut session);
    let sent = usize::from(u16::from_be_bytes([high, low]));
    whole.store(sent >= said.len(), SeqCst);
    stream.write_all(&said[..sent.min(said.len())]).await.ok()?;
    stream.end(end).await;
    None
}

/// A baseline with two services on different hosts, of which the second one is right.
fn two_services(cut: &str, right: &str) -> Vec<FileChange> {
    let service = |name, url| format!("{{name: {name}, expose: true, hosts: [{name}], url: '{url}'}}");
    let services = [service("web", cut), service("right", right)].join(", ");
    let routing = "routing: {mode: baseline, holdFor: 0s}";
    vec![stage::file("base.yaml".to_owned(), format!("name: base\n{routing}\nservices: [{services}]\n"))]
}

async fn shaken_everywhere(engine: EngineChoice, port: u16, whole: &AtomicBool) -> Vec<String> {
    let why = if engine == EngineChoice::Pingora {
        "the TLS handshake failed"
    } else {
        "it ended the TLS handshake"
    };
    let right = format!("https://{TRUSTED_HOST}:{port}");
    let (started, gateway) = tls::gateway(engine, &right);
    let (mut caller, mut other, mut wrong) = (Caller::of(gateway), Caller::at(gateway, "right"), Vec::new());
    for end in [1, 2] {
        let mut sent = 0_u16;
        whole.store(false, SeqCst);
        while !whole.load(SeqCst) {
            let [high, low] = sent.to_be_bytes();
            let cut = format!("https://127.{end}.{high}.{low}:{port}");
            started.control().apply(&two_services(&cut, &right), Trigger::Change);
            let got = caller.ask("GET", "/").await;
            // All of it has a certificate, and that is for another address.
            let why = if whole.load(SeqCst) { "its certificate" } else { why };
            let fine = got.own()
                && got.whole().is_some_and(|own| {
                    own.status() == "503" && String::from_utf8_lossy(&own.body).contains(why)
                });
            if !fine {
                wrong.push(format!("{sent} bytes of the handshake, {cut}: {got:?}"));
            }
            wrong.extend(other.gets_its_own("right").await.err());
            sent += 1;
        }
        if sent < 500 {
            wrong.push(format!("a handshake has {sent} bytes"));
        }
    }
    wrong
}

fn handshakes(folder: &Path, engine: EngineChoice) {
    let (acceptor, whole) = (acceptor(folder, "http/1.1"), Arc::new(AtomicBool::new(false)));
    let shared = whole.clone();
    at(
        "0.0.0.0",
        move |stream| shake(stream, acceptor.clone(), shared.clone()),
        async |port| shaken_everywhere(engine, port, &whole).await,
    );
}

#[test]
fn a_handshake_that_breaks_off_anywhere_is_503_with_the_reason_and_harms_nobody_else() {
    trusting(
        "hostile::tls::a_handshake_that_breaks_off_anywhere_is_503_with_the_reason_and_harms_nobody_else",
        |folder| handshakes(folder, EngineChoice::Auto),
    );
}

#[test]
fn a_handshake_that_breaks_off_anywhere_is_503_with_the_reason_and_harms_nobody_else_also_on_pingora() {
    trusting(
        "hostile::tls::a_handshake_that_breaks_off_anywhere_is_503_with_the_reason_and_harms_nobody_else_also_on_pingora",
        |folder| handshakes(folder, EngineChoice::Pingora),
    );
}
