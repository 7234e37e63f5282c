//! Spans on their way to the collector: OTLP over HTTP, as protobuf (the specification's `http/protobuf`).
//!
//! What waits is sent in batches, one after another. A collector that is away, slow, or wants less is asked again, later and
//! later, and not for ever: then its spans are counted and forgotten. That it is so is logged when it begins and when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use pingora_core::connectors::TransportConnector;
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::messages::{ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans};
use super::{Exchanged, Exporting, Figures, TraceSettings, Traces};
use crate::client;

/// How many requests may wait for the exporter: their spans are some kilobytes at most.
const QUEUE: usize = 8192;
/// The most requests whose spans are in one batch: a megabyte, where each has the longest path.
const BATCH: usize = 512;
/// From how many requests at a time on the next ones are fetched sooner.
const BUSY: usize = BATCH / 4;
/// How often a batch is sent before it is given up.
const TRIES: u32 = 5;
/// The longest that a collector can have us wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The version of the conventions that the names are of.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.44.0";

impl Exporting {
    /// Begins to send spans, on this runtime, of the proxy with this name.
    #[must_use]
    pub fn begin(settings: TraceSettings, instance: &str, runtime: &Handle) -> (Traces, Self) {
        let (door, queue) = sync_channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        let figures = Arc::new(Figures::default());
        let sampler = settings.sampler;
        let task = runtime.spawn(export(queue, settings, instance.to_owned(), figures.clone(), stopped));
        (Traces { sampler, door, figures: figures.clone() }, Self { task, stop, figures })
    }
}

/// Sends what comes in by `queue` until `stop`, and then what is left, once.
async fn export(
    queue: Receiver<Box<Exchanged>>,
    settings: TraceSettings,
    instance: String,
    figures: Arc<Figures>,
    mut stop: oneshot::Receiver<()>,
) {
    let every = settings.every;
    // What this machine trusts is read once.
    let tls = settings.collector.tls.then(|| TransportConnector::new(None));
    let resource = resource(&settings, instance);
    let mut exporter = Exporter { resource, settings, tls, figures, stands: Stands::Unknown };
    let (mut stopping, mut came) = (false, 0);
    while !stopping {
        // Where many come, the queue would be full before.
        let wait = if came < BUSY { every } else { every / 20 };
        stopping = timeout(wait, &mut stop).await.is_ok();
        came = 0;
        loop {
            let batch: Vec<_> = queue.try_iter().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            came += batch.len();
            stopping |= exporter.deliver(&batch, stopping, &mut stop).await;
        }
    }
}

/// How it stands with the collector, as it was logged last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Unknown,
    Takes,
    Rejects,
    Fails,
}

/// Why a batch was not taken.
#[derive(Debug)]
struct Refused {
    why: String,
    /// Whether it may be sent again, and how long is waited at least.
    again: Option<Duration>,
}

impl Refused {
    /// It did not arrive.
    fn unheard(why: String) -> Self {
        Self { why, again: Some(Duration::ZERO) }
    }
}

struct Exporter {
    settings: TraceSettings,
    resource: Resource,
    /// Where the collector speaks TLS.
    tls: Option<TransportConnector>,
    figures: Arc<Figures>,
    stands: Stands,
}

impl Exporter {
    /// Sends a batch, again where that may help; only once where the process is `stopping`. True where it was told to stop
    /// meanwhile.
    async fn deliver(
        &mut self,
        batch: &[Box<Exchanged>],
        mut stopping: bool,
        stop: &mut oneshot::Receiver<()>,
    ) -> bool {
        let body = Bytes::from(self.request(batch).encode_to_vec());
        let spans: u64 = batch.iter().map(|exchanged| exchanged.spans()).sum();
        let mut told = false;
        for attempt in 0..TRIES {
            let refused = match self.send(body.clone()).await {
                Ok(response) => {
                    self.taken(spans, &response);
                    return told;
                }
                Err(refused) => refused,
            };
            self.figures.failures.fetch_add(1, Relaxed);
            self.failed(&refused.why);
            let Some(at_least) = refused.again.filter(|_| !stopping && attempt + 1 < TRIES) else { break };
            // Twice as long each time; and those who were refused at once must not come back at once.
            let wait = self.settings.every * 2_u32.pow(attempt);
            let wait = wait.mul_f64(0.5 + fastrand::f64() / 2.0).max(at_least).min(LONGEST_WAIT);
            tokio::select! {
                () = sleep(wait) => {}
                _ = &mut *stop => (told, stopping) = (true, true),
            }
        }
        self.figures.failed.fetch_add(spans, Relaxed);
        told
    }

