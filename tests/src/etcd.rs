//! A real etcd: Debian's `etcd-server`, in a temporary folder, on ports of its own.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use overlane::client;
use serde_json::{Value, json};
use tempfile::TempDir;

/// It is given so long to start.
const START: Duration = Duration::from_secs(60);

/// How etcd is reached.
#[derive(Default)]
pub struct Tls {
    /// Its certificate and key.
    pub pair: (PathBuf, PathBuf),
    /// The authority of clients' certificates.
    pub clients: PathBuf,
}

/// A member that runs, alone.
pub struct Etcd {
    folder: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    tls: Option<Tls>,
    child: Option<Child>,
}

impl Etcd {
    /// Starts one in the clear.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts one that speaks TLS and asks clients for a certificate.
    #[must_use]
    pub fn start_with(tls: Option<Tls>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut etcd = Self { folder, client: free(), peer: free(), tls, child: None };
        etcd.again();
        etcd
    }

    /// Where clients reach it.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.client
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It is ours; that it has ended by itself is seen by who asks it.
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Starts it with what it wrote before.
    pub fn again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let (client, peer) = (format!("{scheme}://{}", self.client), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--initial-cluster", &format!("one={peer}")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "250", "--logger", "zap"]);
        command.arg("--data-dir").arg(self.folder.path());
        if let Some(Tls { pair: (certificate, key), clients }) = &self.tls {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(clients);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("etcd runs: `apt-get install etcd-server`");
        let said = BufReader::new(child.stderr.take().unwrap());
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let mut before = String::new();
            for line in said.lines().map_while(Result::ok) {
                // Of 3.4, and of later ones.
                if line.contains("serving client traffic") || line.contains("ready to serve client requests")
                {
                    // Whoever waits may have given up.
                    let _ = ready.send(Ok(()));
                }
                // Writing to a string does not fail.
                let _ = writeln!(before, "{line}");
            }
            let _ = ready.send(Err(before));
        });
        self.child = Some(child);
        match is_ready.recv_timeout(START) {
            Ok(Ok(())) => {}
            Ok(Err(said)) => panic!("etcd ended:\n{said}"),
            Err(_) => panic!("etcd does not start"),
        }
    }

    /// Ends it, and starts it with nothing, as who has to restore it.
    pub fn anew(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.folder.path().join("member")).unwrap();
        self.again();
    }

    /// Asks it by its JSON gateway, which knows all its calls.
    ///
    /// # Panics
    /// It refuses.
    pub async fn call(&self, path: &str, token: Option<&str>, body: Value) -> Value {
        let at = self.client.to_string();
        let mut request = Request::post(path).header("host", &at);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request.body(Bytes::from(body.to_string()).into()).unwrap();
        let answer = client::send(&at, request).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}: {:?}", answer.body());
        serde_json::from_slice(answer.body()).unwrap()
    }

    /// Writes a key as somebody else would, with `etcdctl put`.
    pub async fn put(&self, key: &str, value: &[u8]) -> u64 {
        revision(&self.call("/v3/kv/put", None, json!({"key": base64(key), "value": base64(value)})).await)
    }

    /// What a key holds.
    pub async fn get(&self, key: &str) -> Option<String> {
        use base64::Engine as _;
        let found = self.call("/v3/kv/range", None, json!({"key": base64(key)})).await;
        let value = found["kvs"][0]["value"].as_str()?;
        let value = base64::engine::general_purpose::STANDARD.decode(value).unwrap();
        Some(String::from_utf8(value).unwrap())
    }

    /// Makes it forget all states but the present one.
    pub async fn compact(&self) {
        let now = revision(&self.put_nothing().await);
        self.call("/v3/kv/compaction", None, json!({"revision": now.to_string(), "physical": true})).await;
    }

    async fn put_nothing(&self) -> Value {
        self.call("/v3/kv/put", None, json!({"key": base64("/nothing"), "value": ""})).await
    }

    /// Wants a user and a password from now on: `root` with `secret`, and `overlane` with `secret`, who may read and
    /// write below `/overlane/`.
    pub async fn ask_for_users(&self) {
        for user in ["root", "overlane"] {
            self.call("/v3/auth/user/add", None, json!({"name": user, "password": "secret"})).await;
            self.call("/v3/auth/role/add", None, json!({"name": user})).await;
            self.call("/v3/auth/user/grant", None, json!({"user": user, "role": user})).await;
        }
        let keys =
            json!({"permType": "READWRITE", "key": base64("/overlane/"), "range_end": base64("/overlane0")});
        self.call("/v3/auth/role/grant", None, json!({"name": "overlane", "perm": keys})).await;
        self.call("/v3/auth/enable", None, json!({})).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn revision(answer: &Value) -> u64 {
    answer["header"]["revision"].as_str().unwrap().parse().unwrap()
}

/// As its JSON gateway has keys and values.
#[must_use]
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The host of the engines of this test process: nobody's connections begin there, so that a port that was free, or was an engine's
/// until it was killed, is not taken by them meanwhile.
#[must_use]
pub fn host() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + a % 64, b, c.max(1))
}

/// An address that nobody has. It is not held: etcd must bind it itself.
fn free() -> SocketAddr {
    TcpListener::bind((host(), 0)).unwrap().local_addr().unwrap()
}
