//! What HTTP/1.1 says about received bytes: a reader of its own, so that nothing of the proxy judges the proxy.
//!
//! It is stricter than a client may be: what it does not understand is [`Read::Malformed`], never guessed.

/// A field: name as received, value without the white space around it.
pub type Field = (String, String);

/// How a body was delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Nothing,
    /// By `Content-Length`.
    Length(usize),
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    ToClose,
}

/// A message, as far as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The request line or the status line.
    pub start: String,
    /// The fields, in order.
    pub fields: Vec<Field>,
    /// How the body is delimited.
    pub framing: Framing,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// The fields after the last chunk.
    pub trailers: Vec<Field>,
    /// Whether it is all there.
    pub whole: bool,
    /// How many bytes of the input belong to it.
    pub length: usize,
}

/// What some bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The head is not all there yet.
    NoHead,
    /// A message, perhaps not whole.
    Message(Message),
    /// No HTTP/1.1, and why.
    Malformed(String),
}

/// Which message the bytes should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// The response to any method but HEAD.
    Response,
    /// The response to HEAD.
    ResponseToHead,
}

impl Message {
    /// The values of a field, in order.
    pub fn values<'m>(&'m self, name: &'m str) -> impl Iterator<Item = &'m str> {
        self.fields.iter().filter(move |field| field.0.eq_ignore_ascii_case(name)).map(|field| &*field.1)
    }

    /// The status of a response.
    #[must_use]
    pub fn status(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// Whether it is a response before the final one.
    #[must_use]
    pub fn interim(&self) -> bool {
        self.start.starts_with("HTTP/") && self.status().starts_with('1') && self.status() != "101"
    }
}

/// Reads one message from the start of `bytes`; `ended` says that no more will come.
#[must_use]
pub fn read(bytes: &[u8], kind: Kind, ended: bool) -> Read {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Read::NoHead;
    };
    let mut lines = lines(&bytes[..end]);
    let start = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let found = fields(lines)
        .and_then(|fields| framing(&start, &fields, kind).map(|framing| (fields, framing)))
        .and_then(|(fields, framing)| {
            let mut message = Message {
                start,
                fields,
                framing,
                body: Vec::new(),
                trailers: Vec::new(),
                whole: false,
                length: end + 4,
            };
            body(&bytes[end + 4..], ended, &mut message)?;
            Ok(message)
        });
    match found {
        Ok(message) => Read::Message(message),
        Err(why) => Read::Malformed(why),
    }
}

/// The whole messages that some bytes begin with.
#[must_use]
pub fn messages(mut bytes: &[u8], kind: Kind) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        // Empty lines before a message are none of it.
        while let Some(rest) = bytes.strip_prefix(b"\r\n") {
            bytes = rest;
        }
        match read(bytes, kind, true) {
            Read::Message(message) if message.whole => {
                bytes = &bytes[message.length..];
                messages.push(message);
            }
            _ => return messages,
        }
    }
}

/// Lines that end with CRLF; a bare one of either stays in its line, where nothing takes it.
fn lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut over = false;
    std::iter::from_fn(move || {
        let end = bytes.windows(2).position(|window| window == b"\r\n");
        let line = &bytes[..end.unwrap_or(bytes.len())];
        bytes = end.map_or(&[], |end| &bytes[end + 2..]);
        (!std::mem::replace(&mut over, end.is_none())).then_some(line)
    })
}

fn fields<'b>(lines: impl Iterator<Item = &'b [u8]>) -> Result<Vec<Field>, String> {
    let mut fields = Vec::new();
    for line in lines {
        let text = String::from_utf8_lossy(line);
        match text.split_once(':') {
            Some((name, value))
                if token(name) && !value.contains(|c: char| c.is_ascii_control() && c != '\t') =>
            {
                fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
            }
            _ => return Err(format!("the line {text:?} is no field")),
        }
    }
    Ok(fields)
}

/// RFC 9112, section 3.
fn request_line(start: &str, hosts: &[&str]) -> Result<(), String> {
    let words: Vec<_> = start.split(' ').collect();
    let fine = matches!((&*words, hosts), ([_, _, "HTTP/1.0"], []) | ([_, _, "HTTP/1.0" | "HTTP/1.1"], [_]));
    // A method may have a `#`.
    let seen = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_ascii_control() || c == '#');
    match fine && token(words[0]) && seen(words[1]) {
        true => Ok(()),
        false => Err(format!("{start:?} with hosts {hosts:?} is no request line")),
    }
}

pub(crate) fn token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b))
}

