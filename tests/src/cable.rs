//! A cable between a client and a server of TCP, which can be pulled, or carry nothing while it looks plugged in.

use std::io;
use std::net::SocketAddr;
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugged {
    /// Everything.
    In,
    /// Connections stay and open, and nothing passes: as a firewall that lost its state.
    Silent,
    /// No connection stays or opens.
    Out,
}

/// The cable; its connections end with it.
pub struct Cable {
    at: SocketAddr,
    plugged: watch::Sender<Plugged>,
}

impl Cable {
    /// Lays one to a server.
    #[must_use]
    pub fn to(server: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let (plugged, told) = watch::channel(Plugged::In);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, server, told));
        });
        Self { at, plugged }
    }

    /// Where clients find the server.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// From now on it carries this.
    pub fn plug(&self, plugged: Plugged) {
        self.plugged.send_replace(plugged);
    }
}

/// Until the cable is gone.
async fn accept(listener: std::net::TcpListener, server: SocketAddr, mut told: watch::Receiver<Plugged>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let plugged = told.clone();
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted && *plugged.borrow() != Plugged::Out {
                    tokio::spawn(carry(client, server, plugged));
                }
            }
            changed = told.changed() => if changed.is_err() { return },
        }
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mut plugged: watch::Receiver<Plugged>) {
    let mut out = plugged.clone();
    let both = async move {
        until_in(&mut plugged).await?;
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = TcpStream::connect(server).await?.into_split();
        tokio::try_join!(
            one_way(client_in, server_out, plugged.clone()),
            one_way(server_in, client_out, plugged.clone())
        )
    };
    let pulled = async move {
        // The cable is gone, or pulled: the same.
        let _ = out.wait_for(|now| *now == Plugged::Out).await;
    };
    tokio::select! {
        _ = both => {}
        () = pulled => {}
    }
}

async fn until_in(plugged: &mut watch::Receiver<Plugged>) -> io::Result<()> {
    plugged.wait_for(|now| *now == Plugged::In).await.map(|_| ()).map_err(io::Error::other)
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut plugged: watch::Receiver<Plugged>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        until_in(&mut plugged).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
