//! Inwards: a port at a hub whose connections come here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use overlane_config::url::Url;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::sleep;

use super::{BYTES, CONNECTIONS, Deferred, GO, Opened, TUNNELS, pass_on};
use crate::local::Changed;
use crate::store::hub::{HubStore, Refused, whole};
use crate::store::shared::Fault;

/// How many requests wait for a connection at a time: so many connections can come at once without waiting.
const WAITING: usize = 16;
/// Before the first new attempt after the tunnel broke; it doubles up to the longest, each a random part of that.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The longest first line of an answer, in bytes.
const LINE: usize = 4096;

/// A tunnel to a service here, made again whenever it breaks.
pub(crate) struct Inward {
    hub: Arc<HubStore>,
    /// What is tunnelled.
    changed: Changed,
    /// Where the service is here.
    to: SocketAddr,
    /// Where others reach it; nowhere while the tunnel is not there.
    url: watch::Sender<Option<Url>>,
}

impl Inward {
    /// Opens a tunnel to a service that is at `to`, and keeps it open on `runtime`; where others reach it.
    ///
    /// # Errors
    /// The hub cannot be reached, or offers no tunnels.
    pub(crate) async fn start(
        hub: HubStore,
        changed: Changed,
        to: SocketAddr,
        runtime: &Handle,
    ) -> Result<watch::Receiver<Option<Url>>, Fault> {
        let (url, known) = watch::channel(None);
        let inward = Self { hub: Arc::new(hub), changed, to, url };
        let (opened, first) = oneshot::channel();
        runtime.spawn(async move {
            match inward.open().await {
                Ok(tunnel) => {
                    let _ = opened.send(Ok(()));
                    inward.keep(tunnel).await;
                }
                Err(fault) => drop(opened.send(Err(fault))),
            }
        });
        first.await.unwrap_or_else(|_| Err(Fault("the tunnel was given up".to_owned())))?;
        Ok(known)
    }

    async fn open(&self) -> Result<(Opened, Incoming), Fault> {
        let asked = serde_json::json!({
            "overlay": self.changed.overlay.as_str(),
            "service": self.changed.service.as_str(),
        });
        let answer = self
            .hub
            .ask(Method::POST, TUNNELS, Some("application/json"), whole(asked.to_string()))
            .await
            .map_err(Fault::from)?;
        let mut body = answer.into_body();
        let mut line = BytesMut::new();
        while !line.contains(&b'\n') && line.len() < LINE {
            match body.frame().await {
                Some(Ok(frame)) => line.extend(frame.into_data().ok()),
                _ => return Err(Fault("the hub ended the tunnel at once".to_owned())),
            }
        }
        let opened: Opened = serde_json::from_slice(&line)
            .map_err(|error| Fault(format!("the hub says nothing of a tunnel: {error}")))?;
        let host = opened.host.clone().into();
        self.url.send_replace(Some(Url { scheme: self.changed.scheme, host, port: opened.port }));
        Ok((opened, body))
    }

    /// Keeps it open, from the first time on. Never ends.
    async fn keep(self, first: (Opened, Incoming)) {
        let (mut opened, mut pause) = (Some(first), RETRY.0);
        loop {
            if let Some((opened, held)) = opened.take() {
                pause = RETRY.0;
                self.serve(&opened.tunnel, held).await;
                self.url.send_replace(None);
                tracing::warn!("the tunnel to the hub broke: it is made again");
            }
            sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(RETRY.1);
            match self.open().await {
                Ok(again) => {
                    tracing::warn!("the tunnel to the hub is there again");
                    opened = Some(again);
                }
                Err(fault) => tracing::debug!(%fault, "the tunnel to the hub cannot be made yet"),
            }
        }
    }

    /// Takes connections until the tunnel breaks.
    async fn serve(&self, tunnel: &str, mut held: Incoming) {
        let waiting = Arc::new(Semaphore::new(WAITING));
        let path = format!("{CONNECTIONS}?tunnel={tunnel}");
        let taking = async {
            while let Ok(place) = waiting.clone().acquire_owned().await {
                let (hub, path, to) = (self.hub.clone(), path.clone(), self.to);
                tokio::spawn(async move {
                    if let Err(refused) = connection(&hub, &path, to, place).await {
                        tracing::debug!(?refused, "a connection of the tunnel cannot be waited for");
                        // Whatever it is, the tunnel itself ends, or this goes on.
                        sleep(RETRY.0).await;
                    }
                });
            }
        };
        tokio::select! {
            () = taking => {}
            // Nothing comes of it but its end.
            () = async { while let Some(Ok(_)) = held.frame().await {} } => {}
        }
    }
}

/// Waits for a connection, and passes it on to the service. The place among those who wait is free once it came.
async fn connection(
    hub: &HubStore,
    path: &str,
    to: SocketAddr,
    place: OwnedSemaphorePermit,
) -> Result<(), Refused> {
    let (handed, body) = Deferred::later(None);
    let answer = hub.ask(Method::POST, path, Some(BYTES), body.boxed_unsync()).await?;
    let mut bytes = answer.into_body();
    let first = match bytes.frame().await {
        Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        _ => return Ok(()),
    };
    drop(place);
    // Where the service does not take it, both bodies break, as the connection does.
    if first.first() != Some(&GO) {
        return Ok(());
    }
    let Ok(socket) = TcpStream::connect(to).await else { return Ok(()) };
    let _ = socket.set_nodelay(true);
    let (read, mut write) = socket.into_split();
    // What stands between may have put the bytes after it beside it.
    if handed.send(read).is_ok() && write.write_all(&first[1..]).await.is_ok() {
        pass_on(bytes, write).await;
    }
    Ok(())
}
