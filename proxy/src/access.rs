//! The access log: one line per request on standard output, if it is switched on.
//!
//! Workers write lines into memory of their own, and hand those of a turn to a writer thread, all at once
//! (docs/decisions/0056-lines-are-handed-over-by-the-turn.md). No more than so many wait there; others are dropped and
//! counted. JSON has OpenTelemetry's semantic conventions as keys; the other formats are those of web servers. Whatever
//! a client sends, a line stays one line; no query, cookie or token is in it.

mod settings;
mod text;

use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use overlane_config::time::UnixMillis;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock;
use crate::metrics::{Event, count};

pub use settings::{AccessFlag, AccessSettings, Format};
pub use text::{is_hidden, loggable_part, loggable_path, loggable_text, loggable_url};

/// How many bytes of lines may wait for the writer.
const QUEUE: usize = 4 * 1024 * 1024;
/// A worker that is never done hands its lines over when they have so many bytes.
const BATCH: usize = 16 * 1024;
/// Or with the next line, when the first of them has waited for so many milliseconds.
const LATE: u64 = 100;

/// One request, as it is logged.
#[derive(Debug, Clone, Default)]
pub struct Line<T = String> {
    /// When the request's head was read.
    pub timestamp: UnixMillis,
    /// `gateway`, `redirect`, `inbound` or `outbound`.
    pub role: &'static str,
    /// The method.
    pub method: &'static str,
    /// The authority that was called.
    pub authority: T,
    /// The path, without query.
    pub path: T,
    /// The version of HTTP: `1.0`, `1.1` or `2`; empty where it is not known.
    pub version: &'static str,
    /// The status; 0 where no answer was sent.
    pub status: u16,
    /// How many bytes of the response's body were sent, with the framing that it came with.
    pub bytes: u64,
    /// The client.
    pub client: T,
    /// Who the client is, by its verified certificate.
    pub client_identity: Option<T>,
    /// Why its token gives it no right, where that is so.
    pub token: Option<&'static str>,
    /// From the end of the head to the end of the response.
    pub took: Duration,
    /// The address that answered.
    pub upstream: Option<T>,
    /// The service.
    pub service: Option<T>,
    /// The key; only valid ids get here.
    pub overlay: Option<T>,
    /// The environment that answered.
    pub environment: Option<T>,
    /// Whose answer it was.
    pub via: Option<&'static str>,
    /// Why.
    pub reason: Option<&'static str>,
    /// The request's id, as it went upstream.
    pub request_id: Option<T>,
    /// The id of its trace, as it went upstream.
    pub trace_id: Option<T>,
    /// The generation of the table that decided.
    pub generation: u64,
    /// Where the client says that it comes from, without query; only in the combined format.
    pub referer: Option<T>,
    /// What the client says that it is; only in the combined format.
    pub agent: Option<T>,
}

impl<'l> Line<&'l str> {
    /// The line of a request whose head was refused: nothing of it is known for sure.
    #[must_use]
    pub fn refused(role: &'static str, status: u16, reason: &'static str, client: &'l str) -> Self {
        Self { timestamp: clock::now(), role, status, client, reason: Some(reason), ..Self::default() }
    }

    /// The same, to be kept.
    #[must_use]
    pub fn kept(self) -> Line {
        let kept = |text: Option<&str>| text.map(str::to_owned);
        Line {
            timestamp: self.timestamp,
            role: self.role,
            method: self.method,
            authority: self.authority.to_owned(),
            path: self.path.to_owned(),
            version: self.version,
            status: self.status,
            bytes: self.bytes,
            client: self.client.to_owned(),
            client_identity: kept(self.client_identity),
            token: self.token,
            took: self.took,
            upstream: kept(self.upstream),
            service: kept(self.service),
            overlay: kept(self.overlay),
            environment: kept(self.environment),
            via: self.via,
            reason: self.reason,
            request_id: kept(self.request_id),
            trace_id: kept(self.trace_id),
            generation: self.generation,
            referer: kept(self.referer),
            agent: kept(self.agent),
        }
    }
}

/// Lines that are written, and were not handed over yet.
#[derive(Debug)]
struct Batch {
    text: Vec<u8>,
    lines: usize,
    /// When the first of them was written.
    since: UnixMillis,
}

