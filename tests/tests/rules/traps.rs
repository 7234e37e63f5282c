//! What reading and embedding Pingora taught, each as a rule that holds here: through real sockets, with
//! upstreams that record what arrived.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits, ListenerSettings};
use overlane::upstream::Address;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::{Listener, Role};
use overlane_tests::stage::{self, Started};
use overlane_tests::told::without_hops;

const PATIENCE: Duration = Duration::from_secs(10);

/// An upstream that records heads and bodies, and answers what it is told.
struct Upstream {
    address: SocketAddr,
    seen: Receiver<(String, Vec<u8>)>,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers every request with a body of `name`.
    fn echo(name: &'static str) -> Self {
        Self::with(move |stream, _| {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).is_ok()
        })
    }

    /// Answers with `answer`, which says whether the connection stays open.
    fn with(answer: impl Fn(&mut TcpStream, &str) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let (answer, count) = (Arc::new(answer), connections.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, SeqCst);
                let (answer, tell) = (answer.clone(), tell.clone());
                std::thread::spawn(move || Self::serve(stream, &*answer, &tell));
            }
        });
        Self { address, seen, connections }
    }

    fn serve(
        mut stream: TcpStream,
        answer: &dyn Fn(&mut TcpStream, &str) -> bool,
        tell: &Sender<(String, Vec<u8>)>,
    ) {
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            let body = read_body(&mut reader, &head);
            let _ = tell.send((head.clone(), body));
            if !answer(&mut stream, &head) {
                return;
            }
        }
    }

    fn next(&self) -> (String, Vec<u8>) {
        self.seen.recv_timeout(PATIENCE).expect("a request reaches the upstream")
    }

    fn nothing_arrived(&self) {
        assert!(self.seen.try_recv().is_err(), "something reached the upstream");
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(own, _)| own.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn receipts(head: &str) -> String {
    without_hops(field(head, "x-overlay-route").unwrap_or_default())
}

fn read_body(reader: &mut impl BufRead, head: &str) -> Vec<u8> {
    if field(head, "transfer-encoding").is_some() {
        let mut body = Vec::new();
        loop {
            let chunk = read_chunk(reader);
            if chunk.is_empty() {
                return body;
            }
            body.extend(chunk);
        }
    }
    let length = field(head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    body
}

fn read_chunk(reader: &mut impl BufRead) -> Vec<u8> {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut chunk = vec![0; usize::from_str_radix(line.trim(), 16).unwrap() + 2];
    reader.read_exact(&mut chunk).unwrap();
    chunk.truncate(chunk.len() - 2);
    chunk
}

struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    fn send(&mut self, bytes: &str) -> &mut Self {
        self.stream.write_all(bytes.as_bytes()).unwrap();
        self
    }

    fn answer(&mut self) -> (String, String) {
        let head = read_head(&mut self.reader).expect("an answer");
        let body = read_body(&mut self.reader, &head);
        (head, String::from_utf8(body).unwrap())
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]) | Err(_))
    }
}

fn get(address: SocketAddr, headers: &str) -> (String, String) {
    Client::new(address).send(&format!("GET / HTTP/1.1\r\nHost: web\r\n{headers}\r\n")).answer()
}

