//! Percent-encoding (RFC 3986, section 2.1).

use std::borrow::Cow;

/// `value` without its percent-encoding; what is not well encoded stays as it is.
pub(super) fn decoded(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'%') {
        return Cow::Borrowed(value);
    }
    let hex = |b: u8| (b as char).to_digit(16);
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, tail @ ..] = rest {
        (decoded, rest) = match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                let byte = hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0);
                decoded.push(u8::try_from(byte).unwrap_or_default());
                (decoded, after)
            }
            _ => {
                decoded.push(*first);
                (decoded, tail)
            }
        };
    }
    Cow::Owned(decoded)
}
