//! What a peer may send that costs it nothing and us something: frames are counted as they go by.
//!
//! `h2` bounds what a connection holds, not what it works: each SETTINGS, PING, PRIORITY, RST_STREAM or
//! WINDOW_UPDATE frame is small and has to be looked at, and most have to be answered (CVE-2019-9511 and those
//! after it, CVE-2023-44487). So they have a budget, which useful work and time give back
//! (docs/decisions/0026-floods-of-http-2.md).

use std::fmt;
use std::time::Instant;

use super::PREFACE;

/// How many such frames a peer may send at once.
const MOST: u32 = 2_000;
/// How many it may send for each frame of a message (HEADERS, DATA) that it gets: a window update for the stream
/// and one for the connection, a ping to measure the way, a reset. Envoy lets as many window updates pass.
const FOR_EACH_SENT: u32 = 10;
/// How many more it may send each second.
const PER_SECOND: u32 = 250;

/// Types of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// The code of an end because of a flood (RFC 9113, section 7).
const CALM: u32 = 11;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const FRAME_HEAD: usize = 9;

/// Whose floods are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A client's.
    Client,
    /// An upstream's.
    Upstream,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Client, Self::Upstream];

    /// The word for it in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
        }
    }
}

/// Of what a peer sent too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Parts of one head.
    Continuation,
    /// Frames of a body with little or nothing in them.
    Data,
    /// Requests or responses that are none.
    Errors,
    /// Of the connection's end.
    Goaway,
    /// A head that is larger than any that is taken.
    HeaderList,
    /// Interim responses.
    Headers,
    /// Frames that nobody knows.
    Other,
    /// Pings.
    Ping,
    /// Priorities.
    Priority,
    /// Requests that were given up.
    Reset,
    /// Settings.
    Settings,
    /// A frame or a head that did not come to its end in time.
    Slow,
    /// Window updates.
    WindowUpdate,
}

impl Flood {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Continuation,
        Self::Data,
        Self::Errors,
        Self::Goaway,
        Self::HeaderList,
        Self::Headers,
        Self::Other,
        Self::Ping,
        Self::Priority,
        Self::Reset,
        Self::Settings,
        Self::Slow,
        Self::WindowUpdate,
    ];

    /// The word for it in metrics and the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continuation => "continuation",
            Self::Data => "data",
            Self::Errors => "errors",
            Self::Goaway => "goaway",
            Self::HeaderList => "header-list",
            Self::Headers => "headers",
            Self::Other => "other",
            Self::Ping => "ping",
            Self::Priority => "priority",
            Self::Reset => "reset",
            Self::Settings => "settings",
            Self::Slow => "slow",
            Self::WindowUpdate => "window-update",
        }
    }

    /// What `h2` ends a connection for, by the last frame that it sends, where that is a flood: its errors do not
    /// tell.
    fn told(goaway: &[u8]) -> Option<Self> {
        let code = u32::from_be_bytes(goaway.get(4..8)?.try_into().ok()?);
        let told = [
            ("too_many_resets", Self::Reset),
            ("too_many_internal_resets", Self::Errors),
            ("too_many_continuations", Self::Continuation),
            ("too_many_data_frames", Self::Data),
            ("header_list_way_too_large", Self::HeaderList),
        ];
        let words = &goaway[8..];
        let told = told.into_iter().find(|(own, _)| words.starts_with(own.as_bytes()));
        (code == CALM).then_some(told.map_or(Self::Other, |(_, flood)| flood))
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a flood of HTTP/2: {}", self.as_str())
    }
}

impl std::error::Error for Flood {}

/// A frame whose head was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
    stream: u32,
}

impl Frame {
    fn read(head: &[u8; FRAME_HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Self { kind, flags, length, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) }
    }

    /// As what it is counted where `from` sends it; `None` where it is what the connection is for.
    fn cost(self, from: Side) -> Option<Flood> {
        match self.kind {
            DATA if self.length > 0 || self.flags & END_STREAM != 0 => None,
            DATA => Some(Flood::Data),
            // Who opens streams is bounded by how many there may be; an upstream answers as often as it likes.
            HEADERS if from == Side::Client => None,
            HEADERS => Some(Flood::Headers),
            PRIORITY => Some(Flood::Priority),
            RST_STREAM => Some(Flood::Reset),
            SETTINGS => Some(Flood::Settings),
            PING => Some(Flood::Ping),
            GOAWAY => Some(Flood::Goaway),
            WINDOW_UPDATE => Some(Flood::WindowUpdate),
            CONTINUATION => Some(Flood::Continuation),
            _ => Some(Flood::Other),
        }
    }
}

