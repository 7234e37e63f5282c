//! Finding where an answer ends, and its status. Nothing else of it is kept.

/// The most header fields of an answer.
const FIELDS: usize = 100;
/// The longest head of an answer, and the longest line of a chunk's size.
const HEAD: usize = 64 * 1024;

/// An answer that is not HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// An answer that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Whether the connection can carry another request.
    pub reusable: bool,
}

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// Until the connection is closed.
    Rest,
}

/// Reads one answer after the other from the bytes of a connection.
#[derive(Debug)]
pub struct ResponseReader {
    part: Part,
    answer: Answer,
    /// Bytes of a head, a chunk's size or a trailer that is not whole yet.
    kept: Vec<u8>,
    /// Whether a byte of the answer came.
    begun: bool,
}

impl Default for ResponseReader {
    fn default() -> Self {
        let answer = Answer { status: 0, reusable: true };
        Self { part: Part::Head, answer, kept: Vec::new(), begun: false }
    }
}

impl ResponseReader {
    /// Takes bytes from the front of `bytes` and returns how many, and the answer where it is whole
    /// now; takes all where it is not.
    ///
    /// # Errors
    /// This is no HTTP/1.1.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Answer>), Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            self.begun = true;
            let (taken, whole) = self.step(&bytes[at..])?;
            at += taken;
            if whole {
                return Ok((at, Some(self.finish())));
            }
        }
        Ok((at, None))
    }

    /// The connection was closed: the answer that this ends.
    ///
    /// # Errors
    /// An answer was cut off, or none was there.
    pub fn closed(&mut self) -> Result<Answer, Malformed> {
        match self.part {
            Part::Rest => Ok(self.finish()),
            _ => Err(Malformed),
        }
    }

    /// Whether part of an answer was read.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.begun
    }

    fn finish(&mut self) -> Answer {
        self.part = Part::Head;
        self.begun = false;
        self.answer
    }

    /// One part's bytes: how many were taken, and whether the answer is whole.
    fn step(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        match self.part {
            Part::Head => self.block(bytes, Self::head),
            Part::ChunkSize => self.block(bytes, Self::chunk_size),
            Part::Trailers => self.block(bytes, Self::trailers),
            Part::Body(left) => {
                let taken = (bytes.len() as u64).min(left);
                self.part = Part::Body(left - taken);
                Ok((to_usize(taken), taken == left))
            }
            Part::Chunk(left) => {
                let taken = (bytes.len() as u64).min(left);
                self.part = if taken == left { Part::ChunkEnd } else { Part::Chunk(left - taken) };
                Ok((to_usize(taken), false))
            }
            Part::ChunkEnd => self.block(bytes, |reader, bytes| match bytes {
                [b'\r', b'\n', ..] => {
                    reader.part = Part::ChunkSize;
                    Ok(Some((2, false)))
                }
                [b'\r'] => Ok(None),
                _ => Err(Malformed),
            }),
            Part::Rest => Ok((bytes.len(), false)),
        }
    }

    /// Lets `parse` look at what was kept and `bytes` together until it is whole.
    fn block(
        &mut self,
        bytes: &[u8],
        parse: impl Fn(&mut Self, &[u8]) -> Result<Option<(usize, bool)>, Malformed>,
    ) -> Result<(usize, bool), Malformed> {
        // Mostly all is there at once, and nothing is copied.
        if self.kept.is_empty() {
            if let Some(done) = parse(self, bytes)? {
                return Ok(done);
            }
            self.kept.extend_from_slice(bytes);
        } else {
            let before = self.kept.len();
            let mut whole = std::mem::take(&mut self.kept);
            whole.extend_from_slice(bytes);
            if let Some((taken, done)) = parse(self, &whole)? {
                return Ok((taken.checked_sub(before).ok_or(Malformed)?, done));
            }
            self.kept = whole;
        }
        if self.kept.len() > HEAD { Err(Malformed) } else { Ok((bytes.len(), false)) }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Option<(usize, bool)>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut head = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = head.parse(bytes).map_err(|_| Malformed)? else {
            return Ok(None);
        };
        let status = head.code.ok_or(Malformed)?;
        let mut body = None;
        let mut chunked = false;
        // HTTP/1.0 closes unless it says otherwise.
        let mut reusable = head.version == Some(1);
        for field in head.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = std::str::from_utf8(field.value).map_err(|_| Malformed)?;
                let length: u64 = length.trim().parse().map_err(|_| Malformed)?;
                if body.is_some_and(|other| other != length) {
                    return Err(Malformed);
                }
                body = Some(length);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = has_token(field.value, "chunked");
            } else if field.name.eq_ignore_ascii_case("connection") {
                reusable = match reusable {
                    true => !has_token(field.value, "close"),
                    false => has_token(field.value, "keep-alive"),
                };
            }
        }
        self.part = match status {
            // The real answer is still to come.
            100 | 102..=199 => return Ok(Some((length, false))),
            101 => return Err(Malformed),
            204 | 304 => Part::Body(0),
            _ if chunked => Part::ChunkSize,
            _ => body.map_or(Part::Rest, Part::Body),
        };
        self.answer = Answer { status, reusable: reusable && self.part != Part::Rest };
        Ok(Some((length, self.part == Part::Body(0))))
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<Option<(usize, bool)>, Malformed> {
        match httparse::parse_chunk_size(bytes).map_err(|_| Malformed)? {
            httparse::Status::Partial => Ok(None),
            httparse::Status::Complete((length, size)) => {
                self.part = if size == 0 { Part::Trailers } else { Part::Chunk(size) };
                Ok(Some((length, false)))
            }
        }
    }

    fn trailers(&mut self, bytes: &[u8]) -> Result<Option<(usize, bool)>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        match httparse::parse_headers(bytes, &mut fields).map_err(|_| Malformed)? {
            httparse::Status::Partial => Ok(None),
            httparse::Status::Complete((length, _)) => Ok(Some((length, true))),
        }
    }
}

