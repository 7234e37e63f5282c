//! Corpora of hostile messages: one case a line, in a frame; `tests/corpus/requests.txt` says how they are written.

/// A case: what is sent, and what must come of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Where it stands, and what must come of it.
    pub name: String,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// What must come of it.
    pub outcome: Outcome,
    /// The same on the Pingora engine, where that differs.
    pub on_pingora: Option<Outcome>,
}

/// What must come of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything goes through, as a strict reader reads it.
    Passes,
    /// So many requests go through, and the next one is refused with this status.
    Refused(usize, u16),
}

/// The lines of a corpus that are cases: their numbers, outcomes, and what they say in their frames.
pub fn framed(text: &str) -> impl Iterator<Item = (usize, &str, String)> {
    let mut frame = "{}";
    text.lines().enumerate().filter_map(move |(number, line)| {
        if let Some(new) = line.strip_prefix("@ ") {
            frame = new;
            return None;
        }
        let (outcome, case) = line.split_once("  ").unwrap_or((line.trim_end(), ""));
        let is_case = !line.is_empty() && !line.starts_with('#');
        is_case.then(|| (number + 1, outcome, frame.replacen("{}", case, 1)))
    })
}

/// The cases of a corpus.
///
/// # Panics
/// Where a line is none.
#[must_use]
pub fn cases(text: &str) -> Vec<Case> {
    let cases = framed(text).map(|(number, outcome, written)| {
        let (auto, pingora) = outcome.split_once('/').map_or((outcome, None), |(a, p)| (a, Some(p)));
        Case {
            name: format!("line {number}: {outcome}"),
            bytes: unescaped(&written),
            outcome: outcome_of(auto),
            on_pingora: pingora.map(outcome_of),
        }
    });
    cases.collect()
}

fn outcome_of(text: &str) -> Outcome {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is no outcome"));
    match text.split_once(':') {
        _ if text == "pass" => Outcome::Passes,
        Some((second, status)) => Outcome::Refused(usize::from(number(second)) - 1, number(status)),
        None => Outcome::Refused(0, number(text)),
    }
}

/// Bytes from how they are written.
///
/// # Panics
/// Where an escape is none.
#[must_use]
pub fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '\\' => {
                let (byte, length) = match rest.as_bytes()[0] {
                    b'r' => (b'\r', 1),
                    b'n' => (b'\n', 1),
                    b't' => (b'\t', 1),
                    b'0' => (0, 1),
                    b'\\' => (b'\\', 1),
                    b'x' => (u8::from_str_radix(&rest[1..3], 16).unwrap(), 3),
                    other => panic!("`\\{}` in {text:?}", other as char),
                };
                bytes.push(byte);
                rest = &rest[length..];
            }
            '{' if rest.get(1..2) == Some("*") => {
                let (count, after) = rest[2..].split_once('}').unwrap();
                bytes.extend(vec![rest.as_bytes()[0]; count.parse().unwrap()]);
                rest = after;
            }
            letter => bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_case_in_the_frame_before_it() {
        let cases = cases("# not\n\n@ a{}\\r\\n\n400  b\\x41\\0{x*3}\n2:501/pass  {\"\n");
        assert_eq!(cases[0].bytes, b"abA\0xxx\r\n");
        assert_eq!((cases[0].outcome, cases[0].on_pingora), (Outcome::Refused(0, 400), None));
        assert_eq!(cases[1].bytes, b"a{\"\r\n");
        assert_eq!(
            (cases[1].outcome, cases[1].on_pingora),
            (Outcome::Refused(1, 501), Some(Outcome::Passes))
        );
    }
}
