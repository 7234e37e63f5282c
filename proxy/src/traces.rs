//! Traces: the spans of requests, sent to a collector by OTLP.
//!
//! Whether a request has spans is decided when its head is read (`plane/propagation`), before anything is made for it. A
//! worker hands in what it knows when the request is over, by a try-send into a bounded queue; a task of the control side
//! makes spans of it and sends them. Nobody waits for that task: where the queue is full, spans are dropped and counted.

mod export;
mod messages;
mod sampler;
mod settings;
mod spans;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use sampler::Sampler;
pub use settings::{Collector, TraceArgs, TraceSettings, TracesFile};
pub use spans::{Exchanged, SpanIds};

/// How many requests may wait for the exporter: their spans are some kilobytes at most.
const QUEUE: usize = 8192;
/// For how long the end of the process waits for spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(1);

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
    /// Begins to send spans, on this runtime, of the proxy with this name.
    #[must_use]
    pub fn begin(settings: TraceSettings, instance: &str, runtime: &Handle) -> (Traces, Self) {
        let (door, queue) = sync_channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        let figures = Arc::new(Figures::default());
        let sampler = settings.sampler;
        let task =
            runtime.spawn(export::export(queue, settings, instance.to_owned(), figures.clone(), stopped));
        (Traces { sampler, door, figures: figures.clone() }, Self { task, stop, figures })
    }

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
