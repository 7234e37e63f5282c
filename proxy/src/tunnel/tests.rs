//! Tunnels through a hub, end to end in one process: what holds of a connection of TCP holds of one through a tunnel.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::url::{Scheme, Url};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::*;
use crate::hub::tokens::{HubSettings, Right};
use crate::local::Changed;
use crate::names::Reach as _;
use crate::process::{Prepared, Running};
use crate::settings::Settings;
use crate::store::StoreAddress;
use crate::store::hub::{HubAddress, HubStore};

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A hub, and the runtime of a machine that dials it.
struct World {
    _store: TempDir,
    hub: Running,
    laptop: Option<Runtime>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(laptop) = self.laptop.take() {
            laptop.shutdown_background();
        }
    }
}

/// A hub in whose table these places are.
fn hub(offers: bool, right: Right, places: &[SocketAddr]) -> World {
    let store = tempfile::tempdir().expect("folder");
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings {
        hub: Some(HubSettings { address, tokens: None, read_tokens: None, open: right }),
        hub_tunnels: offers.then(|| "127.0.0.1".parse().expect("a host")),
        store: Some(StoreAddress::directory(store.path())),
        ..Settings::in_process(Vec::new())
    };
    let prepared = Prepared::bind(settings).expect("bound");
    let service = |(at, place): (usize, &SocketAddr)| format!("- {{name: s{at}, url: 'http://{place}'}}\n");
    let services: String = places.iter().enumerate().map(service).collect();
    let baseline = format!("name: staging\nrouting: {{mode: baseline}}\nservices:\n{services}");
    std::fs::write(store.path().join("staging.yaml"), baseline).expect("written");
    let hub = prepared.start(Vec::new()).expect("started");
    let laptop = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    World { _store: store, hub, laptop: Some(laptop.expect("a runtime")) }
}

impl World {
    fn laptop(&self) -> &Runtime {
        self.laptop.as_ref().expect("it is there")
    }

    fn store(&self) -> HubStore {
        let address: HubAddress =
            format!("http://{}", self.hub.hub().expect("a hub")).parse().expect("address");
        HubStore::for_tunnels(address)
    }

    /// A tunnel to a place; where it is entered.
    fn tunnel(&self, to: SocketAddr) -> Result<SocketAddr, String> {
        let changed = Changed {
            overlay: "alice".parse().expect("id"),
            service: "web".parse().expect("name"),
            baseline: "staging".parse().expect("id"),
            scheme: Scheme::Http,
        };
        let opened = Inward::start(self.store(), changed, to, self.laptop().handle());
        let url = self.laptop().block_on(opened).map_err(|fault| fault.to_string())?;
        let url = url.borrow().clone().expect("open");
        Ok(url.authority().parse().expect("an address"))
    }

    /// Does something within [`LIMIT`].
    fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.laptop().block_on(async { timeout(LIMIT, what).await.expect("in time") })
    }
}

/// A service, and both ends of a connection to it through a new tunnel.
async fn pair(service: &TcpListener, entrance: SocketAddr) -> (TcpStream, TcpStream) {
    let (client, server) = tokio::join!(TcpStream::connect(entrance), service.accept());
    (client.expect("connected"), server.expect("accepted").0)
}

fn service(world: &World) -> (TcpListener, SocketAddr) {
    let service = world.laptop().block_on(TcpListener::bind("127.0.0.1:0")).expect("bound");
    let at = service.local_addr().expect("address");
    (service, at)
}

async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.map(|_| all)
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_by_itself() {
    let world = hub(true, Right::Write, &[]);
    let (service, at) = service(&world);
    let entrance = world.tunnel(at).expect("open");
    world.run(async {
        let (mut client, mut server) = pair(&service, entrance).await;
        // The server speaks first, as those of mail and databases do.
        server.write_all(b"220 hello").await.expect("written");
        let mut greeting = [0; 9];
        client.read_exact(&mut greeting).await.expect("read");
        assert_eq!(&greeting, b"220 hello");
        let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
        let (written, received) = tokio::join!(
            async {
                client.write_all(&sent).await.expect("written");
                client.shutdown().await
            },
            read_all(&mut server)
        );
        written.expect("ended");
        assert!(received.expect("read") == sent, "they are the same");
        // Only one side is over.
        server.write_all(&sent).await.expect("written");
        drop(server);
        assert!(read_all(&mut client).await.expect("read") == sent);
    });
}

#[test]
fn a_connection_that_breaks_on_one_side_breaks_on_the_other() {
    let world = hub(true, Right::Write, &[]);
    let (service, at) = service(&world);
    let entrance = world.tunnel(at).expect("open");
    let abort = |stream: TcpStream| {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
        drop(stream);
    };
    world.run(async {
        for client_breaks in [true, false] {
            let (mut client, mut server) = pair(&service, entrance).await;
            client.write_all(b"x").await.expect("written");
            server.read_u8().await.expect("read");
            let (breaks, mut other) = if client_breaks { (client, server) } else { (server, client) };
            abort(breaks);
            let seen = read_all(&mut other).await;
            assert!(seen.is_err(), "an end in peace is something else: {seen:?}");
        }
    });
}

#[test]
fn who_does_not_read_holds_its_sender_up_and_nobody_else() {
    let world = hub(true, Right::Write, &[]);
    let (service, at) = service(&world);
    let entrance = world.tunnel(at).expect("open");
    world.run(async {
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let (mut client, server) = pair(&service, entrance).await;
            let mut sent = 0usize;
            let chunk = [7; 65536];
            while let Ok(count) = timeout(Duration::from_millis(200), client.write(&chunk)).await {
                sent += count.expect("written");
                assert!(sent < 64 << 20, "memory without bounds");
            }
            stalled.push((client, server, sent));
        }
        let (mut client, mut server) = pair(&service, entrance).await;
        client.write_all(b"ping").await.expect("written");
        let mut heard = [0; 4];
        server.read_exact(&mut heard).await.expect("read");
        for (client, mut server, sent) in stalled {
            drop(client);
            assert_eq!(read_all(&mut server).await.expect("read").len(), sent, "nothing is lost");
        }
    });
}

