//! How slowly a client may send, on each engine.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread::spawn;
use std::time::Duration;

use overlane::plane::trust::Trust;
use overlane::plane::{EngineChoice, Limits};
use overlane_config::route::Role;
use overlane_tests::stage;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_body_that_comes_byte_by_byte_is_a_408() {
    // As many bytes as nobody sends: so each moment of waiting counts.
    let limits = Limits { body: Duration::from_millis(100), body_rate: u32::MAX, ..Limits::default() };
    for (engine, version) in
        [(EngineChoice::Auto, "1.1"), (EngineChoice::Auto, "1.0"), (EngineChoice::Pingora, "1.1")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gateway = stage::listener(Role::Gateway, "", None, Trust::Any);
        let running = stage::start_within(engine, limits.clone(), vec![gateway], stage::files_at("", &url));
        let mut client = TcpStream::connect(running.addresses()[0]).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_nodelay(true).unwrap();
        let head = format!("POST / HTTP/{version}\r\nHost: web\r\nContent-Length: 1000000\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        let (mut upstream, _) = listener.accept().unwrap();
        let (came, comes) = channel();
        spawn(move || {
            let mut bytes = [0; 1024];
            while upstream.read(&mut bytes).is_ok_and(|read| read > 0) && came.send(()).is_ok() {}
        });
        // Each byte is sent when the one before, or the head, has arrived: until the upstream sees no more.
        let mut sent = 0;
        while comes.recv_timeout(PATIENCE).is_ok() {
            assert!(client.write_all(b"a").is_ok() && sent < 500_000, "{engine:?}, {version}");
            sent += 1;
        }
        let mut line = [0; 12];
        client.read_exact(&mut line).unwrap();
        assert_eq!(std::str::from_utf8(&line).unwrap(), "HTTP/1.1 408", "{engine:?}, {version}");
        assert!(sent > 0);
    }
}
