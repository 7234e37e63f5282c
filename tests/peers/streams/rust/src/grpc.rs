//! The client of gRPC, without generated code.

use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::echo::{LARGEST, Raw};
use crate::{Failure, KEYS};

#[derive(Clone)]
struct Client(Grpc<Channel>);

fn asked<T>(message: T, fields: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in fields {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn at(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

impl Client {
    async fn unary(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        self.0.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        self.0.unary(request, at("/test.Echo/Unary"), Raw).await
    }

    async fn count(&mut self) -> Result<usize, Failure> {
        let told = self.unary(asked(Bytes::from_static(b"cancelled"), &[])).await?.into_inner();
        Ok(std::str::from_utf8(&told)?.parse()?)
    }

    async fn until(&mut self, more: usize) -> Result<(), Failure> {
        for _ in 0..200 {
            if self.count().await? > more {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("the server was not told that the client is gone".into())
    }

    async fn serves(&mut self, key: &str, who: &str) -> Result<(), Failure> {
        let fields = [("x-overlay-id", key)];
        let answer = self.unary(asked(Bytes::from_static(b"hello"), &fields)).await?;
        assert_eq!(answer.get_ref(), "hello");
        // tonic joins what came with the head and what came after the message.
        let told = |name: &str| answer.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        assert_eq!((told("who"), told("key"), told("length")), (who, key, "5"));
        assert!(told("x-overlay-route").contains(&format!("env={who}")), "{}", told("x-overlay-route"));
        let large = Bytes::from(vec![b'x'; 3_000_000]);
        assert_eq!(self.unary(asked(large.clone(), &fields)).await?.into_inner(), large);

        self.0.ready().await?;
        let out = asked(Bytes::from_static(b"500"), &fields);
        let mut numbers = self.0.server_streaming(out, at("/test.Echo/Out"), Raw).await?.into_inner();
        for number in 0..500 {
            assert_eq!(numbers.message().await?, Some(number.to_string().into()));
        }
        assert_eq!(numbers.message().await?, None);

        let parts = tokio_stream::iter((0..300).map(|_| Bytes::from_static(b"ab")));
        self.0.ready().await?;
        let sum = self.0.client_streaming(asked(parts, &fields), at("/test.Echo/In"), Raw).await?;
        assert_eq!(sum.into_inner(), "600");

        let (sender, messages) = mpsc::channel(1);
        self.0.ready().await?;
        let both = asked(ReceiverStream::new(messages), &fields);
        // Some servers answer with a head at once, and some with their first message.
        sender.send(Bytes::from_static(b"0")).await?;
        let mut answers = self.0.streaming(both, at("/test.Echo/Both"), Raw).await?.into_inner();
        assert_eq!(answers.message().await?, Some("0".into()));
        for number in 1..50 {
            // Each is answered before the next one is sent, after silence longer than deadlines, once.
            if number == 1 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            sender.send(number.to_string().into()).await?;
            assert_eq!(answers.message().await?, Some(number.to_string().into()));
        }
        drop(sender);
        assert_eq!(answers.message().await?, None);
        Ok(())
    }

    async fn fails(&mut self, fields: &[(&'static str, &str)], message: &'static str, code: Code, words: &str) -> Status {
        let failed = self.unary(asked(message.into(), fields)).await.expect_err("it is to fail");
        assert_eq!(failed.code(), code, "{failed:?}");
        assert!(failed.message().contains(words), "{failed:?}");
        failed
    }
}

/// Calls the service of `authority` at `target` in all ways.
pub async fn check(target: &str, authority: &str) -> Result<(), Failure> {
    let origin = format!("http://{authority}").parse()?;
    let channel = Endpoint::from_shared(format!("http://{target}"))?.origin(origin).connect().await?;
    let grpc = Grpc::new(channel).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    let mut client = Client(grpc);
    for (key, who) in KEYS {
        client.serves(key, who).await?;
    }
    let failed = client.fails(&[], "fail", Code::DataLoss, "as asked: ä").await;
    assert_eq!(failed.metadata().get("detail").unwrap(), "kept");
    client.fails(&[("x-overlay-id", "no key!")], "hello", Code::InvalidArgument, "overlane").await;
    let required = [("x-overlay-id", "alice"), ("x-overlay-require", "other")];
    client.fails(&required, "hello", Code::FailedPrecondition, "overlane").await;
    // The deadline, and a client that goes away.
    let before = client.count().await?;
    let mut late = asked(Bytes::from_static(b"sleep"), &[]);
    late.set_timeout(Duration::from_millis(300));
    let late = client.unary(late).await.expect_err("it is to be late");
    assert!(matches!(late.code(), Code::Cancelled | Code::DeadlineExceeded), "{late:?}");
    client.until(before).await?;
    let mut leaving = client.clone();
    let left = leaving.unary(asked(Bytes::from_static(b"sleep"), &[]));
    assert!(tokio::time::timeout(Duration::from_millis(300), left).await.is_err());
    client.until(before + 1).await
}
