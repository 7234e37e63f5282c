//! Where a body ends, followed through the bytes that carry it (RFC 9112, sections 6 and 7).
//!
//! Between HTTP/1.1 peers a body is never decoded: what arrived is what leaves. It is only followed closely enough to know
//! which bytes are its own, and to refuse what another reader could frame differently.

use super::{Malformed, bad};

/// The longest chunk extension of one chunk, in bytes.
const MAX_EXTENSION: usize = 256;
/// The longest trailer section, in bytes.
const MAX_TRAILERS: usize = 16 * 1024;
/// Hexadecimal digits of a chunk's size: more could overflow somebody's integer.
const MAX_SIZE_DIGITS: u8 = 15;
/// The longest name of a field that may not be a trailer.
const LONGEST_FORBIDDEN: usize = 17;
/// Fields that frame, address or route a message are read from heads; in a trailer they could only
/// mislead a reader who merges both (RFC 9110, section 6.5.1).
const FORBIDDEN_TRAILERS: [&[u8]; 7] =
    [b"content-length", b"transfer-encoding", b"host", b"connection", b"expect", b"te", b"baggage"];
/// Our own headers are no trailers either.
const FORBIDDEN_PREFIX: &[u8] = b"x-overlay-";

/// What is wrong with a body of more bytes than are allowed.
const TOO_LARGE: Malformed = Malformed { status: 413, what: "the request's body is larger than is allowed" };

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; 0 without a body.
    Length(u64),
    /// By chunks.
    Chunked,
    /// By the end of the connection; responses only.
    UntilClose,
}

impl Body {
    /// Whether it says of itself that it is longer than so many bytes.
    #[must_use]
    pub fn is_longer_than(self, most: u64) -> bool {
        matches!(self, Self::Length(length) if length > most)
    }
}

/// A body on its way: how much of what comes next is its own.
#[derive(Debug)]
pub struct Progress(State);

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Progress {
    /// A body of which nothing was seen yet.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self::within(body, u64::MAX)
    }

    /// The same, where chunks may hold so many bytes in all; a length is known from the start.
    #[must_use]
    pub fn within(body: Body, most: u64) -> Self {
        Self(match body {
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Chunked(Chunks { room: most, ..Chunks::default() }),
            Body::UntilClose => State::UntilClose,
        })
    }

    /// How many bytes at the start of `bytes` belong to the body; they count as seen from now on.
    ///
    /// # Errors
    /// Chunks that are malformed.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match &mut self.0 {
            State::Length(left) => {
                let own = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= own as u64;
                Ok(own)
            }
            State::Chunked(chunks) => chunks.advance(bytes),
            State::UntilClose => Ok(bytes.len()),
        }
    }

    /// How many bytes at the start of `bytes` only frame the body: up to its next payload, its trailers or
    /// its end. They count as seen from now on.
    ///
    /// # Errors
    /// Chunks that are malformed.
    pub fn skip_framing(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match &mut self.0 {
            State::Chunked(chunks) => chunks.skip_framing(bytes),
            State::Length(_) | State::UntilClose => Ok(0),
        }
    }

    /// How many bytes of payload come next, as far as is known; 0 where framing does.
    #[must_use]
    pub fn payload(&self) -> u64 {
        match &self.0 {
            State::Length(left) => *left,
            State::Chunked(chunks) if chunks.at == At::Payload => chunks.left,
            State::Chunked(_) => 0,
            State::UntilClose => u64::MAX,
        }
    }

    /// Whether what comes next is of the trailers or their end.
    #[must_use]
    pub fn is_in_trailers(&self) -> bool {
        matches!(&self.0, State::Chunked(chunks) if chunks.at.is_in_trailers())
    }

    /// What a call of gRPC came to, as its trailers say (`grpc-status`), where they did.
    #[must_use]
    pub fn grpc_status(&self) -> Option<u8> {
        match &self.0 {
            State::Chunked(chunks) => chunks.status.value,
            State::Length(_) | State::UntilClose => None,
        }
    }

    /// Whether its last byte was seen. A body that lasts until the close is never done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.0 {
            State::Length(left) => *left == 0,
            State::Chunked(chunks) => chunks.at == At::Done,
            State::UntilClose => false,
        }
    }

    /// Whether it lasts until the connection is closed.
    #[must_use]
    pub fn until_close(&self) -> bool {
        matches!(self.0, State::UntilClose)
    }
}

/// Where in the chunked coding (RFC 9112, section 7.1) the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    Extension,
    SizeLf,
    Payload,
    PayloadCr,
    PayloadLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Done,
}

impl At {
    fn is_in_trailers(self) -> bool {
        matches!(
            self,
            Self::TrailerStart | Self::TrailerName | Self::TrailerValue | Self::TrailerLf | Self::LastLf
        )
    }
}

