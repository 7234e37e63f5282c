//! Decisions that can be looked at: what each proxy says of each request, and what is made of that.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use overlane::decisions::story::Story;
use overlane::decisions::{Decision, Found, KeyFrom};
use overlane::demo::{Demo, Forwards};
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::stats::Stats;
use overlane_config::route::Role;
use overlane_tests::stage;

use super::hub::{ask, command, follower, hub_of, open, until, url};

fn get(admin: SocketAddr, path: &str) -> String {
    let (status, body) = ask(admin, "GET", path, &[], "");
    assert_eq!(status, 200, "{path}: {body}");
    body
}

fn story(admin: SocketAddr, id: &str) -> Story {
    serde_json::from_str(&get(admin, &format!("/api/v1/why/{id}"))).unwrap()
}

fn decisions(admin: SocketAddr, query: &str) -> Vec<Decision> {
    serde_json::from_str::<Found>(&get(admin, &format!("/api/v1/decisions?{query}"))).unwrap().decisions
}

fn why_not(admin: SocketAddr, path: &str, expected: u16) -> String {
    let (status, body) = ask(admin, "GET", path, &[], "");
    assert_eq!(status, expected, "{path}: {body}");
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
    problem["detail"].as_str().unwrap().to_owned()
}

/// Once the demo was asked for the baseline, and for the overlay.
fn asked(forwards: Forwards) -> (Demo, SocketAddr) {
    let demo = Demo::start(forwards).unwrap();
    let (gateway, admin) = (demo.running().addresses()[0], demo.running().admin());
    assert_eq!(
        [send(gateway, "/", &[]), send(gateway, "/", &[("x-overlay-id", "alice-payments")])],
        [200, 200]
    );
    // A proxy writes down what is over: that may be after its client has the answer.
    until("all hops are written down", || decisions(admin, "").len() == 12);
    (demo, admin)
}

fn trace_of(admin: SocketAddr) -> String {
    decisions(admin, "overlay=alice-payments&role=gateway")[0].trace.clone().unwrap()
}

#[test]
fn each_hop_of_a_request_is_a_decision_and_why_tells_them_in_order() {
    let (demo, admin) = asked(Forwards::Trace);
    let story = story(admin, &trace_of(admin));
    let hops: Vec<_> = story
        .hops
        .iter()
        .map(|hop| {
            let text = |text: &Option<String>| text.clone().unwrap_or("-".to_owned());
            let key_from = hop.key_from.as_str();
            format!(
                "{} {} {} {} {key_from}",
                hop.role,
                text(&hop.caller),
                text(&hop.service),
                text(&hop.environment)
            )
        })
        .collect();
    let expected = [
        "gateway - web staging arrived",
        "inbound web web staging arrived",
        "outbound web payments-api alice-payments restored",
        "inbound payments-api payments-api alice-payments arrived",
        "outbound payments-api ledger staging arrived",
        "inbound ledger ledger staging arrived",
    ];
    assert_eq!(hops, expected);
    let under: Vec<_> = story.tree().into_iter().map(|(branch, _)| branch.chars().count()).collect();
    assert_eq!(under, [0, 3, 6, 9, 12, 15], "each was called by the one before");
    let says = |part: &str| {
        assert!(story.findings.iter().any(|one| one.contains(part)), "{part}: {:#?}", story.findings);
    };
    says("web's call to payments-api came without the key, and its trace gave it back");
    says("`alice-payments` does not own ledger: `staging` served it");
    says("`alice-payments` served payments-api; `staging` served ledger, web");
    // By the name of a hop, which x-overlay-route has, it is the same request.
    let hop = story.hops[3].hop.clone().unwrap();
    assert_eq!(self::story(admin, &hop).hops, story.hops);
    demo.stop();
}

#[test]
fn a_key_that_an_application_drops_is_found_where_it_went() {
    let (demo, admin) = asked(Forwards::Nothing);
    let story = story(admin, &trace_of(admin));
    let lost = story.hops.iter().find(|hop| hop.key_from == KeyFrom::Lost).unwrap();
    assert_eq!((lost.caller.as_deref(), lost.service.as_deref()), (Some("web"), Some("payments-api")));
    let said = "the key `alice-payments` arrived at web, and was absent at payments-api";
    assert!(story.findings.iter().any(|one| one.starts_with(said)), "{:#?}", story.findings);
    demo.stop();
}

