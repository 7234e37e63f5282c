//! One thread that sends requests and reads their answers.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::Control;
use super::alarm::{ALARM, Alarm};
use super::pace::{Pacer, Plan};
use super::response::{Answer, ResponseReader};
use super::tally::{Failure, Tally};
use super::target::Target;

/// How often deadlines and the order to stop are looked at, and connections that could not be made
/// are tried again.
const TICK: Duration = Duration::from_millis(20);
/// The longest that one of the first connections may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that are read at once.
const READ: usize = 64 * 1024;

/// A connection and what goes on it.
#[derive(Default)]
struct Lane {
    /// `None` where it has to be made again.
    stream: Option<TcpStream>,
    /// Whether it is made.
    connected: bool,
    /// It could not be made: nothing is sent until the next tick.
    resting: bool,
    /// How much of the request that it carries was written.
    written: usize,
    reader: ResponseReader,
    /// Bytes of the answer so far.
    bytes: u64,
    /// When it began to send.
    since: Duration,
}

/// One thread's connections.
pub struct Generator {
    target: Target,
    pacer: Pacer,
    lanes: Vec<Lane>,
    /// Connections that should send now.
    ready: Vec<usize>,
    poll: Poll,
    alarm: Alarm,
    tally: Tally,
    timeout: Duration,
    start: Instant,
    /// The time since the start, as of the last look at the clock.
    now: Duration,
    /// When the last answer that counts came.
    last: Duration,
    buffer: Box<[u8]>,
}

