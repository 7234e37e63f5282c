//! Upstreams of HTTP/1.1, on both engines.

use std::net::SocketAddr;
use std::sync::Arc;

use overlane::plane::EngineChoice;
use overlane_tests::stage::Slot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::{Caller, End, Peer, Reply};

/// Responses that are right, as they are written.
pub(super) const REPLIES: [(&str, Reply); 11] = [
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", got("GET", "200", "hello")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", got("GET", "200", "hello")),
    ("HTTP/1.1 404 Not Found\r\nA: b\r\nContent-Length: 0\r\n\r\n", got("GET", "404", "")),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n",
        got("GET", "200", "hello"),
    ),
    (
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        got("GET", "200", "hello"),
    ),
    ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nA: b\r\n\r\n", got("GET", "204", "")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", got("HEAD", "200", "")),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", got("HEAD", "200", "")),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\n", got("GET", "304", "")),
    ("HTTP/1.1 200 OK\r\nA: b\r\n\r\nhello", Reply { to_the_end: true, ..got("GET", "200", "hello") }),
    ("HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello", Reply { to_the_end: true, ..got("GET", "200", "hello") }),
];

const fn got(method: &'static str, status: &'static str, body: &'static str) -> Reply {
    Reply { method, means: (status, body), to_the_end: false }
}

const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

/// Responses that lie: what is sent at once, and what follows when the connection is idle, if it is kept.
const LIES: [(&str, &str, &str); 16] = [
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello{}", ""),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "{}"),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\r\n", "{}"),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellohello", ""),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{}", ""),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n{}"),
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n{}", ""),
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n", "{}"),
    ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 41\r\n\r\n{}", ""),
    ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 41\r\n\r\n", "{}"),
    ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 41\r\n\r\n", "{}"),
    ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n{}"),
    ("GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 41\r\n\r\n{}", EVIL),
    ("GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{}", "{}"),
    ("GET", "{}", "HTTP/1.1 100 Continue\r\n\r\n{}"),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello", "{}"),
];

type Writer = Arc<Mutex<OwnedWriteHalf>>;

/// What is to be said on connections that are idle.
type Idle = Arc<Mutex<Vec<(Writer, String)>>>;

/// Where it was closed there is nobody to be misled.
async fn say(writer: &Writer, text: &str) {
    let _ = writer.lock().await.write_all(text.as_bytes()).await;
}

/// Does as the path says; `/speak` makes the idle speak first.
async fn serve(stream: TcpStream, idle: Idle) {
    stream.set_nodelay(true).unwrap();
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match reader.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let words: Vec<_> = path.split('/').skip(1).collect();
        match *words {
            ["cut", reply, sent, end] => {
                let (reply, _) = &REPLIES[reply.parse::<usize>().unwrap()];
                say(&writer, &reply[..sent.parse().unwrap()]).await;
                let writer = Arc::into_inner(writer).unwrap().into_inner();
                let end = if end == "Resets" { End::Resets } else { End::Closes };
                return reader.reunite(writer).unwrap().end(end).await;
            }
            ["lie", lie] => {
                let (_, now, later) = LIES[lie.parse::<usize>().unwrap()];
                say(&writer, &now.replace("{}", EVIL)).await;
                idle.lock().await.push((writer.clone(), later.replace("{}", EVIL)));
            }
            _ => {
                if words[0] == "speak" {
                    for (writer, text) in std::mem::take(&mut *idle.lock().await) {
                        say(&writer, &text).await;
                    }
                }
                let length = path.len();
                say(&writer, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}")).await;
            }
        }
    }
}

/// Runs a test at a gateway before such an upstream.
fn with<F: Future<Output = Vec<String>>>(engine: EngineChoice, test: impl FnOnce(SocketAddr) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let slot = Slot::lease(engine, listener.local_addr().unwrap());
        let idle = Idle::default();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, idle.clone()));
            }
        });
        test(slot.address()).await
    });
    assert!(wrong.is_empty(), "{engine:?}: {} problems\n{}", wrong.len(), wrong.join("\n"));
}

/// How many bytes of a reply are heads.
pub(super) fn heads_of(text: &str) -> usize {
    let last = text.rfind("\r\n\r\n").filter(|_| !text.contains("chunked"));
    last.or_else(|| text.find("\r\n\r\n")).unwrap() + 4
}

async fn cut_everywhere(gateway: SocketAddr) -> Vec<String> {
    let replies = REPLIES.iter().enumerate().map(|(number, (text, reply))| async move {
        let (mut caller, mut wrong, all) = (Caller::of(gateway), Vec::new(), text.len());
        let head = heads_of(text);
        for (end, sent) in End::CLEAR.into_iter().flat_map(|end| (0..=all).map(move |sent| (end, sent))) {
            let got = caller.ask(reply.method, &format!("/cut/{number}/{sent}/{end:?}")).await;
            let judged = got.judged(reply, sent, head, all, end);
            wrong.extend(judged.err().map(|why| format!("{text:?}: {why}")));
            let next = caller.gets_its_own(&number.to_string()).await;
            wrong.extend(next.err().map(|why| format!("{text:?} after {sent} bytes, {end:?}: {why}")));
        }
        wrong
    });
    of_all(replies).await
}

/// What is wrong by any of these, which run side by side.
pub(super) async fn of_all<T: Future<Output = Vec<String>> + Send + 'static>(
    tests: impl Iterator<Item = T>,
) -> Vec<String> {
    let tasks: Vec<_> = tests.map(tokio::spawn).collect();
    let mut wrong = Vec::new();
    for task in tasks {
        wrong.extend(task.await.unwrap());
    }
    wrong
}

#[test]
fn a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right() {
    with(EngineChoice::Auto, cut_everywhere);
}

#[test]
fn a_response_that_breaks_off_anywhere_is_502_or_visibly_not_whole_and_the_next_is_right_also_on_pingora() {
    with(EngineChoice::Pingora, cut_everywhere);
}

async fn lied_to(gateway: SocketAddr) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, (method, now, _)) in LIES.iter().enumerate() {
        // Some are about requests that come along, some about those that come later.
        for speaks in [false, true] {
            let (mut victim, mut other) = (Caller::of(gateway), Caller::of(gateway));
            let mut results = vec![victim.gets_its_own("before").await];
            victim.ask(method, &format!("/lie/{number}")).await;
            if speaks {
                let got = other.ask("GET", "/speak").await;
                results.push(got.whole().map(drop).ok_or_else(|| format!("{got:?}")));
            }
            for who in ["victim", "another", "third"] {
                let mut caller = if who == "victim" { &mut victim } else { &mut Caller::of(gateway) };
                if who == "another" {
                    caller = &mut other;
                }
                results.push(caller.gets_its_own(who).await);
            }
            wrong.extend(results.into_iter().filter_map(Result::err).map(|why| format!("{now:?}: {why}")));
        }
    }
    wrong
}

#[test]
fn what_an_upstream_says_too_much_is_nobodys_answer() {
    with(EngineChoice::Auto, lied_to);
}

#[test]
fn what_an_upstream_says_too_much_is_nobodys_answer_also_on_pingora() {
    with(EngineChoice::Pingora, lied_to);
}