#[derive(Debug)]
struct Chunks {
    at: At,
    /// The rest of the chunk's payload.
    left: u64,
    /// How much payload there may be in the chunks that follow.
    room: u64,
    digits: u8,
    /// Bytes of this chunk's extension.
    extension: usize,
    /// Bytes of the trailer section.
    trailers: usize,
    /// The start of the trailer's name, in lower case, as far as a forbidden one can be told by it.
    name: [u8; LONGEST_FORBIDDEN],
    name_length: usize,
    status: GrpcStatus,
}

/// The number that the trailer `grpc-status` says, digit by digit.
#[derive(Debug, Clone, Copy, Default)]
struct GrpcStatus {
    /// Whether what comes next is of its value.
    reads: bool,
    value: Option<u8>,
}

impl GrpcStatus {
    /// The value of this trailer comes next.
    fn begin(&mut self, name: &[u8]) {
        self.reads = name == b"grpc-status";
        self.value = self.value.filter(|_| !self.reads);
    }

    fn take(&mut self, byte: u8) {
        if !self.reads {
            return;
        }
        match byte {
            // Before it and behind it.
            b' ' | b'\t' => self.reads = self.value.is_none(),
            b'0'..=b'9' => {
                let more =
                    self.value.unwrap_or(0).checked_mul(10).and_then(|ten| ten.checked_add(byte - b'0'));
                *self = Self { reads: more.is_some(), value: more };
            }
            // It says nothing.
            _ => *self = Self::default(),
        }
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            at: At::Size,
            left: 0,
            room: u64::MAX,
            digits: 0,
            extension: 0,
            trailers: 0,
            name: [0; LONGEST_FORBIDDEN],
            name_length: 0,
            status: GrpcStatus::default(),
        }
    }
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut seen = 0;
        while seen < bytes.len() && self.at != At::Done {
            if self.at == At::Payload {
                let own = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - seen);
                self.left -= own as u64;
                seen += own;
                if self.left == 0 {
                    self.at = At::PayloadCr;
                }
            } else {
                self.step(bytes[seen])?;
                seen += 1;
            }
        }
        Ok(seen)
    }

    fn skip_framing(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let in_trailers = self.at.is_in_trailers();
        let mut seen = 0;
        while seen < bytes.len()
            && !matches!(self.at, At::Payload | At::Done)
            && self.at.is_in_trailers() == in_trailers
        {
            self.step(bytes[seen])?;
            seen += 1;
        }
        Ok(seen)
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.at = match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() => return self.digit(byte),
            (At::Size, b'\r') if self.digits > 0 => At::SizeLf,
            (At::Size, b';') if self.digits > 0 => At::Extension,
            (At::Size, _) => return Err(bad("a chunk's size is malformed")),
            (At::Extension, b'\r') => At::SizeLf,
            (At::Extension, _) => return self.extension(byte),
            (At::SizeLf, b'\n') => self.payload()?,
            (At::PayloadCr, b'\r') => At::PayloadLf,
            (At::PayloadLf, b'\n') => At::Size,
            (At::PayloadCr | At::PayloadLf, _) => {
                return Err(bad("a chunk is longer than its size says"));
            }
            (At::TrailerStart, b'\r') => At::LastLf,
            (At::TrailerStart | At::TrailerName, _) => return self.trailer_name(byte),
            (At::TrailerValue, b'\r') => At::TrailerLf,
            (At::TrailerValue, _) => return self.trailer_value(byte),
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::LastLf, b'\n') => At::Done,
            (At::SizeLf | At::TrailerLf | At::LastLf, _) => {
                return Err(bad("a bare CR in the chunked coding"));
            }
            // Handled by `advance`.
            (At::Payload | At::Done, _) => self.at,
        };
        Ok(())
    }

    fn digit(&mut self, byte: u8) -> Result<(), Malformed> {
        self.digits += 1;
        if self.digits > MAX_SIZE_DIGITS {
            return Err(bad("a chunk's size is too large"));
        }
        let digit = (byte as char).to_digit(16).unwrap_or_default();
        self.left = self.left << 4 | u64::from(digit);
        Ok(())
    }

    /// What follows a chunk's size line: its payload, or after the last chunk the trailers.
    fn payload(&mut self) -> Result<At, Malformed> {
        self.digits = 0;
        self.extension = 0;
        self.room = self.room.checked_sub(self.left).ok_or(TOO_LARGE)?;
        Ok(if self.left > 0 { At::Payload } else { At::TrailerStart })
    }

    fn extension(&mut self, byte: u8) -> Result<(), Malformed> {
        self.extension += 1;
        if self.extension > MAX_EXTENSION {
            return Err(bad("a chunk extension is too long"));
        }
        if is_text(byte) { Ok(()) } else { Err(bad("a chunk extension is malformed")) }
    }

    fn count_trailer(&mut self) -> Result<(), Malformed> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS { Err(bad("the trailers are too large")) } else { Ok(()) }
    }

    fn trailer_name(&mut self, byte: u8) -> Result<(), Malformed> {
        self.count_trailer()?;
        if self.at == At::TrailerStart {
            self.name_length = 0;
            self.at = At::TrailerName;
        }
        match byte {
            b':' if self.name_length > 0 => {
                self.at = At::TrailerValue;
                self.status.begin(&self.name[..self.name_length.min(LONGEST_FORBIDDEN)]);
                self.refuse_forbidden()
            }
            _ if is_token(byte) => {
                if let Some(place) = self.name.get_mut(self.name_length) {
                    // As CGI and its heirs have it, an underscore is a dash.
                    *place = if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
                }
                self.name_length += 1;
                Ok(())
            }
            _ => Err(bad("a trailer is malformed")),
        }
    }

    fn refuse_forbidden(&self) -> Result<(), Malformed> {
        let known = &self.name[..self.name_length.min(LONGEST_FORBIDDEN)];
        let whole = self.name_length <= LONGEST_FORBIDDEN;
        if (whole && FORBIDDEN_TRAILERS.contains(&known)) || known.starts_with(FORBIDDEN_PREFIX) {
            return Err(bad("a trailer that frames, addresses or routes the message"));
        }
        Ok(())
    }

    fn trailer_value(&mut self, byte: u8) -> Result<(), Malformed> {
        self.count_trailer()?;
        self.status.take(byte);
        if is_text(byte) { Ok(()) } else { Err(bad("a trailer is malformed")) }
    }
}