fn file(text: String) -> FileChange {
    let path: Arc<str> = format!("{}.yaml", text.lines().next().unwrap().trim_start_matches("name: ")).into();
    let source = Source::new(path.clone(), text, None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

fn baseline(web: SocketAddr) -> FileChange {
    file(format!(
        "name: base\nrouting: {{mode: baseline, holdFor: 100ms}}\nservices: [{{name: web, expose: true, url: 'http://{web}'}}]\n"
    ))
}

fn overlay(id: &str, routing: &str, service: &str) -> FileChange {
    file(format!(
        "name: {id}\nrouting: {{mode: overlay, baselineId: base{routing}}}\nservices: [{service}]\n"
    ))
}

fn at(role: Role, app: Option<SocketAddr>, trust: Trust) -> ListenerSettings {
    let app = app.map(|app| format!("http://{app}").parse().unwrap());
    ListenerSettings {
        address: Address::Tcp(([127, 0, 0, 1], 0).into()),
        listener: Listener { role, baseline: None },
        app,
        trust,
    }
}

fn start(
    listeners: Vec<ListenerSettings>,
    limits: Limits,
    files: Vec<FileChange>,
) -> (Started, Vec<SocketAddr>) {
    let running = stage::start_within(EngineChoice::default(), limits, listeners, files);
    let addresses = running.addresses();
    (running, addresses)
}

fn gateway(files: Vec<FileChange>) -> (Started, SocketAddr) {
    let (running, addresses) = start(vec![at(Role::Gateway, None, Trust::Any)], Limits::default(), files);
    (running, addresses[0])
}

#[test]
fn the_key_leaves_in_both_carriers_also_when_the_client_nominates_it_in_connection() {
    let (base, alice) = (Upstream::echo("base"), Upstream::echo("alice"));
    let (_running, gateway) = gateway(vec![
        baseline(base.address),
        overlay("alice", "", &format!("{{name: web, url: 'http://{}'}}", alice.address)),
    ]);
    for headers in [
        "x-overlay-id: alice\r\n",
        "X-Overlay-Id: alice\r\nConnection: x-overlay-id\r\n",
        "x-overlay-id: alice\r\nConnection: keep-alive, X-OVERLAY-ID, baggage\r\n",
        "baggage: a=1;p,overlay-id=alice\r\nbaggage: b=2\r\n",
    ] {
        let (head, body) = get(gateway, headers);
        assert_eq!(
            (body.as_str(), receipts(&head).as_str()),
            ("alice", "web;env=alice;via=overlay;reason=owned;partial"),
            "{headers}"
        );
        let (arrived, _) = alice.next();
        assert_eq!(field(&arrived, "x-overlay-id"), Some("alice"), "{headers}{arrived}");
        assert!(field(&arrived, "baggage").unwrap().ends_with("overlay-id=alice"), "{arrived}");
        assert_eq!(arrived.to_lowercase().matches("\nbaggage:").count(), 1, "{arrived}");
    }
    base.nothing_arrived();
}

#[test]
fn a_key_that_is_no_id_is_refused_and_not_echoed_into_a_header() {
    let base = Upstream::echo("base");
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let (head, body) = get(gateway, "x-overlay-id: Al\"ice\t\r\n");
    assert!(head.starts_with("HTTP/1.1 400") && body.contains("invalid-key"), "{head}{body}");
    assert!(field(&head, "proxy-status").unwrap().matches('"').count() == 2, "{head}");
    base.nothing_arrived();
    // In baggage it is somebody else's: ignored, and it travels on.
    let (head, _) = get(gateway, "baggage: overlay-id=Al%20ice\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && field(&head, "x-overlay-route").is_none(), "{head}");
    assert_eq!(field(&base.next().0, "baggage"), Some("overlay-id=Al%20ice"));
}

#[test]
fn from_the_untrusted_our_headers_are_gone_before_anything_reads_them() {
    let (base, alice) = (Upstream::echo("base"), Upstream::echo("alice"));
    let files = vec![
        baseline(base.address),
        overlay("alice", "", &format!("{{name: web, url: 'http://{}'}}", alice.address)),
    ];
    let (_running, addresses) = start(vec![at(Role::Gateway, None, Trust::Nobody)], Limits::default(), files);
    let (head, body) = get(
        addresses[0],
        "x-overlay-id: alice\r\nx-overlay-hop: alice\r\nx-overlay-hops: 9\r\nx-overlay-route: x\r\nbaggage: a=1,overlay-id=NOT,c=3\r\n",
    );
    assert_eq!((body.as_str(), field(&head, "x-overlay-route")), ("base", None), "{head}");
    let arrived = base.next().0.to_lowercase();
    assert!(arrived.contains("x-overlay-hops: 1\r\n"), "it is counted from here on: {arrived}");
    let arrived = arrived.replace("x-overlay-hops", "");
    assert!(!arrived.contains("x-overlay") && arrived.contains("baggage: a=1,c=3"), "{arrived}");
}

#[test]
fn an_unavailable_owner_is_held_and_then_fails_or_falls_back_as_its_policy_says() {
    let base = Upstream::echo("base");
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (running, gateway) = gateway(vec![
        baseline(base.address),
        overlay("fails", "", &format!("{{name: web, url: 'http://{dead}'}}")),
        overlay("falls", ", onUnavailable: fallback", &format!("{{name: web, url: 'http://{dead}'}}")),
        overlay("waits", ", holdFor: 10s", "{name: web}"),
    ]);
    let (head, body) = get(gateway, "x-overlay-id: fails\r\naccept: application/json\r\n");
    assert!(
        head.starts_with("HTTP/1.1 503")
            && body.contains("\"reason\":\"refused\"")
            && body.contains("fails.yaml:3:"),
        "{head}{body}"
    );
    assert!(field(&head, "proxy-status").unwrap().contains("error=connection_refused"), "{head}");
    assert_eq!(receipts(&head), "web;env=fails;via=overlay;reason=refused;partial", "nobody served");
    base.nothing_arrived();
    let (head, body) = get(gateway, "x-overlay-id: falls\r\n");
    assert_eq!(
        (body.as_str(), receipts(&head).as_str()),
        ("base", "web;env=base;via=baseline;reason=refused;partial")
    );
    let (head, body) = get(gateway, "x-overlay-id: falls\r\nx-overlay-require: web\r\n");
    assert!(head.starts_with("HTTP/1.1 412") && body.contains("wrong-environment"), "{head}{body}");
    // Held while pending, and served from the snapshot that brings its address.
    let held = std::thread::spawn(move || get(gateway, "x-overlay-id: waits\r\n"));
    let alice = Upstream::echo("alice");
    running.control().apply(
        &[overlay("waits", ", holdFor: 10s", &format!("{{name: web, url: 'http://{}'}}", alice.address))],
        overlane::control::Trigger::Change,
    );
    assert_eq!(held.join().unwrap().1, "alice");
}

/// The sidecar of `web`, whose application calls the ledger of `alice`, swallows what comes of that, and is content.
fn content(ledger: SocketAddr) -> (Started, SocketAddr) {
    content_with(ledger, "")
}

/// The same, where the application sends this first, with the trace at its end, as a tracer does.
fn content_with(ledger: SocketAddr, before: &'static str) -> (Started, SocketAddr) {
    let calls = Arc::new(Mutex::new(None::<SocketAddr>));
    let outbound = calls.clone();
    let web = Upstream::with(move |stream, head| {
        let trace = field(head, "traceparent").unwrap();
        let mut call = Client::new(outbound.lock().unwrap().unwrap());
        if !before.is_empty() {
            call.send(&format!("{before}traceparent: {trace}\r\n\r\n")).answer();
        }
        call.send(&format!("GET / HTTP/1.1\r\nHost: ledger\r\ntraceparent: {trace}\r\n\r\n")).answer();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    let web_role = Role::Inbound { service: "web".parse().unwrap(), environment: None };
    let calls_role = Role::Outbound { service: Some("web".parse().unwrap()), environment: None };
    let listeners = vec![at(web_role, Some(web.address), Trust::Any), at(calls_role, None, Trust::Any)];
    let service = format!("{{name: ledger, url: 'http://{ledger}'}}");
    let files = vec![baseline(web.address), overlay("alice", ", holdFor: 100ms", &service)];
    let (running, addresses) = start(listeners, Limits::default(), files);
    *calls.lock().unwrap() = Some(addresses[1]);
    (running, addresses[0])
}

#[test]
fn a_call_that_failed_is_told_also_where_its_application_swallows_that() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_running, web) = content(dead);
    let (head, _) = get(web, "x-overlay-id: alice\r\n");
    assert_eq!(
        receipts(&head),
        "ledger;env=alice;via=overlay;reason=refused;partial;restored, web;env=base;via=baseline;reason=not-owned"
    );
}

#[test]
fn who_asks_for_a_tunnel_to_a_service_called_it_only_with_what_is_in_the_tunnel() {
    let ledger = Upstream::echo("ledger");
    let (_running, web) = content_with(ledger.address, "CONNECT ledger:80 HTTP/1.1\r\nHost: ledger:80\r\n");
    let (head, _) = get(web, "x-overlay-id: alice\r\n");
    assert_eq!(
        receipts(&head),
        "ledger;env=alice;via=overlay;reason=owned;partial;restored, web;env=base;via=baseline;reason=not-owned"
    );
}

#[test]
fn a_service_whose_application_is_down_is_no_green_test() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let role =
        Role::Inbound { service: "ledger".parse().unwrap(), environment: Some("alice".parse().unwrap()) };
    let files = vec![
        baseline(dead),
        overlay("alice", ", holdFor: 100ms", &format!("{{name: ledger, url: 'http://{dead}'}}")),
    ];
    let (_ledger, addresses) = start(vec![at(role, Some(dead), Trust::Any)], Limits::default(), files);
    let (_running, web) = content(addresses[0]);
    let (head, body) = get(web, "x-overlay-id: alice\r\nx-overlay-require: ledger\r\n");
    assert!(head.starts_with("HTTP/1.1 412"), "{head}{body}");
}

#[test]
fn sidecars_never_play_ping_pong() {
    let (base, alice) = (Upstream::echo("base app"), Upstream::echo("alice app"));
    let inbound = |environment: &str| Role::Inbound {
        service: "web".parse().unwrap(),
        environment: Some(environment.parse().unwrap()),
    };
    let listeners = vec![
        at(inbound("base"), Some(base.address), Trust::Any),
        at(inbound("alice"), Some(alice.address), Trust::Any),
    ];
    let (running, addresses) = start(listeners, Limits::default(), Vec::new());
    running.control().apply(
        &[
            baseline(addresses[0]),
            overlay("alice", "", &format!("{{name: web, url: 'http://{}'}}", addresses[1])),
        ],
        overlane::control::Trigger::Change,
    );
    let (head, body) = get(addresses[0], "x-overlay-id: alice\r\n");
    assert_eq!(body, "alice app");
    assert_eq!(
        receipts(&head),
        "web;env=alice;via=overlay;reason=owned;partial",
        "a hop appears once; there are no calls that could be seen"
    );
    assert!(field(&alice.next().0, "x-overlay-hop").is_none(), "the mark is not the application's");
    let (head, body) = get(addresses[0], "x-overlay-id: alice\r\nx-overlay-hop: alice\r\n");
    assert!(head.starts_with("HTTP/1.1 421") && body.contains("misdirected"), "{head}{body}");
    // Without a key an overlay's inbound delivers, and gives the request that overlay's key.
    assert_eq!(get(addresses[1], "").1, "alice app");
    assert_eq!(field(&alice.next().0, "x-overlay-id"), Some("alice"));
}

#[test]
fn outbound_routes_by_authority_and_passes_the_rest_through_without_our_headers() {
    let base = Upstream::echo("base");
    let foreign = Upstream::with(|stream, _| {
        write!(stream, "HTTP/1.1 200 OK\r\nx-overlay-route: forged\r\nContent-Length: 7\r\n\r\nforeign")
            .is_ok()
    });
    let environment = Some("alice".parse().unwrap());
    let (_running, addresses) = start(
        vec![at(Role::Outbound { service: None, environment }, None, Trust::Any)],
        Limits::default(),
        vec![baseline(base.address)],
    );
    let outbound = addresses[0];
    for (target, host) in
        [("http://web/a?b", "ignored"), ("/a?b", "WEB:81"), ("/a?b", &base.address.to_string())]
    {
        let (_, body) =
            Client::new(outbound).send(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).answer();
        let (arrived, _) = base.next();
        assert_eq!(body, "base", "{target} {host}");
        assert!(arrived.starts_with("GET /a?b HTTP/1.1\r\n"), "{arrived}");
        assert_eq!(
            field(&arrived, "x-overlay-id"),
            Some("alice"),
            "a call of an overlay's service is stamped"
        );
        assert_eq!(field(&arrived, "host"), Some(if target.starts_with('/') { host } else { "web" }));
    }
    let (head, body) = Client::new(outbound).send(&format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\nx-overlay-id: bob\r\nbaggage: a=1,overlay-id=bob\r\nx-overlay-require: *\r\n\r\n", foreign.address)).answer();
    assert_eq!((body.as_str(), field(&head, "x-overlay-route")), ("foreign", None));
    let arrived = foreign.next().0.to_lowercase();
    assert!(!arrived.contains("overlay") && arrived.contains("baggage: a=1"), "{arrived}");
    for (authority, status) in [(outbound.to_string(), "508"), ("169.254.169.254".to_owned(), "403")] {
        let (head, _) = Client::new(outbound)
            .send(&format!("GET http://{authority}/ HTTP/1.1\r\nHost: x\r\n\r\n"))
            .answer();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
    }
}

#[test]
fn connections_are_kept_on_both_sides() {
    let base = Upstream::echo("base");
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    for _ in 0..20 {
        assert_eq!(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").answer().1, "base");
    }
    assert_eq!(base.connections.load(SeqCst), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let base = Upstream::with(|stream, head| {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).is_ok()
    });
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: x\r\n\r\n");
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.answer().1, path);
    }
}

#[test]
fn bodies_stream_both_ways_and_nothing_waits_for_their_end() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let base = Upstream::with(move |stream, head| {
        let length = if head.contains("/sized") { "Content-Length: 6" } else { "Transfer-Encoding: chunked" };
        let chunked = head.contains("/chunked");
        let part = |text: &str| if chunked { format!("3\r\n{text}\r\n") } else { text.to_owned() };
        write!(stream, "HTTP/1.1 200 OK\r\n{length}\r\n\r\n{}", part("one")).unwrap();
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        write!(stream, "{}{}", part("two"), if chunked { "0\r\n\r\n" } else { "" }).is_ok()
    });
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    client.send("GET /chunked HTTP/1.1\r\nHost: x\r\n\r\n");
    read_head(&mut client.reader).unwrap();
    assert_eq!(read_chunk(&mut client.reader), b"one", "the first part arrives before the second exists");
    go.send(()).unwrap();
    assert_eq!(
        (read_chunk(&mut client.reader), read_chunk(&mut client.reader)),
        (b"two".to_vec(), Vec::new())
    );
    client.send("GET /sized HTTP/1.1\r\nHost: x\r\n\r\n");
    read_head(&mut client.reader).unwrap();
    let mut part = [0; 3];
    client.reader.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"one", "also where the length is known");
    go.send(()).unwrap();
    client.reader.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"two");
}

