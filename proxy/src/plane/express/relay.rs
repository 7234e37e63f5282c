//! One exchange between a client's connection and an upstream's: both directions at once, each waiting
//! for whichever peer is slower.

use std::io::Write;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pingora_core::protocols::ALPN;

use super::Shape;
use crate::h1::body::{Body, Progress};
use crate::h1::{has_end, response};
use crate::plane::Limits;
use crate::plane::answer::{Answer, Failure, Form};
use crate::plane::buffer::{Text, Want};
use crate::plane::conn::{Client, Conn, READ_AHEAD};
use crate::plane::deadline::{Deadline, Pace, Patience};
use crate::plane::drain::is_leaving;
use crate::plane::exchange::{Exchange, ROUTE};
use crate::plane::grpc;
use crate::plane::h2;
use crate::plane::leave::Leave;
use crate::plane::link::Link;

/// The status of an upstream that speaks another protocol from here on.
const SWITCHING: u16 = 101;
/// From when on a stream is one that lasts.
const LASTING: Duration = Duration::from_secs(1);
/// The most of a body that is kept, until the response begins, to be sent again.
const REPEATED_BODY: usize = 16 * 1024;
/// Interim responses (1xx) to one request; more is a flood.
const MAX_INTERIM: u32 = 32;

/// How an exchange ended whose response is whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// The status.
    pub(super) status: u16,
    /// Whether the upstream's connection can serve another request.
    pub(super) reusable: bool,
    /// Whether the client's connection ends.
    pub(super) close: bool,
    /// Whether the client may still be sending.
    pub(super) linger: bool,
    /// Whether both speak another protocol from here on.
    pub(super) switched: bool,
}

/// Whom a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Client,
    Upstream,
}

/// How far the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    /// All of it was sent.
    Done,
    /// The upstream takes no more of it; its response may be there already.
    Cut,
}

/// For how long a direction waits for a peer.
#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    on: Option<On>,
    moved: u64,
    client: Patience,
}

impl Wait {
    /// It waits for nobody, or has no limit.
    fn end(&mut self) {
        if self.on == Some(On::Client) {
            self.client.end(Instant::now());
        }
        self.on = None;
    }

    /// Until when it may go on, if it is another one than before. `moved` is how many bytes that peer has moved, and `now` is
    /// when it begins, where the clock was read already.
    fn begin(&mut self, on: On, moved: u64, pace: Pace, now: Option<Instant>) -> Option<Instant> {
        if self.on == Some(on) && self.moved == moved {
            return None;
        }
        let since = now.unwrap_or_else(Instant::now);
        let until = match on {
            On::Client => self.client.begin(since, moved, pace),
            On::Upstream => {
                self.client.end(since);
                since + pace.within
            }
        };
        (self.on, self.moved) = (Some(on), moved);
        Some(until)
    }

    /// Whether the peer is too slow; else the task is woken when it is.
    fn is_over(
        &mut self,
        deadline: &Deadline,
        cx: &Context<'_>,
        on: On,
        moved: u64,
        pace: Pace,
        now: Option<Instant>,
    ) -> bool {
        if let Some(until) = self.begin(on, moved, pace, now) {
            deadline.arm(until);
        }
        deadline.poll(cx).is_ready()
    }
}

/// Whether an exchange goes on for as long as its peers like.
enum Lasting {
    No,
    /// Once it has gone on for [`LASTING`].
    Soon,
    /// It does, until this completes.
    Until(Option<Leave>),
}

/// A request's body on its way, by as many attempts as it takes.
pub(super) struct Upload {
    progress: Progress,
    /// How much of what was read from the client belongs to the body.
    ready: usize,
    /// What was sent of it, where it could be sent again: of small ones, to upstreams that can say that
    /// they did nothing about it.
    sent: Option<Vec<u8>>,
}