/// A byte of a field's value: anything but controls, tab excepted (RFC 9110, section 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A byte of a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many bytes are the body's, and whether it ended, when the bytes come in pieces of `piece`.
    fn follow(body: Body, bytes: &[u8], piece: usize) -> Result<(usize, bool), &'static str> {
        let mut progress = Progress::new(body);
        let mut own = 0;
        for bytes in bytes.chunks(piece) {
            let seen = progress.advance(bytes).map_err(|malformed| malformed.what)?;
            own += seen;
            if seen < bytes.len() {
                break;
            }
        }
        Ok((own, progress.is_done()))
    }

    #[test]
    fn a_status_of_grpc_is_read_from_trailers_in_whatever_pieces_and_from_nothing_else() {
        for (bytes, status) in [
            ("1\r\na\r\n0\r\ngrpc-status: 0\r\n\r\n", Some(0)),
            ("0\r\nA: 7\r\nGrpc-Status:14 \r\nB: 3\r\n\r\n", Some(14)),
            ("0\r\ngrpc-status: 1\r\ngrpc-status: 2\r\n\r\n", Some(2)),
            ("0\r\ngrpc-status: 255\r\n\r\n", Some(255)),
            ("0\r\ngrpc-status: 256\r\n\r\n", None),
            ("0\r\ngrpc-status: 1x\r\n\r\n", None),
            ("0\r\ngrpc-status-of: 1\r\n\r\n", None),
            ("14\r\ngrpc-status: 1234567\r\n0\r\n\r\n", None),
            ("0\r\n\r\n", None),
        ] {
            for piece in [1, 2, 7, 100] {
                let mut progress = Progress::new(Body::Chunked);
                bytes.as_bytes().chunks(piece).for_each(|piece| {
                    progress.advance(piece).expect("a body");
                });
                assert_eq!((progress.grpc_status(), progress.is_done()), (status, true), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says_and_nowhere_else() {
        for (body, bytes, own, done) in [
            (Body::Length(0), "GET", 0, true),
            (Body::Length(3), "abcGET", 3, true),
            (Body::Length(9), "abc", 3, false),
            (Body::Chunked, "0\r\n\r\nGET", 5, true),
            (Body::Chunked, "3\r\nabc\r\n0\r\n\r\nGET", 13, true),
            (Body::Chunked, "00A;x=\"y z\"\r\n0123456789\r\n0\r\nA: b\r\nC-D:\r\n\r\nG", 42, true),
            (Body::Chunked, "3\r\nab", 5, false),
            (Body::Chunked, "0\r\nA: b\r\n", 9, false),
            (Body::UntilClose, "anything", 8, false),
        ] {
            for piece in [1, 2, 3, 7, 100] {
                assert_eq!(follow(body, bytes.as_bytes(), piece), Ok((own, done)), "{bytes:?} by {piece}");
            }
        }
    }

    #[test]
    fn chunks_that_readers_could_frame_differently_are_refused() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        let trailers = format!("0\r\nA: {}\r\n", "x".repeat(MAX_TRAILERS));
        for bytes in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1\n",
            ";a\r\n",
            "1\rX",
            "1;a\nb\r\n",
            "1;a\rb",
            "1;\0\r\n",
            "ffffffffffffffff\r\n",
            "0000000000000001\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\rx",
            "0\r\n\rx",
            "0\r\n\n",
            "0\r\nA : b\r\n",
            "0\r\n A: b\r\n",
            "0\r\nA\r\n",
            "0\r\n: b\r\n",
            "0\r\nA: b\nC: d\r\n",
            "0\r\nA: \0\r\n",
            "0\r\nContent-Length: 5\r\n",
            "0\r\ntransfer-Encoding: chunked\r\n",
            "0\r\nHost: x\r\n",
            "0\r\nX-Overlay-Id: alice\r\n",
            "0\r\nx-overlay-something-else: alice\r\n",
            &long,
            &trailers,
        ] {
            for piece in [1, 5, 100_000] {
                assert!(follow(Body::Chunked, bytes.as_bytes(), piece).is_err(), "{bytes:?} by {piece}");
            }
        }
    }

    #[test]
    fn chunks_hold_as_much_as_is_allowed_and_nothing_of_what_is_more_is_let_through() {
        for (most, bytes, passed) in [
            (3, "3\r\nabc\r\n0\r\n\r\n", Ok(13)),
            (2, "3\r\nabc\r\n0\r\n\r\n", Err(413)),
            (4, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Err(413)),
            (0, "0\r\nA: b\r\n\r\n", Ok(11)),
            (u64::MAX, "fffffffffffffff\r\n", Ok(17)),
        ] {
            for piece in [1, 100] {
                let mut progress = Progress::within(Body::Chunked, most);
                let mut pieces = bytes.as_bytes().chunks(piece).map(|piece| progress.advance(piece));
                let seen = pieces.try_fold(0, |seen, own| own.map(|own| seen + own));
                assert_eq!(seen.map_err(|wrong| wrong.status), passed, "{most} {bytes:?} by {piece}");
            }
        }
    }

    proptest! {
        /// A body that was coded in chunks is followed to its last byte, whatever the pieces.
        #[test]
        fn any_chunking_is_followed_to_its_end(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            piece in 1usize..50,
            after in prop::collection::vec(any::<u8>(), 0..5),
        ) {
            let mut coded = Vec::new();
            for chunk in &chunks {
                coded.extend(format!("{:x}\r\n", chunk.len()).bytes());
                coded.extend(chunk);
                coded.extend(b"\r\n");
            }
            coded.extend(b"0\r\n\r\n");
            let length = coded.len();
            coded.extend(after);
            prop_assert_eq!(follow(Body::Chunked, &coded, piece), Ok((length, true)));
        }

        /// What is taken apart is the same as what is followed.
        #[test]
        fn payload_and_trailers_are_told_from_their_framing(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            trailers in "(A: b\r\n){0,2}",
            piece in 1usize..50,
        ) {
            let mut coded = Vec::new();
            for chunk in &chunks {
                coded.extend(format!("{:X};x\r\n", chunk.len()).bytes());
                coded.extend(chunk);
                coded.extend(b"\r\n");
            }
            coded.extend(format!("0\r\n{trailers}\r\n").bytes());
            let (mut payload, mut trailing) = (Vec::<u8>::new(), Vec::<u8>::new());
            let mut progress = Progress::new(Body::Chunked);
            for mut bytes in coded.chunks(piece) {
                while !bytes.is_empty() {
                    let own = usize::try_from(progress.payload()).expect("small").min(bytes.len());
                    if own > 0 {
                        payload.extend(&bytes[..own]);
                        prop_assert_eq!(progress.advance(&bytes[..own]), Ok(own));
                        bytes = &bytes[own..];
                    } else {
                        let in_trailers = progress.is_in_trailers();
                        let framing = progress.skip_framing(bytes).expect("right");
                        if in_trailers {
                            trailing.extend(&bytes[..framing]);
                        }
                        bytes = &bytes[framing..];
                    }
                }
            }
            prop_assert!(progress.is_done());
            prop_assert_eq!(payload, chunks.concat());
            prop_assert_eq!(trailing, format!("{trailers}\r\n").into_bytes());
        }

        /// Hostile bytes get an error or an end, never a panic, and the pieces change nothing.
        #[test]
        fn the_pieces_change_nothing(bytes in "[0-9a-f;\r\n:A \\x00]{0,60}", piece in 1usize..9) {
            let whole = follow(Body::Chunked, bytes.as_bytes(), 1000);
            prop_assert_eq!(follow(Body::Chunked, bytes.as_bytes(), piece), whole);
        }
    }
}