#[test]
fn large_uploads_arrive_whole_with_length_and_in_chunks() {
    let base = Upstream::echo("base");
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let body: String = (0..3_000_000u32).map(|n| char::from(b'a' + u8::try_from(n % 23).unwrap())).collect();
    Client::new(gateway)
        .send(&format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
        .answer();
    assert!(base.next().1 == body.as_bytes());
    let chunks: String = body
        .as_bytes()
        .chunks(70_001)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()))
        .collect();
    Client::new(gateway)
        .send(&format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"))
        .answer();
    assert!(base.next().1 == body.as_bytes());
}

#[test]
fn an_answer_that_comes_before_the_upload_ends_reaches_the_client() {
    // Reads the head alone, answers, and closes: as servers do that refuse an upload.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            read_head(&mut reader);
            let answer = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
            stream.write_all(answer.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
        }
    });
    let (_running, gateway) = gateway(vec![baseline(address)]);
    let mut client = Client::new(gateway);
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\nthe first bytes");
    let (head, body) = client.answer();
    assert!(head.starts_with("HTTP/1.1 413") && body == "big", "{head}{body}");
}

#[test]
fn who_still_sends_when_a_failure_is_answered_is_not_reset() {
    // Nobody listens there.
    let dead = file(
        "name: base\nrouting: {mode: baseline, holdFor: 300ms}\nservices: [{name: web, expose: true, url: 'http://127.0.0.1:1'}]\n"
            .to_owned(),
    );
    for engine in [EngineChoice::Auto, EngineChoice::Pingora] {
        let listeners = vec![at(Role::Gateway, None, Trust::Any)];
        let running = stage::start(engine, listeners, vec![dead.clone()]);
        let mut client = Client::new(running.addresses()[0]);
        client.send("POST / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: 6\r\n\r\n");
        let until = Instant::now() + PATIENCE;
        while crate::lost::counted(&running, "overlane_held_requests_total") == 0 {
            assert!(Instant::now() < until, "{engine:?}: nothing is held");
        }
        client.send("secret");
        let (head, body) = client.answer();
        assert!(head.starts_with("HTTP/1.1 503") && body.contains("(refused)"), "{engine:?}: {head}{body}");
        assert_eq!(client.reader.read(&mut [0]).expect("no reset"), 0, "{engine:?}");
    }
}

