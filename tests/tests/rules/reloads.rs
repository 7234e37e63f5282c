//! Reloads under load: through the store, its watcher and the published table, while keep-alive connections ask without
//! a pause. Each generation leads somewhere else, so that an answer tells the generation that it is of.
//!
//! `OVERLANE_RELOADS` sets how many; with it, latencies with and without reloads are compared as well, in rounds that
//! take turns. `.ci/full` asks for 10,000.
#![allow(clippy::print_stdout, reason = "figures are shown with --nocapture")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::snapshot::Published;
use overlane::store::StoreAddress;
use overlane_config::route::Role;
use overlane_tests::stage::{self, Started};

use super::lost::{Line, field, local, serve};

/// How many generations lead to different places.
const PLACES: u64 = 16;
const CONNECTIONS: usize = 8;
/// Connections that are idle meanwhile.
const IDLE: usize = 8;
/// The pace at which latencies are compared: what two cores do without being busy.
const PACE: Duration = Duration::from_millis(4);
const RELOAD_EVERY: Duration = Duration::from_millis(10);
const ROUND: usize = 250;

fn reloads() -> Option<usize> {
    std::env::var("OVERLANE_RELOADS").ok().map(|count| count.parse().unwrap())
}

/// A store of which every write makes one generation, and a gateway.
struct Reloaded {
    running: Started,
    folder: tempfile::TempDir,
    change: Change,
    /// Where services are, in turns.
    places: Vec<SocketAddr>,
    written: u64,
}

/// What changes from one generation to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Where services are, and whether the overlay owns this one: every place is a new one, to be connected to.
    Places,
    /// Whose child the overlay is: places, and the connections to them, stay.
    Parent,
}

impl Change {
    /// Where the answer of a generation is from, and by what.
    fn told(self, generation: u64) -> (u64, &'static str) {
        match self {
            Self::Places if generation.is_multiple_of(2) => (generation % PLACES, "overlay"),
            Self::Places => (generation % PLACES, "baseline"),
            Self::Parent => (generation % 2, "ancestor"),
        }
    }

    fn text(self, generation: u64, places: &[SocketAddr]) -> String {
        let (place, via) = self.told(generation);
        let url = places[usize::try_from(place).unwrap()];
        let overlay = |name: &str, parent: &str, service: &str, url: SocketAddr| {
            format!(
                "---\nname: {name}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: {service}, url: 'http://{url}'}}]\n"
            )
        };
        let base = |url: SocketAddr| {
            format!(
                "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, url: 'http://{url}'}}, {{name: ledger, url: 'http://{url}'}}]\n"
            )
        };
        match self {
            Self::Places => {
                base(url) + &overlay("alice", "base", if via == "overlay" { "web" } else { "ledger" }, url)
            }
            Self::Parent => {
                let parents =
                    [overlay("even", "base", "web", places[0]), overlay("odd", "base", "web", places[1])];
                let parent = if place == 0 { "even" } else { "odd" };
                base(places[2]) + &parents.concat() + &overlay("alice", parent, "ledger", places[2])
            }
        }
    }
}

impl Reloaded {
    fn start(change: Change) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let places = (0..PLACES).map(|_| {
            let socket = local();
            let address = socket.local_addr().unwrap();
            serve(socket, move || address, |address, _| address.port().to_string());
            address
        });
        let places: Vec<_> = places.collect();
        write(folder.path(), &change.text(1, &places));
        let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
        let store = Some(StoreAddress::directory(folder.path()));
        // Only reloads could close what is idle.
        let limits = Limits { idle: Duration::from_secs(3600), ..Limits::default() };
        let settings = Settings { store, limits, workers: 2, ..Settings::in_process(listeners) };
        let running = stage::start_as(settings, Vec::new());
        assert_eq!(running.control().published().load().generation, 1);
        Self { running, folder, change, places, written: 1 }
    }

    /// Writes the next generation, and waits until it is in force.
    fn reload(&mut self) {
        self.written += 1;
        write(self.folder.path(), &self.change.text(self.written, &self.places));
        let published = self.running.control().published();
        let until = Instant::now() + Duration::from_secs(30);
        while published.load().generation < self.written {
            assert!(Instant::now() < until, "generation {} does not come", self.written);
            std::thread::sleep(Duration::from_micros(50));
        }
        assert_eq!(published.load().generation, self.written);
    }

    fn client(&self) -> Client {
        Client {
            line: Line::to(self.running.addresses()[0]),
            published: self.running.control().published().clone(),
            change: self.change,
            places: self.places.clone(),
            last: 0,
            took: Vec::new(),
        }
    }
}