impl Upload {
    /// The body of a request of this shape, as far as it is not kept with its head.
    pub(super) fn new(shape: Shape, limits: &Limits) -> Self {
        let body = if shape.kept > 0 { Body::Length(0) } else { shape.body };
        Self { progress: Progress::within(body, limits.most_of_a_body()), ready: 0, sent: Some(Vec::new()) }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.sent = self.sent.take().filter(|sent| sent.len() + bytes.len() <= REPEATED_BODY);
        if let Some(sent) = &mut self.sent {
            sent.extend_from_slice(bytes);
        }
    }

    /// Whether all that was sent of it is still here.
    pub(super) fn can_repeat(&self) -> bool {
        self.sent.is_some()
    }

    /// Puts what was sent of it after its head.
    pub(super) fn repeat(&mut self, head: &mut Text) {
        head.extend_from_slice(&self.sent.replace(Vec::new()).unwrap_or_default());
    }
}

/// An exchange on its way.
pub(super) struct Relay<'r, S> {
    conn: &'r mut Conn<S>,
    link: &'r mut Link,
    exchange: &'r mut Exchange,
    shape: Shape,

    /// The request's head, and how much of it was sent.
    head: &'r mut Text,
    head_sent: usize,
    request: &'r mut Upload,
    sending: Sending,
    request_wait: Wait,
    /// How much of the body was read from the client, as far as it was not there with the head.
    request_read: u64,
    /// How much the upstream took.
    request_sent: u64,

    /// Heads on their way to the client, and how much of them is sent.
    text: Text,
    text_sent: usize,
    /// The response's body, once its head is there.
    response: Option<Progress>,
    /// How much of what was read from the upstream belongs to the body.
    response_ready: usize,
    /// A body that only the upstream's close delimits goes to the client in chunks, so that it can
    /// tell whether it is whole: whether there was one.
    chunks: Option<bool>,
    /// Whether nobody knows how long the response will be.
    streams: bool,
    lasting: Lasting,
    response_wait: Wait,
    /// How much was read from the upstream.
    response_read: u64,
    /// How much the client took.
    response_sent: u64,
    /// How much of that is heads.
    heads_length: u64,
    /// When the client's own patience ends.
    late: Option<Deadline>,
    /// How much was searched for the end of the response's head.
    searched: usize,
    interim: u32,
    /// Whether an interim response said what none can say.
    doubtful: bool,
    /// Whether something of the final response was sent.
    begun: bool,
    status: u16,
    reusable: bool,
    close: bool,
    /// The answer instead of a response that is not what the request requires.
    pub(super) unmet: Option<Box<Answer>>,
}

impl<'r, S: Client> Relay<'r, S> {
    /// An exchange in which `head` goes to `link`, and then the body that `conn` brings.
    pub(super) fn new(
        conn: &'r mut Conn<S>,
        link: &'r mut Link,
        exchange: &'r mut Exchange,
        shape: Shape,
        head: &'r mut Text,
        request: &'r mut Upload,
    ) -> Self {
        let late = exchange.deadline().map(|(at, _)| {
            let deadline = Deadline::default();
            deadline.arm(at);
            deadline
        });
        Self {
            conn,
            link,
            exchange,
            shape,
            head,
            head_sent: 0,
            request,
            sending: Sending::Open,
            request_wait: Wait::default(),
            request_read: 0,
            request_sent: 0,
            text: Text::default(),
            text_sent: 0,
            response: None,
            response_ready: 0,
            chunks: None,
            streams: false,
            lasting: Lasting::No,
            response_wait: Wait::default(),
            response_read: 0,
            response_sent: 0,
            heads_length: 0,
            late,
            searched: 0,
            interim: 0,
            doubtful: false,
            begun: false,
            status: 0,
            reusable: false,
            close: shape.close,
            unmet: None,
        }
    }

