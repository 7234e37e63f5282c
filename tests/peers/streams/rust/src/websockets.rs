//! WebSockets, on either side.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::server;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

use crate::{Failure, KEYS};

/// Listens; what it gives serves for ever.
pub async fn serve(name: String, port: u16) -> Result<impl Future<Output = ()>, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let name: Arc<str> = name.into();
    Ok(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let name = name.clone();
                // Who goes away has its reasons.
                tokio::spawn(async move { answer(stream, &name).await.ok() });
            }
        }
    })
}

async fn answer(stream: TcpStream, name: &str) -> Result<(), Failure> {
    let key = OnceLock::new();
    let seen = |request: &server::Request, response: server::Response| {
        let told = request.headers().get("x-overlay-id").and_then(|value| value.to_str().ok());
        key.get_or_init(|| told.unwrap_or("none").to_owned());
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, seen).await?;
    // It speaks at once.
    socket.send(format!("{name} {}", key.get().map_or("none", String::as_str)).into()).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) if text == "close" => {
                let frame = CloseFrame { code: 4321.into(), reason: "as asked".into() };
                socket.close(Some(frame)).await?;
            }
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
            _ => {}
        }
    }
    Ok(())
}

/// A socket, and who gave it.
async fn dial(address: &str, authority: &str, key: &str) -> Result<(WebSocketStream<TcpStream>, String), Failure> {
    // The host of the url is the service, and the connection goes to the gateway.
    let request = Request::get(format!("ws://{authority}/"))
        .header("host", authority)
        .header("x-overlay-id", key)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key());
    let (socket, response) = client_async(request.body(())?, TcpStream::connect(address).await?).await?;
    let route = response.headers().get("x-overlay-route").map(|route| route.to_str().map(str::to_owned));
    Ok((socket, route.transpose()?.unwrap_or_default()))
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Result<Message, Failure> {
    let read = tokio::time::timeout(Duration::from_secs(10), socket.next()).await?;
    Ok(read.ok_or("it ended")??)
}

async fn converse(address: &str, authority: &str, key: &str, who: &str) -> Result<(), Failure> {
    let (mut socket, route) = dial(address, authority, key).await?;
    assert!(route.contains(&format!("env={who}")), "{route}");
    assert_eq!(next(&mut socket).await?, Message::text(format!("{who} {key}")));
    let messages = [
        Message::text("text"),
        Message::binary(vec![0, 1]),
        Message::text("ä".repeat(500_000)),
        Message::binary(vec![b'x'; 1_000_000]),
    ];
    for message in messages {
        socket.send(message.clone()).await?;
        assert_eq!(next(&mut socket).await?, message);
    }
    for (part, kind, last) in [("in ", Data::Text, false), ("frag", Data::Continue, false), ("ments", Data::Continue, true)] {
        let frame = Frame::message(Bytes::from_static(part.as_bytes()), OpCode::Data(kind), last);
        socket.send(Message::Frame(frame)).await?;
    }
    assert_eq!(next(&mut socket).await?, Message::text("in fragments"));
    // Longer than deadlines.
    tokio::time::sleep(Duration::from_secs(1)).await;
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await?;
    assert_eq!(next(&mut socket).await?, Message::Pong(Bytes::from_static(b"there?")));
    socket.send(Message::text("close")).await?;
    let closed = CloseFrame { code: 4321.into(), reason: "as asked".into() };
    assert_eq!(next(&mut socket).await?, Message::Close(Some(closed)));
    Ok(())
}

async fn greet(address: &str, authority: &str, number: usize) -> Result<(), Failure> {
    let (key, who) = KEYS[number % KEYS.len()];
    let (mut socket, _) = dial(address, authority, key).await?;
    assert_eq!(next(&mut socket).await?, Message::text(format!("{who} {key}")));
    Ok(socket.close(None).await?)
}

/// Converses with the service of `authority` at `address` in all ways.
pub async fn check(address: &str, authority: &str) -> Result<(), Failure> {
    for (key, who) in KEYS {
        converse(address, authority, key, who).await?;
    }
    for start in (0..300).step_by(50) {
        try_join_all((start..start + 50).map(|number| greet(address, authority, number))).await?;
    }
    Ok(())
}
