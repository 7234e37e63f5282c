//! Headers that carry the key: the baseline's own, and foreign ones.

use super::{Form, InvalidKey, Keys, percent};

/// How the names of headers begin in which OpenTracing carries baggage; their values are percent-encoded.
const OPENTRACING: [&str; 2] = ["ot-baggage-", "uberctx-"];

/// Whether the values of this header, in lower case, are percent-encoded.
pub(super) fn is_encoded(name: &str) -> bool {
    OPENTRACING.iter().any(|prefix| name.starts_with(prefix))
}

/// The keys in the lines of a foreign header.
pub(super) fn read_foreign<'l>(
    lines: impl Iterator<Item = &'l [u8]>,
    encoded: bool,
    form: Form,
) -> Result<Option<Keys>, InvalidKey> {
    if !encoded {
        return form.parse(lines);
    }
    let lines: Vec<_> = lines.map(percent::decoded).collect();
    form.parse(lines.iter().map(|line| &**line))
}

/// The keys in the lines of our own header. Empty lines are no key.
///
/// # Errors
/// What is not an id is refused: in our own header it can only be a mistake.
pub fn read<'l>(lines: impl IntoIterator<Item = &'l [u8]>) -> Result<Option<Keys>, InvalidKey> {
    Keys::parse(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], expected: Result<Option<&str>, ()>) {
        let read = read(lines.iter().map(|line| line.as_bytes()));
        let shown = read.as_ref().map(|keys| keys.as_ref().map(Keys::as_str)).map_err(|_| ());
        assert_eq!(shown, expected, "{lines:?}");
    }

    #[test]
    fn ids_are_read_in_order_from_one_line_or_several_without_duplicates() {
        check(&["alice"], Ok(Some("alice")));
        check(&["a, b"], Ok(Some("a, b")));
        check(&["a ,b", "c", "a"], Ok(Some("a, b, c")));
        check(&["", " , "], Ok(None));
        check(&[], Ok(None));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        check(&["a b"], Err(()));
        check(&["Alice"], Err(()));
        check(&["a\u{0}"], Err(()));
        check(&["a--b"], Err(()));
    }

    #[test]
    fn the_ninth_id_is_refused_and_a_repeated_one_is_not_counted() {
        check(&["a,b,c,d,e,f,g,h"], Ok(Some("a, b, c, d, e, f, g, h")));
        check(&["a,b,c,d,e,f,g,h,a"], Ok(Some("a, b, c, d, e, f, g, h")));
        check(&["a,b,c,d,e,f,g,h,i"], Err(()));
    }

    #[test]
    fn eight_ids_of_the_greatest_length_fit() {
        let ids: Vec<String> = (0..8).map(|n| format!("{}{n}", "x".repeat(62))).collect();
        let line = ids.join(",");
        check(&[&line], Ok(Some(&ids.join(", "))));
    }
}