impl Generator {
    /// Connects to the target, so that it is known to be there before anything is measured.
    ///
    /// # Errors
    /// It takes no connection.
    pub fn connect(target: Target, plan: Plan, timeout: Duration) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Alarm::new(&poll)?;
        let mut lanes = Vec::with_capacity(plan.lanes);
        for at in 0..plan.lanes {
            let stream = std::net::TcpStream::connect_timeout(&target.address, CONNECT)?;
            stream.set_nonblocking(true)?;
            let stream = registered(TcpStream::from_std(stream), at, &poll)?;
            lanes.push(Lane { stream: Some(stream), connected: true, ..Lane::default() });
        }
        Ok(Self {
            target,
            lanes,
            ready: Vec::with_capacity(plan.lanes),
            poll,
            alarm,
            tally: Tally::new(),
            pacer: Pacer::new(plan),
            timeout,
            start: Instant::now(),
            now: Duration::ZERO,
            last: Duration::ZERO,
            buffer: vec![0; READ].into_boxed_slice(),
        })
    }

    /// Sends until the plan ends, waits for what is under way, and returns what was measured.
    ///
    /// # Errors
    /// The system does not let it wait for events.
    pub fn run(mut self, start: Instant, control: &Control) -> io::Result<Tally> {
        self.start = start;
        let mut events = Events::with_capacity(self.lanes.len().clamp(16, 1024));
        let (mut tick, mut told) = (TICK, 0);
        loop {
            self.send_due();
            self.look();
            if self.now >= tick {
                tick = self.now + TICK;
                self.check_lanes();
                let answered = self.tally.requests();
                control.answered(answered - told);
                told = answered;
                if control.stopped() {
                    self.pacer.stop(self.now);
                }
            }
            if self.pacer.over(self.now) && !self.waits() {
                return Ok(self.finish());
            }
            self.wait(&mut events, tick)?;
            self.look();
            for event in &events {
                if event.token() != ALARM {
                    self.happened(event);
                }
            }
        }
    }

    fn look(&mut self) {
        self.now = self.start.elapsed();
    }

    /// Whether an answer is still to come.
    fn waits(&self) -> bool {
        (0..self.lanes.len()).any(|lane| self.pacer.carries(lane))
    }

    /// Waits for events, the next request that is due, or the tick.
    fn wait(&mut self, events: &mut Events, tick: Duration) -> io::Result<()> {
        let end = Some(self.pacer.end()).filter(|end| *end > self.now);
        let due = [self.pacer.next_due(), end].into_iter().flatten().min();
        // What rests until the tick is tried again then.
        let limit = if self.ready.is_empty() { tick.saturating_sub(self.now) } else { Duration::ZERO };
        let due = due.map(|due| due.saturating_sub(self.now));
        match self.alarm.wait(&mut self.poll, events, due, limit) {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            done => done,
        }
    }

    /// Sends what is due by now, and what waited for its connection.
    fn send_due(&mut self) {
        self.look();
        let Self { pacer, ready, tally, now, .. } = self;
        let warm = *now >= pacer.warmup();
        pacer.due(*now, |lane, late| {
            ready.push(lane);
            if let Some(late) = late.filter(|_| warm) {
                tally.late(late);
            }
        });
        let mut ready = std::mem::take(&mut self.ready);
        for at in ready.drain(..) {
            self.send(at);
        }
        // What could not be sent may be tried once more; the vector is kept either way.
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    /// Sends the connection's next request, if it has one.
    fn send(&mut self, at: usize) {
        self.look();
        let lane = &mut self.lanes[at];
        if lane.resting || self.pacer.carries(at) || !self.pacer.owes(at, self.now) {
            return;
        }
        self.pacer.sends(at, self.now);
        lane.since = self.now;
        lane.written = 0;
        lane.bytes = 0;
        lane.reader = ResponseReader::default();
        if lane.stream.is_some() {
            return self.write(at);
        }
        self.tally.reconnects += 1;
        match TcpStream::connect(self.target.address).and_then(|stream| registered(stream, at, &self.poll)) {
            Ok(stream) => self.lanes[at].stream = Some(stream),
            Err(_) => self.fail(at, Failure::Connect),
        }
    }

    fn write(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        let Some(stream) = &mut lane.stream else { return };
        while lane.written < self.target.request.len() {
            match stream.write(&self.target.request[lane.written..]) {
                Ok(0) => return self.fail(at, Failure::Closed),
                Ok(written) => lane.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.fail(at, Failure::Closed),
            }
        }
    }

    fn happened(&mut self, event: &Event) {
        let at = event.token().0;
        let lane = &mut self.lanes[at];
        let Some(stream) = &lane.stream else { return };
        if !lane.connected {
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_ok() => lane.connected = true,
                // An event of the connection before this one.
                Ok(None) => return,
                _ => return self.fail(at, Failure::Connect),
            }
        }
        if event.is_writable() && self.pacer.carries(at) {
            self.write(at);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(at, event.is_read_closed() || event.is_error());
        }
    }

    /// Reads what is there; where the connection was closed, to its end.
    fn read(&mut self, at: usize, closed: bool) {
        loop {
            let lane = &mut self.lanes[at];
            let Some(stream) = &mut lane.stream else { return };
            let read = match stream.read(&mut self.buffer) {
                Ok(0) => return self.closed(at),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.closed(at),
            };
            if !self.pacer.carries(at) {
                // Nobody asked: what comes next could not be told apart from it.
                return self.disconnect(at);
            }
            lane.bytes += read as u64;
            match lane.reader.read(&self.buffer[..read]) {
                Err(_) => return self.fail(at, Failure::Malformed),
                Ok((_, None)) => {}
                Ok((taken, Some(answer))) => {
                    let whole = taken == read && lane.written == self.target.request.len();
                    self.answered(at, Answer { reusable: answer.reusable && whole, ..answer });
                }
            }
            // A short read emptied the socket; what comes later is another event.
            if read < READ && !closed {
                return;
            }
        }
    }

    fn closed(&mut self, at: usize) {
        if !self.pacer.carries(at) {
            return self.disconnect(at);
        }
        match self.lanes[at].reader.closed() {
            Ok(answer) => self.answered(at, answer),
            Err(_) => self.fail(at, Failure::Closed),
        }
    }

    fn disconnect(&mut self, at: usize) {
        self.lanes[at].stream = None;
        self.lanes[at].connected = false;
    }

    fn answered(&mut self, at: usize, answer: Answer) {
        self.look();
        self.tally.answers += 1;
        if let Some(intended) = self.pacer.finishes(at) {
            self.tally.answered(answer.status, self.now.saturating_sub(intended));
            self.tally.bytes += self.lanes[at].bytes;
            self.last = self.now;
        }
        if !answer.reusable {
            self.disconnect(at);
        }
        self.ready.push(at);
    }

    fn fail(&mut self, at: usize, failure: Failure) {
        self.look();
        if let Some(intended) = self.pacer.finishes(at) {
            self.tally.failed(failure, self.now.saturating_sub(intended));
        }
        self.disconnect(at);
        self.lanes[at].resting = failure == Failure::Connect;
        self.ready.push(at);
    }

    /// Gives up on what waits too long, and lets connections be tried again.
    fn check_lanes(&mut self) {
        for at in 0..self.lanes.len() {
            if std::mem::take(&mut self.lanes[at].resting) {
                self.ready.push(at);
            }
            if self.pacer.carries(at) && self.now.saturating_sub(self.lanes[at].since) >= self.timeout {
                self.fail(at, Failure::Timeout);
            }
        }
    }

    fn finish(mut self) -> Tally {
        for waited in self.pacer.unsent() {
            self.tally.unsent(waited);
        }
        self.tally.span = self.last.max(self.pacer.end()).saturating_sub(self.pacer.warmup());
        self.tally
    }
}

fn registered(mut stream: TcpStream, at: usize, poll: &Poll) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}
