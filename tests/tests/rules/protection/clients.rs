//! How many connections a client has.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use overlane::plane::Limits;
use overlane::plane::forwarded::Forwarding;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::route::Role;
use overlane_tests::stage;

use super::{ENGINES, PATIENCE, service};
use crate::ask::metrics;

/// A connection, and whether it is served.
fn connect(address: SocketAddr) -> (TcpStream, bool) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let served = asked.and_then(|()| stream.read_exact(&mut [0; 12])).is_ok();
    (stream, served)
}

#[test]
fn a_client_has_so_many_connections_at_a_gateway_and_more_are_closed_and_counted() {
    for engine in ENGINES {
        let (upstream, _heads) = service("web");
        let limits = Limits { client_connections: Some(2), ..Limits::default() };
        let gateway = stage::listener(Role::Gateway, "", None, Trust::Any);
        let settings = Settings { engine, limits, ..Settings::in_process(vec![gateway]) };
        let running = stage::start_as(settings.clone(), stage::files("", upstream));
        let address = running.addresses()[0];
        let (first, second) = (connect(address), connect(address));
        assert!(first.1 && second.1, "{engine:?}");
        assert!(!connect(address).1, "{engine:?}: a third one is not served");
        let metrics = metrics(running.admin());
        assert!(metrics.contains("\noverlane_client_full_total 1\n"), "{metrics}");
        drop(first);
        // That it is closed is seen when it is seen.
        let until = Instant::now() + PATIENCE;
        while !connect(address).1 {
            assert!(Instant::now() < until, "{engine:?}: the place does not come back");
        }
        let hops = vec!["127.0.0.0/8".parse().unwrap()];
        let forwarding = Forwarding { hops, ..Forwarding::default() };
        let running = stage::start_as(Settings { forwarding, ..settings }, stage::files("", upstream));
        let of_a_hop: Vec<_> = (0..4).map(|_| connect(running.addresses()[0])).collect();
        assert!(of_a_hop.iter().all(|(_, served)| *served), "{engine:?}: a hop is not a client");
    }
}
