//! The access log: one line per request on standard output, if it is switched on.
//!
//! Workers hand lines to a writer thread over a bounded queue; when it is full, lines are dropped and
//! counted. JSON has OpenTelemetry's semantic conventions as keys; the other formats are those of web servers. Whatever
//! a client sends, a line stays one line; no query, cookie or token is in it.

mod settings;
mod text;

use std::io::Write;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use overlane_config::time::UnixMillis;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock;
use crate::metrics::{Event, count};

pub use settings::{AccessFlag, AccessSettings, Format};
pub use text::{is_hidden, loggable_part, loggable_path, loggable_text, loggable_url};

/// How many lines may wait for the writer.
const QUEUE: usize = 4096;

/// One request, as it is logged.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Line {
    /// When the request's head was read.
    #[serde(serialize_with = "text::as_timestamp")]
    pub timestamp: UnixMillis,
    /// `gateway`, `redirect`, `inbound` or `outbound`.
    #[serde(rename = "overlane.role")]
    pub role: &'static str,
    /// The method.
    #[serde(rename = "http.request.method")]
    pub method: &'static str,
    /// The authority that was called.
    #[serde(rename = "server.address")]
    pub authority: String,
    /// The path, without query.
    #[serde(rename = "url.path")]
    pub path: String,
    /// The version of HTTP: `1.0`, `1.1` or `2`.
    #[serde(rename = "network.protocol.version", skip_serializing_if = "str::is_empty")]
    pub version: &'static str,
    /// The status; 0 where no answer was sent.
    #[serde(rename = "http.response.status_code")]
    pub status: u16,
    /// How many bytes of the response's body were sent, with the framing that it came with.
    #[serde(rename = "http.response.body.size")]
    pub bytes: u64,
    /// The client.
    #[serde(rename = "client.address")]
    pub client: String,
    /// Who the client is, by its verified certificate.
    #[serde(rename = "overlane.client_identity", skip_serializing_if = "Option::is_none")]
    pub client_identity: Option<String>,
    /// Why its token gives it no right, where that is so.
    #[serde(rename = "overlane.token", skip_serializing_if = "Option::is_none")]
    pub token: Option<&'static str>,
    /// From the end of the head to the end of the response, in seconds.
    pub duration_s: f64,
    /// The address that answered.
    #[serde(rename = "upstream.address", skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The service.
    #[serde(rename = "overlane.service", skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The key; only valid ids get here.
    #[serde(rename = "overlane.overlay", skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
    /// The environment that answered.
    #[serde(rename = "overlane.environment", skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Whose answer it was.
    #[serde(rename = "overlane.via", skip_serializing_if = "Option::is_none")]
    pub via: Option<&'static str>,
    /// Why.
    #[serde(rename = "overlane.reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The request's id, as it went upstream.
    #[serde(rename = "overlane.request_id", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The id of its trace, as it went upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The generation of the table that decided.
    #[serde(rename = "overlane.generation")]
    pub generation: u64,
    /// Where the client says that it comes from, without query; only in the combined format.
    #[serde(skip)]
    pub referer: Option<String>,
    /// What the client says that it is; only in the combined format.
    #[serde(skip)]
    pub agent: Option<String>,
}

impl Line {
    /// The line of a request whose head was refused: nothing of it is known for sure.
    #[must_use]
    pub fn refused(role: &'static str, status: u16, reason: &'static str, client: IpAddr) -> Self {
        let client = client.to_string();
        Self { timestamp: clock::now(), role, status, client, reason: Some(reason), ..Self::default() }
    }
}

/// For how long the end of the process waits for lines to be written: whoever reads them may have stopped.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Tells when a log is written.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<()>);

impl Written {
    /// Completes when the last door is gone and all lines are written, or after a second.
    pub async fn done(self) {
        // Nothing is ever sent: it ends when the writer does.
        let _ = timeout(LAST_LINES, self.0).await;
    }
}

/// Where workers hand in lines; cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog(Option<(SyncSender<Line>, AccessSettings)>);

/// What is wanted of a request that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Whether it is logged whatever becomes of it; else where that is an error.
    pub sampled: bool,
    /// Whether the line says what the client says of itself.
    pub combined: bool,
}

impl AccessLog {
    /// No access log.
    #[must_use]
    pub fn off() -> (Self, Written) {
        (Self(None), Written(oneshot::channel().1))
    }

    /// A log that a thread writes to `out` until the last door is gone.
    #[must_use]
    pub fn to(out: impl Write + Send + 'static, settings: AccessSettings) -> (Self, Written) {
        let (sender, receiver) = sync_channel(QUEUE);
        let (writing, written) = oneshot::channel::<()>();
        let body = move || {
            let _writing = writing;
            write(&receiver, settings.format, out);
        };
        // Without a thread the log is off; the process has worse problems then.
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(body);
        (Self(writer.is_ok().then_some((sender, settings))), Written(written))
    }

    /// Whether the refusal of a head is wanted.
    #[must_use]
    pub fn wants_refusal(&self) -> bool {
        self.wants().is_some()
    }

    /// What is wanted of a request that begins now; `None` where it will not be logged.
    #[must_use]
    pub fn wants(&self) -> Option<Wanted> {
        let (_, settings) = self.0.as_ref()?;
        let sampled = settings.sample >= 1.0 || fastrand::f64() < settings.sample;
        let combined = settings.format == Format::Combined;
        (sampled || settings.errors).then_some(Wanted { sampled, combined })
    }

    /// Hands in a line; never waits.
    pub fn log(&self, line: Line) {
        if let Some((sender, _)) = &self.0
            && sender.try_send(line).is_err()
        {
            count(Event::AccessLogDropped);
        }
    }
}

fn write(lines: &Receiver<Line>, format: Format, mut out: impl Write) {
    while let Ok(first) = lines.recv() {
        let mut batch = Vec::new();
        for line in std::iter::once(first).chain(lines.try_iter()) {
            text::append(&line, format, &mut batch);
        }
        // A reader that went away ends the log, not the proxy.
        if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// A duration as the log shows it.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}
