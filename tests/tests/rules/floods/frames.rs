//! Frames of HTTP/2, byte by byte, as no library would send them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

pub(super) use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, frame, literal,
};

pub(super) const ACK: u8 = 1;
/// Of a head that is all of its message.
pub(super) const WHOLE: u8 = END_STREAM | END_HEADERS;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The block of a head.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// The pseudo-header fields of a request.
pub(super) fn asks(method: &str) -> [(&str, &str); 4] {
    [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "web")]
}

/// What came of a frame.
pub(super) struct Came {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Came {
    /// The code of an error (RFC 9113, section 7).
    pub(super) fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap()))
    }
}

/// One end of a connection.
pub(super) struct Raw(pub(super) TcpStream);

impl Raw {
    pub(super) fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Connects as a client, and sends settings.
    pub(super) fn connect(address: SocketAddr, settings: &[u8]) -> Self {
        let mut raw = Self::over(TcpStream::connect(address).unwrap());
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        raw
    }

    /// Sends, as far as it is taken; says whether all of it was.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// The next frame; `None` where the connection is over.
    pub(super) fn next(&mut self) -> Option<Came> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.read(&mut payload)?;
        Some(Came { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    fn read(&mut self, into: &mut [u8]) -> Option<()> {
        match self.0.read_exact(into) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it hangs"),
            read => read.ok(),
        }
    }

    /// The first frame of which `wanted` says something.
    pub(super) fn until<R>(&mut self, wanted: impl Fn(&Came) -> Option<R>) -> Option<R> {
        loop {
            let came = self.next()?;
            if let Some(found) = wanted(&came) {
                return Some(found);
            }
        }
    }

    /// Says that nothing more comes.
    pub(super) fn finish(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}