fn write(folder: &Path, text: &str) {
    fs::write(folder.join(".next"), text).unwrap();
    fs::rename(folder.join(".next"), folder.join("all.yaml")).unwrap();
}

/// One connection, which must never be closed, and the newest generation that it saw.
struct Client {
    line: Line,
    published: Arc<Published>,
    change: Change,
    places: Vec<SocketAddr>,
    last: u64,
    took: Vec<Duration>,
}

impl Client {
    fn ask(&mut self) {
        let from = self.published.load().generation.max(self.last);
        let began = Instant::now();
        let (head, body) = self.line.exchange("shop", "x-overlay-id: alice\r\n");
        self.took.push(began.elapsed());
        let until = self.published.load().generation;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(field(&head, "connection"), None, "{head}");
        let receipt = field(&head, "x-overlay-route").expect("a receipt");
        let agrees = |generation: &u64| {
            let (place, via) = self.change.told(*generation);
            body == self.places[usize::try_from(place).unwrap()].port().to_string()
                && receipt.contains(&format!("via={via}"))
        };
        let of = (from..=until).find(agrees);
        self.last =
            of.unwrap_or_else(|| panic!("{receipt} by {body} is of no generation from {from} to {until}"));
    }
}

/// Everybody asks until `reload` is over; gives how long each answer took.
fn load(
    reloaded: &mut Reloaded,
    pace: Option<Duration>,
    reload: impl FnOnce(&mut Reloaded),
) -> Vec<Duration> {
    let over = Arc::new(AtomicBool::new(false));
    let clients = (0..CONNECTIONS).map(|_| {
        let (mut client, over) = (reloaded.client(), over.clone());
        std::thread::spawn(move || {
            while !over.load(SeqCst) {
                client.ask();
                pace.into_iter().for_each(std::thread::sleep);
            }
            client.took
        })
    });
    let clients: Vec<_> = clients.collect();
    reload(reloaded);
    over.store(true, SeqCst);
    clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() * 99 / 100]
}

#[test]
fn reloads_lose_no_request_close_no_connection_and_every_answer_is_of_one_generation_that_never_goes_back() {
    let mut reloaded = Reloaded::start(Change::Places);
    let mut idle: Vec<_> = (0..IDLE).map(|_| reloaded.client()).collect();
    idle.iter_mut().for_each(Client::ask);
    let count = reloads().unwrap_or(300);
    let began = Instant::now();
    let took = load(&mut reloaded, None, |reloaded| (0..count).for_each(|_| reloaded.reload()));
    println!(
        "{count} reloads in {:.1?}, {} answers, none lost, p99 {:?}",
        began.elapsed(),
        took.len(),
        p99(took.clone())
    );
    assert!(took.len() > count / 10, "{} answers are no load", took.len());
    idle.iter_mut().for_each(Client::ask);
}

#[test]
fn reloads_do_not_make_the_slowest_requests_much_slower() {
    let Some(count) = reloads() else { return };
    let mut reloaded = Reloaded::start(Change::Parent);
    let mut ratios = Vec::new();
    for _ in 0..(count / ROUND).max(1) {
        let span = RELOAD_EVERY * u32::try_from(ROUND).unwrap();
        let without = p99(load(&mut reloaded, Some(PACE), |_| std::thread::sleep(span)));
        let with = p99(load(&mut reloaded, Some(PACE), |reloaded| {
            let began = Instant::now();
            for number in 1..=u32::try_from(ROUND).unwrap() {
                reloaded.reload();
                std::thread::sleep((RELOAD_EVERY * number).saturating_sub(began.elapsed()));
            }
        }));
        ratios.push((with.as_secs_f64() / without.as_secs_f64(), without, with));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (ratio, without, with) = ratios[ratios.len() / 2];
    let per_second = 1.0 / RELOAD_EVERY.as_secs_f64();
    println!(
        "p99 with {per_second} reloads a second: {ratio:.2} times that without ({without:?} -> {with:?}, the median of {} rounds)",
        ratios.len()
    );
    assert!(ratio <= 1.2, "{ratio:.2}");
}
