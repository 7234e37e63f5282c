//! The gRPC service, without generated code.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::server::{ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::Failure;

/// The largest message.
pub const LARGEST: usize = 16 << 20;

/// Messages are bytes.
#[derive(Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, read: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(read.copy_to_bytes(read.remaining())))
    }
}

#[derive(Clone)]
struct Echo {
    name: Arc<str>,
    cancelled: Arc<AtomicUsize>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Counts when it is dropped before its time: the client is gone.
struct Cancelled(Arc<AtomicUsize>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Echo {
    fn greeted<T>(&self, answer: T, metadata: &MetadataMap) -> Response<T> {
        let mut response = Response::new(answer);
        let key = metadata.get("x-overlay-id").cloned().unwrap_or_else(|| "none".parse().unwrap());
        response.metadata_mut().insert("who", self.name.parse().unwrap());
        response.metadata_mut().insert("key", key);
        response
    }

    /// One message, and trailers of its own: tonic sends those of a stream that ends with a status, also with this one.
    async fn unary(self, request: Request<Bytes>) -> Result<Response<Answers>, Status> {
        let (metadata, _, message) = request.into_parts();
        match &message[..] {
            b"fail" => {
                let mut detail = MetadataMap::new();
                detail.insert("detail", "kept".parse().unwrap());
                return Err(Status::with_metadata(Code::DataLoss, "as asked: ä", detail));
            }
            b"sleep" => {
                let _cancelled = Cancelled(self.cancelled.clone());
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            _ => {}
        }
        let mut length = MetadataMap::new();
        length.insert("length", message.len().into());
        let answer = match &message[..] {
            b"cancelled" => self.cancelled.load(SeqCst).to_string().into(),
            _ => message,
        };
        let ended = Status::with_metadata(Code::Ok, "", length);
        let answers: Answers = Box::pin(tokio_stream::iter([Ok(answer), Err(ended)]));
        Ok(self.greeted(answers, &metadata))
    }

    async fn out(self, request: Request<Bytes>) -> Result<Response<Answers>, Status> {
        let count: usize = std::str::from_utf8(request.get_ref()).unwrap_or("").parse().unwrap_or(0);
        let numbers = tokio_stream::iter((0..count).map(|number| Ok(number.to_string().into())));
        let answers: Answers = Box::pin(numbers);
        Ok(self.greeted(answers, request.metadata()))
    }

    async fn into(self, request: Request<Streaming<Bytes>>) -> Result<Response<Bytes>, Status> {
        let (metadata, _, mut messages) = request.into_parts();
        let mut sum = 0;
        while let Some(message) = messages.message().await? {
            sum += message.len();
        }
        Ok(self.greeted(sum.to_string().into(), &metadata))
    }

    async fn both(self, request: Request<Streaming<Bytes>>) -> Result<Response<Answers>, Status> {
        let (metadata, _, messages) = request.into_parts();
        let answers: Answers = Box::pin(messages.map(|message| message));
        Ok(self.greeted(answers, &metadata))
    }
}

struct Unary(Echo);
struct Out(Echo);
struct Into(Echo);
struct Both(Echo);

impl ServerStreamingService<Bytes> for Unary {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answer<Answers>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(self.0.clone().unary(request))
    }
}

impl ServerStreamingService<Bytes> for Out {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answer<Answers>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(self.0.clone().out(request))
    }
}

impl ClientStreamingService<Bytes> for Into {
    type Response = Bytes;
    type Future = Answer<Bytes>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(self.0.clone().into(request))
    }
}

impl StreamingService<Bytes> for Both {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answer<Answers>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(self.0.clone().both(request))
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl tower_service::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => grpc.server_streaming(Unary(echo), request).await,
                "/test.Echo/Out" => grpc.server_streaming(Out(echo), request).await,
                "/test.Echo/In" => grpc.client_streaming(Into(echo), request).await,
                "/test.Echo/Both" => grpc.streaming(Both(echo), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Listens; what it gives serves for ever.
pub async fn serve(name: String, port: u16) -> Result<impl Future<Output = ()>, Failure> {
    let echo = Echo { name: name.into(), cancelled: Arc::default() };
    let incoming = TcpIncoming::from(TcpListener::bind(("127.0.0.1", port)).await?);
    Ok(async move { Server::builder().add_service(echo).serve_with_incoming(incoming).await.unwrap() })
}