/// RFC 9112, section 6.3.
fn framing(start: &str, fields: &[Field], kind: Kind) -> Result<Framing, String> {
    let values = |name: &str| -> Vec<&str> {
        fields.iter().filter(|field| field.0.eq_ignore_ascii_case(name)).map(|field| &*field.1).collect()
    };
    let status = start.split(' ').nth(1).unwrap_or_default();
    if kind != Kind::Request {
        let seen = !start.contains(|c: char| c.is_ascii_control() && c != '\t');
        if !start.starts_with("HTTP/1.") || status.len() != 3 || !seen {
            return Err(format!("{start:?} is no status line"));
        }
        if kind == Kind::ResponseToHead || status.starts_with('1') || matches!(status, "204" | "304") {
            return Ok(Framing::Nothing);
        }
    } else {
        request_line(start, &values("host"))?;
    }
    match (&*values("transfer-encoding"), &*values("content-length")) {
        ([], []) if kind == Kind::Request => Ok(Framing::Nothing),
        ([], []) => Ok(Framing::ToClose),
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        ([], [length]) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| format!("a length of {length}"))
        }
        (codings, lengths) => Err(format!("transfer codings {codings:?}, lengths {lengths:?}")),
    }
}

fn body(bytes: &[u8], ended: bool, message: &mut Message) -> Result<(), String> {
    match message.framing {
        Framing::Nothing => message.whole = true,
        Framing::Length(length) => {
            message.body = bytes[..length.min(bytes.len())].to_vec();
            message.whole = message.body.len() == length;
            message.length += message.body.len();
        }
        Framing::ToClose => {
            message.body = bytes.to_vec();
            message.whole = ended;
            message.length += bytes.len();
        }
        Framing::Chunked => {
            message.length += chunks(bytes, message)?;
        }
    }
    Ok(())
}

/// Reads chunks and trailers as far as they go; returns how many bytes they are.
fn chunks(bytes: &[u8], message: &mut Message) -> Result<usize, String> {
    let mut at = 0;
    while let Some(length) = bytes[at..].windows(2).position(|window| window == b"\r\n") {
        let line = String::from_utf8_lossy(&bytes[at..at + length]);
        let digits = line.split(';').next().unwrap_or_default();
        let plain = (1..16).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let plain = plain && !line.contains(|c: char| c.is_ascii_control() && c != '\t');
        let size = usize::from_str_radix(digits, 16).ok().filter(|_| plain);
        let size = size.ok_or_else(|| format!("{line:?} is no chunk size"))?;
        let begin = at + length + 2;
        if size == 0 {
            return trailers(bytes, at, begin, message);
        }
        let there = (bytes.len() - begin).min(size);
        message.body.extend_from_slice(&bytes[begin..begin + there]);
        let end = begin + size;
        match bytes.get(end..end + 2) {
            Some(b"\r\n") => at = end + 2,
            Some(_) => return Err("a chunk without CRLF at its end".to_owned()),
            None => return Ok(bytes.len()),
        }
    }
    Ok(bytes.len())
}

fn trailers(bytes: &[u8], last_chunk: usize, begin: usize, message: &mut Message) -> Result<usize, String> {
    // From the CRLF of the last chunk's line, so that an empty section ends like any other.
    let section = &bytes[begin - 2..];
    let Some(end) = section.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(last_chunk);
    };
    if end > 0 {
        message.trailers = fields(lines(&section[2..end]))?;
    }
    message.whole = true;
    Ok(begin - 2 + end + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &str, kind: Kind, ended: bool) -> Message {
        match read(bytes.as_bytes(), kind, ended) {
            Read::Message(message) => message,
            other => panic!("{bytes:?}: {other:?}"),
        }
    }

    #[test]
    fn a_message_ends_where_its_framing_says() {
        let sized =
            message("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET", Kind::Request, false);
        assert_eq!((&*sized.body, sized.whole, sized.length), (&b"abc"[..], true, 50));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n";
        let whole = message(&format!("{chunked}HTTP"), Kind::Response, false);
        assert_eq!((&*whole.body, whole.whole, whole.length), (&b"abc"[..], true, chunked.len()));
        assert_eq!(whole.trailers, [("A".to_owned(), "b".to_owned())]);
        for cut in 48..chunked.len() {
            assert!(!message(&chunked[..cut], Kind::Response, true).whole, "cut at {cut}");
        }
        let empty =
            message("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Kind::Response, false);
        assert!(empty.whole && empty.body.is_empty());
        assert!(!message("HTTP/1.0 200 OK\r\n\r\nab", Kind::Response, false).whole);
        assert!(message("HTTP/1.0 200 OK\r\n\r\nab", Kind::Response, true).whole);
        assert!(message("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Kind::ResponseToHead, false).whole);
    }

    #[test]
    fn what_readers_could_disagree_on_is_malformed() {
        for bytes in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;\n\r\na\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
            "200 OK\r\n\r\n",
        ] {
            assert!(matches!(read(bytes.as_bytes(), Kind::Response, false), Read::Malformed(_)), "{bytes:?}");
        }
        assert_eq!(read(b"HTTP/1.1 200", Kind::Response, false), Read::NoHead);
    }
}
