//! Frames of HTTP/2, written by hand: so that they can be wrong (RFC 9113, section 6).

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// A frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field that nobody remembers, as it is (RFC 7541, section 6.2.2).
pub(super) fn literal(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let text = |text: &[u8]| [&integer(text.len())[..], text].concat();
    [&[0][..], &text(name.as_ref()), &text(value.as_ref())].concat()
}

/// A length of a text without Huffman's code (RFC 7541, section 5.1).
fn integer(mut value: usize) -> Vec<u8> {
    const PREFIX: usize = 127;
    if value < PREFIX {
        return vec![value as u8];
    }
    value -= PREFIX;
    let mut bytes = vec![PREFIX as u8];
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
    bytes
}