#[test]
fn a_stalled_reader_holds_the_upstream_back_instead_of_memory() {
    const TOTAL: usize = 64 * 1024 * 1024;
    let (tell, told) = channel();
    let base = Upstream::with(move |stream, _| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n").unwrap();
        // A write that makes no progress for so long has nowhere left to go.
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let chunk = [b'x'; 64 * 1024];
        let mut sent = 0;
        while sent < TOTAL && stream.write_all(&chunk).is_ok() {
            sent += chunk.len();
        }
        tell.send(sent).unwrap();
        false
    });
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    read_head(&mut client.reader).unwrap();
    let sent = told.recv_timeout(PATIENCE).unwrap();
    assert!(sent < TOTAL * 3 / 4, "the upstream could send {sent} bytes to a client that reads none");
}

#[test]
fn head_1xx_and_half_closed_clients_are_served_as_http_says() {
    let base = Upstream::with(|stream, head| {
        let early =
            if head.contains("/early") { "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" } else { "" };
        let body = if head.starts_with("HEAD") { "" } else { "base" };
        write!(stream, "{early}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{body}").is_ok()
    });
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(field(&read_head(&mut client.reader).unwrap(), "content-length"), Some("4"));
    client.send("GET /early HTTP/1.1\r\nHost: x\r\nx-overlay-id: nobody\r\n\r\n");
    let early = read_head(&mut client.reader).unwrap();
    assert!(early.starts_with("HTTP/1.1 103") && field(&early, "x-overlay-route").is_none(), "{early}");
    assert_eq!(client.answer().1, "base");
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.answer().1, "base", "who only closed its sending side still wants the answer");
}

