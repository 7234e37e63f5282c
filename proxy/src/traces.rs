//! Traces: the spans of requests, sent to a collector by OTLP.
//!
//! Whether a request has spans is decided when its head is read (`plane/propagation`), before anything is made for it. A
//! worker hands in what it knows when the request is over, by a try-send into a bounded queue; a task of the control side
//! makes spans of it and sends them. Nobody waits for that task: where the queue is full, spans are dropped and counted.
//! A build without the feature `otlp` has no such task, and refuses settings that ask for it.

#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod messages;
mod sampler;
mod settings;
#[cfg(feature = "otlp")]
mod spans;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use sampler::Sampler;
pub use settings::{Collector, TraceArgs, TraceSettings, TracesFile};

use crate::access::Line;
use crate::upstream::Endpoint;

/// For how long the end of the process waits for spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// What the spans of a request are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanIds {
    /// Their trace.
    pub trace: u128,
    /// The span of whoever sent the request, where it has one.
    pub parent: Option<u64>,
    /// The proxy's as a server.
    pub server: u64,
    /// The proxy's as a client: what is called is told this one.
    pub client: u64,
    /// Those of the trace, as `traceparent` has them.
    pub flags: u8,
}

/// A request that is over, whose spans are wanted.
#[derive(Debug)]
pub struct Exchanged {
    /// What its spans are called.
    pub ids: SpanIds,
    /// What the access log would say of it.
    pub line: Line,
    /// When it was over.
    pub ended: SystemTime,
    /// How long before that its head was read.
    pub took: Duration,
    /// How long before that an upstream was looked for, where one was.
    pub called: Option<Duration>,
    /// Whom it was sent to, where it was, or could not be.
    pub upstream: Option<Arc<Endpoint>>,
    /// Whether it came in TLS.
    pub secure: bool,
    /// Why the proxy answered itself, or the answer broke off, where that is so.
    pub failed: Option<&'static str>,
    /// Whether the status is the upstream's.
    pub answered: bool,
    /// Whether it is a call of gRPC.
    pub is_call: bool,
    /// What that came to (`grpc-status`), where that is known.
    pub grpc_status: Option<u8>,
}

impl Exchanged {
    /// How many spans it has.
    #[must_use]
    pub fn spans(&self) -> u64 {
        1 + u64::from(self.upstream.is_some())
    }
}

/// What became of spans, and of the requests that brought them to the collector.
#[derive(Debug, Default)]
pub struct Figures {
    exported: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    exports: AtomicU64,
    failures: AtomicU64,
}

/// The same at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that the collector took.
    pub exported: u64,
    /// Spans that it refused among others that it took.
    pub rejected: u64,
    /// Spans that it did not take, however often it was asked.
    pub failed: u64,
    /// Spans for which there was no room.
    pub dropped: u64,
    /// Requests to the collector that it answered well.
    pub exports: u64,
    /// Those that it did not.
    pub failures: u64,
}

impl Figures {
    /// What was counted until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let of = |count: &AtomicU64| count.load(Relaxed);
        Counts {
            exported: of(&self.exported),
            rejected: of(&self.rejected),
            failed: of(&self.failed),
            dropped: of(&self.dropped),
            exports: of(&self.exports),
            failures: of(&self.failures),
        }
    }
}

/// Where workers hand in what they know of requests.
#[derive(Debug)]
pub struct Traces {
    /// Which requests have spans.
    pub sampler: Sampler,
    door: SyncSender<Box<Exchanged>>,
    figures: Arc<Figures>,
}

impl Traces {
    /// Hands in a request that is over; never waits.
    pub fn hand_in(&self, exchanged: Box<Exchanged>) {
        let spans = exchanged.spans();
        if self.door.try_send(exchanged).is_err() {
            self.figures.dropped.fetch_add(spans, Relaxed);
        }
    }
}

/// The task that sends spans.
pub struct Exporting {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    figures: Arc<Figures>,
}

impl Exporting {
    /// What became of spans.
    #[must_use]
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    /// Sends what is left, at most for a second.
    pub async fn end(self) {
        // Where nobody listens it is over already.
        let _ = self.stop.send(());
        if timeout(LAST_SPANS, self.task).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}