/// Where in its frames a direction of a connection is.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; FRAME_HEAD],
    /// How much of the next frame's head is there.
    have: usize,
    /// How much of this frame is to come.
    left: usize,
    /// What kind it is.
    kind: u8,
    /// Whether a head began that goes on in the next frame.
    in_head: bool,
    /// How many frames began, a head in several being one.
    begun: u64,
    /// The highest stream on which a head began.
    pub(super) stream: u32,
}

impl Frames {
    /// What `from` is to send.
    pub(super) fn new(from: Side) -> Self {
        let left = if from == Side::Client { PREFACE.len() } else { 0 };
        Self { head: [0; FRAME_HEAD], have: 0, left, kind: DATA, in_head: false, begun: 0, stream: 0 }
    }

    /// Goes on by `bytes`, and tells of each frame whose head is there now, and what follows it.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame, &[u8])) {
        loop {
            let passed = self.left.min(bytes.len());
            (self.left, bytes) = (self.left - passed, &bytes[passed..]);
            if bytes.is_empty() {
                return;
            }
            let taken = bytes.len().min(FRAME_HEAD - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            (self.have, bytes) = (self.have + taken, &bytes[taken..]);
            if self.have < FRAME_HEAD {
                return;
            }
            let frame = Frame::read(&self.head);
            (self.have, self.left, self.kind) = (0, frame.length, frame.kind);
            self.begun += u64::from(!self.in_head);
            if matches!(frame.kind, HEADERS | CONTINUATION) {
                self.in_head = frame.flags & END_HEADERS == 0;
                self.stream = self.stream.max(frame.stream);
            }
            each(frame, bytes);
        }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// What began and is to be whole soon, by its number: anything but a body.
    pub(super) fn owed(&self) -> Option<u64> {
        let owed = self.have > 0 || self.in_head || (self.left > 0 && self.kind != DATA);
        owed.then_some(self.begun)
    }
}

/// The last frame of a connection whose peer asks too much (RFC 9113, section 6.8). `stream` is the last one that
/// may have been looked at.
pub(super) fn calm(stream: u32) -> [u8; 17] {
    let mut frame = [0; 17];
    (frame[2], frame[3]) = (8, GOAWAY);
    frame[9..13].copy_from_slice(&stream.to_be_bytes());
    frame[13..].copy_from_slice(&CALM.to_be_bytes());
    frame
}

/// What is left of what a peer may send.
#[derive(Debug)]
pub(super) struct Budget {
    from: Side,
    left: u32,
    /// Since when time has given nothing back.
    since: Instant,
}

impl Budget {
    pub(super) fn new(from: Side, now: Instant) -> Self {
        Self { from, left: MOST, since: now }
    }

    /// The peer is sent a frame, with these bytes in it; says what it is ended for, where it is.
    pub(super) fn goes(&mut self, frame: Frame, payload: &[u8]) -> Option<Flood> {
        match frame.kind {
            HEADERS | DATA => {
                self.left = MOST.min(self.left + FOR_EACH_SENT);
                None
            }
            GOAWAY => Flood::told(&payload[..frame.length.min(payload.len())]),
            _ => None,
        }
    }