thread_local! {
    /// Those of this thread that were not handed over yet.
    static WRITTEN: RefCell<Batch> = const { RefCell::new(Batch { text: Vec::new(), lines: 0, since: UnixMillis(0) }) };
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
pub struct AccessLog(Option<Door>);

/// The way to the writer.
#[derive(Debug, Clone)]
struct Door {
    batches: Sender<Box<[u8]>>,
    /// How many bytes are on it.
    waiting: Arc<AtomicUsize>,
    settings: AccessSettings,
}

impl Door {
    /// Hands a thread's lines over, where there is room for them.
    fn hand_over(&self, written: &mut Batch) {
        let lines = std::mem::take(&mut written.lines);
        if lines == 0 {
            return;
        }
        let bytes = written.text.len();
        let has_room = self.waiting.fetch_add(bytes, Relaxed) + bytes <= QUEUE;
        if !has_room || self.batches.send(written.text.as_slice().into()).is_err() {
            self.waiting.fetch_sub(bytes, Relaxed);
            (0..lines).for_each(|_| count(Event::AccessLogDropped));
        }
        written.text.clear();
    }
}

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
        let (batches, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let door = Door { batches, waiting: waiting.clone(), settings };
        let (writing, written) = oneshot::channel::<()>();
        let body = move || {
            let _writing = writing;
            write(&receiver, &waiting, out);
        };
        // Without a thread the log is off; the process has worse problems then.
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(body);
        (Self(writer.is_ok().then_some(door)), Written(written))
    }

    /// Whether the refusal of a head is wanted.
    #[must_use]
    pub fn wants_refusal(&self) -> bool {
        self.wants().is_some()
    }

    /// What is wanted of a request that begins now; `None` where it will not be logged.
    #[must_use]
    pub fn wants(&self) -> Option<Wanted> {
        let Door { settings, .. } = self.0.as_ref()?;
        let sampled = settings.sample >= 1.0 || fastrand::f64() < settings.sample;
        let combined = settings.format == Format::Combined;
        (sampled || settings.errors).then_some(Wanted { sampled, combined })
    }

    /// Writes a line, which leaves when this thread hands over what it has; never waits.
    // So that a profile shows what it costs.
    #[inline(never)]
    pub fn log(&self, line: &Line<&str>) {
        let Some(door) = &self.0 else { return };
        WRITTEN.with_borrow_mut(|written| {
            let now = line.timestamp.after(line.took);
            if written.lines == 0 {
                written.since = now;
            }
            text::append(line, door.settings.format, &mut written.text);
            written.lines += 1;
            if written.text.len() >= BATCH || now.0 >= written.since.0.saturating_add(LATE) {
                door.hand_over(written);
            }
        });
    }

    /// Hands the lines of this thread over to the writer: to be called where a thread has nothing else to do.
    pub fn hand_over(&self) {
        if let Some(door) = &self.0 {
            WRITTEN.with_borrow_mut(|written| door.hand_over(written));
        }
    }
}

fn write(batches: &Receiver<Box<[u8]>>, waiting: &AtomicUsize, mut out: impl Write) {
    for text in batches {
        // A reader that went away ends the log, not the proxy.
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            return;
        }
        waiting.fetch_sub(text.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::SyncSender;

    use super::*;

    /// A reader that takes something when it is told to, and tells what.
    struct Slow {
        go: Receiver<()>,
        took: SyncSender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.go.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.took.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_leave_together_and_no_more_wait_than_may() {
        let (go, told) = channel();
        let (took, taken) = std::sync::mpsc::sync_channel(1);
        let (log, _written) = AccessLog::to(Slow { go: told, took }, AccessSettings::default());
        let line = Line::refused("gateway", 400, "malformed", "192.0.2.7");
        let lines = |bytes: Vec<u8>| bytes.iter().filter(|byte| **byte == b'\n').count();
        for _ in 0..3 {
            log.log(&line);
        }
        log.hand_over();
        go.send(()).expect("it writes");
        assert_eq!(taken.recv().map(lines), Ok(3), "one write for all");
        let mut one = Vec::new();
        text::append(&line, Format::default(), &mut one);
        let room = QUEUE / one.len();
        for _ in 0..2 * room {
            log.log(&line);
        }
        log.hand_over();
        drop(log);
        let mut left = 0;
        while go.send(()).is_ok() {
            left += taken.recv().map_or(0, lines);
        }
        assert!(left <= room && left > room - BATCH / one.len() - 1, "{left} of {room}");
    }
}
