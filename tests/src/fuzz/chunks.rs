//! Bodies in chunks, in pieces of any size: what is followed to its end is what [`message`] reads.

use overlane::h1::body::{Body, Progress};

use crate::message::{self, Kind, Message, Read};

/// The first byte says how long the pieces are; the others are the body, and what follows it.
///
/// # Panics
/// Where a rule is broken.
pub fn check(input: &[u8]) {
    let Some((piece, bytes)) = input.split_first() else { return };
    let piece = usize::from(*piece).max(1);
    let whole = follow(bytes, bytes.len().max(1));
    assert_eq!(follow(bytes, piece), whole, "the pieces change nothing");
    assert_eq!(
        taken_apart(bytes, piece).map(|apart| (apart.own, apart.done)),
        whole,
        "nor does how it is read"
    );
    let Ok((own, done)) = whole else { return };
    let head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let theirs = theirs(&[head.as_bytes(), bytes].concat());
    assert_eq!(theirs.whole, done);
    if done {
        assert_eq!(theirs.length - head.len(), own, "where it ends");
        let apart = taken_apart(bytes, piece).expect("right");
        assert_eq!(apart.payload, theirs.body);
        assert_eq!(apart.trailers.is_empty(), theirs.trailers.is_empty());
        let over = Progress::new(Body::Length(own as u64)).advance(bytes);
        assert_eq!(over, Ok(own), "a length ends where it says");
    }
}

fn theirs(bytes: &[u8]) -> Message {
    match message::read(bytes, Kind::Request, true) {
        Read::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

/// How many bytes are the body's and whether it ended, or what is wrong.
fn follow(bytes: &[u8], piece: usize) -> Result<(usize, bool), &'static str> {
    let mut progress = Progress::new(Body::Chunked);
    let mut own = 0;
    for bytes in bytes.chunks(piece) {
        let seen = progress.advance(bytes).map_err(|malformed| malformed.what)?;
        assert!(seen == bytes.len() || progress.is_done(), "only at its end it leaves bytes");
        own += seen;
    }
    Ok((own, progress.is_done()))
}

#[derive(Default)]
struct Apart {
    own: usize,
    done: bool,
    payload: Vec<u8>,
    /// Without the line that ends them.
    trailers: Vec<u8>,
}

/// The same, with payload and framing told apart.
fn taken_apart(bytes: &[u8], piece: usize) -> Result<Apart, &'static str> {
    let mut progress = Progress::new(Body::Chunked);
    let mut apart = Apart::default();
    for mut bytes in bytes.chunks(piece) {
        while !bytes.is_empty() && !progress.is_done() {
            let payload = usize::try_from(progress.payload()).unwrap_or(usize::MAX).min(bytes.len());
            let in_trailers = progress.is_in_trailers();
            let seen = if payload > 0 {
                apart.payload.extend_from_slice(&bytes[..payload]);
                progress.advance(&bytes[..payload])
            } else {
                progress.skip_framing(bytes)
            };
            let seen = seen.map_err(|malformed| malformed.what)?;
            assert!(seen > 0, "it gets on");
            if in_trailers {
                apart.trailers.extend_from_slice(&bytes[..seen]);
            }
            apart.own += seen;
            bytes = &bytes[seen..];
        }
    }
    apart.done = progress.is_done();
    apart.trailers.truncate(apart.trailers.len().saturating_sub(2));
    Ok(apart)
}