#[test]
fn an_http_1_0_client_gets_its_answer_and_its_connection_closed() {
    let base = Upstream::echo("base");
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    assert_eq!(client.send("GET / HTTP/1.0\r\n\r\n").answer().1, "base");
    assert!(client.is_closed());
}

#[test]
fn malformed_heads_are_answered_closed_and_reach_nobody() {
    let base = Upstream::echo("base");
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(70_000));
    for (head, status) in [
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\nHost: x\r\n\r\n", "400"),
        ("PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", "505"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "405"),
        (&long, "431"),
    ] {
        let mut client = Client::new(gateway);
        let (answer, _) = client.send(head).answer();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && field(&answer, "proxy-status").is_some(),
            "{answer}"
        );
        assert_eq!(field(&answer, "connection"), Some("close"));
        assert!(client.is_closed(), "{status}");
    }
    base.nothing_arrived();
}

#[test]
fn a_head_has_one_deadline_however_slowly_it_drips_and_idle_has_another() {
    let base = Upstream::echo("base");
    let limits =
        Limits { head: Duration::from_millis(200), idle: Duration::from_millis(200), ..Limits::default() };
    let (_running, addresses) =
        start(vec![at(Role::Gateway, None, Trust::Any)], limits, vec![baseline(base.address)]);
    let mut client = Client::new(addresses[0]);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").answer();
    assert!(client.is_closed(), "an idle connection ends");
    let mut client = Client::new(addresses[0]);
    let begun = Instant::now();
    client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // One byte at a time never moves the deadline.
    let answered = loop {
        let dripped = client.stream.write_all(b"G").is_ok();
        match client.reader.fill_buf() {
            Ok(bytes) => break bytes.starts_with(b"HTTP/1.1 408"),
            Err(_) if dripped && begun.elapsed() < PATIENCE => {}
            Err(_) => break false,
        }
    };
    assert!(answered, "408 however slowly it drips");
}