    /// Carries what can be carried now; ready when the response is whole.
    ///
    /// # Errors
    /// Why it never will be, and the status whose head was sent (0: none was).
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outcome, (Failure, u16)>> {
        match self.advance(cx) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => {
                let body = &self.response;
                self.exchange.came_to(|| body.as_ref().and_then(Progress::grpc_status));
                self.exchange.body_sent(self.response_sent.saturating_sub(self.heads_length));
                Poll::Ready(Ok(self.outcome()))
            }
            Err(failure) => {
                self.exchange.body_sent(self.response_sent.saturating_sub(self.heads_length));
                Poll::Ready(Err((failure, self.status_begun())))
            }
        }
    }

    /// The status whose head was sent, in part or whole; 0 where an answer of our own can follow.
    fn status_begun(&self) -> u16 {
        let torn = self.text_sent > 0 && self.text_sent < self.text.len();
        match self.begun {
            true => self.status,
            false if torn => 100,
            false => 0,
        }
    }

    fn outcome(&self) -> Outcome {
        let sent = self.sending == Sending::Done;
        // What arrives after the end was asked for by nobody: nobody gets it.
        let reusable = self.reusable && sent && self.link.ahead.is_empty();
        let switched = self.status == SWITCHING;
        Outcome { status: self.status, reusable, close: self.close || !sent, linger: !sent, switched }
    }

    fn advance(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        let request = self.poll_request(cx)?;
        let Some(response) = self.poll_response(cx)? else {
            return Ok(Poll::Ready(()));
        };
        self.poll_deadlines(cx, request, response)?;
        if request.is_none() && response == On::Upstream {
            self.poll_client(cx)?;
        }
        self.forget_texts();
        Ok(Poll::Pending)
    }

    /// Gives back what heads take that were sent, and not to be sent again: somebody is waited for, maybe for long.
    fn forget_texts(&mut self) {
        if self.text_sent == self.text.len() {
            self.text.forget();
            self.text_sent = 0;
        }
        if self.head_sent == self.head.len() && !self.shape.repeatable && !self.link.can_refuse() {
            self.head.forget();
            self.head_sent = 0;
        }
    }

    /// Carries the request on; says whom it waits for, `None` where nothing of it is left.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<Option<On>, Failure> {
        if self.sending != Sending::Open {
            return Ok(None);
        }
        loop {
            let Upload { progress, ready, .. } = &mut *self.request;
            if *ready == 0 && !progress.is_done() {
                let read = self.conn.ahead().filled();
                *ready = progress.advance(read).map_err(|wrong| match wrong.is_too_large() {
                    true => Failure::BodyTooLarge,
                    false => Failure::BodyMalformed,
                })?;
            }
            let head = &self.head[self.head_sent..];
            if !head.is_empty() || *ready > 0 {
                let body = &self.conn.ahead().filled()[..*ready];
                match self.link.poll_send(cx, [head, body]) {
                    Poll::Ready(Ok(sent)) => self.request_sent(sent),
                    Poll::Ready(Err(error)) if self.link.cannot_say(&error) => {
                        return Err(Failure::Unsayable);
                    }
                    Poll::Ready(Err(_)) => {
                        self.sending = Sending::Cut;
                        return Ok(None);
                    }
                    Poll::Pending => return Ok(Some(On::Upstream)),
                }
                continue;
            }
            match self.link.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.sending = Sending::Cut;
                    return Ok(None);
                }
                Poll::Pending => return Ok(Some(On::Upstream)),
            }
            if self.request.progress.is_done() {
                self.sending = Sending::Done;
                return Ok(None);
            }
            match self.conn.poll_fill(cx, Want::Body) {
                Poll::Ready(Ok(0)) => return Err(Failure::BodyMalformed),
                Poll::Ready(Ok(read)) => self.request_read += read as u64,
                Poll::Ready(Err(_)) => return Err(Failure::ClientGone),
                Poll::Pending => return Ok(Some(On::Client)),
            }
        }
    }

    fn request_sent(&mut self, sent: usize) {
        self.request_sent += sent as u64;
        let of_head = sent.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        let of_body = sent - of_head;
        if of_body > 0 && self.link.can_refuse() {
            self.request.note(&self.conn.ahead().filled()[..of_body]);
        }
        self.request.ready -= of_body;
        self.conn.ahead().consume(of_body);
    }

    /// Carries the response on; says whom it waits for, `None` where it is whole.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Result<Option<On>, Failure> {
        loop {
            if let Some(response) = self.response.as_mut().filter(|_| self.response_ready == 0) {
                let read = self.link.ahead.filled();
                self.response_ready = response.advance(read).map_err(|_| Failure::UpstreamMalformed)?;
                if self.response_ready > 0 && self.chunks.is_some() {
                    self.begin_chunk(self.response_ready);
                }
                // In one piece with the body it leaves by a cheaper system call.
                if self.text_sent == 0 && !self.text.is_empty() && self.link.ahead.prepend(&self.text) {
                    self.response_ready += self.text.len();
                    self.text.clear();
                }
            }
            let text = &self.text[self.text_sent..];
            if !text.is_empty() || self.response_ready > 0 {
                let body = &self.link.ahead.filled()[..self.response_ready];
                match self.conn.poll_send(cx, [text, body]) {
                    Poll::Ready(Ok(sent)) => self.response_sent(sent),
                    Poll::Ready(Err(_)) => return Err(Failure::ClientGone),
                    Poll::Pending => return Ok(Some(On::Client)),
                }
                continue;
            }
            match self.response.as_ref().map(Progress::is_done) {
                Some(true) => return self.poll_flushed(cx),
                None if self.take_head()? => continue,
                _ => {}
            }
            if self.conn.poll_room(cx).is_pending() {
                return Ok(Some(On::Client));
            }
            match self.link.poll_fill(cx, self.wanted()) {
                Poll::Ready(Ok(0)) if self.response.as_ref().is_some_and(Progress::until_close) => {
                    self.begin_chunk(0);
                    self.response = Some(Progress::new(Body::Length(0)));
                }
                Poll::Ready(Ok(0)) => return Err(Failure::UpstreamClosed),
                Poll::Ready(Err(error)) => {
                    return Err(h2::unprocessed(&error).map_or(Failure::UpstreamClosed, Failure::Unprocessed));
                }
                Poll::Ready(Ok(read)) => self.response_read += read as u64,
                Poll::Pending => return Ok(self.poll_flushed(cx)?.or(Some(On::Upstream))),
            }
        }
    }

    /// For what is read. A client of HTTP/2 may let go the head and nothing of the body, and what was read of that is held for
    /// as long: so it is little, until the client took all of it.
    fn wanted(&self) -> Want {
        match self.response.is_none() && matches!(self.conn.agreed(), Some(ALPN::H2)) {
            true => Want::Beginning,
            false => Want::Response,
        }
    }

    /// Writes what stands before a chunk of `size` bytes: the end of the one before, and its size. The
    /// last one is empty (RFC 9112, section 7.1).
    fn begin_chunk(&mut self, size: usize) {
        let before = if self.chunks == Some(true) { "\r\n" } else { "" };
        let after = if size == 0 { "\r\n" } else { "" };
        self.chunks = Some(true);
        if self.text_sent == self.text.len() {
            self.text.clear();
            self.text_sent = 0;
        }
        // Writing to memory does not fail.
        let _ = write!(self.text, "{before}{size:x}\r\n{after}");
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Result<Option<On>, Failure> {
        match self.conn.poll_flush(cx) {
            Poll::Ready(Ok(())) => Ok(None),
            Poll::Ready(Err(_)) => Err(Failure::ClientGone),
            Poll::Pending => Ok(Some(On::Client)),
        }
    }

    fn response_sent(&mut self, sent: usize) {
        self.response_sent += sent as u64;
        self.begun |= self.response.is_some();
        let of_text = sent.min(self.text.len() - self.text_sent);
        self.text_sent += of_text;
        self.response_ready -= sent - of_text;
        self.link.ahead.consume(sent - of_text);
    }

    /// Takes one head, interim or final, from what was read; false where it is not complete.
    fn take_head(&mut self) -> Result<bool, Failure> {
        let Self { link, text, exchange, shape, sending, close, unmet, .. } = self;
        let read = link.ahead.filled();
        let fresh = self.searched == 0;
        if read.is_empty() || !(fresh || has_end(read, self.searched)) {
            return self.wait_for_head();
        }
        text.clear();
        self.text_sent = 0;
        let parsed = response::parse(read, shape.to_head, |head| {
            let is_final = !head.is_interim();
            head.copy(text, |name| name.is(&ROUTE) || (is_final && exchange.replaces_in_response(name)));
            if is_final {
                exchange.edit_response(head.status, &head.fields, text);
                exchange.came_to(|| grpc::status(&head.fields));
            }
            if head.status == SWITCHING {
                head.copy_upgrade(text);
                *unmet = exchange.add_receipts(head.fields.values(ROUTE), true, text).err();
            } else if is_final {
                let streams = matches!(head.body, Body::Chunked | Body::UntilClose);
                *unmet = exchange.add_receipts(head.fields.values(ROUTE), streams, text).err();
                // A client that is not done sending cannot be told where the next request begins.
                *close |= *sending != Sending::Done || is_leaving();
                if head.body == Body::UntilClose {
                    text.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                }
                if *close {
                    text.extend_from_slice(b"Connection: close\r\n");
                }
            }
            text.extend_from_slice(b"\r\n");
            (head.length, head.status, !is_final, head.reusable, head.body)
        });
        if self.unmet.is_some() {
            return Err(Failure::Unmet);
        }
        self.heads_length += self.text.len() as u64;
        match parsed {
            // A switch that nobody asked for, or before the request is whole.
            Ok(Some((_, SWITCHING, ..))) if !self.switches() => Err(Failure::UpstreamMalformed),
            Err(_) => Err(Failure::UpstreamMalformed),
            Ok(None) => self.wait_for_head(),
            Ok(Some((length, _, true, reusable, _))) => {
                self.interim += 1;
                self.doubtful |= !reusable;
                self.searched = 0;
                self.link.ahead.consume(length);
                if self.interim > MAX_INTERIM { Err(Failure::UpstreamMalformed) } else { Ok(true) }
            }
            Ok(Some((length, status, false, reusable, body))) => {
                self.exchange.answered();
                self.link.ahead.consume(length);
                self.status = status;
                // Who was to invite the body and did not may take it for the next request (CVE-2024-24791).
                let uninvited = self.shape.expects && self.interim == 0;
                self.reusable = reusable && !uninvited && !self.doubtful;
                self.response = Some(Progress::new(body));
                self.chunks = (body == Body::UntilClose).then_some(false);
                self.streams = matches!(body, Body::Chunked | Body::UntilClose);
                if matches!(self.lasting, Lasting::Until(_)) {
                    self.exchange.let_go();
                }
                // Who answers has processed it.
                self.request.sent = None;
                if self.head_sent == self.head.len() {
                    self.head.forget();
                    self.head_sent = 0;
                }
                Ok(true)
            }
        }
    }

    /// Whether the upstream may say that it speaks another protocol from here on.
    fn switches(&self) -> bool {
        self.shape.upgrade && self.sending == Sending::Done
    }

    fn wait_for_head(&mut self) -> Result<bool, Failure> {
        self.searched = self.link.ahead.len();
        let limit = self.exchange.limits().head_bytes;
        if self.searched > limit { Err(Failure::UpstreamMalformed) } else { Ok(false) }
    }

    /// Ends the exchange when a peer was silent for too long.
    fn poll_deadlines(
        &mut self,
        cx: &mut Context<'_>,
        request: Option<On>,
        response: On,
    ) -> Result<(), Failure> {
        if self.late.as_ref().is_some_and(|late| late.poll(cx).is_ready()) {
            return Err(self.exchange.deadline().map_or(Failure::Late, |(_, failure)| failure));
        }
        let now = self.exchange.pauses();
        if let Some(on) = request {
            match self.request_limit(on) {
                Some((pace, failure)) => {
                    let moved = if on == On::Client { self.request_read } else { self.request_sent };
                    if self.request_wait.is_over(self.conn.deadline(), cx, on, moved, pace, now) {
                        return Err(failure);
                    }
                }
                None => self.request_wait.end(),
            }
        }
        match self.response_limit(response, request) {
            Some((pace, failure)) => {
                let moved = if response == On::Client { self.response_sent } else { self.response_read };
                if self.response_wait.is_over(self.conn.response_deadline(), cx, response, moved, pace, now) {
                    return Err(failure);
                }
            }
            None => self.response_wait.end(),
        }
        match response == On::Upstream && (self.is_call() || self.streams) {
            true => self.poll_lasting(cx),
            false => Ok(()),
        }
    }

    /// Ends a stream whose environment is gone.
    fn poll_lasting(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let deadline = self.conn.response_deadline();
        if matches!(self.lasting, Lasting::No) {
            deadline.arm(Instant::now() + LASTING);
            self.lasting = Lasting::Soon;
        }
        if matches!(self.lasting, Lasting::Soon) && deadline.poll(cx).is_ready() {
            self.lasting = Lasting::Until(self.exchange.lasts());
            if self.response.is_some() {
                self.exchange.let_go();
            }
        }
        if let Lasting::Until(Some(leave)) = &mut self.lasting
            && leave.as_mut().poll(cx).is_ready()
        {
            return Err(Failure::Gone);
        }
        Ok(())
    }

    /// How fast a peer has to take the request on, if there is a limit.
    fn request_limit(&self, on: On) -> Option<(Pace, Failure)> {
        let limits = self.exchange.limits();
        let Limits { upstream_read, upstream_write, .. } = *limits;
        // Who waits for `100 Continue` owes nothing yet.
        let invited = !self.shape.expects || self.interim > 0 || self.request_read > 0;
        match on {
            On::Upstream => Some((Pace { within: upstream_write, rate: 0 }, Failure::UpstreamSilent)),
            // Both sides speak when they have something to say.
            On::Client if self.is_call() || self.streams => None,
            On::Client if !invited => {
                Some((Pace { within: upstream_read, rate: 0 }, Failure::UpstreamSilent))
            }
            On::Client => Some((limits.body_pace(), Failure::BodySlow)),
        }
    }

    /// How fast a peer has to take the response on, if there is a limit. `request` is whom the request waits for.
    fn response_limit(&self, on: On, request: Option<On>) -> Option<(Pace, Failure)> {
        let limits = self.exchange.limits();
        match on {
            On::Client => Some((limits.write_pace(), Failure::ClientGone)),
            // The next event comes when it comes. That a peer is gone is seen by its connection.
            On::Upstream if self.is_call() || self.streams => None,
            // It waits for the rest of the request, whose own deadline counts.
            On::Upstream if request.is_some() => None,
            On::Upstream => Some((Pace { within: limits.upstream_read, rate: 0 }, Failure::UpstreamSilent)),
        }
    }

    fn is_call(&self) -> bool {
        self.shape.form == Form::Grpc
    }

    /// While the upstream thinks: sees that the client is gone, and reads a pipelined next request, up
    /// to a bound. A client that only closed its sending side still wants the answer.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while !self.conn.ended() && self.conn.ahead().len() < READ_AHEAD {
            match self.conn.poll_fill(cx, Want::Head) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(Failure::ClientGone),
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_another_one_where_its_peer_is_or_has_moved() {
        let pace = Pace { within: Duration::from_secs(1), rate: 0 };
        let start = Instant::now();
        let mut wait = Wait::default();
        assert_eq!(wait.begin(On::Upstream, 0, pace, Some(start)), Some(start + pace.within));
        assert_eq!(wait.begin(On::Upstream, 0, pace, None), None, "it is the same");
        for other in [(On::Client, 0), (On::Client, 1)] {
            let until = wait.begin(other.0, other.1, pace, None);
            assert!(until.is_some_and(|until| until > start + pace.within));
        }
        wait.end();
        assert!(wait.begin(On::Client, 1, pace, None).is_some());
    }

    #[test]
    fn a_client_is_not_charged_for_waiting_for_the_upstream() {
        let pace = Pace { within: Duration::from_secs(10), rate: 1 };
        let start = Instant::now();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        let mut wait = Wait::default();
        wait.begin(On::Client, 0, pace, Some(start));
        wait.begin(On::Upstream, 0, pace, after(4));
        assert_eq!(wait.begin(On::Client, 1, pace, after(60)), after(67));
    }
}