#[test]
fn sums_count_each_request_once_and_say_who_called_whom() {
    let (demo, admin) = asked(Forwards::Everything);
    let stats: Stats = serde_json::from_str(&get(admin, "/api/v1/stats")).unwrap();
    let served = |overlay: &str, service: &str| {
        let mut all = stats.services.iter().filter(|one| one.overlay == overlay && one.service == service);
        (all.next().map(|one| (one.via.as_deref().unwrap(), one.counts.requests)), all.next().is_none())
    };
    for service in ["web", "payments-api", "ledger"] {
        assert_eq!(served("", service), (Some(("baseline", 1)), true), "{service}");
    }
    assert_eq!(served("alice-payments", "payments-api"), (Some(("overlay", 1)), true));
    assert_eq!(served("alice-payments", "ledger"), (Some(("baseline", 1)), true));
    let edges: Vec<_> = stats
        .edges
        .iter()
        .filter(|edge| edge.overlay == "alice-payments")
        .map(|edge| (&*edge.from, &*edge.to, &*edge.environment))
        .collect();
    assert_eq!(
        edges,
        [
            ("", "web", "staging"),
            ("payments-api", "ledger", "staging"),
            ("web", "payments-api", "alice-payments")
        ]
    );
    demo.stop();
}

/// The events of a tap, one after another.
struct Tap(BufReader<TcpStream>);

impl Tap {
    fn open(admin: SocketAddr, query: &str) -> Self {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET /api/v1/tap?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut tap = Self(BufReader::new(stream));
        // From here on whatever is decided is told.
        while !tap.line().starts_with(": from now on") {}
        tap
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it ended");
        line
    }

    /// The next event's name, and what it says.
    fn event(&mut self) -> (String, serde_json::Value) {
        let begun = Instant::now();
        loop {
            // Signs of life come all the time.
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing is told");
            if let Some(name) = self.line().strip_prefix("event: ") {
                let said = self.line();
                let said = serde_json::from_str(said.strip_prefix("data: ").unwrap()).unwrap();
                return (name.trim().to_owned(), said);
            }
        }
    }
}

fn gateway() -> (stage::Started, SocketAddr) {
    let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    // Nobody listens there: what is decided is what counts.
    let files = stage::files("", ([127, 0, 0, 1], 1).into());
    let running = stage::start_as(Settings { request_ids: true, ..Settings::in_process(listeners) }, files);
    let address = running.addresses()[0];
    (running, address)
}

/// Asks the gateway; the answer is of no importance.
fn send(gateway: SocketAddr, path: &str, fields: &[(&str, &str)]) -> u16 {
    ask(gateway, "GET", path, fields, "").0
}

#[test]
fn a_tap_tells_what_fits_as_it_is_decided() {
    let (running, gateway) = gateway();
    let mut tap = Tap::open(running.admin(), "overlay=alice&path=/pay&status=5xx");
    send(gateway, "/pay/1", &[]);
    send(gateway, "/cart", &[("x-overlay-id", "alice")]);
    send(gateway, "/pay/2", &[("x-overlay-id", "alice"), ("x-request-id", "r-2")]);
    let (name, said) = tap.event();
    assert_eq!((&*name, &said["path"], &said["requestId"]), ("decision", &"/pay/2".into(), &"r-2".into()));
}

#[test]
fn a_tap_that_may_tell_no_more_says_how_many_it_left_out() {
    let (running, gateway) = gateway();
    let mut tap = Tap::open(running.admin(), "maxRps=1&status=400");
    // Refused at once: many of them come within the second.
    for number in 0..20 {
        assert_eq!(send(gateway, &format!("/{number}"), &[("x-overlay-id", "no id")]), 400);
    }
    let (mut told, mut missed) = (0, 0);
    while told + missed < 20 {
        match tap.event() {
            (name, _) if name == "decision" => told += 1,
            (_, said) => {
                assert_eq!(said["why"], "rate");
                missed += said["missed"].as_u64().unwrap();
            }
        }
    }
    assert!(told >= 1 && missed >= 1, "{told} told, {missed} missed");
}