#[test]
fn an_upstream_that_dies_or_babbles_is_a_502_that_says_so() {
    for answer in ["", "not http\r\n\r\n"] {
        let base = Upstream::with(move |stream, _| {
            let _ = stream.write_all(answer.as_bytes());
            false
        });
        let (_running, gateway) = gateway(vec![baseline(base.address)]);
        let (head, body) = get(gateway, "");
        assert!(head.starts_with("HTTP/1.1 502") && body.contains("overlane:"), "{answer:?}: {head}{body}");
    }
}

#[test]
fn stopping_tells_and_finishes_what_is_in_flight() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let base = Upstream::with(move |stream, head| {
        if head.contains("/slow") {
            wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbase").is_ok()
    });
    let (running, gateway) = gateway(vec![baseline(base.address)]);
    let mut idle = Client::new(gateway);
    idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").answer();
    let mut busy = Client::new(gateway);
    busy.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    while !base.next().0.contains("/slow") {}
    let stopped = running.stop_in_background();
    assert!(idle.is_closed(), "an idle connection ends");
    go.send(()).unwrap();
    let (head, body) = busy.answer();
    assert_eq!((body.as_str(), field(&head, "connection")), ("base", Some("close")));
    stopped.join().unwrap();
    assert!(TcpStream::connect(gateway).is_err());
}

#[test]
fn a_dead_endpoint_beside_a_live_one_fails_nobody() {
    let live = Upstream::echo("live");
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, endpoints: ['{dead}', '{}']}}]\n",
        live.address
    );
    let (_running, gateway) = gateway(vec![file(text)]);
    for _ in 0..20 {
        assert_eq!(get(gateway, "").1, "live");
    }
}

/// An upstream that answers its first request and then goes away: its port refuses before it closes the
/// connection on which the second one arrived.
fn goes_away_after_one() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_head(&mut reader).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none").unwrap();
        read_head(&mut reader).unwrap();
        drop(listener);
    });
    address
}

#[test]
fn a_repeated_request_that_finds_nobody_takes_nothing_of_the_next_one() {
    let (_running, gateway) = gateway(vec![baseline(goes_away_after_one())]);
    let mut client = Client::new(gateway);
    let asked = |number: u8| format!("GET /{number} HTTP/1.1\r\nHost: web\r\n\r\n");
    assert_eq!(client.send(&asked(1)).answer().1, "one");
    // Of one length: what is taken too much would be exactly one of them.
    client.send(&[asked(2), asked(3), asked(4)].concat());
    for _ in 2..=4 {
        let (head, _) = client.answer();
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    }
}

#[test]
fn a_request_is_repeated_in_the_protocol_that_it_was_sent_in_or_not_at_all() {
    let (first, other) = (goes_away_after_one(), Upstream::echo("other"));
    let text = format!(
        "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, endpoints: ['http://{first}', 'h2c://{}']}}]\n",
        other.address
    );
    let (_running, gateway) = gateway(vec![file(text)]);
    let mut client = Client::new(gateway);
    let asked = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    assert_eq!(client.send(asked).answer().1, "one");
    // The endpoints take turns: this is the other one's, which does not speak HTTP/2 in truth.
    assert!(get(gateway, "").0.starts_with("HTTP/1.1 502"));
    // The first goes away, and the repeated request would be the other's turn.
    let (head, _) = client.send(asked).answer();
    assert!(head.starts_with("HTTP/1.1 502") && field(&head, "connection") == Some("close"), "{head}");
}

/// A port that neither accepts nor refuses: its queue is full. The connections keep it so.
fn black_hole() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    // What is not accepted within a moment waits for ever: then it is full.
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(50)) {
        waiting.push(stream);
        assert!(waiting.len() < 64, "its queue never fills");
    }
    (address, listener, waiting)
}

#[test]
fn a_hold_ends_also_where_every_endpoint_is_silent() {
    let (holes, base) = ([black_hole(), black_hole()], Upstream::echo("base"));
    let limits = Limits { connect: Duration::from_millis(250), ..Limits::default() };
    let addresses = format!("'http://{}', 'http://{}'", holes[0].0, holes[1].0);
    let alice = |name: &str, routing: &str| {
        overlay(
            name,
            &format!(", holdFor: 100ms{routing}"),
            &format!("{{name: web, endpoints: [{addresses}]}}"),
        )
    };
    let (_running, gates) = start(
        vec![at(Role::Gateway, None, Trust::Any)],
        limits,
        vec![baseline(base.address), alice("fails", ""), alice("falls", ", onUnavailable: fallback")],
    );
    let (head, _) = get(gates[0], "x-overlay-id: fails\r\n");
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(get(gates[0], "x-overlay-id: falls\r\n").1, "base");
}

