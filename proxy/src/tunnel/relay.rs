//! A socket as the body of a request or a response, and such a body into a socket.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use socket2::SockRef;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

/// How much is read of a socket at once.
const CHUNK: usize = 16 * 1024;

/// What hands a socket to a body that waits for one. Where it is dropped, the body breaks.
pub(crate) type Handed = oneshot::Sender<OwnedReadHalf>;

/// What a socket is sent, as a body. It is read only as far as somebody takes it.
pub(crate) struct Deferred {
    socket: Source,
    /// Said before anything of the socket.
    greeting: Option<Bytes>,
    buffer: BytesMut,
}

enum Source {
    Waiting(oneshot::Receiver<OwnedReadHalf>),
    There(OwnedReadHalf),
    Over,
}

impl Deferred {
    /// The bytes of a socket.
    pub(crate) fn of(socket: OwnedReadHalf) -> Self {
        Self { socket: Source::There(socket), greeting: None, buffer: BytesMut::new() }
    }

    /// The bytes of a socket that is handed over later, and a greeting before them.
    pub(crate) fn later(greeting: Option<Bytes>) -> (Handed, Self) {
        let (handed, waiting) = oneshot::channel();
        (handed, Self { socket: Source::Waiting(waiting), greeting, buffer: BytesMut::new() })
    }
}

impl Body for Deferred {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        loop {
            match &mut this.socket {
                Source::Waiting(waiting) => match ready!(Pin::new(waiting).poll(context)) {
                    Ok(socket) => {
                        this.socket = Source::There(socket);
                        if let Some(greeting) = this.greeting.take() {
                            return Poll::Ready(Some(Ok(Frame::data(greeting))));
                        }
                    }
                    Err(_) => {
                        this.socket = Source::Over;
                        return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
                    }
                },
                Source::There(socket) => {
                    this.buffer.resize(CHUNK, 0);
                    let mut read = ReadBuf::new(&mut this.buffer);
                    let result = ready!(Pin::new(socket).poll_read(context, &mut read));
                    let count = read.filled().len();
                    return Poll::Ready(match result {
                        Ok(()) if count == 0 => {
                            this.socket = Source::Over;
                            None
                        }
                        Ok(()) => {
                            let bytes = Bytes::copy_from_slice(&this.buffer[..count]);
                            Some(Ok(Frame::data(bytes)))
                        }
                        Err(error) => {
                            this.socket = Source::Over;
                            Some(Err(error))
                        }
                    });
                }
                Source::Over => return Poll::Ready(None),
            }
        }
    }
}

/// Writes a body into a socket, and ends that side with it. A body that breaks breaks the connection.
pub(crate) async fn pass_on<B>(mut body: B, mut socket: OwnedWriteHalf)
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                let Ok(bytes) = frame.into_data() else { continue };
                if socket.write_all(&bytes).await.is_err() {
                    // The body is dropped, by which its sender learns it.
                    return;
                }
            }
            Some(Err(_)) => {
                abort(socket.as_ref());
                // Without this the half that goes would end its side in peace.
                socket.forget();
                return;
            }
            None => {
                let _ = socket.shutdown().await;
                return;
            }
        }
    }
}

/// Has a connection end with a reset once it is closed.
fn abort(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