#[test]
fn many_connections_at_once_get_through() {
    let world = hub(true, Right::Write, &[]);
    let (service, at) = service(&world);
    let entrance = world.tunnel(at).expect("open");
    world.laptop().spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    world.run(async {
        let one = |number: u32| async move {
            let mut client = TcpStream::connect(entrance).await.expect("connected");
            let text = number.to_string().repeat(1000);
            client.write_all(text.as_bytes()).await.expect("written");
            client.shutdown().await.expect("ended");
            assert!(read_all(&mut client).await.expect("read") == text.as_bytes(), "{number}");
        };
        let all: Vec<_> = (0..150).map(|number| tokio::spawn(one(number))).collect();
        for one in all {
            one.await.expect("it got through");
        }
    });
}

#[test]
fn a_tunnel_ends_with_who_opened_it() {
    let mut world = hub(true, Right::Write, &[]);
    let (service, at) = service(&world);
    let entrance = world.tunnel(at).expect("open");
    drop(service);
    world.laptop.take().expect("it is there").shutdown_background();
    let begun = std::time::Instant::now();
    while std::net::TcpStream::connect(entrance).is_ok() {
        assert!(begun.elapsed() < LIMIT, "its port is still open");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tunnels_are_only_where_they_are_offered_and_for_who_may_write() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let refused = hub(false, Right::Write, &[]).tunnel(nowhere).expect_err("not offered");
    assert!(refused.contains("--hub-tunnels"), "{refused}");
    let refused = hub(true, Right::Read, &[]).tunnel(nowhere).expect_err("may only read");
    assert!(refused.contains("--server-token-file"), "{refused}");
}

#[test]
fn calls_go_out_to_places_of_the_table_and_to_no_other() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let known = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let _ = io::Write::write_all(&mut &stream, b"here");
        }
    });
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let unknown = other.local_addr().expect("address");
    let world = hub(true, Right::Write, &[known]);
    // A blueprint may say what it likes: the hub's own listeners are nobody's services.
    let admin = world.hub.admin();
    let text = format!(
        "name: evil\nrouting: {{mode: overlay, baselineId: staging}}\nservices: [{{name: s0, url: 'http://{admin}'}}]\n"
    );
    std::fs::write(world._store.path().join("evil.yaml"), text).expect("written");
    world.hub.reload(crate::control::Trigger::Request).expect("read");
    let outward = Outward::new(world.store(), world.laptop().handle().clone());
    let heard = |to: SocketAddr| {
        let url: Url = format!("http://{to}").parse().expect("url");
        let at = outward.reach(&url).expect("a listener");
        assert!(at.ip().is_loopback() && at != to, "{at}");
        assert_eq!(outward.reach(&url), Ok(at), "the same each time");
        world.run(async {
            let mut stream = TcpStream::connect(at).await.expect("connected");
            // Whether it ends or breaks: no byte comes.
            read_all(&mut stream).await.unwrap_or_default()
        })
    };
    assert_eq!(heard(known), b"here");
    assert_eq!((heard(unknown), heard(admin)), (Vec::new(), Vec::new()));
    other.set_nonblocking(true).expect("set");
    assert!(other.accept().is_err(), "nobody came");
    let _ = Arc::strong_count(&outward);
    assert!(outward.reach(&"unix:/run/app.sock".parse().expect("url")).is_err());
}

/// `cargo test --release -p overlane --lib -- --ignored --nocapture tunnel_beside`
#[test]
#[ignore = "it shows figures"]
#[expect(clippy::print_stdout, reason = "they are read")]
fn figures_of_a_tunnel_beside_a_direct_connection() {
    const BYTES: usize = 1 << 30;
    const ROUNDS: u32 = 5_000;
    let world = hub(true, Right::Write, &[]);
    let (service, at) = service(&world);
    let entrance = world.tunnel(at).expect("open");
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    elsewhere.spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(count) = stream.read(&mut buffer).await {
                    // One byte is answered, more are swallowed.
                    if count == 0 || count == 1 && stream.write_all(&buffer[..1]).await.is_err() {
                        break;
                    }
                }
                let _ = stream.write_all(b".").await;
            });
        }
    });
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let measure = |to: SocketAddr| {
        client.block_on(async {
            let mut stream = TcpStream::connect(to).await.expect("connected");
            stream.set_nodelay(true).expect("set");
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let begun = std::time::Instant::now();
                stream.write_all(b"x").await.expect("written");
                stream.read_u8().await.expect("read");
                times.push(begun.elapsed());
            }
            times.sort();
            let begun = std::time::Instant::now();
            let chunk = vec![0; 65536];
            for _ in 0..BYTES / chunk.len() {
                stream.write_all(&chunk).await.expect("written");
            }
            stream.shutdown().await.expect("ended");
            stream.read_u8().await.expect("read");
            (
                times[times.len() / 2],
                times[times.len() * 99 / 100],
                BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6,
            )
        })
    };
    let shown =
        [("direct", at), ("tunnel", entrance), ("direct", at), ("tunnel", entrance)].map(|(name, to)| {
            let (median, late, rate) = measure(to);
            println!("{name}: round trip p50 {median:?}, p99 {late:?}; {rate:.0} MB/s");
            (median, rate)
        });
    println!(
        "added p50 {:?}; throughput {:.2} of direct",
        shown[3].0.saturating_sub(shown[2].0),
        shown[3].1 / shown[2].1
    );
}