#[test]
fn nobody_waits_for_the_connections_that_others_do_not_get() {
    let hole = black_hole();
    let limits = Limits { connect: Duration::from_millis(250), ..Limits::default() };
    let text = format!(
        "name: base\nrouting: {{mode: baseline, holdFor: 100ms}}\nservices: [{{name: web, expose: true, url: 'h2c://{}'}}]\n",
        hole.0
    );
    let (_running, gates) = start(vec![at(Role::Gateway, None, Trust::Any)], limits, vec![file(text)]);
    let (began, gateway) = (Instant::now(), gates[0]);
    let asked: Vec<_> = (0..40).map(|_| std::thread::spawn(move || get(gateway, ""))).collect();
    for asked in asked {
        assert!(asked.join().unwrap().0.starts_with("HTTP/1.1 503"));
    }
    // One after the other they would have taken ten seconds.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn who_sends_too_much_still_gets_the_whole_of_the_last_answer() {
    let size = 4 * 1024 * 1024;
    let (go, told) = channel::<()>();
    let told = Mutex::new(told);
    let base = Upstream::with(move |stream, _| {
        let _ = told.lock().unwrap().recv();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).is_ok() && stream.write_all(&vec![b'x'; size]).is_ok()
    });
    let (_running, gateway) = gateway(vec![baseline(base.address)]);
    let mut client = Client::new(gateway);
    client.send("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    base.next();
    client.send("GET /more HTTP/1.1\r\nHost: web\r\n\r\n");
    go.send(()).unwrap();
    let (_, body) = client.answer();
    assert_eq!(body.len(), size);
    assert!(body.bytes().all(|byte| byte == b'x'));
    base.nothing_arrived();
}