#[test]
fn no_query_cookie_or_token_is_in_a_decision() {
    let (running, gateway) = gateway();
    let secrets = [
        ("cookie", "s=s3cret"),
        ("authorization", "Bearer s3cret"),
        ("x-overlay-token", "s3cret"),
        ("x-overlay-id", "alice"),
    ];
    send(gateway, "/a;jsessionid=s3cret/b?token=s3cret", &secrets);
    until("it is written down", || !decisions(running.admin(), "").is_empty());
    let (_, text) = ask(running.admin(), "GET", "/api/v1/decisions", &[], "");
    assert!(text.contains("/a;jsessionid=*/b") && !text.contains("s3cret"), "{text}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_to_write() {
    let (running, _) = gateway();
    let admin = running.admin();
    for (path, status, said) in [
        ("/api/v1/decisions?status=6xx", 400, "write 200, 5xx, or several by commas"),
        ("/api/v1/decisions?limit=0", 400, "`limit` is 1 to 10000"),
        ("/api/v1/decisions?maxRps=1", 400, "here `limit` says how many"),
        ("/api/v1/tap?limit=1", 400, "here `maxRps` says how many a second"),
        ("/api/v1/tap?maxRps=0", 400, "`maxRps` is 1 to 10000"),
        ("/api/v1/decisions?id=1", 400, "unknown field `id`"),
        ("/api/v1/why/nothing", 404, "nothing here knows `nothing`"),
    ] {
        let told = why_not(admin, path, status);
        assert!(told.contains(said), "{path}: {told}");
    }
}

#[test]
fn where_decisions_are_off_that_is_said() {
    let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    let settings = Settings { decisions: 0, ..Settings::in_process(listeners) };
    let running = stage::start_as(settings, stage::files("", ([127, 0, 0, 1], 1).into()));
    send(running.addresses()[0], "/", &[]);
    for path in ["/api/v1/decisions", "/api/v1/tap", "/api/v1/why/x"] {
        assert!(why_not(running.admin(), path, 409).contains("`decisions: 0`"));
    }
}

#[test]
fn as_many_look_on_as_may_and_there_is_room_again_when_one_leaves() {
    let (running, _) = gateway();
    let mut taps: Vec<_> = (0..32).map(|_| Tap::open(running.admin(), "")).collect();
    assert!(why_not(running.admin(), "/api/v1/tap", 503).contains("close one of them"));
    taps.pop();
    until("there is room again", || {
        let mut stream = TcpStream::connect(running.admin()).unwrap();
        write!(stream, "GET /api/v1/tap HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.contains(" 200 ")
    });
}

/// A line without its times and its widths.
fn plain(line: &str) -> String {
    line.split_whitespace().filter(|word| !word.contains('.') && *word != "ms").collect::<Vec<_>>().join(" ")
}

#[test]
fn why_draws_the_hops_of_a_request_and_says_what_is_to_be_said() {
    let (demo, admin) = asked(Forwards::Nothing);
    let (trace, admin) = (trace_of(admin), admin.to_string());
    let (code, result, notes) = command(&["why", &trace, "--admin", &admin]);
    assert_eq!((code, &*notes), (0, ""));
    let lines: Vec<_> = result.lines().map(plain).collect();
    let expected = [
        format!("GET / trace {trace}"),
        "gateway → web alice-payments (arrived) staging baseline (not-owned) 200".to_owned(),
        "└─ → web alice-payments (arrived) staging baseline (not-owned) 200".to_owned(),
        "└─ web → payments-api - (lost) staging baseline (no-key) 200".to_owned(),
    ];
    assert_eq!(lines[..4], expected, "{result}");
    assert!(result.contains("\n\n• `alice-payments` does not own web: `staging` served it\n• the key `alice-payments` arrived at web, and was absent at payments-api"), "{result}");
    let (_, json, _) = command(&["why", &trace, "--admin", &admin, "-o", "json"]);
    let told: Story = serde_json::from_str(&json).unwrap();
    assert_eq!(told, story(admin.parse().unwrap(), &trace));
    demo.stop();
}

#[test]
fn why_is_not_found_where_nobody_knows_it_and_fails_where_nobody_answers() {
    let (running, _) = gateway();
    let admin = running.admin().to_string();
    let (code, result, notes) = command(&["why", "a b/c", "--admin", &admin, "--admin", "127.0.0.1:1"]);
    assert_eq!((code, &*result), (4, ""));
    assert!(
        notes.starts_with(&format!("error: {admin}: nothing here knows `a b/c`"))
            && notes.contains("127.0.0.1:1: "),
        "{notes}"
    );
    let (code, _, notes) = command(&["why", "x", "--admin", "127.0.0.1:1"]);
    assert!(code == 1 && notes.contains("help: name a hub with `--server URL`"), "{notes}");
}

#[test]
fn tap_prints_a_line_for_each_request_that_fits_and_ends_after_so_many() {
    let (running, gateway) = gateway();
    let admin = running.admin().to_string();
    let over = std::sync::atomic::AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        // They are told from when they are asked for; nobody else knows when that is.
        scope.spawn(|| {
            while !over.load(Relaxed) {
                send(gateway, "/cart", &[]);
                send(gateway, "/pay", &[("x-overlay-id", "no id")]);
            }
        });
        let table = command(&["tap", "--admin", &admin, "--status", "400", "-n", "2"]);
        let json = command(&["tap", "--admin", &admin, "--path", "/pay", "-n", "1", "-o", "json"]);
        over.store(true, Relaxed);
        [table, json]
    });
    let [(code, table, notes), (_, json, _)] = told;
    assert_eq!((code, &*notes), (0, "Requests as they pass; Ctrl-C ends it.\n"));
    let lines: Vec<_> =
        table.lines().map(|line| plain(&line.replace(&gateway.to_string(), "HOST"))).collect();
    assert_eq!(lines, ["400 GET gateway → HOST - (invalid-key) - (absent) /pay"; 2]);
    let decision: Decision = serde_json::from_str(&json).unwrap();
    assert_eq!((&*decision.path, decision.status, &*decision.role), ("/pay", 400, "gateway"));
}