    /// The peer sent a frame.
    ///
    /// # Errors
    /// Where it was one too many.
    pub(super) fn came(&mut self, frame: Frame, now: impl FnOnce() -> Instant) -> Result<(), Flood> {
        let Some(flood) = frame.cost(self.from) else { return Ok(()) };
        if self.left == 0 {
            let now = now();
            let more = now.saturating_duration_since(self.since).as_millis() * u128::from(PER_SECOND) / 1000;
            (self.left, self.since) = (u32::try_from(more).unwrap_or(MOST).min(MOST), now);
        }
        self.left = self.left.checked_sub(1).ok_or(flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Frame {
        Frame { kind, flags, length, stream: 1 }
    }

    fn bytes(frame: Frame) -> Vec<u8> {
        let length = u32::try_from(frame.length).expect("small").to_be_bytes();
        let stream = frame.stream.to_be_bytes();
        [&length[1..], &[frame.kind, frame.flags], &stream, &vec![b'x'; frame.length]].concat()
    }

    proptest! {
        #[test]
        fn frames_are_told_however_their_bytes_come(
            frames in prop::collection::vec((0_u8..12, any::<u8>(), 0_usize..40), 0..20),
            cuts in prop::collection::vec(1_usize..30, 1..200),
            client: bool,
        ) {
            let frames: Vec<_> = frames.into_iter().map(|(kind, flags, length)| frame(kind, flags, length)).collect();
            let side = if client { Side::Client } else { Side::Upstream };
            let mut all = if client { vec![b'P'; PREFACE.len()] } else { Vec::new() };
            all.extend(frames.iter().flat_map(|frame| bytes(*frame)));
            let (mut following, mut told, mut rest) = (Frames::new(side), Vec::new(), &all[..]);
            for cut in cuts.into_iter().cycle() {
                let (part, more) = rest.split_at(cut.min(rest.len()));
                following.follow(part, |frame, _| told.push(frame));
                rest = more;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(told, frames);
            prop_assert!(following.is_between());
        }
    }

    #[test]
    fn what_began_and_is_not_whole_is_owed() {
        for (sent, owed) in [
            (bytes(frame(HEADERS, END_HEADERS, 5)), false),
            (bytes(frame(HEADERS, 0, 5)), true),
            ([bytes(frame(HEADERS, 0, 5)), bytes(frame(CONTINUATION, 0, 0))].concat(), true),
            ([bytes(frame(HEADERS, 0, 5)), bytes(frame(CONTINUATION, END_HEADERS, 0))].concat(), false),
            (bytes(frame(HEADERS, END_HEADERS, 5))[..13].to_vec(), true),
            (bytes(frame(DATA, 0, 5))[..13].to_vec(), false),
            (bytes(frame(DATA, 0, 5))[..3].to_vec(), true),
        ] {
            let mut frames = Frames::new(Side::Upstream);
            frames.follow(&sent, |_, _| ());
            assert_eq!(frames.owed().is_some(), owed, "{sent:?}");
        }
    }

    #[test]
    fn useful_work_and_time_give_back_what_frames_cost() {
        let start = Instant::now();
        let mut budget = Budget::new(Side::Client, start);
        let ping = frame(PING, 0, 8);
        for _ in 0..MOST {
            assert_eq!(budget.came(ping, || start), Ok(()));
        }
        assert_eq!(budget.came(ping, || start), Err(Flood::Ping));
        let later = || start + Duration::from_secs(1);
        for _ in 0..PER_SECOND {
            assert_eq!(budget.came(ping, later), Ok(()));
        }
        assert_eq!(budget.came(frame(RST_STREAM, 0, 4), later), Err(Flood::Reset));
        assert_eq!(budget.goes(frame(HEADERS, END_HEADERS, 1), b"x"), None);
        for _ in 0..FOR_EACH_SENT {
            assert_eq!(budget.came(frame(WINDOW_UPDATE, 0, 4), later), Ok(()));
        }
        assert_eq!(budget.came(frame(200, 0, 4), later), Err(Flood::Other));
    }

    #[test]
    fn what_h2_ends_a_connection_for_is_known() {
        let mut budget = Budget::new(Side::Client, Instant::now());
        for (words, told) in [(&b"too_many_resets"[..], Flood::Reset), (b"", Flood::Other)] {
            let payload = [&calm(1)[FRAME_HEAD..], words].concat();
            let goaway = frame(GOAWAY, 0, payload.len());
            assert_eq!(budget.goes(goaway, &payload), Some(told));
            assert_eq!(budget.goes(goaway, &payload[..7]), None);
        }
        let gracefully = frame(GOAWAY, 0, 8);
        assert_eq!(budget.goes(gracefully, &[0; 8]), None);
    }

    #[test]
    fn messages_cost_nothing_and_an_upstreams_heads_do() {
        for (frame, client, upstream) in [
            (frame(DATA, 0, 1), None, None),
            (frame(DATA, END_STREAM, 0), None, None),
            (frame(DATA, 0, 0), Some(Flood::Data), Some(Flood::Data)),
            (frame(HEADERS, END_HEADERS, 1), None, Some(Flood::Headers)),
        ] {
            assert_eq!((frame.cost(Side::Client), frame.cost(Side::Upstream)), (client, upstream));
        }
    }
}