#[test]
fn the_admin_listener_answers_addresses_and_changes_state_only_for_json() {
    let base = Upstream::echo("base");
    let (running, gateway) = gateway(vec![baseline(base.address)]);
    get(gateway, "x-overlay-id: nobody\r\n");
    let admin = running.admin();
    let ask = |request: &str| Client::new(admin).send(request).answer();
    assert!(
        ask(&format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n"))
            .1
            .contains("overlane_unknown_overlay_requests_total 1")
    );
    assert!(ask("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").0.starts_with("HTTP/1.1 200"));
    assert!(ask("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n").0.starts_with("HTTP/1.1 403"));
    assert!(
        ask("POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            .0
            .starts_with("HTTP/1.1 415")
    );
    let question = r#"{"role":"gateway","host":"x","path":"/","headers":[["x-overlay-id","nobody"]]}"#;
    let (_, told) = ask(&format!(
        "POST /api/v1/explain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{question}",
        question.len()
    ));
    assert!(told.contains("reason=unknown") && told.contains("base.yaml:1:"), "{told}");
}

#[test]
fn whatever_is_wrong_with_a_question_to_the_admin_listener_it_is_told_as_a_problem() {
    let (running, _) = gateway(vec![baseline(([127, 0, 0, 1], 1).into())]);
    // The last byte is too much, so that nothing stays unread and the answer arrives.
    let much = "x".repeat(256 * 1024 + 1);
    for (request, body, status, word) in [
        ("PATCH /api/v1/overlays", "", 405, "`Allow`"),
        ("DELETE /api/v1/explain", "", 405, "`Allow`"),
        ("GET /api/v1/nothing", "", 404, "no such page"),
        ("GET /api/v1/overlays?base=line", "", 400, "base"),
        ("GET /api/v1/overlays/%ff", "", 400, "UTF-8"),
        ("GET /api/v1/decisions?role=sidecar", "", 400, "`gateway`"),
        ("GET /api/v1/overlays/A/health", "", 400, "`A`"),
        ("POST /api/v1/explain", "\u{fffd}", 400, "expected"),
        ("POST /api/v1/validate", &*much, 413, "limit"),
    ] {
        let kind = "Content-Type: application/json";
        let (head, told) = Client::new(running.admin())
            .send(&format!(
                "{request} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .answer();
        let shown = &told[..told.len().min(200)];
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}{shown}");
        assert_eq!(field(&head, "content-type"), Some("application/problem+json"), "{request}: {shown}");
        assert!(told.contains(&format!("\"status\":{status}")) && told.contains(word), "{request}: {shown}");
        assert_eq!(field(&head, "allow").is_some(), status == 405, "{request}: {head}");
    }
}

#[test]
fn a_message_is_handled_by_one_environment_as_a_call_would_be() {
    let worker = "name: worker, url: 'http://127.0.0.1:1'";
    let inbound = Role::Inbound { service: "worker".parse().unwrap(), environment: None };
    let (running, _) = start(
        vec![at(inbound, Some(([127, 0, 0, 1], 1).into()), Trust::Any)],
        Limits::default(),
        vec![
            file(format!("name: base\nrouting: {{mode: baseline}}\nservices: [{{{worker}}}, {{name: web, url: 'http://127.0.0.1:1'}}]\n")),
            overlay("alice", "", &format!("{{{worker}}}")),
            overlay("bob", "", "{name: web, url: 'http://127.0.0.1:1'}"),
            file("name: carol\nrouting: {mode: overlay, baselineId: alice}\nservices: [{name: web, url: 'http://127.0.0.1:1'}]\n".to_owned()),
        ],
    );
    let ask = |message: &str| {
        Client::new(running.admin())
            .send(&format!(
                "POST /api/v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{message}",
                message.len()
            ))
            .answer()
    };
    // The headers, and who is to handle the message.
    for (headers, environment) in [
        ("{}", "base"),
        (r#"{"x-overlay-id": "alice"}"#, "alice"),
        (r#"{"X-Overlay-Id": ["alice"]}"#, "alice"),
        (r#"{"baggage": "a=b,overlay-id=alice"}"#, "alice"),
        (r#"{"x-overlay-id": "carol"}"#, "alice"),
        (r#"{"x-overlay-id": "bob"}"#, "base"),
        (r#"{"x-overlay-id": "bob, alice"}"#, "alice"),
        (r#"{"x-overlay-id": "nobody"}"#, "base"),
        (r#"{"traceparent": "garbage"}"#, "base"),
    ] {
        for own in ["base", "alice", "bob"] {
            let (_, told) = ask(&format!(r#"{{"headers": {headers}, "environment": "{own}"}}"#));
            assert!(told.contains(&format!(r#""mine":{}"#, own == environment)), "{own} {headers}: {told}");
            assert!(told.contains(&format!(r#""environment":"{environment}""#)), "{own} {headers}: {told}");
        }
    }
    let (_, told) = ask(r#"{"headers": {"x-overlay-id": "bob"}}"#);
    assert!(told.contains(r#""mine":true"#), "the process's own place: {told}");
    for (message, word) in [
        (r#"{"headers": {"x-overlay-id": "NOT"}}"#, "`x-overlay-id`"),
        (r#"{"headers": {}, "service": "nothing"}"#, "declare it"),
        (r#"{"headers": {}, "service": "NOT"}"#, "`service`"),
        (r#"{"headers": {}, "environment": "NOT"}"#, "`environment`"),
        (r#"{"header": {}}"#, "header"),
        ("nonsense", "expected"),
    ] {
        let (head, told) = ask(message);
        assert!(head.starts_with("HTTP/1.1 400") && told.contains(word), "{message}: {told}");
    }
}

/// The events of a stream up to the next `SYNCED`: names and data.
fn until_synced(reader: &mut impl BufRead) -> Vec<String> {
    let mut events = Vec::new();
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ends after {events:?}");
        if let Some(name) = line.trim_end().strip_prefix("event: ") {
            events.push(name.to_owned());
        } else if let Some(data) = line.trim_end().strip_prefix("data: ") {
            let name = events.pop().unwrap();
            events.push(format!("{name} {data}"));
            if name == "SYNCED" {
                return events;
            }
        }
    }
}

#[test]
fn a_consumer_watches_the_rules_whole_at_first_and_then_what_changes() {
    let worker = "services: [{name: worker, url: 'http://127.0.0.1:1'}]\n";
    let of = |id: &str, owns: bool| {
        let services = if owns { worker } else { "services: [{name: web}]\n" };
        file(format!("name: {id}\nrouting: {{mode: overlay, baselineId: base}}\n{services}"))
    };
    let base = file(format!(
        "name: base\nrouting: {{mode: baseline}}\n{}",
        worker.replace("}]", "}, {name: web, url: 'http://127.0.0.1:1'}]")
    ));
    let (running, _) = start(
        vec![at(Role::Gateway, None, Trust::Any)],
        Limits::default(),
        vec![base, of("alice", true), of("bob", false)],
    );
    let mut stream = Client::new(running.admin());
    stream.send(
        "GET /api/v1/watch?service=worker&environment=alice HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1\r\n\r\n",
    );
    let rule = |key: &str, environment: &str, mine: bool| {
        format!(r#"RULE {{"environment":"{environment}","key":"{key}","mine":{mine}}}"#)
    };
    let synced = |generation: u64| format!(r#"SYNCED {{"generation":{generation},"service":"worker"}}"#);
    let whole =
        [rule("alice", "alice", true), rule("base", "base", false), rule("bob", "base", false), synced(1)];
    assert_eq!(until_synced(&mut stream.reader), whole);
    running.control().apply(&[of("bob", true)], overlane::control::Trigger::Change);
    assert_eq!(until_synced(&mut stream.reader), [rule("bob", "bob", false), synced(2)]);
    let gone = FileChange { path: "alice.yaml".into(), content: Content::Gone };
    running.control().apply(&[gone], overlane::control::Trigger::Change);
    assert_eq!(until_synced(&mut stream.reader), [r#"GONE {"key":"alice"}"#.to_owned(), synced(3)]);
    let (head, told) =
        Client::new(running.admin()).send("GET /api/v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n").answer();
    assert!(head.starts_with("HTTP/1.1 400") && told.contains("`service` is missing"), "{told}");
    let stopped = running.stop_in_background();
    let mut rest = Vec::new();
    stream.reader.read_to_end(&mut rest).unwrap();
    stopped.join().unwrap();
}