#[test]
fn top_shows_rates_by_overlay_and_service() {
    let (demo, admin) = asked(Forwards::Everything);
    let (gateway, admin) = (demo.running().addresses()[0], admin.to_string());
    let over = std::sync::atomic::AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                send(gateway, "/", &[("x-overlay-id", "alice-payments")]);
            }
        });
        let told = command(&["top", "--once", "--overlay", "alice-payments", "--admin", &admin]);
        over.store(true, Relaxed);
        told
    });
    let (code, table, notes) = told;
    assert_eq!((code, &*notes), (0, ""));
    let words: Vec<_> =
        table.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "OVERLAY SERVICE VIA",
        "alice-payments ledger baseline",
        "alice-payments payments-api overlay",
        "alice-payments web baseline",
        "",
        "added by each",
    ];
    assert_eq!(words, expected, "{table}");
    demo.stop();
    let (code, _, notes) = command(&["top", "--interval", "0s"]);
    assert_eq!((code, notes.contains("write a time such as `1s`")), (2, true), "{notes}");
}

/// A hub over a folder with the usual environments, and proxies that follow it. Whoever is asked for is routed nowhere.
fn fleet(folder: &tempfile::TempDir, followers: usize) -> (stage::Started, Vec<stage::Started>) {
    for (name, routing) in
        [("base", "mode: baseline, holdFor: 10ms"), ("alice", "mode: overlay, baselineId: base")]
    {
        let text = format!(
            "name: {name}\nrouting: {{{routing}}}\nservices: [{{name: web, expose: true, url: 'http://127.0.0.1:1'}}]\n"
        );
        std::fs::write(folder.path().join(format!("{name}.yaml")), text).unwrap();
    }
    let hub = hub_of(folder.path(), open());
    let proxies: Vec<_> = (0..followers).map(|_| follower(&url(&hub))).collect();
    let asked = || serde_json::from_str::<Stats>(&get(hub.hub().unwrap(), "/api/v1/stats")).unwrap();
    until("all of them answer the hub", || asked().proxies == followers + 1 && asked().silent.is_empty());
    (hub, proxies)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Asks each of these proxies for the overlay, in one trace.
fn ask_each(proxies: &[stage::Started]) {
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    for (at, proxy) in proxies.iter().enumerate() {
        let fields = [("x-overlay-id", "alice"), ("traceparent", &*parent)];
        assert_eq!(send(proxy.addresses()[0], &format!("/{at}"), &fields), 503);
    }
}

#[test]
fn a_hub_answers_for_all_who_report_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, proxies) = fleet(&folder, 2);
    let at = hub.hub().unwrap();
    ask_each(&proxies);
    until("both tell what they decided", || decisions(at, "overlay=alice").len() == 2);
    let newest: Vec<_> = decisions(at, "overlay=alice").into_iter().map(|one| one.path).collect();
    assert_eq!(newest, ["/1", "/0"], "newest first, whoever decided");
    assert_eq!(decisions(at, "overlay=alice&limit=1").len(), 1);
    let told = story(at, TRACE);
    let proxies: std::collections::BTreeSet<_> = told.hops.iter().map(|hop| &hop.proxy).collect();
    assert_eq!((told.hops.len(), proxies.len()), (2, 2), "{told:#?}");
    let stats: Stats = serde_json::from_str(&get(at, "/api/v1/stats")).unwrap();
    let requests: u64 =
        stats.services.iter().filter(|one| one.overlay == "alice").map(|one| one.counts.requests).sum();
    assert_eq!((stats.proxies, requests), (3, 2));
    assert!(why_not(at, "/api/v1/why/nothing", 404).contains("2 proxies and this one were asked"));
    // The same for people.
    let server = url(&hub);
    let (code, result, notes) = command(&["why", TRACE, "--server", &server]);
    assert_eq!((code, &*notes, result.matches("gateway → web").count()), (0, "", 2), "{result}");
    let (code, result, _) = command(&["doctor", "--server", &server]);
    assert!(code == 0 && result.starts_with("No calls were counted"), "{result}");
    let (code, result, notes) = command(&["top", "--server", &server, "--once", "--interval", "10ms"]);
    assert_eq!((code, &*result, &*notes), (0, "no requests within 10ms\n", ""));
}