fn has_token(value: &[u8], token: &str) -> bool {
    value.split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Of a number that is at most the length of a slice.
fn to_usize(taken: u64) -> usize {
    usize::try_from(taken).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` in pieces of `size` and says what answers they hold.
    fn read(bytes: &str, size: usize) -> Result<Vec<(u16, bool)>, Malformed> {
        let mut reader = ResponseReader::default();
        let mut answers = Vec::new();
        for piece in bytes.as_bytes().chunks(size) {
            let mut rest = piece;
            while !rest.is_empty() {
                let (taken, answer) = reader.read(rest)?;
                answers.extend(answer.map(|answer| (answer.status, answer.reusable)));
                rest = &rest[taken..];
            }
        }
        if reader.begun() {
            let answer = reader.closed()?;
            answers.push((answer.status, answer.reusable));
        }
        Ok(answers)
    }

    fn in_all_pieces(bytes: &str) -> Result<Vec<(u16, bool)>, Malformed> {
        let whole = read(bytes, bytes.len());
        for size in 1..bytes.len() {
            assert_eq!(read(bytes, size), whole, "{bytes:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn an_answer_ends_where_its_head_says_however_its_bytes_arrive() {
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, true)),
            ("HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", (200, true)),
            ("HTTP/1.1 204 No Content\r\n\r\n", (204, true)),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", (304, true)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                (200, true),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx-sum: 1\r\n\r\n", (200, true)),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n.",
                (500, true),
            ),
            ("HTTP/1.1 200 OK\r\nConnection: foo, Close\r\nContent-Length: 1\r\n\r\n.", (200, false)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n.", (200, false)),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n.", (200, true)),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, false)),
        ] {
            assert_eq!(in_all_pieces(bytes), Ok(vec![expected]), "{bytes:?}");
        }
    }

    #[test]
    fn answers_follow_each_other() {
        let one = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let other = "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        let both = in_all_pieces(&format!("{one}{other}{one}"));
        assert_eq!(both, Ok(vec![(200, true), (404, true), (200, true)]));
    }

    #[test]
    fn what_is_cut_off_or_no_http_is_malformed() {
        for bytes in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
            "HTTP/1.1 200 OK\r\nContent-Len",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
        ] {
            assert_eq!(in_all_pieces(bytes), Err(Malformed), "{bytes:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(2 * HEAD));
        assert_eq!(read(&endless, 1000), Err(Malformed));
    }
}