    fn request(&self, batch: &[Box<Exchanged>]) -> ExportRequest {
        let scope = Scope { name: "overlane".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let spans = batch.iter().flat_map(|exchanged| exchanged.told()).collect();
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.to_owned() }];
        let resource = Some(self.resource.clone());
        ExportRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url: SCHEMA.to_owned() }],
        }
    }

    async fn send(&self, body: Bytes) -> Result<ExportResponse, Refused> {
        let collector = &self.settings.collector;
        let mut request = Request::post(&*collector.path)
            .header(header::HOST, &*collector.authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("overlane/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        // All parts of it were checked when the settings were read.
        let request =
            request.body(Full::new(body)).map_err(|why| Refused { why: why.to_string(), again: None })?;
        let address = collector.address();
        let sent = async {
            match &self.tls {
                Some(connector) => client::send_by(connector, &address, &collector.host, request).await,
                None => client::send(&address, request).await,
            }
        };
        let answer = timeout(self.settings.timeout, sent).await;
        let late = || Refused::unheard(format!("no answer within {:?}", self.settings.timeout));
        read(&answer.map_err(|_| late())?.map_err(Refused::unheard)?)
    }

    fn taken(&mut self, spans: u64, response: &ExportResponse) {
        let partial = response.partial_success.clone().unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(spans);
        self.figures.exports.fetch_add(1, Relaxed);
        self.figures.exported.fetch_add(spans - rejected, Relaxed);
        self.figures.rejected.fetch_add(rejected, Relaxed);
        let endpoint = self.settings.collector.to_string();
        let why = crate::access::loggable_text(partial.error_message.as_bytes());
        match rejected {
            0 if self.now(Stands::Takes) => tracing::info!(%endpoint, "the collector takes spans"),
            1.. if self.now(Stands::Rejects) => {
                tracing::warn!(%endpoint, rejected, %why, "the collector rejects spans");
            }
            _ => {}
        }
    }

    fn failed(&mut self, why: &str) {
        if self.now(Stands::Fails) {
            let collector = &self.settings.collector;
            let hint = match collector.port {
                4317 => "; at port 4317 most collectors speak gRPC only: OTLP over HTTP is at 4318",
                _ => "",
            };
            tracing::warn!(endpoint = %collector, "the collector takes no spans: {why}{hint}");
        }
    }

    /// Whether it stands otherwise than before.
    fn now(&mut self, stands: Stands) -> bool {
        std::mem::replace(&mut self.stands, stands) != stands
    }
}

/// What a collector's answer means (OTLP, "OTLP/HTTP Response").
fn read(answer: &Response<Bytes>) -> Result<ExportResponse, Refused> {
    let status = answer.status();
    if status.is_success() {
        // Who took it and says nothing that can be read took all of it.
        return Ok(ExportResponse::decode(answer.body().clone()).unwrap_or_default());
    }
    let again = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    Err(Refused { why: format!("it answers {status}"), again: again.then(|| retry_after(answer.headers())) })
}

/// How long it wants to be left alone; a date is as nothing.
fn retry_after(headers: &HeaderMap) -> Duration {
    let said = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    said.and_then(|said| said.trim().parse().ok()).map_or(Duration::ZERO, Duration::from_secs)
}

/// Who sends spans. What somebody says of it goes before what it says of itself.
fn resource(settings: &TraceSettings, instance: String) -> Resource {
    let own = [
        ("service.name", settings.service_name.clone()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", instance),
    ];
    let own = own.into_iter().filter(|(key, _)| !settings.attributes.iter().any(|(said, _)| said == key));
    let said = settings.attributes.iter().map(|(key, value)| KeyValue::text(key, value));
    Resource { attributes: own.map(|(key, value)| KeyValue::text(key, value)).chain(said).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Response<Bytes> {
        let mut answer = Response::builder().status(status);
        for (name, value) in fields {
            answer = answer.header(*name, *value);
        }
        answer.body(Bytes::copy_from_slice(body)).expect("an answer")
    }

    #[test]
    fn only_what_may_pass_is_sent_again_and_not_before_the_collector_wants_it() {
        for (status, fields, again) in [
            (429, &[("retry-after", "7")][..], Some(7)),
            (503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], Some(0)),
            (502, &[], Some(0)),
            (504, &[], Some(0)),
            (400, &[("retry-after", "7")], None),
            (404, &[], None),
            (500, &[], None),
        ] {
            let refused = read(&answer(status, fields, b"")).expect_err("refused");
            assert_eq!(refused.again, again.map(Duration::from_secs), "{status}");
            assert!(refused.why.contains(&status.to_string()), "{}", refused.why);
        }
    }

    #[test]
    fn an_answer_that_nobody_can_read_is_as_good_as_an_empty_one() {
        for body in [&b""[..], b"{}", b"\xff\xff\xff"] {
            let read = read(&answer(200, &[], body)).expect("taken");
            assert_eq!(read.partial_success.map(|partial| partial.rejected_spans), None);
        }
    }
}