#[test]
fn a_tap_at_a_hub_tells_what_all_proxies_decide_and_they_stop_when_nobody_looks() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, proxies) = fleet(&folder, 2);
    let at = hub.hub().unwrap();
    let mut taps: Vec<_> = (0..3).map(|_| Tap::open(at, "overlay=alice")).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // From when the proxies tell, nobody else knows.
        scope.spawn(|| {
            while !over.load(Relaxed) {
                ask_each(&proxies);
            }
        });
        for tap in &mut taps {
            let mut heard = BTreeSet::new();
            while heard.len() < proxies.len() {
                let (name, said) = tap.event();
                heard.extend((name == "decision").then(|| said["path"].as_str().unwrap().to_owned()));
            }
            assert!(heard.iter().map(String::as_str).eq(["/0", "/1"]), "{heard:?}");
        }
        over.store(true, Relaxed);
    });
    drop(taps);
    let look = |proxy: &stage::Started| {
        let mut stream = TcpStream::connect(proxy.admin()).unwrap();
        write!(stream, "GET /api/v1/tap HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut line, mut reader) = (String::new(), BufReader::new(stream));
        reader.read_line(&mut line).unwrap();
        (line.contains(" 200 "), reader)
    };
    // All places at a proxy can be had: the hub has none.
    let is_free = |proxy: &stage::Started| {
        let all: Vec<_> = (0..32).map(|_| look(proxy)).collect();
        all.iter().all(|(looks, _)| *looks)
    };
    until("nobody is told any more", || proxies.iter().all(is_free));
}

#[test]
fn who_comes_while_somebody_looks_is_asked_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, _) = fleet(&folder, 0);
    let mut tap = Tap::open(hub.hub().unwrap(), "");
    let late = [follower(&url(&hub))];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // From when it is asked, nobody else knows.
        scope.spawn(|| {
            while !over.load(Relaxed) {
                ask_each(&late);
            }
        });
        assert_eq!(tap.event().0, "decision");
        over.store(true, Relaxed);
    });
}

#[test]
fn a_proxy_that_does_not_answer_is_named_and_not_waited_for_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, proxies) = fleet(&folder, 1);
    let at = hub.hub().unwrap();
    ask_each(&proxies);
    let mut mute = TcpStream::connect(at).unwrap();
    write!(mute, "GET /hub/v1/questions?id=mute HTTP/1.1\r\nHost: {at}\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(&mute).read_line(&mut line).unwrap();
    assert!(line.contains(" 200 "), "{line}");
    let found: Found = serde_json::from_str(&get(at, "/api/v1/decisions?overlay=alice")).unwrap();
    assert_eq!((found.silent, found.decisions.len()), (vec!["mute".to_owned()], 1));
    assert!(story(at, TRACE).findings.contains(&"hops may be missing: mute did not answer".to_owned()));
    assert!(why_not(at, "/api/v1/why/nothing", 404).contains("mute did not answer"));
    let (_, _, notes) = command(&["top", "--server", &url(&hub), "--once", "--interval", "1ms"]);
    assert_eq!(notes, "warning: mute did not answer: the sums are without them\n");
    drop(mute);
    until("who went away is asked no more", || {
        serde_json::from_str::<Stats>(&get(at, "/api/v1/stats")).unwrap().silent.is_empty()
    });
}

#[test]
fn answers_to_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, _) = fleet(&folder, 0);
    let json = [("content-type", "application/json")];
    for (body, status) in [
        (r#"{"id":"x","number":77,"told":{"of":[]}}"#, 410),
        (r#"{"id":"x","number":77,"told":{"else":[]}}"#, 400),
        ("{", 400),
    ] {
        assert_eq!(ask(hub.hub().unwrap(), "POST", "/hub/v1/answers", &json, body).0, status, "{body}");
    }
    assert_eq!(ask(hub.hub().unwrap(), "GET", "/hub/v1/questions?id=", &[], "").0, 400);
}
